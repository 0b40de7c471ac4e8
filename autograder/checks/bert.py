"""Checks of chapter 12: hiding tokens, the encoder that finds them, scoring a text with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autograder.child.protocol import Seed
from autograder.engine.exercise import Assignment, Exercise, Rng
from autograder.engine.expect import expect, fail, same
from autograder.engine.guards import MUTATES, MUTATION_TITLE, guard
from autograder.engine.handle import Handle, StudentError
from rnn2gpt.attention import causal_mask
from rnn2gpt.transformer import TransformerBlock

ASSIGNMENT = Assignment(
    name="12-bert",
    notebook="bert",
    page="12_bert",
    sections={
        "hide-and-ask": "Hide a word and ask for it",
        "eighty-ten-ten": "80, 10, 10",
        "the-encoder": "The encoder",
        "the-masked-head": "The head",
        "pseudo-log-likelihood": "Scoring a whole line",
    },
    minutes=75,
    modules=(
        "data", "metrics", "ngram", "rnn", "lstm", "attention", "multi_head", "positions",
        "transformer", "tokenizer", "gpt", "kv_cache", "generation",
    ),
)  # fmt: skip


def _mistake(
    exercise: Exercise, name: str, see: str, did: str, causes: str
) -> Callable[[Any], Any]:
    return exercise.misconception(did=did, causes=causes, see=see, name=name)


# --- mask_tokens --------------------------------------------------------------------------------

mask_tokens = ASSIGNMENT.exercise(
    "mask_tokens",
    points=4,
    hints=(
        "Each token goes through two draws. What does the first decide, what the second, and for"
        " whom does the second matter?",
        "Draw two tensors of uniform numbers and one of candidate tokens, all of ids' shape. Build"
        " a mask of the chosen, then `torch.where` for the labels and once for each fate. Draw the"
        " candidates as indices into a table of the ordinary ids, so that no special one can come.",
        "chosen = (u < p) & ordinary. Of the chosen: mask_id where w < 0.8, a candidate where"
        " 0.8 ≤ w < 0.9, the token itself elsewhere.",
    ),
)

V, MASK, SPECIAL = 97, 3, (0, 3, 96)  # special ids at both ends and between
ORDINARY = torch.tensor([i for i in range(V) if i not in SPECIAL])


def hide(
    student: Handle, rng: Rng, ids: Tensor, p: float = 0.15, generator: Any = None
) -> tuple[Tensor, Tensor]:
    """The student's inputs and labels, of the right form, with labels that fit the ids."""
    generator = Seed(rng.integer(0, 999)) if generator is None else generator
    result = student(ids, MASK, V, SPECIAL, p=p, generator=generator)
    expect(result, "the result").holds(
        isinstance(result, (tuple, list)) and len(result) == 2, "expected (inputs, labels)."
    )
    for name, part in zip(("inputs", "labels"), result, strict=True):
        expect(part, name).has_shape(*ids.shape)
        expect(part, name).has_dtype(torch.int64)
    inputs, labels = result
    if p < 0.9 and ids.numel() > 50 and bool((labels == ids).all()):
        fail("labels equals ids everywhere; no entry is −100.", "labels_everywhere")
    _expect_labels(ids, inputs, labels)
    return inputs, labels


def _expect_labels(ids: Tensor, inputs: Tensor, labels: Tensor) -> None:
    """−100 where nothing is asked, and there the inputs are the ids; elsewhere the ids."""
    special = torch.isin(ids, torch.tensor(SPECIAL))
    changed, asked = inputs != ids, labels != -100
    zero = asked & (labels == 0) & (ids != 0)
    if bool(zero.any()) and not bool((zero & changed).any()):
        fail("labels holds 0 where nothing was chosen; it must be −100.", "labels_zero")
    if bool((special & (changed | asked)).any()):
        fail("a special token is hidden or asked for.", "specials_masked")
    if bool(changed.any()) and torch.equal(asked, ~changed):
        fail("labels is −100 just where a token was hidden.", "labels_turned_around")
    if bool(asked.any()) and bool((labels == inputs)[asked].all()) and bool(changed.any()):
        fail("labels holds what stands in inputs, not the tokens hidden.", "labels_after_masking")
    wrong = asked & (labels != ids)
    expect(labels, "labels").holds(not wrong.any(), "an entry is neither −100 nor the id there.")
    silent = changed & ~asked
    if bool(silent.any()) and not bool((inputs == MASK)[silent].any()):
        fail("some tokens were replaced by others while their label is −100.", "only_masks_asked")
    expect(inputs, "inputs").holds(not silent.any(), "a token whose label is −100 was changed.")


def ordinary_ids(rng: Rng, *shape: int) -> Tensor:
    return ORDINARY[rng.integers(0, len(ORDINARY), *shape)]


def expect_share(hits: int, n: int, share: float, what: str) -> None:
    """`hits` of n lie within six standard deviations of the share: by chance once in 10⁹ calls."""
    room = 6 * math.sqrt(share * (1 - share) / n)
    expect(hits, what).holds(
        abs(hits / n - share) <= room, f"expected about {share:.3f}, got {hits / n:.3f}."
    )


@mask_tokens.case("asks for the token that stood there, and says −100 everywhere else")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.integers(0, V, 211, 60).T  # special ones too, and not contiguous
    _, labels = hide(student, rng, ids)
    expect(labels, "labels").holds(bool((labels != -100).any()), "nothing is asked for.")


@mask_tokens.case("chooses the share p of the ordinary tokens")
def _(student: Handle, rng: Rng) -> None:
    ids = ordinary_ids(rng, 150, 101)
    for p in (0.4, 0.15):
        inputs, labels = hide(student, rng, ids, p)
        asked = int((labels != -100).sum())
        share = asked / ids.numel()
        if p == 0.4 and abs(share - 0.15) < 0.02:
            fail(f"with p=0.4 the share of the chosen is {share:.3f}.", "p_ignored")
        if abs(share - (1 - p)) < 0.03:
            fail(f"with p={p} the share of the chosen is {share:.3f}.", "p_turned_around")
        if abs(share - 0.9 * p) < 0.02 * p and not bool((inputs == ids)[labels != -100].any()):
            fail(f"with p={p} the share of labels is {share:.3f}, 0.9·p.", "only_changes_asked")
        expect_share(asked, ids.numel(), p, f"the share of the chosen with p={p}")


@mask_tokens.case("masks 80 % of the chosen, replaces 10 %, and leaves 10 %")
def _(student: Handle, rng: Rng) -> None:
    ids = ordinary_ids(rng, 150, 101)
    inputs, labels = hide(student, rng, ids, 0.7)
    asked = labels != -100
    n, masked = int(asked.sum()), int((inputs == MASK)[asked].sum())
    kept = int((inputs == ids)[asked].sum())
    shares = f"masked {masked / n:.2f}, replaced {(n - masked - kept) / n:.2f}, left {kept / n:.2f}"
    if masked == n:
        fail(f"of the chosen: {shares}.", "all_masks")
    if masked + kept == n:
        fail(f"of the chosen: {shares}.", "none_replaced")
    if kept < 0.02 * n:
        fail(f"of the chosen: {shares}.", "none_left")
    if abs(kept / n - 0.18) < 0.02:
        fail(f"of the chosen: {shares}.", "a_tenth_of_the_rest")
    expect_share(masked, n, 0.8, "the share of the chosen that is masked")
    # A replacement may be the token itself.
    expect_share(kept, n, 0.1 + 0.1 / len(ORDINARY), "the share of the chosen that is left")


@mask_tokens.case("replaces by any ordinary token, and by no special one")
def _(student: Handle, rng: Rng) -> None:
    ids = ORDINARY[rng.integers(5, 10, 200, 101)]  # five tokens only: others must still come
    inputs, labels = hide(student, rng, ids, 1.0)
    drawn = inputs[(labels != -100) & (inputs != ids) & (inputs != MASK)]
    expect(drawn, "the replacements").holds(len(drawn) > 0, "there is none.")
    if bool(((drawn < 0) | (drawn >= V)).any()):
        fail(f"a token became {int(drawn.max())}; ids end at {V - 1}.", "random_out_of_range")
    if bool(torch.isin(drawn, torch.tensor(SPECIAL)).any()):
        fail("a token was replaced by a special one.", "random_special")
    different = len(drawn.unique())
    if different == 1:
        fail(f"all {len(drawn)} replacements are the same token.", "one_random_token")
    if bool(torch.isin(drawn, ids).all()):
        fail("only tokens of the batch come as replacements.", "drawn_from_the_batch")
    # About 2,000 draws from 94 tokens: a given one is missing once in 10⁹ calls.
    expect(different, "how many different replacements there are").equals(len(ORDINARY))


@mask_tokens.case("decides for each token by itself")
def _(student: Handle, rng: Rng) -> None:
    inputs, labels = hide(student, rng, ordinary_ids(rng, 300, 11), 0.3)
    asked = labels != -100
    if bool((asked == asked[0]).all()):
        fail("every row of the batch has its masks at the same places.", "one_pattern")
    if bool((asked.sum(dim=1) == asked[0].sum()).all()):
        fail(f"every row of 11 tokens has exactly {int(asked[0].sum())} chosen.", "fixed_count")
    fates = (inputs == MASK)[asked]
    expect(fates, "the fates").holds(not fates.all(), "every chosen token is masked.")


@mask_tokens.case("hides nothing with p = 0 and every ordinary token with p = 1")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.integers(0, V, 40, 31)
    inputs, labels = hide(student, rng, ids, 0.0)
    expect(inputs, "inputs with p=0").equals(ids)
    expect(labels, "labels with p=0").equals(torch.full_like(ids, -100))
    _, labels = hide(student, rng, ids, 1.0)
    special = torch.isin(ids, torch.tensor(SPECIAL))
    expect(labels, "labels with p=1").equals(torch.where(special, -100, ids))


@mask_tokens.case("draws anew at each call, as the generator says")
def _(student: Handle, rng: Rng) -> None:
    ids, seed = ordinary_ids(rng, 20, 31), rng.integer(0, 999)
    one, two = (hide(student, rng, ids, 0.5, Seed(seed)) for _ in range(2))
    if not same(one, two):
        fail("one seed gave two different results.", "generator_ignored")
    kept = student.keep(Seed(seed))
    if same(hide(student, rng, ids, 0.5, kept), hide(student, rng, ids, 0.5, kept)):
        fail("two calls with one generator gave the same result.", "same_each_time")
    free = [student(ids, MASK, V, SPECIAL, 0.5) for _ in range(2)]
    if same(*free):
        fail("two calls without a generator gave the same result.", "same_each_time")


guard(
    mask_tokens,
    lambda rng, dtype: (rng.integers(0, V, 3, 7), MASK, V, SPECIAL, 0.5),
    gradient=False,
    dtype=False,
)


def ordinary_of(vocab_size: int, special_ids: Iterable[int]) -> Tensor:
    return torch.tensor(sorted(set(range(vocab_size)) - set(special_ids)))


class Masking:
    """What the wrong maskings below have in common; each spoils one of the small methods."""

    edges = (0.8, 0.9)  # below the first: masked; up to the second: replaced; above: left

    def chosen(self, ids: Tensor, special: Tensor, p: float, generator: Any) -> Tensor:
        return (torch.rand(ids.shape, generator=generator) < p) & ~special

    def fate(self, ids: Tensor, generator: Any) -> Tensor:
        return torch.rand(ids.shape, generator=generator)

    def other(
        self, ids: Tensor, vocab_size: int, special_ids: Iterable[int], generator: Any
    ) -> Tensor:
        table = ordinary_of(vocab_size, special_ids)
        return table[torch.randint(len(table), ids.shape, generator=generator)]

    def labels(self, ids: Tensor, inputs: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(chosen, ids, -100)

    def source(self, generator: Any) -> Any:
        return generator

    def __call__(
        self,
        ids: Tensor,
        mask_id: int,
        vocab_size: int,
        special_ids: Iterable[int],
        p: float = 0.15,
        generator: Any = None,
    ) -> tuple[Tensor, Tensor]:
        generator = self.source(generator)
        special = torch.isin(ids, torch.tensor(sorted(special_ids)))
        chosen = self.chosen(ids, special, p, generator)
        fate = self.fate(ids, generator)
        other = self.other(ids, vocab_size, special_ids, generator)
        mask, swap = self.edges
        inputs = torch.where(chosen & (fate < mask), mask_id, ids)
        inputs = torch.where(chosen & (fate >= mask) & (fate < swap), other, inputs)
        return inputs, self.labels(ids, inputs, chosen)


def _masking(name: str, see: str, did: str, causes: str) -> Callable[[type[Masking]], None]:
    """Register an object of the class as a wrong `mask_tokens`."""
    return lambda cls: _mistake(mask_tokens, name, see, did, causes)(cls())


@_masking(
    "labels_everywhere",
    "hide-and-ask",
    "Your labels are the ids at every position; they must be −100 where nothing was chosen.",
    "The loss then counts the 85 % of tokens that stand in the input, and copying them is all that"
    " the model learns.",
)
class LabelsEverywhere(Masking):
    def labels(self, ids: Tensor, inputs: Tensor, chosen: Tensor) -> Tensor:
        return ids.clone()


@_masking(
    "labels_zero",
    "hide-and-ask",
    "Your labels are 0 where nothing was chosen; `cross_entropy` leaves out −100.",
    "Everywhere else the model is taught to answer token 0, and soon it answers little else.",
)
class LabelsZero(Masking):
    def labels(self, ids: Tensor, inputs: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(chosen, ids, 0)


@_masking(
    "labels_turned_around",
    "hide-and-ask",
    "Your labels are −100 at the chosen tokens and the ids everywhere else.",
    "The model is asked only for what it can read, and never for what is hidden.",
)
class LabelsTurnedAround(Masking):
    edges = (1.0, 1.0)

    def labels(self, ids: Tensor, inputs: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(inputs != ids, -100, ids)


@_masking(
    "labels_after_masking",
    "hide-and-ask",
    "Your labels are taken from the inputs after the tokens were hidden.",
    "The right answer at a mask is then “mask”: the loss falls to 0 and nothing is learned. Take"
    " the labels from ids.",
)
class LabelsAfterMasking(Masking):
    def labels(self, ids: Tensor, inputs: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(chosen, inputs, -100)


@_masking(
    "only_masks_asked",
    "eighty-ten-ten",
    "Only the positions that show the mask have a label; those you replaced have none.",
    "A wrong token in the input then costs nothing, so the model never learns to doubt what it"
    " reads. All chosen tokens are asked for.",
)
class OnlyMasksAsked(Masking):
    def labels(self, ids: Tensor, inputs: Tensor, chosen: Tensor) -> Tensor:
        return torch.where((inputs == MASK) & chosen, ids, -100)


@_masking(
    "only_changes_asked",
    "eighty-ten-ten",
    "Only the positions that you changed have a label; the chosen ones that stay have none.",
    "The tenth that stays is there so that the model must answer for tokens it can read: without a"
    " label it is as if it had not been chosen.",
)
class OnlyChangesAsked(Masking):
    def labels(self, ids: Tensor, inputs: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(inputs != ids, ids, -100)


@_masking(
    "all_masks",
    "eighty-ten-ten",
    "Every chosen token becomes the mask; only 80 % of them should.",
    "The model then learns to answer at masks and nowhere else, and in use, where no mask stands,"
    " it was never asked for anything.",
)
class AllMasks(Masking):
    edges = (1.0, 1.0)


@_masking(
    "none_replaced",
    "eighty-ten-ten",
    "No chosen token is replaced by another: those that are not masked all stay.",
    "A token that stands in the input is then always the right answer, so at unmasked places"
    " copying is enough.",
)
class NoneReplaced(Masking):
    edges = (0.8, 0.8)


@_masking(
    "none_left",
    "eighty-ten-ten",
    "No chosen token stays: those that are not masked are all replaced.",
    "An ordinary token that is asked for is then always wrong, and the model learns to answer"
    " anything but what it reads.",
)
class NoneLeft(Masking):
    edges = (0.8, 1.0)


@_masking(
    "a_tenth_of_the_rest",
    "eighty-ten-ten",
    "You replace a tenth of what the masks left over, 2 % of the chosen; it is a tenth of the"
    " chosen.",
    "Of the 20 % that remain after masking, half is replaced. With 2 % the model meets wrong tokens"
    " five times too rarely.",
)
class ATenthOfTheRest(Masking):
    edges = (0.8, 0.82)


@_masking(
    "specials_masked",
    "hide-and-ask",
    "Special tokens are chosen like all others.",
    "The model is asked to guess where a text begins, ends or is padded, which says nothing about"
    " language, and loses the marks it needs.",
)
class SpecialsMasked(Masking):
    def chosen(self, ids: Tensor, special: Tensor, p: float, generator: Any) -> Tensor:
        return torch.rand(ids.shape, generator=generator) < p


@_masking(
    "random_special",
    "eighty-ten-ten",
    "Your replacements are drawn from the whole vocabulary, special tokens included.",
    "Now and then a word becomes padding, or the end of the text, in the middle of a line.",
)
class RandomSpecial(Masking):
    def other(
        self, ids: Tensor, vocab_size: int, special_ids: Iterable[int], generator: Any
    ) -> Tensor:
        return torch.randint(vocab_size, ids.shape, generator=generator)


@_masking(
    "random_out_of_range",
    "eighty-ten-ten",
    "A replacement can be vocab_size itself, one more than the last id.",
    "`torch.randint(high)` stops before high, `random.randint(a, b)` does not. The embedding has no"
    " such row, and a run dies after hours.",
)
class RandomOutOfRange(Masking):
    def other(
        self, ids: Tensor, vocab_size: int, special_ids: Iterable[int], generator: Any
    ) -> Tensor:
        return torch.randint(vocab_size + 1, ids.shape, generator=generator)


@_masking(
    "one_random_token",
    "eighty-ten-ten",
    "One random token is drawn for the whole batch.",
    "It stands in every place of a batch that is to be doubted, so it gives itself away.",
)
class OneRandomToken(Masking):
    def other(
        self, ids: Tensor, vocab_size: int, special_ids: Iterable[int], generator: Any
    ) -> Tensor:
        return super().other(ids[..., :1], vocab_size, special_ids, generator)[:1].expand_as(ids)


@_masking(
    "drawn_from_the_batch",
    "eighty-ten-ten",
    "Your replacements are other tokens of the same batch, not of the vocabulary.",
    "Frequent tokens then replace most others, and rare ones never do. A replacement is any"
    " ordinary token, each as likely as the next.",
)
class DrawnFromTheBatch(Masking):
    def other(
        self, ids: Tensor, vocab_size: int, special_ids: Iterable[int], generator: Any
    ) -> Tensor:
        return ids.flatten()[torch.randint(ids.numel(), ids.shape, generator=generator)]


@_masking(
    "p_ignored",
    "hide-and-ask",
    "The share of the chosen is 15 % whatever p says.",
    "The trade between what is hidden and what is left to read cannot be studied, and p = 0 still"
    " hides.",
)
class PIgnored(Masking):
    def chosen(self, ids: Tensor, special: Tensor, p: float, generator: Any) -> Tensor:
        return super().chosen(ids, special, 0.15, generator)


@_masking(
    "p_turned_around",
    "hide-and-ask",
    "Each token is chosen with probability 1 − p: the comparison is the wrong way around.",
    "With 85 % of a line hidden, hardly anything is left to guess from.",
)
class PTurnedAround(Masking):
    def chosen(self, ids: Tensor, special: Tensor, p: float, generator: Any) -> Tensor:
        return (torch.rand(ids.shape, generator=generator) >= p) & ~special


@_masking(
    "one_pattern",
    "hide-and-ask",
    "One row of places is drawn and used for every row of the batch.",
    "A batch of B rows then asks at as few places as one, and its gradient is as noisy.",
)
class OnePattern(Masking):
    def chosen(self, ids: Tensor, special: Tensor, p: float, generator: Any) -> Tensor:
        row = torch.rand(ids.shape[-1], generator=generator) < p
        return row.expand(ids.shape) & ~special


@_masking(
    "fixed_count",
    "hide-and-ask",
    "Every row gets the same number of hidden tokens, p times its length, rounded.",
    "Where p·T is below one half nothing is ever hidden. Here each token is chosen by itself.",
)
class FixedCount(Masking):
    def chosen(self, ids: Tensor, special: Tensor, p: float, generator: Any) -> Tensor:
        rank = torch.rand(ids.shape, generator=generator).argsort(dim=-1).argsort(dim=-1)
        return (rank < round(p * ids.shape[-1])) & ~special


@_masking(
    "generator_ignored",
    "hide-and-ask",
    "You draw from the global source of chance and not from `generator`.",
    "A run cannot be repeated from its seed, and a resumed one hides other tokens.",
)
class GeneratorIgnored(Masking):
    def source(self, generator: Any) -> Any:
        return None


@_masking(
    "same_each_time",
    "hide-and-ask",
    "Every call hides the same places: you seed inside the function.",
    "A text is then asked the same questions in every epoch, and the model learns the answers by"
    " heart.",
)
class SameEachTime(Masking):
    def source(self, generator: Any) -> Any:
        return torch.Generator().manual_seed(42 if generator is None else generator.initial_seed())


# --- BertForMaskedLM ----------------------------------------------------------------------------

Sizes = dict[str, Any]
SMALL: Sizes = {
    "vocab_size": 11, "block_size": 7, "n_layers": 2, "n_heads": 3, "d_model": 12,
    "n_token_types": 2,
}  # fmt: skip
TABLES = ("token_embedding.weight", "decoder.weight")  # two names of one tensor

BertForMaskedLM = ASSIGNMENT.exercise(
    "BertForMaskedLM",
    points=5,
    forbidden=(
        "TransformerEncoderLayer", "TransformerEncoder", "Transformer", "BertModel",
        "AutoModelForMaskedLM", "BertLayer",
    ),
    hints=(
        "Which three vectors are added for each token, what happens to their sum, and what stands"
        " between the last block and the logits?",
        "Constructor: three embeddings and a norm; a ModuleList of post-norm blocks with the exact"
        " GELU; `dense`, `norm`, `decoder`, whose weight *is* the token table; then go through the"
        " parameters and draw each matrix anew. A mask (B, T) must meet scores (B, H, T, S) along"
        " the keys.",
        "x = embedding_norm(token + position + type), (B, T, D); the blocks under"
        " attention_mask[:, None, None]; decoder(norm(gelu(dense(x)))).",
    ),
)  # fmt: skip


def config(student: Handle, sizes: Sizes = SMALL, **changes: Any) -> Handle:
    """The sizes as an object beside the student's code, with the attributes of a `BertConfig`."""
    return student.peer("autograder.child.stand_ins:BertConfig", **(sizes | changes))


def shapes_of(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every parameter by the names the chapter asks for; the tied table stands once."""
    d, vocab_size = sizes["d_model"], sizes["vocab_size"]

    def part(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (vocab_size, d),
        "position_embedding.weight": (sizes["block_size"], d),
        "type_embedding.weight": (sizes["n_token_types"], d),
        "decoder.bias": (vocab_size,),
    }
    shapes |= part("embedding_norm", d) | part("dense", d, d) | part("norm", d)
    for i in range(sizes["n_layers"]):
        block = f"blocks.{i}"
        for name in ("W_q", "W_k", "W_v", "W_o"):
            shapes |= part(f"{block}.attention.{name}", d, d)
        shapes |= part(f"{block}.feed_forward.W_1", 4 * d, d)
        shapes |= part(f"{block}.feed_forward.W_2", d, 4 * d)
        shapes |= part(f"{block}.norm_1", d) | part(f"{block}.norm_2", d)
    return shapes


def loaded(
    student: Handle, rng: Rng, sizes: Sizes = SMALL, **more: Any
) -> tuple[Handle, dict[str, Tensor]]:
    """The student's model with random weights, in evaluation mode; its names are checked first."""
    module, shapes = student.hold(config(student, sizes, **more)), shapes_of(sizes)
    have = module.shapes()
    if all(name in have for name in TABLES):
        fail("decoder.weight and token_embedding.weight are two tensors.", "untied_decoder")
    if "decoder.bias" not in have and any(name in have for name in TABLES):
        fail("there is no decoder.bias.", "decoder_without_bias")
    expect(sorted(have.keys() - set(TABLES)), "the parameters' names").equals(
        sorted(shapes.keys() - set(TABLES))
    )
    expect(have, "the parameters").holds(
        any(name in have for name in TABLES), "token_embedding is missing."
    )
    for name in have:
        expect(have[name], f"the shape of {name}").equals(shapes.get(name, shapes[TABLES[0]]))
    weights = rng.like(shapes)
    module.load(weights | {TABLES[1]: weights[TABLES[0]]}).eval()
    return module, weights


def right_logits(
    w: Mapping[str, Tensor],
    ids: Tensor,
    n_heads: int,
    attention_mask: Tensor | None = None,
    token_types: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """BERT's forward pass in PyTorch's functions. `w` holds the weights by the chapter's names."""

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    mask = None if attention_mask is None else attention_mask[:, None, None]

    def attend(block: str, y: Tensor) -> Tensor:
        q, k, v = (
            linear(f"{block}.attention.{name}", y).unflatten(-1, (n_heads, -1)).transpose(1, 2)
            for name in ("W_q", "W_k", "W_v")
        )  # (B, T, D) → (B, H, T, D/H)
        read = F.scaled_dot_product_attention(q, k, v, mask)
        return linear(f"{block}.attention.W_o", read.transpose(1, 2).flatten(2))

    def feed(block: str, y: Tensor) -> Tensor:
        return linear(f"{block}.feed_forward.W_2", F.gelu(linear(f"{block}.feed_forward.W_1", y)))

    types = torch.zeros_like(ids) if token_types is None else token_types
    x = w[TABLES[0]][ids] + w["position_embedding.weight"][: ids.shape[1]]
    x = norm("embedding_norm", x + w["type_embedding.weight"][types])
    for block in [name.removesuffix(".norm_1.weight") for name in w if ".norm_1.weight" in name]:
        x = norm(f"{block}.norm_1", x + attend(block, x))
        x = norm(f"{block}.norm_2", x + feed(block, x))
    return F.linear(norm("norm", F.gelu(linear("dense", x))), w[TABLES[0]], w["decoder.bias"])


def expect_logits(
    value: Any, w: Mapping[str, Tensor], ids: Tensor, sizes: Sizes = SMALL, **more: Any
) -> None:
    """At real tokens the logits are the reference's, with PyTorch's eps in the norms or BERT's."""
    mask = more.get("attention_mask")
    rights = [right_logits(w, ids, sizes["n_heads"], eps=eps, **more) for eps in (1e-5, 1e-12)]
    expect(value, "the logits").has_shape(*rights[0].shape)
    if mask is not None:
        value, *rights = (part[mask] for part in (value, *rights))
    apart = [(value - right).abs().max().nan_to_num(math.inf) for right in rights]
    expect(value, "the logits").close_to(rights[0] if apart[0] <= apart[1] else rights[1])


def some_ids(rng: Rng, batch: int, t: int, sizes: Sizes = SMALL) -> Tensor:
    return rng.integers(0, sizes["vocab_size"], batch, t)


def some_mask(rng: Rng, batch: int, t: int) -> Tensor:
    """(B, T): rows of unequal real lengths, at least one position each, one row full."""
    lengths = torch.cat([rng.integers(1, t, batch - 1), torch.tensor([t])])
    return torch.arange(t) < lengths[:, None]


@BertForMaskedLM.case("computes BERT's logits from any weights")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    ids = some_ids(rng, 5, 2).T  # (2, 5), not contiguous
    expect_logits(module(ids), weights, ids)


@BertForMaskedLM.case("adds the vector of each token's segment")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    ids, types = some_ids(rng, 3, 5), torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [0, 1, 0, 1, 0]])
    expect_logits(module(ids, token_types=types), weights, ids, token_types=types)


@BertForMaskedLM.case("reads no padding, whatever stands there")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    ids, mask = some_ids(rng, 3, 6), some_mask(rng, 3, 6)
    other = torch.where(mask, ids, some_ids(rng, 3, 6))  # the same texts, other padding
    expect_logits(module(other, mask), weights, ids, attention_mask=mask)


@BertForMaskedLM.case("lets every token read both sides")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    ids = some_ids(rng, 1, 5).repeat(2, 1)
    ids[1, 2] = (ids[1, 2] + 1) % SMALL["vocab_size"]  # two texts that differ in the middle
    expect_logits(module(ids), weights, ids)


@BertForMaskedLM.case("works on one token and on block_size of them, and refuses more")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    for t in (1, SMALL["block_size"]):
        ids = some_ids(rng, 1, t)
        expect_logits(module(ids), weights, ids)
    try:
        module(some_ids(rng, 1, SMALL["block_size"] + 1))
    except StudentError as error:
        if "ValueError" in error.kinds:
            return
        fail(f"8 tokens with block_size=7 stopped with {error.kind}.", "too_long_not_refused")
    fail("8 tokens with block_size=7 must raise a ValueError.", "too_long_not_refused")


@BertForMaskedLM.case("starts as unsure as chance, with matrices of the size that D asks for")
def _(student: Handle, rng: Rng) -> None:
    # 4,800 numbers or more in each group: one standard deviation of the estimate is 1 %.
    sizes = SMALL | {"vocab_size": 101, "d_model": 48}
    module, ids, others = student.hold(config(student, sizes)), *rng.integers(0, 101, 2, 4, 7)
    loss = F.cross_entropy(module.eval()(ids).flatten(0, 1), others.flatten()).item()
    # A right start is 0.15 above ln V, give or take 0.1; tables of N(0, 1) are off by ten and more.
    if not abs(loss - math.log(101)) < 1.5:
        fail(f"the first loss is {loss:.1f}; ln 101 is 4.6.", "unit_tables")
    weights = module.parameters()
    for group, ends in (("the token table", TABLES), ("W_2", ("W_2.weight",))):
        chosen = [w.flatten().double() for name, w in weights.items() if name.endswith(ends)]
        got = torch.cat(chosen).square().mean().sqrt().item() if chosen else math.nan
        if not abs(got / 0.08 - 1) < 0.12:
            mistake = "linears_as_drawn" if group == "W_2" else None
            fail(
                f"{group} starts with a root mean square of {got:.3f}; at D = 48 it should be"
                " 0.080.",
                "start_not_widened" if abs(got - 0.02) < 0.003 else mistake,
            )


@BertForMaskedLM.case("drops in training alone")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, dropout=0.5)
    ids = some_ids(rng, 2, 5)
    expect_logits(module(ids), weights, ids)
    module.train()
    if same(module(ids), module(ids)):
        fail("with dropout=0.5 two runs in training are equal.", "dropout_ignored")


guard(
    BertForMaskedLM,
    lambda rng, dtype: (some_ids(rng, 2, 5), some_mask(rng, 2, 5), rng.integers(0, 2, 2, 5)),
    build=lambda student: (config(student),),
)


class Model(nn.Module):
    """What the wrong models below have in common; each spoils one of the small methods."""

    norm_first, activation = False, "gelu"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, d = config, config.d_model
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.position_embedding = nn.Embedding(config.block_size, d)
        self.type_embedding = nn.Embedding(config.n_token_types, d)
        self.embedding_norm = nn.LayerNorm(d)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                d, config.n_heads, 4 * d, self.dropped(), self.norm_first, self.activation
            )
            for _ in range(config.n_layers)
        )
        self.dense, self.norm = nn.Linear(d, d), nn.LayerNorm(d)
        self.decoder = nn.Linear(d, config.vocab_size)
        self.tie()
        self.draw()

    def draw(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=self.std())
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def std(self) -> float:
        return 0.02 * math.sqrt(768 / self.config.d_model)

    def dropped(self) -> float:
        return self.config.dropout

    def tie(self) -> None:
        self.decoder.weight = self.token_embedding.weight

    def refuse(self, ids: Tensor) -> None:
        if ids.shape[1] > self.config.block_size:
            raise ValueError("too long")

    def positions(self, ids: Tensor) -> Tensor:
        return self.position_embedding(torch.arange(ids.shape[1], device=ids.device))

    def types(self, ids: Tensor, token_types: Tensor | None) -> Any:
        return self.type_embedding(torch.zeros_like(ids) if token_types is None else token_types)

    def mask(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        return None if attention_mask is None else attention_mask[:, None, None]

    def finish(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(x))))

    def embed(self, ids: Tensor, token_types: Tensor | None) -> Tensor:
        x = self.token_embedding(ids) + self.positions(ids) + self.types(ids, token_types)
        return F.dropout(self.embedding_norm(x), self.dropped(), self.training)

    def forward(
        self,
        ids: Tensor,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        self.refuse(ids)
        x = self.embed(ids, token_types)
        for block in self.blocks:
            x = block(x, self.mask(ids, attention_mask))
        return self.finish(x)


@_mistake(
    BertForMaskedLM,
    "causal_mask_left_in",
    "the-encoder",
    "A causal mask is left in: a token reads only what stands to its left.",
    "The model is a GPT that is asked for its own tokens. What follows a gap, half of what could"
    " tell, is never read.",
)
class CausalMaskLeftIn(Model):
    def mask(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        causal = causal_mask(ids.shape[1], device=ids.device)
        return causal if attention_mask is None else causal & attention_mask[:, None, None]


@_mistake(
    BertForMaskedLM,
    "token_types_lost",
    "the-encoder",
    "`token_types` is accepted and never used.",
    "Of two sentences in one row the model cannot tell which a word belongs to, except by counting"
    " from the separator.",
)
class TokenTypesLost(Model):
    def types(self, ids: Tensor, token_types: Tensor | None) -> Any:
        return super().types(ids, None)


@_mistake(
    BertForMaskedLM,
    "no_type_without_types",
    "the-encoder",
    "Without `token_types` you add no segment vector; None means that every token is of segment 0.",
    "A text gives other logits than the same text with zeros handed in.",
)
class NoTypeWithoutTypes(Model):
    def types(self, ids: Tensor, token_types: Tensor | None) -> Any:
        return (
            0.0 * super().types(ids, None)
            if token_types is None
            else super().types(ids, token_types)
        )


@_mistake(
    BertForMaskedLM,
    "attention_mask_lost",
    "the-encoder",
    "`attention_mask` is accepted and never reaches the blocks.",
    "Every token reads the padding, so a text's vectors depend on how long its neighbors in the"
    " batch are.",
)
class AttentionMaskLost(Model):
    def mask(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        return None


@_mistake(
    BertForMaskedLM,
    "attention_mask_turned_around",
    "the-encoder",
    "Your attention_mask shuts out the real tokens: here True means “may be read”.",
    "PyTorch's `src_key_padding_mask` says True for padding. Turned around, the model reads nothing"
    " but padding.",
)
class AttentionMaskTurnedAround(Model):
    def mask(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        return None if attention_mask is None else ~attention_mask[:, None, None]


@_mistake(
    BertForMaskedLM,
    "queries_masked",
    "the-encoder",
    "Your mask has shape (B, 1, T, 1): it falls on the queries, where it must fall on the keys.",
    "Real tokens still read the padding, and the rows of the padding have nobody to read and become"
    " NaN. The shape is (B, 1, 1, T).",
)
class QueriesMasked(Model):
    def mask(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        return None if attention_mask is None else attention_mask[:, None, :, None]


@_mistake(
    BertForMaskedLM,
    "mask_without_heads",
    "the-encoder",
    "Your mask has shape (B, 1, T); the scores are (B, H, T, T), so it needs one axis more.",
    "PyTorch lines shapes up from the right: B falls on the heads. With B = H it runs, and each"
    " head obeys another text's padding; else it stops.",
)
class MaskWithoutHeads(Model):
    def mask(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        return None if attention_mask is None else attention_mask[:, None]


@_mistake(
    BertForMaskedLM,
    "padding_zeroed",
    "the-encoder",
    "You set the vectors of the padding to zero instead of shutting it out of the attention.",
    "A zero vector still gets a score, e⁰ = 1 in the softmax, and draws weight from the words.",
)
class PaddingZeroed(Model):
    def forward(
        self,
        ids: Tensor,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        self.refuse(ids)
        x = self.embed(ids, token_types)
        x = x if attention_mask is None else x * attention_mask[..., None]
        for block in self.blocks:
            x = block(x)
        return self.finish(x)


@_mistake(
    BertForMaskedLM,
    "embedding_norm_unused",
    "the-encoder",
    "The norm behind the embeddings is there, but your forward leaves it out.",
    "BERT's blocks are post-norm and expect a stream of unit size from the start: with its weights"
    " the first block reads numbers twenty times too small.",
)
class EmbeddingNormUnused(Model):
    def embed(self, ids: Tensor, token_types: Tensor | None) -> Tensor:
        return self.token_embedding(ids) + self.positions(ids) + self.types(ids, token_types)


@_mistake(
    BertForMaskedLM,
    "norm_too_early",
    "the-encoder",
    "You normalize the token's vector first and add position and segment behind the norm.",
    "`embedding_norm` takes the sum of all three. Behind it the positions enter in a size that no"
    " norm controls, and BERT's weights give other logits.",
)
class NormTooEarly(Model):
    def embed(self, ids: Tensor, token_types: Tensor | None) -> Tensor:
        x = self.embedding_norm(self.token_embedding(ids))
        x = x + self.positions(ids) + self.types(ids, token_types)
        return F.dropout(x, self.dropped(), self.training)


@_mistake(
    BertForMaskedLM,
    "scaled_embedding",
    "the-encoder",
    "You multiply the token's vector by √D before the sum, as the Transformer of chapter 7 does.",
    "BERT has no such factor: its norm sets the size of the sum. With the factor the token drowns"
    " out its position and its segment.",
)
class ScaledEmbedding(Model):
    def embed(self, ids: Tensor, token_types: Tensor | None) -> Tensor:
        x = self.token_embedding(ids) * math.sqrt(self.config.d_model)
        x = self.embedding_norm(x + self.positions(ids) + self.types(ids, token_types))
        return F.dropout(x, self.dropped(), self.training)


@_mistake(
    BertForMaskedLM,
    "pre_norm",
    "the-encoder",
    "Your blocks normalize before each layer; BERT's do it after each sum.",
    "`TransformerBlock` is pre-norm unless told `norm_first=False`. BERT's weights give noise in"
    " it.",
)
class PreNorm(Model):
    norm_first = True


@_mistake(
    BertForMaskedLM,
    "relu",
    "the-encoder",
    "Your blocks use relu, which is what `TransformerBlock` takes unless told otherwise.",
    "BERT was trained with the exact GELU: with its weights, your model cuts off every hidden"
    " number below zero.",
)
class Relu(Model):
    activation = "relu"


@_mistake(
    BertForMaskedLM,
    "tanh_gelu",
    "the-encoder",
    "Your blocks use the tanh form of GELU; BERT uses the exact one.",
    "The tanh form is GPT-2's. The two differ by less than a thousandth, layer after layer, and"
    " copied weights never give the same logits.",
)
class TanhGelu(Model):
    activation = "gelu_tanh"


@_mistake(
    BertForMaskedLM,
    "positions_from_one",
    "the-encoder",
    "Your positions start at 1, so the first row of the table is never used.",
    "RoBERTa's do begin later, at 2. Here every token wears its neighbor's position, and a full"
    " block runs past the table.",
)
class PositionsFromOne(Model):
    def positions(self, ids: Tensor) -> Tensor:
        rows = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        return self.position_embedding(rows % self.config.block_size)


@_mistake(
    BertForMaskedLM,
    "no_positions",
    "the-encoder",
    "The position embedding is there, but your forward never adds it.",
    "Without positions and without a causal mask, a line and its words in any other order are the"
    " same to the model.",
)
class NoPositions(Model):
    def positions(self, ids: Tensor) -> Tensor:
        return torch.zeros_like(super().positions(ids))


@_mistake(
    BertForMaskedLM,
    "decoder_alone",
    "the-masked-head",
    "Your logits come from the last block by `decoder` alone; `dense`, GELU and `norm` are left"
    " out.",
    "The last block must then serve the token table directly, and BERT's weights, which were"
    " trained with the layer between, give nonsense.",
)
class DecoderAlone(Model):
    def finish(self, x: Tensor) -> Tensor:
        return self.decoder(x)


@_mistake(
    BertForMaskedLM,
    "no_gelu_in_the_head",
    "the-masked-head",
    "There is no GELU between `dense` and `norm`.",
    "The layer is then one more matrix, which the last block's own could have held.",
)
class NoGeluInTheHead(Model):
    def finish(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.dense(x)))


@_mistake(
    BertForMaskedLM,
    "norm_first_in_the_head",
    "the-masked-head",
    "Your head normalizes first and then applies `dense` and GELU; the norm comes last.",
    "The decoder compares its input with the rows of a table, so the size of that input matters.",
)
class NormFirstInTheHead(Model):
    def finish(self, x: Tensor) -> Tensor:
        return self.decoder(F.gelu(self.dense(self.norm(x))))


@_mistake(
    BertForMaskedLM,
    "untied_decoder",
    "the-masked-head",
    "The decoder has a weight of its own; it must be the token embedding's table itself.",
    "The table is the largest matrix of a small model, and is held and learned twice.",
)
class UntiedDecoder(Model):
    def tie(self) -> None: ...


@_mistake(
    BertForMaskedLM,
    "decoder_without_bias",
    "the-masked-head",
    "The decoder has no bias.",
    "GPT-2's head has none, BERT's has one for each token: how frequent a token is stands there,"
    " and a checkpoint's numbers find no place.",
)
class DecoderWithoutBias(Model):
    def tie(self) -> None:
        self.decoder = nn.Linear(self.config.d_model, self.config.vocab_size, bias=False)
        super().tie()


@_mistake(
    BertForMaskedLM,
    "probabilities",
    "the-masked-head",
    "You return probabilities: a softmax stands at the end.",
    "`cross_entropy` takes a softmax itself. Of probabilities it makes a nearly flat distribution,"
    " and the loss stays close to ln V.",
)
class Probabilities(Model):
    def finish(self, x: Tensor) -> Tensor:
        return super().finish(x).softmax(dim=-1)


@_mistake(
    BertForMaskedLM,
    "too_long_not_refused",
    "the-encoder",
    "More than block_size tokens are not refused with a ValueError.",
    "The table of positions has no row for them. On a GPU the error comes later, from another line,"
    " and ends the process.",
)
class TooLongNotRefused(Model):
    def refuse(self, ids: Tensor) -> None: ...

    def positions(self, ids: Tensor) -> Tensor:
        return self.position_embedding.weight[
            torch.arange(ids.shape[1]).clamp(max=self.config.block_size - 1)
        ]


@_mistake(
    BertForMaskedLM,
    "unit_tables",
    "the-masked-head",
    "Your tables start as N(0, 1), as `nn.Embedding` draws them; σ is 0.02·√(768/D).",
    "The same table scores the tokens, so the first logits are some √D in size and the first loss"
    " is many times ln V.",
)
class UnitTables(Model):
    def std(self) -> float:
        return 1.0


@_mistake(
    BertForMaskedLM,
    "start_not_widened",
    "the-encoder",
    "Your matrices start with σ = 0.02 whatever the width; σ is 0.02·√(768/D).",
    "0.02 is right at BERT's width of 768. In a narrow model attention then adds next to nothing"
    " to the stream, and a masked token, which learns by attention alone, is stuck for long.",
)
class StartNotWidened(Model):
    def std(self) -> float:
        return 0.02


@_mistake(
    BertForMaskedLM,
    "linears_as_drawn",
    "the-encoder",
    "Only your tables are drawn anew; the matrices are left as `nn.Linear` draws them.",
    "PyTorch looks at a matrix's input width alone, so the second map of each feed-forward layer"
    " starts at half of σ.",
)
class LinearsAsDrawn(Model):
    def draw(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=self.std())


@_mistake(
    BertForMaskedLM,
    "dropout_ignored",
    "the-encoder",
    "`config.dropout` reaches neither the blocks nor the embeddings.",
    "Training and use are the same, and a large model on little text learns it by heart.",
)
class DropoutIgnored(Model):
    def dropped(self) -> float:
        return 0.0


# --- pseudo_log_likelihood ----------------------------------------------------------------------

pseudo_log_likelihood = ASSIGNMENT.exercise(
    "pseudo_log_likelihood",
    points=3,
    forbidden=("cross_entropy",),
    hints=(
        "The score of token t is a probability given all the others. What must the model not see"
        " when it is asked for it, and what must it see?",
        "Make T copies of ids, hide another token in each, and run them as one batch, or one after"
        " the other. Keep the ids themselves: the masked copy no longer knows the right answer.",
        "rows (T, T) with rows[t, t] = mask_id; logits (T, T, V); take log_softmax at [t, t] and"
        " there the entry ids[t]; sum over t.",
    ),
)

PLL_V, PLL_MASK = 11, 10


class Scorer:
    """A model in one line: every position's logits mix the vectors of all of them, in order."""

    def __init__(self, rng: Rng, t: int, scale: float = 1.0) -> None:
        self.table, self.mix = rng.normal(PLL_V, 5), rng.normal(t, t)
        self.out, self.asked = scale * rng.normal(5, PLL_V), list[Tensor]()

    def logits(self, ids: Tensor) -> Tensor:
        mixed = torch.einsum("ts,bsd->btd", self.mix, self.table[ids])  # (B, T, 5)
        return mixed.tanh() @ self.out  # (B, T, V)

    def __call__(self, ids: Tensor) -> Tensor:
        expect(ids, "what the model is asked about").holds(
            isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[1] == len(self.mix),
            f"expected ids of shape (B, {len(self.mix)}).",
        )
        self.asked += ids.clone()
        return self.logits(ids)

    def right(self, ids: Tensor) -> float:
        """The sum, one token at a time, by the logarithm of a sum of exponentials."""
        total = 0.0
        for t in range(len(ids)):
            hidden = torch.where(torch.arange(len(ids)) == t, PLL_MASK, ids)
            logits = self.logits(hidden[None])[0, t]
            total += (logits[ids[t]] - logits.logsumexp(dim=0)).item()
        return total


def expect_score(student: Handle, rng: Rng, t: int, scale: float = 1.0) -> None:
    model, ids = Scorer(rng, t, scale), rng.integers(0, PLL_MASK, t)
    expect(student(model, ids, PLL_MASK), "the score").close_to(model.right(ids))


@pseudo_log_likelihood.case("sums log p of each token, given all the others")
def _(student: Handle, rng: Rng) -> None:
    expect_score(student, rng, 5)


@pseudo_log_likelihood.case("hides one token at a time, each of them once")
def _(student: Handle, rng: Rng) -> None:
    model, ids = Scorer(rng, 4), rng.integers(0, PLL_MASK, 4)
    score = student(model, ids, PLL_MASK)
    places = [tuple((row != ids).nonzero().flatten().tolist()) for row in model.asked]
    masks = bool(all((row[row != ids] == PLL_MASK).all() for row in model.asked))
    expect(places, "which places were hidden in what the model was asked").holds(
        masks and sorted(places) == [(0,), (1,), (2,), (3,)],
        f"expected one row for each of the 4 tokens, hidden alone, got {places}.",
    )
    expect(score, "the score").close_to(model.right(ids))


@pseudo_log_likelihood.case("scores a text of one token")
def _(student: Handle, rng: Rng) -> None:
    expect_score(student, rng, 1)


@pseudo_log_likelihood.case("stays finite where the model is very sure")
def _(student: Handle, rng: Rng) -> None:
    expect_score(student, rng, 5, scale=2000.0)


@pseudo_log_likelihood.case(MUTATION_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    ids = rng.integers(1, PLL_MASK, 5)
    kept = student.keep(ids)
    student(Scorer(rng, 5), kept, PLL_MASK)
    if not same(kept.method("clone")(), ids):
        fail(MUTATES)


class Scoring:
    """What the wrong scores below have in common; each spoils one of the small methods."""

    def row(self, ids: Tensor, t: int, mask_id: int) -> Tensor:
        return torch.where(torch.arange(len(ids)) == t, mask_id, ids)

    def places(self, n: int) -> range:
        return range(n)

    def log_p(self, logits: Tensor, t: int) -> Tensor:
        return logits[t].log_softmax(dim=-1)

    def target(self, ids: Tensor, row: Tensor, t: int) -> Tensor:
        return ids[t]

    def finish(self, scores: list[float]) -> float:
        return sum(scores)

    def __call__(self, model: Callable[[Tensor], Tensor], ids: Tensor, mask_id: int) -> float:
        scores = []
        for t in self.places(len(ids)):
            row = self.row(ids, t, mask_id)
            log_p = self.log_p(model(row[None])[0], t)
            scores.append(log_p[self.target(ids, row, t)].item())
        return self.finish(scores)


def _scoring(
    name: str, did: str, causes: str, see: str = "pseudo-log-likelihood"
) -> Callable[[type[Scoring]], None]:
    return lambda cls: _mistake(pseudo_log_likelihood, name, see, did, causes)(cls())


@_scoring(
    "all_masked_at_once",
    "You hide all tokens at once and score them in one pass.",
    "Every token is then guessed from its place alone, so any two texts of the same words in"
    " another order nearly tie.",
)
class AllMaskedAtOnce(Scoring):
    def row(self, ids: Tensor, t: int, mask_id: int) -> Tensor:
        return torch.full_like(ids, mask_id)


@_scoring(
    "nothing_masked",
    "You hide nothing: the model reads the very token it is asked for.",
    "A BERT has learned that what it reads is mostly right, so every text gets a score near 0.",
)
class NothingMasked(Scoring):
    def row(self, ids: Tensor, t: int, mask_id: int) -> Tensor:
        return ids


@_scoring(
    "rest_masked_too",
    "You hide the token and everything after it, as a GPT would read.",
    "A BERT has never seen a text that breaks off in masks, and half of what it could read is"
    " gone.",
)
class RestMaskedToo(Scoring):
    def row(self, ids: Tensor, t: int, mask_id: int) -> Tensor:
        return torch.where(torch.arange(len(ids)) >= t, mask_id, ids)


@_scoring(
    "masks_pile_up",
    "A token stays hidden when the next one is asked for: you never put it back.",
    "The last token is guessed from nothing but masks. Start each copy from ids.",
)
class MasksPileUp(Scoring):
    def row(self, ids: Tensor, t: int, mask_id: int) -> Tensor:
        return torch.where(torch.arange(len(ids)) <= t, mask_id, ids)


@_scoring(
    "mean",
    "You return the mean over the tokens; the score is their sum.",
    "A long text and a short one then cannot be told apart by length, and sums of parts do not add"
    " up.",
)
class Mean(Scoring):
    def finish(self, scores: list[float]) -> float:
        return sum(scores) / max(len(scores), 1)


@_scoring(
    "negative",
    "You return the negative: a loss, where a log-likelihood is asked for.",
    "Whoever ranks texts by it takes the worst for the best.",
)
class Negative(Scoring):
    def finish(self, scores: list[float]) -> float:
        return -sum(scores)


@_scoring(
    "shifted",
    "You read the score of token t at position t − 1, as with a GPT.",
    "A BERT answers at the place of the token itself; one place before, it speaks of another one.",
    "the-masked-head",
)
class Shifted(Scoring):
    def places(self, n: int) -> range:
        return range(1, n)

    def log_p(self, logits: Tensor, t: int) -> Tensor:
        return logits[t - 1].log_softmax(dim=-1)


@_scoring(
    "ends_skipped",
    "The first and the last token are not scored.",
    "Which tokens to score is the caller's choice: the ids that come in are all to be scored.",
)
class EndsSkipped(Scoring):
    def places(self, n: int) -> range:
        return range(1, n - 1)


@_scoring(
    "target_read_after_masking",
    "You look up the right token in the masked copy, where the mask stands.",
    "The score is then how likely the mask itself is, whatever the text says.",
)
class TargetReadAfterMasking(Scoring):
    def target(self, ids: Tensor, row: Tensor, t: int) -> Tensor:
        return row[t]


@_scoring(
    "raw_logits",
    "You add up logits; no log_softmax is taken.",
    "A logit means something only beside the others of its row: adding a constant to all of them"
    " changes your score and no probability.",
)
class RawLogits(Scoring):
    def log_p(self, logits: Tensor, t: int) -> Tensor:
        return logits[t]


@_scoring(
    "probabilities_added",
    "You add up probabilities; their logarithms are what is summed.",
    "One impossible token then hardly matters beside many easy ones.",
)
class ProbabilitiesAdded(Scoring):
    def log_p(self, logits: Tensor, t: int) -> Tensor:
        return logits[t].softmax(dim=-1)


@_scoring(
    "log_of_a_softmax",
    "You take the logarithm of a softmax.",
    "Where the model is very sure, the other probabilities round to 0 and their logarithm is −∞."
    " `log_softmax` keeps them.",
)
class LogOfASoftmax(Scoring):
    def log_p(self, logits: Tensor, t: int) -> Tensor:
        return logits[t].softmax(dim=-1).log()
