"""Checks of chapter 15: a lens on every layer, heads that copy, heads left out, honesty, bias."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autograder.child.protocol import Seed
from autograder.engine.exercise import Assignment, Exercise, Rng
from autograder.engine.expect import expect, fail, same
from autograder.engine.guards import MUTATES, MUTATION_TITLE, guard
from autograder.engine.handle import Handle, StudentError

ASSIGNMENT = Assignment(
    name="15-looking-inside",
    notebook="looking_inside",
    page="15_looking_inside",
    sections={
        "logit-lens": "A lens on every layer",
        "induction-heads": "Heads that look for the last time",
        "leaving-heads-out": "Leaving heads out",
        "calibration": "Does it know what it does not know?",
        "paired-prompts": "Pairs of prompts",
        "intervals": "How sure is that number?",
    },
    minutes=90,
    modules=(
        "data", "metrics", "ngram", "rnn", "lstm", "attention", "multi_head", "positions",
        "transformer", "tokenizer", "gpt", "kv_cache", "generation",
    ),
)  # fmt: skip

Sizes = dict[str, Any]
SIZES: Sizes = {"vocab_size": 11, "block_size": 8, "n_layers": 3, "n_heads": 2, "d_model": 6}


def _mistake(
    exercise: Exercise, name: str, see: str, did: str, causes: str
) -> Callable[[Any], Any]:
    return exercise.misconception(did=did, causes=causes, see=see, name=name)


def shapes_of(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every parameter of the package's GPT; the tied table stands once."""
    d = sizes["d_model"]

    def part(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (sizes["vocab_size"], d),
        "position_embedding.weight": (sizes["block_size"], d),
    }
    for i in range(sizes["n_layers"]):
        for name in ("W_q", "W_k", "W_v", "W_o"):
            shapes |= part(f"blocks.{i}.attention.{name}", d, d)
        shapes |= part(f"blocks.{i}.feed_forward.W_1", 4 * d, d)
        shapes |= part(f"blocks.{i}.feed_forward.W_2", d, 4 * d)
        shapes |= part(f"blocks.{i}.norm_1", d) | part(f"blocks.{i}.norm_2", d)
    return shapes | part("norm", d)


def our_gpt(student: Handle, rng: Rng, **changes: int) -> tuple[Handle, dict[str, Tensor]]:
    """The package's GPT with random weights beside the student's code, and those weights."""
    sizes = SIZES | changes
    config = student.peer("rnn2gpt.gpt:GPTConfig", **sizes)
    model = student.peer("rnn2gpt.gpt:GPT", config)
    weights = rng.like(shapes_of(sizes))
    return model.load(weights).eval(), weights


def right_streams(
    w: Mapping[str, Tensor], ids: Tensor, n_heads: int, ablated: Iterable[tuple[int, int]] = ()
) -> Tensor:
    """What stands in the stream after each block, (L, T, D), in PyTorch's functions."""

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    x, streams = F.embedding(ids, w["token_embedding.weight"]), []
    x = x + w["position_embedding.weight"][: len(ids)]
    for layer in range(sum(name.endswith("W_o.weight") for name in w)):
        block = f"blocks.{layer}"
        y = norm(f"{block}.norm_1", x)
        q, k, v = (
            linear(f"{block}.attention.{name}", y).unflatten(-1, (n_heads, -1)).transpose(0, 1)
            for name in ("W_q", "W_k", "W_v")
        )  # (T, D) → (H, T, D/H)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        kept = torch.tensor([(layer, head) not in ablated for head in range(n_heads)])
        read = read * kept[:, None, None]
        x = x + linear(f"{block}.attention.W_o", read.transpose(0, 1).flatten(1))
        hidden = F.gelu(
            linear(f"{block}.feed_forward.W_1", norm(f"{block}.norm_2", x)), approximate="tanh"
        )
        x = x + linear(f"{block}.feed_forward.W_2", hidden)
        streams.append(x)
    return torch.stack(streams)


def right_lens(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Final norm and tied head on any vectors of the stream."""
    normed = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"])
    return normed @ w["token_embedding.weight"].T


def some_ids(rng: Rng, t: int) -> Tensor:
    return rng.integers(0, SIZES["vocab_size"], t)


# --- logit_lens ---------------------------------------------------------------------------------

logit_lens = ASSIGNMENT.exercise(
    "logit_lens",
    points=3,
    hints=(
        "What turns the last layer's vectors into logits, and what would it make of an earlier"
        " layer's?",
        "Write out what the model's forward does: two tables, then block after block. Keep what"
        " each block leaves; only the copies that you keep are normed, the stream itself goes on as"
        " it is.",
        '`x = block(x, "causal")` for (1, T, D), and `model.head(model.norm(x))[0]` of (T, V) for'
        " each layer.",
    ),
)


def expect_lens(student: Handle, rng: Rng, t: int, **changes: int) -> None:
    model, weights = our_gpt(student, rng, **changes)
    ids = some_ids(rng, t)
    streams = right_streams(weights, ids, (SIZES | changes)["n_heads"])
    value = student(model, ids)
    if isinstance(value, Tensor) and tuple(value.shape) == (
        len(streams),
        1,
        t,
        SIZES["vocab_size"],
    ):
        fail("the result has a batch of one in it; ids have none.", "batch_left_in")
    expect(value, "the lens").close_to(right_lens(weights, streams))


@logit_lens.case("gives the logits after every block, normed as the last ones are")
def _(student: Handle, rng: Rng) -> None:
    expect_lens(student, rng, 5)


@logit_lens.case("ends with the model's own logits")
def _(student: Handle, rng: Rng) -> None:
    model, _ = our_gpt(student, rng)
    ids = some_ids(rng, 7)
    right = model(ids[None])[0][0]
    expect(student(model, ids)[-1], "the last layer").close_to(right)


@logit_lens.case("works with one layer and with one token")
def _(student: Handle, rng: Rng) -> None:
    expect_lens(student, rng, 1, n_layers=1, n_heads=3)


@logit_lens.case(MUTATION_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    model, _ = our_gpt(student, rng)
    ids = some_ids(rng, 5)
    held = student.keep(ids)
    before = model(ids[None])[0]
    student(model, held)
    if not (same(held.method("clone")(), ids) and same(model(ids[None])[0], before)):
        fail(MUTATES)


@logit_lens.case("works on any device", guard=True)
def _(student: Handle, rng: Rng) -> None:
    model, _ = our_gpt(student, rng)
    expect_device(student, model, some_ids(rng, 5))


def expect_device(student: Handle, *args: Any) -> None:
    from autograder.engine.guards import DEVICE

    reason = student.on_fake_device(*args, differentiate=False)
    if reason is not None:
        fail(DEVICE.get(reason, DEVICE["mixed"]))


class Lens:
    """What the wrong lenses have in common; each spoils one of the small methods."""

    def start(self, model: Any, ids: Tensor) -> Tensor:
        return model.token_embedding(ids) + model.position_embedding.weight[: ids.shape[1]]

    def step(self, model: Any, block: Any, x: Tensor) -> Tensor:
        return block(x, "causal")

    def seen(self, before: Tensor, after: Tensor) -> Tensor:
        return after

    def read(self, model: Any, block: Any, x: Tensor) -> Tensor:
        return model.head(model.norm(x))

    def finish(self, rows: list[Tensor]) -> Tensor:
        return torch.cat(rows)

    def __call__(self, model: Any, ids: Tensor) -> Tensor:
        x, rows = self.start(model, ids[None]), []
        for block in model.blocks:
            after = self.step(model, block, x)
            rows.append(self.read(model, block, self.seen(x, after)))
            x = after
        return self.finish(rows)


def _lens(name: str, did: str, causes: str) -> Callable[[type[Lens]], None]:
    """Register an object of the class as a wrong `logit_lens`."""
    return lambda cls: _mistake(logit_lens, name, "logit-lens", did, causes)(cls())


@_lens(
    "no_norm",
    "You give the stream to the head as it is; the final norm is missing.",
    "The stream grows from layer to layer and is not centered: the head reads its size, and even"
    " the last layer's logits are not the model's.",
)
class NoNorm(Lens):
    def read(self, model: Any, block: Any, x: Tensor) -> Tensor:
        return model.head(x)


@_lens(
    "only_the_last_normed",
    "Only the last layer goes through the final norm; the others reach the head without it.",
    "The last row is right, and those before cannot be compared with it.",
)
class OnlyTheLastNormed(Lens):
    def read(self, model: Any, block: Any, x: Tensor) -> Tensor:
        return model.head(model.norm(x) if block is model.blocks[-1] else x)


@_lens(
    "blocks_own_norm",
    "You use a norm of the block where the model's final norm belongs.",
    "That norm was trained to feed this block. The head was trained behind `model.norm` alone.",
)
class BlocksOwnNorm(Lens):
    def read(self, model: Any, block: Any, x: Tensor) -> Tensor:
        return model.head(block.norm_1(x))


@_lens(
    "norm_carried_on",
    "The normed vectors go on to the next block; the stream itself should.",
    "From the second layer on you look into a network that does not exist.",
)
class NormCarriedOn(Lens):
    def step(self, model: Any, block: Any, x: Tensor) -> Tensor:
        return block(x if block is model.blocks[0] else model.norm(x), "causal")


@_lens(
    "before_each_block",
    "Your rows are what each block receives; they should be what it leaves.",
    "The first row is then the embeddings', and the model's last word is missing.",
)
class BeforeEachBlock(Lens):
    def seen(self, before: Tensor, after: Tensor) -> Tensor:
        return before


@_lens(
    "embeddings_too",
    "There is one row more than the model has blocks: the embeddings are among them.",
    "Every row is then off by one layer. The first row is what the first block leaves.",
)
class EmbeddingsToo(Lens):
    def __call__(self, model: Any, ids: Tensor) -> Tensor:
        first = self.read(model, None, self.start(model, ids[None]))
        return torch.cat([first, super().__call__(model, ids)])


@_lens(
    "updates_alone",
    "You decode what each block adds; the lens decodes the sum so far.",
    "A block corrects what stands there. Its correction alone is no prediction.",
)
class UpdatesAlone(Lens):
    def seen(self, before: Tensor, after: Tensor) -> Tensor:
        return after - before


@_lens(
    "no_causal_mask",
    "Your blocks run without the causal mask.",
    "Every position then reads the token that it is to predict, in a way training never showed it.",
)
class NoCausalMask(Lens):
    def step(self, model: Any, block: Any, x: Tensor) -> Tensor:
        return block(x)


@_lens(
    "no_positions",
    "The position embeddings are missing from what enters the first block.",
    "The model reads a bag of tokens, and its last row is not its own prediction.",
)
class NoPositions(Lens):
    def start(self, model: Any, ids: Tensor) -> Tensor:
        return model.token_embedding(ids)


@_lens(
    "probabilities",
    "You return probabilities; logits are asked for.",
    "Whoever takes your softmax's softmax gets almost uniform bets. Leave the last step to the"
    " caller.",
)
class Probabilities(Lens):
    def finish(self, rows: list[Tensor]) -> Tensor:
        return torch.cat(rows).softmax(dim=-1)


@_lens(
    "last_layer_first",
    "Your layers come in the wrong order: the last one stands first.",
    "A curve over the layers then seems to grow worse with depth.",
)
class LastLayerFirst(Lens):
    def finish(self, rows: list[Tensor]) -> Tensor:
        return torch.cat(rows[::-1])


@_lens(
    "batch_left_in",
    "The result is (layers, 1, T, V): the batch that you added is still there.",
    "ids come as (T,), and the result is (layers, T, V). An index meant for a position would pick"
    " the batch.",
)
class BatchLeftIn(Lens):
    def finish(self, rows: list[Tensor]) -> Tensor:
        return torch.stack(rows)


# --- induction_score ----------------------------------------------------------------------------

induction_score = ASSIGNMENT.exercise(
    "induction_score",
    points=2,
    hints=(
        "At position i the model has just read a token for the second time. Where did it stand the"
        " first time, and where is what came after it?",
        "For one head the entries lie on a line below the main diagonal. Which row does the line"
        " start in, and which of its entries is about a token that never came before?",
        "weights[:, i, i − period + 1] for i = period, …, T − 1; `diagonal(1 − period)` starts one"
        " row earlier, at i = period − 1.",
    ),
)


def some_weights(rng: Rng, heads: int, t: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows that sum to one, over positions that are not later; not contiguous."""
    scores = rng.normal(t, heads, t).transpose(0, 1)  # (H, T, T)
    seen = torch.ones(t, t, dtype=torch.bool).tril()
    return scores.masked_fill(~seen, -math.inf).softmax(-1).to(dtype)


def right_score(weights: Tensor, period: int) -> Tensor:
    rows = torch.arange(period, weights.shape[-1])
    return weights[:, rows, rows - period + 1].mean(dim=1)


@induction_score.case("is the mean weight on what followed the last time")
def _(student: Handle, rng: Rng) -> None:
    for t, period in ((11, 4), (13, 5)):
        weights = some_weights(rng, 3, t)
        expect(student(weights, period), f"the scores for T={t}, period={period}").close_to(
            right_score(weights, period)
        )


@induction_score.case("is 1 for a head that looks there and nowhere else, 0 for its neighbors")
def _(student: Handle, rng: Rng) -> None:
    t, period = 14, 5
    weights = torch.zeros(4, t, t).double()
    for head, shift in enumerate((period - 1, period, period - 2, 1)):
        for i in range(t):
            weights[head, i, max(i - shift, 0)] = 1.0  # early rows look at the first token
    expect(student(weights, period), "the scores").close_to(torch.tensor([1.0, 0, 0, 0]).double())


@induction_score.case("works with a period of 1, and with a single repeated token")
def _(student: Handle, rng: Rng) -> None:
    for t, period in ((6, 1), (6, 5)):
        weights = some_weights(rng, 2, t)
        expect(student(weights, period), f"the scores for T={t}, period={period}").close_to(
            right_score(weights, period)
        )


guard(induction_score, lambda rng, dtype: (some_weights(rng, 3, 7, dtype), 3))


def _score(name: str, did: str, causes: str) -> Callable[[Any], Any]:
    return _mistake(induction_score, name, "induction-heads", did, causes)


def _line(weights: Tensor, shift: int, first: int, end: int | None = None) -> Tensor:
    """The mean of weights[:, i, i − shift] over i from `first` that lie inside."""
    rows = torch.arange(max(first, shift), end or weights.shape[-1])
    rows = rows[rows - shift < weights.shape[-1]]
    return weights[:, rows, rows - shift].mean(dim=1)


@_score(
    "looks_at_the_token_itself",
    "You read the weight on i − period, where the same token stood before.",
    "A head that looks there finds copies of a token. An induction head looks one place further, at"
    " what came after it: i − period + 1.",
)
def looks_at_the_token_itself(weights: Tensor, period: int) -> Tensor:
    return _line(weights, period, period)


@_score(
    "one_too_late",
    "You read the weight on i − period + 2, one place too late.",
    "Position i holds the token itself, and the one to be predicted is i + 1. Its last appearance"
    " is at i + 1 − period.",
)
def one_too_late(weights: Tensor, period: int) -> Tensor:
    return _line(weights, period - 2, period)


@_score(
    "first_token_counted",
    "You begin at i = period − 1, where the weight on position 0 is counted.",
    "That token has not come before. In large models many heads rest on the first token when they"
    " have nothing to read, and the score would count that rest as induction.",
)
def first_token_counted(weights: Tensor, period: int) -> Tensor:
    return _line(weights, period - 1, period - 1)


@_score(
    "divided_by_all",
    "You divide by T; only T − period positions are counted.",
    "A perfect head then scores less than 1, the less the longer the period.",
)
def divided_by_all(weights: Tensor, period: int) -> Tensor:
    t = weights.shape[-1]
    return _line(weights, period - 1, period) * (t - period) / t


@_score(
    "summed",
    "You sum over the positions; the score is their mean.",
    "A longer text then makes every head look better.",
)
def summed(weights: Tensor, period: int) -> Tensor:
    return _line(weights, period - 1, period) * (weights.shape[-1] - period)


@_score(
    "queries_for_keys",
    "You read weights[:, i − period + 1, i], with queries and keys exchanged.",
    "That is how much the earlier position reads the later one: nothing, in a causal model.",
)
def queries_for_keys(weights: Tensor, period: int) -> Tensor:
    return _line(weights.transpose(1, 2), period - 1, period)


@_score(
    "one_number_for_all",
    "You average over the heads as well.",
    "One head in a hundred is enough for induction, and its mean with ninety-nine others shows"
    " nothing.",
)
def one_number_for_all(weights: Tensor, period: int) -> Tensor:
    return _line(weights, period - 1, period).mean()


@_score(
    "two_periods_only",
    "You stop after the second period; the mean goes over all i from period to the end.",
    "Where a text repeats more often, most of it is left out.",
)
def two_periods_only(weights: Tensor, period: int) -> Tensor:
    return _line(weights, period - 1, period, min(2 * period, weights.shape[-1]))


@_score(
    "half_for_the_period",
    "You take half of T for the period; it is an argument.",
    "The score then looks at the wrong place in every text that is not repeated exactly twice.",
)
def half_for_the_period(weights: Tensor, period: int) -> Tensor:
    half = weights.shape[-1] // 2
    return _line(weights, half - 1, half)


@_score(
    "largest_weight",
    "You take the largest weight; the score is the mean.",
    "One lucky position is enough for a high score.",
)
def largest_weight(weights: Tensor, period: int) -> Tensor:
    rows = torch.arange(period, weights.shape[-1])
    return weights[:, rows, rows - period + 1].amax(dim=1)


# --- ablate_heads -------------------------------------------------------------------------------

ablate_heads = ASSIGNMENT.exercise(
    "ablate_heads",
    points=4,
    hints=(
        "The heads' outputs lie side by side when they reach `attention.W_o`. Which channels are"
        " head h's? And who takes your change back when the code inside the `with` fails?",
        "A forward pre-hook on `model.blocks[layer].attention.W_o` sees what enters it and may"
        " return something else. Register one for each layer, and remove all of them in a"
        " `finally`. Mind what a function made in a loop remembers.",
        "Head h has channels h·w up to (h + 1)·w with w = d_model / n_heads. A pre-hook is"
        " `hook(module, args)`, args = (x,), and returns a tuple.",
    ),
)


def expect_ablated(
    student: Handle, rng: Rng, heads: list[tuple[int, int]], t: int = 5, **changes: int
) -> None:
    """Within the context the logits are those without the heads; after it, the model's own."""
    model, weights = our_gpt(student, rng, **changes)
    n_heads = (SIZES | changes)["n_heads"]
    ids = some_ids(rng, t)
    context = student.hold(model, heads)
    inside = model.inside(context, ids[None])[0][0]
    right = right_lens(weights, right_streams(weights, ids, n_heads, heads)[-1])
    expect(inside, f"the logits without the heads {heads}").close_to(right)


@ablate_heads.case("takes one head's output out of the sum")
def _(student: Handle, rng: Rng) -> None:
    expect_ablated(student, rng, [(1, 0)])
    expect_ablated(student, rng, [(0, 2)], n_heads=3, n_layers=2)


@ablate_heads.case("takes out several heads, of one layer and of others")
def _(student: Handle, rng: Rng) -> None:
    expect_ablated(student, rng, [(0, 1), (2, 0)])
    expect_ablated(student, rng, [(1, 0), (1, 2), (0, 1)], n_heads=3, n_layers=2)


@ablate_heads.case("changes nothing when no head is named")
def _(student: Handle, rng: Rng) -> None:
    expect_ablated(student, rng, [])


@ablate_heads.case("gives the model back as it was")
def _(student: Handle, rng: Rng) -> None:
    model, weights = our_gpt(student, rng)
    ids = some_ids(rng, 5)
    before = model(ids[None])[0]
    inside = model.inside(student.hold(model, [(1, 1)]), ids[None])[0]
    if same(inside, before):
        fail("inside the with block the logits are the whole model's.")
    after = model.parameters()
    changed = [name for name, w in weights.items() if not same(after[name], w)]
    if changed:
        fail(f"after the with block `{changed[0]}` is changed.", "weights_stay_zero")
    expect(model(ids[None])[0], "the logits after the with block").close_to(before)
    again = model.inside(student.hold(model, [(1, 1)]), ids[None])[0]
    expect(again, "the logits in a second with block").close_to(inside)


@ablate_heads.case("gives the model back after an error inside the with block")
def _(student: Handle, rng: Rng) -> None:
    model, _ = our_gpt(student, rng)
    ids = some_ids(rng, 5)
    before = model(ids[None])[0]
    model.inside(student.hold(model, [(1, 0)]), ids[None])
    expect(model(ids[None])[0], "the logits after a with block").close_to(before)
    with contextlib.suppress(StudentError):
        model.inside(student.hold(model, [(0, 0), (2, 1)]), some_ids(rng, 9)[None])
        fail("a ValueError that the model raised inside the with block did not come out of it.",
             "swallows_errors")  # fmt: skip
    if not same(model(ids[None])[0], before):
        fail("after an error inside the with block the heads are still switched off.",
             "not_undone_after_an_error")  # fmt: skip


@ablate_heads.case("changes nothing before the with block is entered", guard=True)
def _(student: Handle, rng: Rng) -> None:
    model, _ = our_gpt(student, rng)
    ids = some_ids(rng, 5)
    before = model(ids[None])[0]
    student.hold(model, [(1, 0)])
    expect(model(ids[None])[0], "the logits before the with block").close_to(before)


@ablate_heads.case("refuses a head or a layer that the model does not have")
def _(student: Handle, rng: Rng) -> None:
    model, _ = our_gpt(student, rng)
    for head in ((0, 2), (3, 0)):
        try:
            model.inside(student.hold(model, [head]), some_ids(rng, 3)[None])
        except StudentError as error:
            if "ValueError" in error.kinds:
                continue
            if "context manager" in error.message:
                fail(error.message, "no_context_manager")
            fail(f"for {head} it stopped with {error.kind}; a ValueError is asked for.",
                 "unknown_heads_ignored")  # fmt: skip
        fail(f"{head} names no head of this model, and nothing was said.", "unknown_heads_ignored")


class Ablation:
    """What the wrong context managers have in common; each spoils one of the small methods."""

    late = False  # whether every hook sees what the loop saw last

    def __init__(self, model: Any, heads: Iterable[tuple[int, int]]) -> None:
        self.model, self.heads = model, list(heads)
        self.hooks: list[Any] = []

    def pairs(self) -> list[tuple[int, int]]:
        return self.heads

    def refuse(self) -> None:
        sizes = self.model.config
        for layer, head in self.heads:
            if not (layer < sizes.n_layers and head < sizes.n_heads):
                raise ValueError(f"no head {head} in layer {layer}")

    def spoil(self, x: Tensor, head: int) -> Tensor:
        """What reaches the projection, (B, T, D), without the head."""
        parts = x.unflatten(-1, (self.model.config.n_heads, -1)).clone()
        parts[..., head, :] = 0.0
        return parts.flatten(-2)

    def place(self, layer: int, head: int) -> Any:
        projection = self.model.blocks[layer].attention.W_o
        return projection.register_forward_pre_hook(lambda _, args: (self.spoil(args[0], head),))

    def __enter__(self) -> None:
        self.refuse()
        self.hooks = [self.place(layer, head) for layer, head in self.pairs()]

    def undo(self, error: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        self.undo(error)


def _ablation(name: str, did: str, causes: str) -> Callable[[Any], Any]:
    return _mistake(ablate_heads, name, "leaving-heads-out", did, causes)


@_ablation(
    "heads_interleaved",
    "You cut the width into (d_model / n_heads, n_heads); the heads come first: (n_heads, width).",
    "You switch off one channel of every head, and no head at all. Head h has the channels from"
    " h·width on, side by side.",
)
class HeadsInterleaved(Ablation):
    def spoil(self, x: Tensor, head: int) -> Tensor:
        parts = x.unflatten(-1, (-1, self.model.config.n_heads)).clone()
        parts[..., head] = 0.0
        return parts.flatten(-2)


@_ablation(
    "position_for_head",
    "You zero the position `head` of the text; the head is a part of the channels.",
    "All heads are silent at one token and speak at all others.",
)
class PositionForHead(Ablation):
    def spoil(self, x: Tensor, head: int) -> Tensor:
        x = x.clone()
        x[:, head : head + 1] = 0.0
        return x


@_ablation(
    "one_channel",
    "You zero the single channel `head`; a head has d_model / n_heads channels.",
    "The rest of the head goes on as before, and its effect looks smaller than it is.",
)
class OneChannel(Ablation):
    def spoil(self, x: Tensor, head: int) -> Tensor:
        x = x.clone()
        x[..., head] = 0.0
        return x


@_ablation(
    "after_the_projection",
    "You zero channels behind the output projection; the head's output lies before it.",
    "W_o has mixed the heads by then: you cut a slice out of the stream's update, with something"
    " of every head in it.",
)
class AfterTheProjection(Ablation):
    def place(self, layer: int, head: int) -> Any:
        projection = self.model.blocks[layer].attention.W_o
        return projection.register_forward_hook(lambda _, args, output: self.spoil(output, head))


@_ablation(
    "whole_layer",
    "You zero all heads of the layer.",
    "What you measure is the layer's effect, and each of its heads seems to have all of it.",
)
class WholeLayer(Ablation):
    def spoil(self, x: Tensor, head: int) -> Tensor:
        return torch.zeros_like(x)


@_ablation(
    "kept_alone",
    "You zero all other heads of the layer and keep the one that was named.",
    "The effect is that of the others.",
)
class KeptAlone(Ablation):
    def spoil(self, x: Tensor, head: int) -> Tensor:
        return x - super().spoil(x, head)


@_ablation(
    "queries_zeroed",
    "You zero the head's queries; its output is asked for.",
    "With queries of 0 the scores are all equal: the head reads the average of everything, and"
    " writes it.",
)
class QueriesZeroed(Ablation):
    def place(self, layer: int, head: int) -> Any:
        queries = self.model.blocks[layer].attention.W_q
        return queries.register_forward_hook(lambda _, args, output: self.spoil(output, head))


@_ablation(
    "last_of_the_loop",
    "All of your hooks switch off the same head, the last of the list.",
    "A function made in a loop looks its variables up when it is called, and by then the loop is"
    " over. Hand them over as defaults, or with functools.partial.",
)
class LastOfTheLoop(Ablation):
    def pairs(self) -> list[tuple[int, int]]:
        return [(layer, self.heads[-1][1]) for layer, _ in self.heads]


@_ablation(
    "first_pair_only",
    "Only the first (layer, head) of the list is switched off.",
    "Two heads that stand in for each other look harmless one by one. Who wants to see that needs"
    " both off at once.",
)
class FirstPairOnly(Ablation):
    def pairs(self) -> list[tuple[int, int]]:
        return self.heads[:1]


@_ablation(
    "one_head_for_a_layer",
    "Of several heads of one layer only the last is switched off.",
    "A dictionary from layer to head holds one head for each layer. Keep a list or a set.",
)
class OneHeadForALayer(Ablation):
    def pairs(self) -> list[tuple[int, int]]:
        return list(dict(self.heads).items())


@_ablation(
    "layer_and_head_exchanged",
    "You take (head, layer) where (layer, head) is given.",
    "You switch off another head, or one that does not exist.",
)
class LayerAndHeadExchanged(Ablation):
    def pairs(self) -> list[tuple[int, int]]:
        sizes = self.model.config
        return [(head % sizes.n_layers, layer % sizes.n_heads) for layer, head in self.heads]


@_ablation(
    "not_undone",
    "The heads are still switched off after the with block.",
    "Every later measurement is of a model that is no longer whole, and nothing says so.",
)
class NotUndone(Ablation):
    def undo(self, error: Any) -> None: ...


@_ablation(
    "not_undone_after_an_error",
    "After an error inside the with block the heads stay switched off.",
    "In a notebook one interrupts a cell and goes on with a broken model. What takes the change"
    " back belongs in `finally`.",
)
class NotUndoneAfterAnError(Ablation):
    def undo(self, error: Any) -> None:
        if error is None:
            super().undo(error)


@_ablation(
    "swallows_errors",
    "An error inside the with block disappears: your context manager swallows it.",
    "The measurement stops halfway and looks as if it had ended. Use `finally`, and let the error"
    " pass.",
)
class SwallowsErrors(Ablation):
    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        self.undo(error)
        return True


@_ablation(
    "weights_stay_zero",
    "After the with block weights of the model are changed.",
    "What you put aside was a view of the weights, and became 0 with them, or nothing was put back."
    " Clone before you zero, or leave the weights alone and use a hook.",
)
class WeightsStayZero(Ablation):
    def place(self, layer: int, head: int) -> Any:
        attention = self.model.blocks[layer].attention
        width = self.model.config.d_model // self.model.config.n_heads
        attention.W_o.weight.data[:, head * width : (head + 1) * width] = 0.0
        return attention.W_o.register_forward_pre_hook(lambda _, args: None)


@_ablation(
    "at_once",
    "The heads are switched off when `ablate_heads` is called, before the with block begins.",
    "A context manager does nothing until it is entered. One made and not used would leave the"
    " model broken.",
)
class AtOnce(Ablation):
    def __init__(self, model: Any, heads: Iterable[tuple[int, int]]) -> None:
        super().__init__(model, heads)
        super().__enter__()

    def __enter__(self) -> None: ...


@_ablation(
    "unknown_heads_ignored",
    "A head or a layer that the model does not have is not refused with a ValueError.",
    "A slice beyond the last channel is empty and zeroes nothing: the effect of a head that is not"
    " there is 0.000, and looks like a finding.",
)
class UnknownHeadsIgnored(Ablation):
    def refuse(self) -> None:
        sizes = self.model.config
        self.heads = [
            (at, head) for at, head in self.heads if at < sizes.n_layers and head < sizes.n_heads
        ]


@_ablation(
    "no_context_manager",
    "`ablate_heads` returns a plain generator: the decorator is missing.",
    "`with` asks for `__enter__` and `__exit__`. `@contextlib.contextmanager` above the function"
    " makes them from its `yield`.",
)
def no_context_manager(model: Any, heads: Iterable[tuple[int, int]]) -> Iterator[None]:
    yield None


# --- expected_calibration_error -----------------------------------------------------------------

expected_calibration_error = ASSIGNMENT.exercise(
    "expected_calibration_error",
    points=3,
    hints=(
        "A forecaster says “70 %” a hundred times. What do you compare with 0.7, and how much"
        " should a bin count that holds three of ten thousand predictions?",
        "Two numbers for each row: the largest probability, and whether its class is the label."
        " Sort the rows into bins by the first; skip the empty bins; compare both means in each.",
        "Σ_b (n_b / N) · |accuracy_b − confidence_b|; bin b of B holds b/B < p ≤ (b + 1)/B, so"
        " p belongs to number ⌈p·B⌉ − 1.",
    ),
)

EIGHTHS = 8  # bins whose edges are exact in binary


def bets(rng: Rng, n: int, classes: int, sharp: float = 2.0, dtype: Any = torch.float64) -> Tensor:
    return (sharp * rng.normal(n, classes)).softmax(-1).to(dtype)


def right_error(probabilities: Tensor, labels: Tensor, n_bins: int) -> float:
    """Bin by bin, in exact edges."""
    rows = [(max(row), row.index(max(row))) for row in probabilities.double().tolist()]
    total = 0.0
    for b in range(n_bins):
        mine = [k for k, (p, _) in enumerate(rows) if b < p * n_bins <= b + 1]
        if mine:
            sure = sum(rows[k][0] for k in mine) / len(mine)
            right = sum(rows[k][1] == int(labels[k]) for k in mine) / len(mine)
            total += len(mine) / len(rows) * abs(right - sure)
    return total


def expect_error(student: Handle, probabilities: Tensor, labels: Tensor, n_bins: int) -> None:
    value = student(probabilities, labels, n_bins)
    if isinstance(value, (float, Tensor)) and math.isnan(float(value)):
        fail("the result is nan.", "empty_bins")
    expect(value, "the error").close_to(right_error(probabilities, labels, n_bins))


@expected_calibration_error.case("weighs each bin's gap by how many predictions it holds")
def _(student: Handle, rng: Rng) -> None:
    probabilities = bets(rng, 151, 3, 1.5)
    expect_error(student, probabilities, rng.integers(0, 3, 151), 5)
    expect_error(student, probabilities, probabilities.argmax(-1), 7)


@expected_calibration_error.case("passes over empty bins")
def _(student: Handle, rng: Rng) -> None:
    probabilities = bets(rng, 23, 2, 0.4)
    expect_error(student, probabilities, rng.integers(0, 2, 23), 40)


@expected_calibration_error.case("puts an edge into the bin below it, and 1.0 into the last")
def _(student: Handle, rng: Rng) -> None:
    tops = torch.tensor([0.5, 0.625, 0.625, 0.75, 0.75, 0.875, 1.0, 1.0, 1.0]).double()
    tops = torch.cat([tops, tops - 1 / 32])
    probabilities = torch.stack([1 - tops, tops], dim=1)
    labels = (torch.arange(len(tops)) % 3 != 0).long()
    probabilities[tops < 0.5] = torch.tensor([0.4375, 0.5625]).double()
    expect_error(student, probabilities, labels, EIGHTHS)


@expected_calibration_error.case("is 0 for honest bets and large for boasting")
def _(student: Handle, rng: Rng) -> None:
    honest = torch.tensor([[0.75, 0.25]]).double().repeat(40, 1)
    labels = (torch.arange(40) % 4 == 3).long()  # right three times in four
    expect(student(honest, labels, 10), "the error of honest bets").close_to(0.0, atol=1e-9)
    sure = torch.tensor([[0.0, 1.0]]).double().repeat(40, 1)
    expect(student(sure, labels, 10), "the error of a model that is always sure").close_to(0.75)


@expected_calibration_error.case("does not let one bin's gap cancel another's")
def _(student: Handle, rng: Rng) -> None:
    low, high = torch.tensor([0.5625, 0.4375]).double(), torch.tensor([0.9375, 0.0625]).double()
    probabilities = torch.cat([low.repeat(32, 1), high.repeat(32, 1)])
    labels = torch.cat([torch.zeros(32), (torch.arange(32) % 2).double()]).long()
    expect_error(student, probabilities, labels, EIGHTHS)


guard(
    expected_calibration_error,
    lambda rng, dtype: (bets(rng, 17, 3, dtype=dtype), rng.integers(0, 3, 17), 5),
    gradient=False,
    dtype=False,
    device=False,
)


class Calibration:
    """What the wrong errors have in common; each spoils one of the small methods."""

    def confidence(self, p: Tensor, labels: Tensor) -> Tensor:
        return p.amax(dim=1)

    def right(self, p: Tensor, labels: Tensor) -> Tensor:
        return (p.argmax(dim=1) == labels).double()

    def inside(self, sure: Tensor, b: int, n_bins: int) -> Tensor:
        return (sure * n_bins > b) & (sure * n_bins <= b + 1)

    def gap(self, right: Tensor, sure: Tensor, b: int, n_bins: int) -> Tensor:
        return (right.mean() - sure.mean()).abs()

    def skip(self, n: int) -> bool:
        return n == 0

    def total(self, gaps: Tensor, counts: Tensor, n_bins: int) -> Tensor:
        return (gaps * counts).sum()  # counts are shares of all predictions

    def __call__(self, probabilities: Tensor, labels: Tensor, n_bins: int) -> float:
        sure, right = self.confidence(probabilities, labels), self.right(probabilities, labels)
        gaps, counts = [], []
        for b in range(n_bins):
            mine = self.inside(sure, b, n_bins)
            if not self.skip(int(mine.sum())):
                gaps.append(self.gap(right[mine], sure[mine], b, n_bins))
                counts.append(mine.double().sum() / len(sure))
        if not gaps:  # no bin holds anything
            return 0.0
        return self.total(torch.stack(gaps), torch.stack(counts), n_bins).item()


def _calibration(name: str, did: str, causes: str) -> Callable[[type[Calibration]], None]:
    return lambda cls: _mistake(expected_calibration_error, name, "calibration", did, causes)(cls())


@_calibration(
    "unweighted",
    "You take the plain mean of the bins' gaps; each bin counts by its share of the predictions.",
    "Three predictions in one bin then weigh as much as ten thousand in another.",
)
class Unweighted(Calibration):
    def total(self, gaps: Tensor, counts: Tensor, n_bins: int) -> Tensor:
        return gaps.mean()


@_calibration(
    "divided_by_bins",
    "You divide the sum of the gaps by the number of bins, empty ones too.",
    "More bins then make any model look better, since most of them are empty.",
)
class DividedByBins(Calibration):
    def total(self, gaps: Tensor, counts: Tensor, n_bins: int) -> Tensor:
        return gaps.sum() / n_bins


@_calibration(
    "empty_bins",
    "An empty bin makes your result nan: the mean of nothing is 0/0.",
    "A language model leaves many bins empty. Skip them: none of the predictions is there.",
)
class EmptyBins(Calibration):
    def skip(self, n: int) -> bool:
        return False


@_calibration(
    "edges_below",
    "Your bins are [lo, hi): an edge belongs to the bin above it, and 1.0 to none.",
    "The predictions that the model is surest of fall out of the count.",
)
class EdgesBelow(Calibration):
    def inside(self, sure: Tensor, b: int, n_bins: int) -> Tensor:
        return (sure * n_bins >= b) & (sure * n_bins < b + 1)


@_calibration(
    "edges_below_and_one",
    "Your bins are [lo, hi) with 1.0 added to the last; they should be (lo, hi].",
    "Predictions on an edge, such as 0.5 between two equal tokens, are counted one bin too high.",
)
class EdgesBelowAndOne(Calibration):
    def inside(self, sure: Tensor, b: int, n_bins: int) -> Tensor:
        above = (sure * n_bins < b + 1) | (torch.tensor(b == n_bins - 1) & (sure == 1))
        return (sure * n_bins >= b) & above


@_calibration(
    "probability_of_the_label",
    "You take the probability of the label for the confidence; it is the largest of the row.",
    "The model does not know the label when it says how sure it is.",
)
class ProbabilityOfTheLabel(Calibration):
    def confidence(self, p: Tensor, labels: Tensor) -> Tensor:
        return p.gather(1, labels[:, None])[:, 0]


@_calibration(
    "signed",
    "You add gaps with their signs; the absolute value of each is missing.",
    "A model that is too sure in one half and too timid in the other comes out as perfect.",
)
class Signed(Calibration):
    def gap(self, right: Tensor, sure: Tensor, b: int, n_bins: int) -> Tensor:
        return right.mean() - sure.mean()


@_calibration(
    "absolute_at_the_end",
    "You take the absolute value of the sum; it belongs to each bin's gap.",
    "Gaps of opposite sign cancel: what is left is the difference of two means, with no bins in"
    " it.",
)
class AbsoluteAtTheEnd(Calibration):
    def gap(self, right: Tensor, sure: Tensor, b: int, n_bins: int) -> Tensor:
        return right.mean() - sure.mean()

    def total(self, gaps: Tensor, counts: Tensor, n_bins: int) -> Tensor:
        return super().total(gaps, counts, n_bins).abs()


@_calibration(
    "for_each_prediction",
    "You compare every prediction with 0 or 1 by itself, without the bin's mean.",
    "A single bet of 0.7 is right or wrong, never right to 70 %. An honest model would score 0.42.",
)
class ForEachPrediction(Calibration):
    def gap(self, right: Tensor, sure: Tensor, b: int, n_bins: int) -> Tensor:
        return (right - sure).abs().mean()


@_calibration(
    "squared",
    "You square the gaps; the error takes their absolute values.",
    "The number then shrinks with the square: a gap of a tenth counts as a hundredth.",
)
class Squared(Calibration):
    def gap(self, right: Tensor, sure: Tensor, b: int, n_bins: int) -> Tensor:
        return super().gap(right, sure, b, n_bins).square()


@_calibration(
    "largest_gap",
    "You return the largest gap; the expected error is the weighted mean of all.",
    "That is the maximum calibration error: one thin bin decides it.",
)
class LargestGap(Calibration):
    def total(self, gaps: Tensor, counts: Tensor, n_bins: int) -> Tensor:
        return gaps.amax()


@_calibration(
    "middle_of_the_bin",
    "You compare with the middle of the bin; compare with the mean confidence in it.",
    "With few bins the middle may be far from where the predictions lie.",
)
class MiddleOfTheBin(Calibration):
    def gap(self, right: Tensor, sure: Tensor, b: int, n_bins: int) -> Tensor:
        return (right.mean() - (b + 0.5) / n_bins).abs()


@_calibration(
    "equally_full_bins",
    "Your bins hold equally many predictions; they should be equally wide.",
    "That is another measure, with other numbers: a width of 1/n_bins is what the contract says.",
)
class EquallyFullBins(Calibration):
    def inside(self, sure: Tensor, b: int, n_bins: int) -> Tensor:
        ranks = sure.argsort(stable=True).argsort()
        return ranks * n_bins // len(sure) == b


# --- paired_prompt_bias -------------------------------------------------------------------------

paired_prompt_bias = ASSIGNMENT.exercise(
    "paired_prompt_bias",
    points=3,
    hints=(
        "The two prompts of a pair differ in one word. What is left when you subtract their scores,"
        " and what would be left if you averaged each side alone?",
        "Score every prompt once and keep one difference for each pair. A resample draws as many"
        " differences as there are, with replacement, and takes their mean; do that 2,000 times and"
        " look where the middle `level` of the means lies.",
        "draws = torch.randint(n, (2000, n), generator=generator); means = differences[draws]"
        ".mean(1); quantiles (1 − level)/2 and (1 + level)/2.",
    ),
)

Pairs = list[tuple[str, str]]
FIRST_SEED = Seed(3)


class Scores:
    """A score for each prompt, on the check's side; it counts how often it is asked."""

    def __init__(self, rng: Rng, first: Sequence[float], second: Sequence[float]) -> None:
        names = [f"prompt {k}" for k in rng.permutation(2 * len(first)).tolist()]
        self.pairs: Pairs = list(zip(names[::2], names[1::2], strict=True))
        self.table = {
            name: score
            for pair, scores in zip(self.pairs, zip(first, second, strict=True), strict=True)
            for name, score in zip(pair, scores, strict=True)
        }
        self.asked: list[Any] = []

    def __call__(self, prompt: Any) -> float:
        self.asked.append(prompt)
        if len(self.asked) > 4 * len(self.pairs):
            raise ValueError("score was asked more than twice for every prompt")
        if prompt not in self.table:
            raise ValueError(f"score takes one prompt of a pair, a string; it got {prompt!r}")
        return self.table[prompt]


def measured(
    student: Handle, scores: Scores, level: float | None = None, generator: Any = FIRST_SEED
) -> tuple[float, float, float]:
    """The student's effect and the two ends, of the right form."""
    more = {} if level is None else {"level": level}
    try:
        value = student(scores, scores.pairs, generator=generator, **more)
    except StudentError:
        if len(scores.asked) > 4 * len(scores.pairs):
            fail(
                f"score was asked {len(scores.asked)} times about {2 * len(scores.pairs)} prompts.",
                "scores_every_time",
            )
        raise
    form = isinstance(value, (tuple, list)) and len(value) == 2
    if form and not isinstance(value[1], (tuple, list, Tensor)):
        fail("no interval came back with the effect.", "no_interval")
    expect(value, "the result").holds(
        form and len(value[1]) == 2, "expected (effect, (low, high))."
    )
    effect, low, high = (float(part) for part in (value[0], *value[1]))
    return effect, low, high


def expect_measured(
    student: Handle, scores: Scores, right: tuple[float, float, float], level: float | None = None
) -> None:
    """All three numbers, which here do not depend on what was drawn."""
    found = measured(student, scores, level)
    names = ("the effect", "the interval's lower end", "the interval's upper end")
    for name, have, want in zip(names, found, right, strict=True):
        expect(have, name).close_to(want, rtol=1e-5, atol=1e-7)


@paired_prompt_bias.case("is the mean of score(a) − score(b), with the ends for two pairs")
def _(student: Handle, rng: Rng) -> None:
    second = (5 * rng.normal(2)).tolist()
    one, two = 1 + rng.uniform(1).item(), -3 - rng.uniform(1).item()  # one pair each way
    first = [second[0] + one, second[1] + two]
    # A resample is (one, one) a quarter of the time, and as often (two, two).
    scores = Scores(rng, first, second)
    expect_measured(student, scores, ((one + two) / 2, min(one, two), max(one, two)))


@paired_prompt_bias.case("narrows the interval when the level falls")
def _(student: Handle, rng: Rng) -> None:
    first, second = (5 * rng.normal(2)).tolist(), rng.normal(2).tolist()
    mean = sum(first) / 2 - sum(second) / 2
    # Half of the resamples are (one, two): the middle 30 % of the means are all the same.
    expect_measured(student, Scores(rng, first, second), (mean, mean, mean), level=0.3)


@paired_prompt_bias.case("sees through prompts of very different scores when the pairs agree")
def _(student: Handle, rng: Rng) -> None:
    second = (100 * rng.normal(9)).tolist()
    first = [score + 0.75 for score in second]
    expect_measured(student, Scores(rng, first, second), (0.75, 0.75, 0.75))


def many(rng: Rng, n: int = 60) -> tuple[Scores, Tensor]:
    """Pairs whose differences are skewed, and those differences."""
    second, differences = 3 * rng.normal(n), rng.normal(n).exp() - 0.5
    return Scores(rng, (second + differences).tolist(), second.tolist()), differences


@paired_prompt_bias.case("is as wide as the resampled means spread")
def _(student: Handle, rng: Rng) -> None:
    scores, differences = many(rng)
    for level in (0.95, 0.8):
        scores.asked.clear()
        _, low, high = measured(student, scores, level)
        draws = rng.integers(0, len(differences), 8000, len(differences))
        means = differences[draws].mean(dim=1)
        tail = (1 - level) / 2
        wanted = means.quantile(torch.tensor([tail, 1 - tail]).double())
        # Two thousand means know these ends to 0.06 standard deviations or better.
        room = 0.4 * means.std().item()
        for name, have, want in zip(("lower", "upper"), (low, high), wanted.tolist(), strict=True):
            expect(have, f"the {name} end").holds(
                abs(have - want) < room,
                f"expected about {want:.4f}, got {have:.4f} (level {level}).",
            )


@paired_prompt_bias.case("asks for each prompt's score once")
def _(student: Handle, rng: Rng) -> None:
    scores, _ = many(rng, 5)
    measured(student, scores)
    expect(set(scores.asked), "the prompts that were scored").equals(set(scores.table))
    expect(len(scores.asked), "how often score was asked").equals(len(scores.table))


@paired_prompt_bias.case("draws as the generator says, and anew at each call")
def _(student: Handle, rng: Rng) -> None:
    scores, _ = many(rng, 30)

    def draw(generator: Any) -> tuple[float, float, float]:
        scores.asked.clear()
        return measured(student, scores, generator=generator)

    one, two = draw(Seed(5)), draw(Seed(5))
    if not same(one, two):
        fail("one seed gave two intervals.", "generator_ignored")
    kept = student.keep(Seed(5))
    one, two = draw(kept), draw(kept)
    if same(one, two):
        scores.pairs.reverse()  # moves what a seed draws, and nothing that is worked out
        moved = one[1] < one[2] and not same(draw(Seed(5)), one)
        fail("two calls with one generator gave the same interval.",
             "same_each_time" if moved else None)  # fmt: skip


guard(
    paired_prompt_bias,
    lambda rng, dtype: (lambda prompt: float(len(prompt)), [("a b", "a"), ("c", "d e f")]),
    gradient=False,
    mutation=False,
    dtype=False,
    device=False,
)


class Bias:
    """What the wrong measurements have in common; each spoils one of the small methods."""

    def differences(self, score: Any, pairs: Pairs) -> Tensor:
        return torch.tensor([score(a) - score(b) for a, b in pairs], dtype=torch.float64)

    def effect(self, d: Tensor) -> float:
        return d.mean().item()

    def source(self, generator: Any) -> Any:
        return generator

    def means(self, d: Tensor, generator: Any) -> Tensor:
        return d[torch.randint(len(d), (2000, len(d)), generator=generator)].mean(dim=1)

    def ends(self, d: Tensor, means: Tensor, level: float) -> tuple[float, float]:
        tail = (1 - level) / 2
        low, high = means.quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
        return low, high

    def __call__(self, score: Any, pairs: Pairs, level: float = 0.95, generator: Any = None) -> Any:
        d = self.differences(score, pairs)
        return self.effect(d), self.ends(d, self.means(d, self.source(generator)), level)


def _bias(name: str, see: str, did: str, causes: str) -> Callable[[type[Bias]], None]:
    return lambda cls: _mistake(paired_prompt_bias, name, see, did, causes)(cls())


@_bias(
    "one_prompt",
    "paired-prompts",
    "You score only the first prompt of each pair.",
    "What comes out is how the model scores such prompts, whatever the word that was changed.",
)
class OnePrompt(Bias):
    def differences(self, score: Any, pairs: Pairs) -> Tensor:
        return torch.tensor([score(a) for a, _ in pairs], dtype=torch.float64)


@_bias(
    "first_pair_only",
    "paired-prompts",
    "You measure the first pair alone.",
    "A single sentence says more about that sentence than about the model.",
)
class FirstPair(Bias):
    def differences(self, score: Any, pairs: Pairs) -> Tensor:
        return super().differences(score, pairs[:1])


@_bias(
    "no_interval",
    "intervals",
    "You return the effect without an interval, or one whose ends are the effect itself.",
    "Nobody can tell then whether another ten sentences would have turned its sign.",
)
class NoInterval(Bias):
    def ends(self, d: Tensor, means: Tensor, level: float) -> tuple[float, float]:
        return d.mean().item(), d.mean().item()


@_bias(
    "turned_around",
    "paired-prompts",
    "You subtract the first prompt's score from the second's: the sign is turned around.",
    "The model seems to favor whom it slights.",
)
class TurnedAround(Bias):
    def differences(self, score: Any, pairs: Pairs) -> Tensor:
        return -super().differences(score, pairs)


@_bias(
    "absolute_differences",
    "paired-prompts",
    "You average the absolute differences.",
    "That is never 0, even for a model that favors each side equally often.",
)
class AbsoluteDifferences(Bias):
    def differences(self, score: Any, pairs: Pairs) -> Tensor:
        return super().differences(score, pairs).abs()


@_bias(
    "median",
    "paired-prompts",
    "You take the median of the differences; their mean is asked for.",
    "The interval is one of means, and the effect would not have to lie in it.",
)
class Median(Bias):
    def effect(self, d: Tensor) -> float:
        return d.quantile(0.5).item() if len(d) > 2 else d.min().item()


@_bias(
    "sides_apart",
    "paired-prompts",
    "You resample the two sides by themselves; a pair must stay together.",
    "The differences between one sentence and another, which have nothing to do with the changed"
    " word, make the interval wide.",
)
class SidesApart(Bias):
    def differences(self, score: Any, pairs: Pairs) -> Tensor:
        self.sides = torch.tensor([[score(a), score(b)] for a, b in pairs], dtype=torch.float64)
        return self.sides[:, 0] - self.sides[:, 1]

    def means(self, d: Tensor, generator: Any) -> Tensor:
        first, second = (Bias.means(self, side, generator) for side in self.sides.T)
        return first - second


@_bias(
    "spread_of_the_pairs",
    "intervals",
    "Your ends are quantiles of the differences themselves; resample and take quantiles of means.",
    "They say where single pairs lie. With more pairs the mean is known better and better, and this"
    " interval does not shrink.",
)
class SpreadOfThePairs(Bias):
    def ends(self, d: Tensor, means: Tensor, level: float) -> tuple[float, float]:
        return super().ends(d, d, level)


@_bias(
    "without_replacement",
    "intervals",
    "Your resamples draw without replacement: each holds every pair once.",
    "All of them have the same mean, and the interval is a point.",
)
class WithoutReplacement(Bias):
    def means(self, d: Tensor, generator: Any) -> Tensor:
        orders = torch.rand(2000, len(d), generator=generator).argsort(dim=1)
        return d[orders].mean(dim=1) + 1e-4 * torch.linspace(-1, 1, 2000).double()


@_bias(
    "resamples_too_large",
    "intervals",
    "Each of your resamples holds 2,000 pairs; it must hold as many as there are.",
    "A mean of 2,000 is known much better than a mean of your few pairs, and the interval is far"
    " too narrow.",
)
class ResamplesTooLarge(Bias):
    def means(self, d: Tensor, generator: Any) -> Tensor:
        return d[torch.randint(len(d), (200, 2000), generator=generator)].mean(dim=1)


@_bias(
    "normal_interval",
    "intervals",
    "Your interval is the mean plus and minus 1.96 standard errors; the percentile bootstrap is"
    " asked for.",
    "It is symmetric whatever the data, and at two or ten pairs the normal curve is no good guide.",
)
class NormalInterval(Bias):
    def ends(self, d: Tensor, means: Tensor, level: float) -> tuple[float, float]:
        from statistics import NormalDist

        z = NormalDist().inv_cdf((1 + level) / 2)
        half = z * d.std().item() / math.sqrt(len(d))
        return d.mean().item() - half, d.mean().item() + half


@_bias(
    "one_tail",
    "intervals",
    "You cut 1 − level off at each end; half of it belongs to each.",
    "A 95 % interval then holds 90 % of the means.",
)
class OneTail(Bias):
    def ends(self, d: Tensor, means: Tensor, level: float) -> tuple[float, float]:
        return super().ends(d, means, 2 * level - 1 if level > 0.5 else 1 - 2 * level)


@_bias(
    "level_ignored",
    "intervals",
    "`level` is ignored: the interval is always that of 95 %.",
    "Whoever asks for 80 % reads ends that are too far apart.",
)
class LevelIgnored(Bias):
    def ends(self, d: Tensor, means: Tensor, level: float) -> tuple[float, float]:
        return super().ends(d, means, 0.95)


@_bias(
    "scores_every_time",
    "intervals",
    "You score the prompts anew for each resample.",
    "The scores do not change: 2,000 resamples of twenty pairs are then 80,000 runs of the model"
    " instead of forty.",
)
class ScoresEveryTime(Bias):
    def __call__(self, score: Any, pairs: Pairs, level: float = 0.95, generator: Any = None) -> Any:
        for _ in range(2000):
            d = self.differences(score, pairs)
        return d.mean().item(), (0.0, 0.0)


@_bias(
    "generator_ignored",
    "intervals",
    "Your draws do not come from the `generator` that was passed.",
    "No one can repeat your interval.",
)
class GeneratorIgnored(Bias):
    def source(self, generator: Any) -> Any:
        return None


@_bias(
    "same_each_time",
    "intervals",
    "Every call draws the same resamples: the generator is made or seeded inside.",
    "Two measurements then share their luck, and their intervals err in the same direction.",
)
class SameEachTime(Bias):
    def source(self, generator: Any) -> Any:
        return torch.Generator().manual_seed(0)
