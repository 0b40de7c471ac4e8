"""Checks of chapter 13: the last token, a classifier on a GPT, freezing, low-rank adaptation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autograder.engine.exercise import Assignment, Exercise, Rng
from autograder.engine.expect import expect, fail, same
from autograder.engine.guards import guard
from autograder.engine.handle import Handle
from rnn2gpt.attention import causal_mask
from rnn2gpt.gpt import GPT, GPTConfig

ASSIGNMENT = Assignment(
    name="13-classification",
    notebook="classification",
    page="13_classification",
    sections={
        "last-token": "The last token has read everything",
        "padding-sides": "Padding, on either side",
        "the-classifier": "One linear map more",
        "what-to-train": "Which weights may move",
        "low-rank": "A narrow detour",
        "merging": "Merged, it costs nothing",
    },
    minutes=75,
    modules=(
        "data", "metrics", "ngram", "rnn", "lstm", "attention", "multi_head", "positions",
        "transformer", "tokenizer", "gpt", "kv_cache", "generation", "optim", "bert",
    ),
)  # fmt: skip


def _mistake(
    exercise: Exercise, name: str, see: str, did: str, causes: str
) -> Callable[[Any], Any]:
    return exercise.misconception(did=did, causes=causes, see=see, name=name)


# --- pool_last_token ----------------------------------------------------------------------------

pool_last_token = ASSIGNMENT.exercise(
    "pool_last_token",
    points=2,
    hints=(
        "In a mask of one row, which entry belongs to the last real token, if the padding stands"
        " before it, and if it stands behind it?",
        "Number the positions 0 to T − 1 and find, for each row, the largest number at which the"
        " mask is True.",
        "places: (T,); last = (places · mask).amax(1): (B,); then pick hidden[b, last[b]] for"
        " every b.",
    ),
)


def right_mask(*lengths: int, t: int) -> Tensor:
    """(B, T): so many real tokens in each row, and padding behind them."""
    return torch.arange(t) < torch.tensor(lengths)[:, None]


def left_mask(*lengths: int, t: int) -> Tensor:
    """(B, T): so many real tokens in each row, and padding before them."""
    return right_mask(*lengths, t=t).flip(1)


def last_by_hand(hidden: Tensor, mask: Tensor) -> Tensor:
    rows = [row[real][-1] for row, real in zip(hidden, mask, strict=True)]
    return torch.stack(rows)


def expect_pooled(student: Handle, hidden: Tensor, mask: Tensor) -> None:
    expect(student(hidden, mask), "the pooled vectors").close_to(last_by_hand(hidden, mask))


@pool_last_token.case("takes the last token where there is no padding")
def _(student: Handle, rng: Rng) -> None:
    expect_pooled(student, rng.strided(3, 5, 7), torch.ones(3, 5, dtype=torch.bool))


@pool_last_token.case("takes the last real token before padding on the right")
def _(student: Handle, rng: Rng) -> None:
    expect_pooled(student, rng.normal(4, 5, 3), right_mask(3, 1, 5, 2, t=5))


@pool_last_token.case("takes the last real token behind padding on the left")
def _(student: Handle, rng: Rng) -> None:
    expect_pooled(student, rng.normal(3, 7, 2), left_mask(4, 1, 7, t=7))


@pool_last_token.case("works on rows padded on different sides, and on one token")
def _(student: Handle, rng: Rng) -> None:
    mask = torch.cat([right_mask(2, 4, t=5), left_mask(3, 1, t=5)])
    expect_pooled(student, rng.normal(4, 5, 3), mask)
    expect_pooled(student, rng.normal(1, 1, 3), right_mask(1, t=1))


@pool_last_token.case("sends the gradient to the last tokens and nowhere else")
def _(student: Handle, rng: Rng) -> None:
    hidden, mask, cotangent = rng.normal(3, 5, 2), left_mask(2, 5, 3, t=5), rng.normal(3, 2)
    pulled = student.vjp(hidden, mask, cotangent=cotangent, wrt=(0,))
    right = torch.zeros_like(hidden)
    right[:, -1] = cotangent
    expect(pulled.inputs[0], "the gradient of hidden").close_to(right)


guard(
    pool_last_token,
    lambda rng, dtype: (rng.normal(3, 5, 2, dtype=dtype), right_mask(2, 5, 3, t=5)),
)


def _pooling(
    name: str, see: str, did: str, causes: str
) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Any]:
    return _mistake(pool_last_token, name, see, did, causes)


def _at(hidden: Tensor, last: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden)), last]


@_pooling(
    "index_minus_one",
    "last-token",
    "You take position −1 of every row, whatever the mask says.",
    "A text that is shorter than the longest of its batch is then judged by a padding token, and"
    " its label changes with the batch that it is in.",
)
def index_minus_one(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return hidden[:, -1]


@_pooling(
    "counts_the_real_tokens",
    "padding-sides",
    "Your last position is the number of real tokens minus 1.",
    "That holds with padding on the right. With padding on the left, as one pads to generate, it"
    " points into the padding or to the middle of the text.",
)
def counts_the_real_tokens(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return _at(hidden, attention_mask.sum(dim=1) - 1)


@_pooling(
    "one_past_the_last",
    "last-token",
    "You take the position after the last real token: the number of real tokens is no index.",
    "Positions count from 0. A padded text is judged by its first padding token, and one without"
    " padding ends in an IndexError, or in your clamp.",
)
def one_past_the_last(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return _at(hidden, attention_mask.sum(dim=1).clamp(max=hidden.shape[1] - 1))


@_pooling(
    "sums_the_row",
    "last-token",
    "You add the vectors of all real tokens; only the last one is asked for.",
    "A long text then has a longer vector than a short one, and early tokens, which have read"
    " little, weigh as much as the last, which has read all.",
)
def sums_the_row(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return (hidden * attention_mask[..., None]).sum(dim=1)


@_pooling(
    "mean_of_the_row",
    "last-token",
    "You take the mean over the real tokens; only the last one is asked for.",
    "It suits a model that reads both sides. In a GPT the early vectors know only the first words,"
    " and the mean is mostly made of them.",
)
def mean_of_the_row(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return sums_the_row(hidden, attention_mask) / attention_mask.sum(dim=1, keepdim=True)


@_pooling(
    "first_token",
    "last-token",
    "You take the first token, as one does with BERT.",
    "BERT's first token reads the whole text. A GPT's has read nothing but itself, so every text"
    " that begins with the same word gets the same label.",
)
def first_token(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return hidden[:, 0]


@_pooling(
    "first_real_token",
    "last-token",
    "You take the first real token: `argmax` of a mask gives its first True.",
    "It has read nothing but itself. The last True is the first one from behind.",
)
def first_real_token(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return _at(hidden, attention_mask.int().argmax(dim=1))


@_pooling(
    "one_place_for_the_batch",
    "last-token",
    "You look for the last real token in the first row alone and use it for all.",
    "All other texts are judged by a token in their middle or by their padding. Each row has a last"
    " token of its own.",
)
def one_place_for_the_batch(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return hidden[:, int(attention_mask[0].nonzero().max())]


@_pooling(
    "maximum_of_the_row",
    "last-token",
    "You take the largest value of each channel over the real tokens; only the last token is asked"
    " for.",
    "The result belongs to no token: its channels come from different places of the text.",
)
def maximum_of_the_row(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return hidden.masked_fill(~attention_mask[..., None], -torch.inf).amax(dim=1)


@_pooling(
    "keeps_the_time_axis",
    "last-token",
    "Your result is (B, 1, D): the position is still there as an axis of its own.",
    "The classes then come out as (B, 1, C), and the loss complains or, worse, broadcasts. Return"
    " (B, D).",
)
def keeps_the_time_axis(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    places = torch.arange(hidden.shape[1]) * attention_mask
    return _at(hidden, places.amax(dim=1))[:, None]


# --- SequenceClassifier -------------------------------------------------------------------------

SequenceClassifier = ASSIGNMENT.exercise(
    "SequenceClassifier",
    points=4,
    needs=("pool_last_token",),
    forbidden=("GPT2ForSequenceClassification", "AutoModelForSequenceClassification"),
    hints=(
        "A GPT turns its last hidden vectors into logits of tokens with one linear map. Which map"
        " do you put in its place, and what does it read?",
        "Move the real tokens of each row to the front (sort the positions by the mask, keeping"
        " their order). Then it is chapter 9's forward pass up to the final norm, your pooling and"
        " one linear map.",
        "order = argsort(mask, descending, stable): (B, T); ids.gather(1, order); x: (B, T, D)"
        " after `gpt.norm`; head(pool_last_token(x, mask in that order)): (B, C).",
    ),
)

Sizes = dict[str, Any]
SMALL: Sizes = {"vocab_size": 7, "block_size": 6, "n_layers": 2, "n_heads": 1, "d_model": 4}
TIED = "gpt.head.weight"  # the other name of the token table


def peer_gpt(student: Handle, sizes: Sizes = SMALL, **changes: Any) -> Handle:
    """The package's GPT beside the student's code."""
    return student.peer(
        "rnn2gpt.gpt:GPT", student.peer("rnn2gpt.gpt:GPTConfig", **(sizes | changes))
    )


@functools.cache
def our_gpt(**sizes: Any) -> GPT:
    """The same model on this side of the pipe."""
    return GPT(GPTConfig(**sizes)).double().eval()


def gpt_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """A tied parameter stands once."""
    return {name: tuple(p.shape) for name, p in our_gpt(**sizes).named_parameters()}


def built(student: Handle, n_classes: int, sizes: Sizes = SMALL, **changes: Any) -> Handle:
    """The student's classifier; the names and shapes of its parameters are checked first."""
    module = student.hold(peer_gpt(student, sizes, **changes), n_classes)
    have = {name: shape for name, shape in module.shapes().items() if name != TIED}
    d = sizes["d_model"]
    right = {f"gpt.{name}": shape for name, shape in gpt_shapes(sizes).items()}
    right |= {"head.weight": (n_classes, d), "head.bias": (n_classes,)}
    expect(sorted(have), "the parameters' names").equals(sorted(right))
    for name, shape in right.items():
        expect(have[name], f"the shape of {name}").equals(shape)
    return module


def loaded(
    student: Handle, rng: Rng, n_classes: int = 3, sizes: Sizes = SMALL, **changes: Any
) -> tuple[Handle, dict[str, Tensor]]:
    """The student's classifier with random weights, in evaluation mode, and the weights."""
    module = built(student, n_classes, sizes, **changes)
    shapes = {f"gpt.{name}": shape for name, shape in gpt_shapes(sizes).items()}
    shapes |= {"head.weight": (n_classes, sizes["d_model"]), "head.bias": (n_classes,)}
    weights = rng.like(shapes)
    module.load(weights | {TIED: weights["gpt.token_embedding.weight"]}).eval()
    return module, weights


def hidden_by_hook(weights: Mapping[str, Tensor], ids: Tensor, sizes: Sizes) -> Tensor:
    """(T, D): what our GPT's head is given for one row, caught on its way in."""
    model = our_gpt(**sizes)
    plain = {name.removeprefix("gpt."): w for name, w in weights.items() if name[:4] == "gpt."}
    plain["head.weight"] = plain["token_embedding.weight"]
    caught: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    with torch.no_grad():
        torch.func.functional_call(model, plain, (ids[None],))
    hook.remove()
    return caught[0][0]


def right_logits(
    weights: Mapping[str, Tensor], ids: Tensor, mask: Tensor, sizes: Sizes = SMALL
) -> Tensor:
    """Each row by itself, without its padding."""
    rows = [
        hidden_by_hook(weights, row[real], sizes)[-1] for row, real in zip(ids, mask, strict=True)
    ]
    return F.linear(torch.stack(rows), weights["head.weight"], weights["head.bias"])


def expect_logits(
    module: Handle, weights: Mapping[str, Tensor], ids: Tensor, mask: Tensor, sizes: Sizes = SMALL
) -> None:
    right = right_logits(weights, ids, mask, sizes)
    expect(module(ids, mask), "the logits").close_to(right)


def some_ids(rng: Rng, batch: int, t: int, sizes: Sizes = SMALL) -> Tensor:
    return rng.integers(0, sizes["vocab_size"], batch, t)


@SequenceClassifier.case("maps the last token's vector to one number for each class")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    ids = some_ids(rng, 5, 2).T  # (2, 5), not contiguous
    expect_logits(module, weights, ids, torch.ones(2, 5, dtype=torch.bool))


@SequenceClassifier.case("gives a text the same answer with padding behind it")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    ids, mask = some_ids(rng, 3, 6), right_mask(4, 1, 6, t=6)
    expect_logits(module, weights, ids, mask)
    expect_logits(module, weights, torch.where(mask, ids, 0), mask)


@SequenceClassifier.case("gives a text the same answer with padding before it")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    expect_logits(module, weights, some_ids(rng, 3, 6), left_mask(4, 1, 6, t=6))


@SequenceClassifier.case("builds on the weights of the GPT that it is given")
def _(student: Handle, rng: Rng) -> None:
    gpt, weights = peer_gpt(student), rng.like(gpt_shapes(SMALL))
    gpt.load(weights)
    have = student.hold(gpt, 2).parameters()
    for name, weight in weights.items():
        expect(have.get(f"gpt.{name}"), f"gpt.{name} of the new classifier").close_to(weight)


@SequenceClassifier.case("trains its head and the whole GPT, until somebody freezes it")
def _(student: Handle, rng: Rng) -> None:
    module, _ = loaded(student, rng)
    frozen = [name for name, trained in module.trainable().items() if not trained]
    for name in sorted(frozen, reverse=True):  # the head's first
        mistake = "frozen_head" if name.startswith("head.") else "frozen_body"
        fail(f"{name} does not require a gradient.", mistake)
    ids, mask = some_ids(rng, 2, 4), right_mask(4, 2, t=4)
    found = module.vjp(ids, mask, cotangent=rng.normal(2, 3)).parameters
    for name in ("head.weight", "gpt.blocks.0.attention.W_v.weight"):
        gradient = found.get(name)
        if gradient is None or not bool(gradient.abs().sum() > 0):
            fail(f"no gradient reaches {name}.", "body_without_gradient")


@SequenceClassifier.case("drops nothing in evaluation, and does in training")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, dropout=0.5)
    ids, mask = some_ids(rng, 5, 5), right_mask(5, 3, 1, 4, 5, t=5)
    if not same(module(ids, mask), module(ids, mask)):
        fail("two runs in evaluation mode differ.", "dropout_in_evaluation")
    expect_logits(module, weights, ids, mask)
    module.train()
    if same(module(ids, mask), module(ids, mask)):
        fail("two runs in training are equal, with a GPT of dropout=0.5.", "never_drops")


guard(
    SequenceClassifier,
    lambda rng, dtype: (some_ids(rng, 2, 5), right_mask(3, 5, t=5)),
    build=lambda student: (peer_gpt(student), 3),
)


class Classifier(nn.Module):
    """What the wrong classifiers below have in common; each spoils one of the small methods."""

    def __init__(self, gpt: Any, n_classes: int) -> None:
        super().__init__()
        self.gpt = self.body(gpt)
        self.head = self.top(gpt.config.d_model, n_classes)
        self.finish()

    def body(self, gpt: Any) -> nn.Module:
        return gpt

    def top(self, d_model: int, n_classes: int) -> nn.Module:
        return nn.Linear(d_model, n_classes)

    def finish(self) -> None:
        pass

    def order(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        order = mask.int().argsort(dim=1, descending=True, stable=True)
        return ids.gather(1, order), mask.gather(1, order)

    def embed(self, ids: Tensor) -> Tensor:
        gpt: Any = self.gpt
        places = torch.arange(ids.shape[1], device=ids.device)
        return gpt.token_embedding(ids) + gpt.position_embedding(places)

    def allowed(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        return causal_mask(ids.shape[1], device=ids.device)

    def norm(self, x: Tensor) -> Tensor:
        return self.gpt.norm(x)  # type: ignore[operator, no-any-return]

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return _at(hidden, mask.sum(dim=1) - 1)

    def answer(self, pooled: Tensor) -> Tensor:
        return self.head(pooled)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        gpt: Any = self.gpt
        x = self.embed(ids)
        for block in gpt.blocks:
            x = block(x, self.allowed(ids, mask))
        return self.norm(x)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        ids, mask = self.order(ids, attention_mask)
        return self.answer(self.pool(self.hidden(ids, mask), mask))


def _classifier(name: str, see: str, did: str, causes: str) -> Callable[[Any], Any]:
    return _mistake(SequenceClassifier, name, see, did, causes)


@_classifier(
    "pools_at_padding",
    "last-token",
    "You pool at position −1 of the batch, which is padding in every text but the longest.",
    "The same text gets another label in another batch, and training learns from padding.",
)
class PoolsAtPadding(Classifier):
    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, -1]


@_classifier(
    "padding_taken_for_text",
    "padding-sides",
    "Padding on the left is read as text: it takes the first positions, and the tokens behind it"
    " attend to it.",
    "A text padded on the left gets another answer than alone. Move its tokens to the front first,"
    " where the causal mask keeps padding out of sight.",
)
class PaddingTakenForText(Classifier):
    def order(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return ids, mask

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return last_by_hand(hidden, mask)


@_classifier(
    "positions_count_padding",
    "padding-sides",
    "You hide padding on the left from attention, but positions still count it.",
    "The text then begins at position 3, say, where the model has seldom seen a beginning, and the"
    " answer depends on how long its neighbors are.",
)
class PositionsCountPadding(Classifier):
    def order(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return ids, mask

    def allowed(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        t = ids.shape[1]
        own = torch.eye(t, dtype=torch.bool)
        return ((causal_mask(t) & mask[:, None]) | own)[:, None]

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return last_by_hand(hidden, mask)


@_classifier(
    "reads_ahead",
    "the-classifier",
    "Your blocks run without the causal mask.",
    "The pretrained weights never saw what comes later, so they compute something that they were"
    " not trained for; and padding behind a text is read with it.",
)
class ReadsAhead(Classifier):
    def allowed(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        return None


@_classifier(
    "no_final_norm",
    "the-classifier",
    "The GPT's final norm is missing between the last block and your head.",
    "The stream that leaves a pre-norm stack has a size that grows with the depth. The head gets"
    " inputs of a scale that no layer was trained for.",
)
class NoFinalNorm(Classifier):
    def norm(self, x: Tensor) -> Tensor:
        return x


@_classifier(
    "no_positions",
    "the-classifier",
    "The position embeddings are missing.",
    "The pretrained blocks count on them: without, the model knows order only from the causal mask,"
    " and its vectors are not those it was trained to make.",
)
class NoPositions(Classifier):
    def embed(self, ids: Tensor) -> Tensor:
        return self.gpt.token_embedding(ids)  # type: ignore[operator, no-any-return]


@_classifier(
    "mean_pooling",
    "last-token",
    "You pool the mean over the real tokens; the last one is asked for.",
    "A GPT's early vectors have read only the first words, so the mean is mostly made of vectors"
    " that know little.",
)
class MeanPooling(Classifier):
    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return mean_of_the_row(hidden, mask)


@_classifier(
    "returns_probabilities",
    "the-classifier",
    "You return probabilities; the loss wants logits.",
    "`cross_entropy` takes a softmax of its own. Of two, the gradient almost vanishes where the"
    " model is sure and wrong.",
)
class ReturnsProbabilities(Classifier):
    def answer(self, pooled: Tensor) -> Tensor:
        return self.head(pooled).softmax(dim=-1)


@_classifier(
    "reads_token_logits",
    "the-classifier",
    "Your head reads the GPT's V token logits and not its D hidden numbers.",
    "It has V inputs in place of D, 50,257 for GPT-2, most of them about words that could follow.",
)
class ReadsTokenLogits(Classifier):
    def top(self, d_model: int, n_classes: int) -> nn.Module:
        return nn.Linear(self.gpt.config.vocab_size, n_classes)  # type: ignore[union-attr, arg-type]

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.gpt(ids)[0]


@_classifier(
    "frozen_head",
    "what-to-train",
    "Your head is frozen together with the rest.",
    "It is the one part that starts at random. Nothing learns, and the accuracy stays at chance.",
)
class FrozenHead(Classifier):
    def finish(self) -> None:
        self.requires_grad_(False)


@_classifier(
    "frozen_body",
    "what-to-train",
    "Your constructor freezes the GPT.",
    "Which weights are trained is chosen by `freeze`, outside. Whoever asks for all of them trains"
    " the head alone and does not notice.",
)
class FrozenBody(Classifier):
    def finish(self) -> None:
        self.gpt.requires_grad_(False)


@_classifier(
    "body_without_gradient",
    "what-to-train",
    "The GPT runs under `no_grad`, or its result is detached.",
    "Its parameters say that they are trained, the optimizer holds their moments, and none of them"
    " ever moves.",
)
class BodyWithoutGradient(Classifier):
    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        return super().hidden(ids, mask).detach()


@_classifier(
    "starts_from_a_new_gpt",
    "the-classifier",
    "You make a new GPT of the same sizes and leave the given one aside.",
    "All that was pretrained is thrown away, and the classifier learns from nothing.",
)
class StartsFromANewGPT(Classifier):
    def body(self, gpt: Any) -> nn.Module:
        return type(gpt)(gpt.config)


@_classifier(
    "dropout_in_evaluation",
    "the-classifier",
    "Your dropout acts in evaluation, too: `F.dropout` drops unless it is told not to.",
    "Asked twice, the model gives two answers. Pass `training=self.training`, or use `nn.Dropout`.",
)
class DropoutInEvaluation(Classifier):
    def answer(self, pooled: Tensor) -> Tensor:
        return self.head(F.dropout(pooled, 0.5))


@_classifier(
    "never_drops",
    "the-classifier",
    "Your GPT stays in evaluation mode, so its dropout never acts.",
    "Fine-tuning on few texts overfits within an epoch or two, and dropout, which was asked for, is"
    " not there to slow it down.",
)
class NeverDrops(Classifier):
    def train(self, mode: bool = True) -> NeverDrops:
        super().train(mode)
        self.gpt.eval()
        return self


@_classifier(
    "head_without_bias",
    "the-classifier",
    "Your head has no bias.",
    "A shift that all texts share, because one class is commoner than the other, has to be squeezed"
    " into the weights. The contract asks for `head.weight` and `head.bias`.",
)
class HeadWithoutBias(Classifier):
    def top(self, d_model: int, n_classes: int) -> nn.Module:
        return nn.Linear(d_model, n_classes, bias=False)


# --- freeze -------------------------------------------------------------------------------------

freeze = ASSIGNMENT.exercise(
    "freeze",
    points=2,
    hints=(
        "What does PyTorch read, for each parameter, to decide whether backward stores a gradient"
        " for it?",
        "Go through `named_parameters()`; a name decides. Mind those that an earlier call froze.",
        "`parameter.requires_grad = name.startswith(tuple(except_for))`, for every parameter.",
    ),
)


def should_train(name: str, except_for: Sequence[str]) -> bool:
    return any(name[: len(prefix)] == prefix for prefix in except_for)


def expect_frozen(student: Handle, model: Handle, except_for: tuple[str, ...]) -> None:
    """After the student's `freeze`, those parameters are trained that should be."""
    student.hold(model, except_for)
    found = model.trainable()
    names = [name for name in found if should_train(name, except_for)]
    trained = [name for name, on in found.items() if on]
    if set(trained) == found.keys() and not model.get("training"):
        fail(f"all {len(trained)} parameters still require a gradient.", "evaluation_mode")
    for name, on in found.items():
        expect(on, f"`requires_grad` of {name} after freeze(model, {except_for})").equals(
            name in names
        )


@freeze.case("trains what is named and nothing else, norms and biases included")
def _(student: Handle, rng: Rng) -> None:
    expect_frozen(student, peer_gpt(student), ("blocks.1.",))


@freeze.case("takes several names, and one of a single parameter")
def _(student: Handle, rng: Rng) -> None:
    expect_frozen(student, peer_gpt(student), ("blocks.0.attention.W_v.", "norm.weight"))


@freeze.case("looks at the beginning of a name")
def _(student: Handle, rng: Rng) -> None:
    expect_frozen(student, peer_gpt(student), ("norm",))


@freeze.case("freezes everything when nothing is named")
def _(student: Handle, rng: Rng) -> None:
    expect_frozen(student, peer_gpt(student), ())


@freeze.case("thaws what was frozen before, when it is named")
def _(student: Handle, rng: Rng) -> None:
    model = peer_gpt(student)
    expect_frozen(student, model, ("norm.",))
    expect_frozen(student, model, ("blocks.0.", "norm."))


@freeze.case("gradients reach exactly what is trained")
def _(student: Handle, rng: Rng) -> None:
    model, ids = peer_gpt(student), some_ids(rng, 2, 3)
    model.load(rng.like(gpt_shapes(SMALL)))
    student.hold(model, ("blocks.0.feed_forward.",))
    found = model.vjp(ids, cotangent=(rng.normal(2, 3, SMALL["vocab_size"]), None)).parameters
    for name, gradient in found.items():
        reached = gradient is not None and bool(gradient.abs().sum() > 0)
        expect(reached, f"whether a gradient reaches {name}").equals(
            name.startswith("blocks.0.feed_forward.")
        )


@freeze.case("leaves the numbers and the mode of the model alone", guard=True)
def _(student: Handle, rng: Rng) -> None:
    model = peer_gpt(student)
    weights = rng.like(gpt_shapes(SMALL))
    model.load(weights)
    student.hold(model, ("norm.",))
    for name, value in model.parameters().items():
        expect(value, name).equals(weights[name])
    if not model.get("training"):
        fail("the model was in training mode and is no longer.", "evaluation_mode")


def _freezing(name: str, did: str, causes: str) -> Callable[[Any], Any]:
    return _mistake(freeze, name, "what-to-train", did, causes)


@_freezing(
    "freezes_what_is_named",
    "You freeze what is named and train the rest.",
    "`except_for` names the exceptions. The new head, which knows nothing yet, stays as it is.",
)
def freezes_what_is_named(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_(not should_train(name, except_for))


@_freezing(
    "leaves_the_vectors",
    "You freeze matrices and leave vectors: the norms and the biases are still trained.",
    "They are few, but they move what every layer reads, so the “frozen” model drifts, and cannot"
    " be shared between tasks.",
)
def leaves_the_vectors(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_(p.dim() < 2 or should_train(name, except_for))


@_freezing(
    "leaves_the_norms",
    "The norms are still trained.",
    "A norm's scale acts on all that the next layer reads, so the “frozen” model drifts, and cannot"
    " be shared between tasks.",
)
def leaves_the_norms(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name or should_train(name, except_for))


@_freezing(
    "leaves_the_biases",
    "You freeze what is called `weight`; the biases are still trained.",
    "The “frozen” model drifts with them, and what you saved for one task no longer fits the"
    " other.",
)
def leaves_the_biases(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_(not name.endswith("weight") or should_train(name, except_for))


@_freezing(
    "leaves_the_embeddings",
    "You freeze the blocks' parameters and leave the embeddings.",
    "They are the largest tables of a small model. Tied to the language head, they carry what it"
    " knows of words.",
)
def leaves_the_embeddings(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_("embedding" in name or should_train(name, except_for))


@_freezing(
    "whole_names_only",
    "You compare whole names; what is given is how they begin.",
    "`blocks.1.` is the beginning of some sixteen parameters and the whole name of none, so"
    " everything is frozen.",
)
def whole_names_only(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_(name in except_for)


@_freezing(
    "anywhere_in_the_name",
    "You look for the prefix anywhere in the name.",
    "“norm” then also thaws every block's `norm_1` and `norm_2`. Compare the beginning.",
)
def anywhere_in_the_name(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_(any(prefix in name for prefix in except_for))


@_freezing(
    "first_name_only",
    "Only the first of several prefixes counts.",
    "Asked for the last block and the head, you train one of them.",
)
def first_name_only(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_(should_train(name, except_for[:1]))


@_freezing(
    "never_thaws",
    "You freeze the others and do not thaw what is named.",
    "Whoever trains the head first and the last block afterwards calls `freeze` twice; the second"
    " call then changes nothing.",
)
def never_thaws(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        if not should_train(name, except_for):
            p.requires_grad_(False)


@_freezing(
    "never_freezes",
    "You set `requires_grad` to True where it is named and never to False elsewhere.",
    "A new model's parameters all require a gradient, so nothing is frozen and all weights move.",
)
def never_freezes(model: nn.Module, except_for: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        if should_train(name, except_for):
            p.requires_grad = True


@_freezing(
    "evaluation_mode",
    "You call `model.eval()`. That switches dropout off and freezes nothing.",
    "Every weight still gets a gradient and moves. What is frozen is told to each parameter by"
    " `requires_grad`.",
)
def evaluation_mode(model: nn.Module, except_for: tuple[str, ...]) -> None:
    model.eval()


@_freezing(
    "named_parts_only",
    "You go through the model's direct parts and set each as a whole.",
    "`blocks.1.` lies deeper than that: it thaws nothing, or all of the blocks.",
)
def named_parts_only(model: nn.Module, except_for: tuple[str, ...]) -> None:
    model.requires_grad_(False)
    for name, part in model.named_children():
        part.requires_grad_(any(prefix.split(".")[0] == name for prefix in except_for))


# --- LoRALinear ---------------------------------------------------------------------------------

LoRALinear = ASSIGNMENT.exercise(
    "LoRALinear",
    points=5,
    forbidden=("LoraLayer", "LoraConfig", "get_peft_model"),
    hints=(
        "Which of the two matrices must be zero at the start so that the layer is still the base,"
        " and what would happen to the gradients if both were?",
        "Keep `base` as a submodule, freeze it, and make A and B with `base.weight.new_empty(...)`"
        " or the like, so that they have its type and device. A flag says whether the product is in"
        " the base's weight.",
        "y = base(x) + (alpha / rank) · x Aᵀ Bᵀ; merged: W ← W + (alpha / rank) · B A, shapes"
        " (out, rank) @ (rank, in).",
    ),
)

IN, OUT, RANK, ALPHA = 5, 7, 2, 6.0


def base_of(student: Handle, bias: bool = True, d_in: int = IN, d_out: int = OUT) -> Handle:
    """An `nn.Linear` beside the student's code: the first layer of a feed-forward network."""
    pair = student.peer("rnn2gpt.transformer:FeedForward", d_in, d_out, bias=bias)
    return pair.method("get_submodule").hold("W_1")


def base_shapes(bias: bool = True, d_in: int = IN, d_out: int = OUT) -> dict[str, tuple[int, ...]]:
    return {"weight": (d_out, d_in)} | ({"bias": (d_out,)} if bias else {})


def lora(
    student: Handle,
    rng: Rng,
    rank: int = RANK,
    alpha: float = ALPHA,
    bias: bool = True,
    sizes: tuple[int, int] = (IN, OUT),
) -> tuple[Handle, dict[str, Tensor]]:
    """The student's layer with random weights, and the weights; its names are checked first."""
    module = student.hold(base_of(student, bias, *sizes), rank, alpha)
    right = {f"base.{name}": shape for name, shape in base_shapes(bias, *sizes).items()}
    right |= {"A": (rank, sizes[0]), "B": (sizes[1], rank)}
    have = module.shapes()
    expect(sorted(have), "the parameters' names").equals(sorted(right))
    for name, shape in right.items():
        expect(have[name], f"the shape of {name}").equals(shape)
    weights = rng.like(right)
    module.load(weights)
    return module, weights


def base_weight(module: Handle) -> Tensor:
    return module.method("get_parameter")("base.weight").detach()


def right_weight(w: Mapping[str, Tensor], rank: int = RANK, alpha: float = ALPHA) -> Tensor:
    return w["base.weight"] + alpha * (w["B"] @ w["A"]) / rank


def right_output(
    w: Mapping[str, Tensor], x: Tensor, rank: int = RANK, alpha: float = ALPHA
) -> Tensor:
    return F.linear(x, right_weight(w, rank, alpha), w.get("base.bias"))


@LoRALinear.case("starts as the base: B is zero and A is not")
def _(student: Handle, rng: Rng) -> None:
    base, weights = base_of(student), rng.like(base_shapes())
    base.load(weights)
    module, x = student.hold(base, RANK, ALPHA), rng.normal(3, IN)
    have = module.parameters()
    expect(have.get("base.weight"), "the base's weight in the new layer").close_to(
        weights["weight"]
    )
    for name in "AB":
        expect(have, "the parameters").holds(name in have, f"there is no {name}.")
    zero = {name: not bool(have[name].any()) for name in "AB"}
    if zero["A"]:
        fail("all entries of A are 0.", "both_zero" if zero["B"] else "zeros_in_a")
    if not zero["B"]:
        fail("B is not zero.", "both_random")
    expect(have["B"], "B").has_shape(OUT, RANK)
    expect(module(x), "the new layer's output").close_to(
        F.linear(x, weights["weight"], weights["bias"])
    )


@LoRALinear.case("adds (alpha / rank) · B A to the base's matrix")
def _(student: Handle, rng: Rng) -> None:
    module, weights = lora(student, rng)
    x = rng.normal(2, 3, IN)
    expect(module(x), "the output").close_to(right_output(weights, x))


@LoRALinear.case("works with another rank and alpha, and on a base without a bias")
def _(student: Handle, rng: Rng) -> None:
    module, weights = lora(student, rng, rank=3, alpha=1.0, bias=False)
    x = rng.normal(IN)
    expect(module(x), "the output").close_to(right_output(weights, x, rank=3, alpha=1.0))


@LoRALinear.case("trains A and B, and nothing of the base")
def _(student: Handle, rng: Rng) -> None:
    module, _ = lora(student, rng)
    for name, on in module.trainable().items():
        expect(on, f"`requires_grad` of {name}").equals(name in ("A", "B"))


@LoRALinear.case("has the gradients of x, A and B")
def _(student: Handle, rng: Rng) -> None:
    module, weights = lora(student, rng)
    x, cotangent = rng.normal(4, IN), rng.normal(4, OUT)
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    own = x.clone().requires_grad_()
    right = torch.autograd.grad(
        right_output(leaves, own), (own, leaves["A"], leaves["B"]), cotangent
    )
    pulled = module.vjp(x, cotangent=cotangent, wrt=(0,))
    expect(pulled.inputs[0], "the gradient of x").close_to(right[0])
    for name, gradient in zip("AB", right[1:], strict=True):
        expect(pulled.parameters.get(name), f"the gradient of {name}").close_to(gradient)


@LoRALinear.case("merged, it gives the same outputs from the base's matrix alone")
def _(student: Handle, rng: Rng) -> None:
    module, weights = lora(student, rng)
    x = rng.normal(3, IN)
    module.method("merge").hold()
    merged = base_weight(module)
    expect(merged, "the base's weight after merge()").close_to(right_weight(weights))
    expect(module(x), "the output after merge()").close_to(right_output(weights, x))


@LoRALinear.case("a second merge changes nothing")
def _(student: Handle, rng: Rng) -> None:
    module, weights = lora(student, rng)
    for _ in range(2):
        module.method("merge").hold()
    merged = base_weight(module)
    expect(merged, "the base's weight after merge() twice").close_to(right_weight(weights))
    module.method("unmerge").hold()
    merged = base_weight(module)
    expect(merged, "the base's weight after merge() twice and unmerge()").close_to(
        weights["base.weight"]
    )


@LoRALinear.case("unmerge takes it out again, and does nothing before a merge")
def _(student: Handle, rng: Rng) -> None:
    module, weights = lora(student, rng)
    x, calls = rng.normal(3, IN), ("unmerge", "merge", "unmerge", "unmerge")
    for i, call in enumerate(calls):
        module.method(call).hold()
        after = f"after {', '.join(calls[: i + 1])}"
        have, want = base_weight(module), weights["base.weight"]
        want = right_weight(weights) if call == "merge" else want
        expect(have, f"the base's weight {after}").close_to(want)
        expect(module(x), f"the output {after}").close_to(right_output(weights, x))


@LoRALinear.case("the base stays frozen through merge and unmerge")
def _(student: Handle, rng: Rng) -> None:
    module, _ = lora(student, rng)
    before = module.trainable()
    for call in ("merge", "unmerge"):
        module.method(call).hold()
        for name, on in module.trainable().items():
            if on and name.startswith("base."):
                mistake = None if before.get(name) else "merging_thaws"
                fail(f"{name} requires a gradient after {call}().", mistake)


@LoRALinear.case("A and B have the type of the base's weight", guard=True)
def _(student: Handle, rng: Rng) -> None:
    base = base_of(student)
    base.load(rng.like(base_shapes()))  # float64
    for name, value in student.hold(base, RANK, ALPHA).parameters().items():
        if value.dtype is not torch.float64:
            fail(f"{name} is {value.dtype} on a base of torch.float64.", "float32_factors")


guard(
    LoRALinear,
    lambda rng, dtype: (rng.normal(3, IN, dtype=dtype),),
    build=lambda student: (base_of(student), RANK, ALPHA),
)


class Detour(nn.Module):
    """What the wrong layers below have in common; each spoils one of the small methods."""

    def __init__(self, base: Any, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.rank, self.alpha, self.merged = base, rank, alpha, False
        self.settle()
        out, width = base.weight.shape
        self.A, self.B = (nn.Parameter(part) for part in self.factors(out, width))

    def settle(self) -> None:
        self.base.requires_grad_(False)

    def factors(self, out: int, width: int) -> tuple[Tensor, Tensor]:
        like = self.base.weight.detach()
        return 0.1 * torch.randn(self.rank, width).to(like), like.new_zeros(out, self.rank)

    def scale(self) -> float:
        return self.alpha / self.rank

    def plain(self, x: Tensor) -> Tensor:
        return self.base(x)

    def detour(self, x: Tensor) -> Tensor:
        return self.scale() * (x @ self.A.T @ self.B.T)

    def product(self) -> Tensor:
        return self.scale() * (self.B @ self.A)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x) if self.merged else self.plain(x) + self.detour(x)

    @torch.no_grad()
    def put(self, change: Tensor) -> None:
        self.base.weight.add_(change)

    def merge(self) -> None:
        if not self.merged:
            self.put(self.product().detach())
            self.merged = True

    def unmerge(self) -> None:
        if self.merged:
            self.put(-self.product().detach())
            self.merged = False


def _lora(name: str, see: str, did: str, causes: str) -> Callable[[Any], Any]:
    return _mistake(LoRALinear, name, see, did, causes)


@_lora(
    "no_scale",
    "low-rank",
    "The factor alpha / rank is missing.",
    "`alpha` has no effect, and a rate that suits one rank is too high or too low for another.",
)
class NoScale(Detour):
    def scale(self) -> float:
        return 1.0


@_lora(
    "alpha_alone",
    "low-rank",
    "You multiply by alpha and do not divide by the rank.",
    "The detour grows with the rank, so the learning rate has to be found anew for each.",
)
class AlphaAlone(Detour):
    def scale(self) -> float:
        return self.alpha


@_lora(
    "scale_turned_around",
    "low-rank",
    "Your factor is rank / alpha; it is alpha / rank.",
    "A larger alpha then makes the detour smaller, and a higher rank makes it larger.",
)
class ScaleTurnedAround(Detour):
    def scale(self) -> float:
        return self.rank / self.alpha


@_lora(
    "divides_by_the_root",
    "low-rank",
    "You divide alpha by the root of the rank; here it is divided by the rank.",
    "Both are in use (the root as rsLoRA), but a layer trained with one is wrong when run with"
    " the other.",
)
class DividesByTheRoot(Detour):
    def scale(self) -> float:
        return self.alpha / self.rank**0.5


@_lora(
    "both_zero",
    "low-rank",
    "A and B are both zero at the start.",
    "The gradient of each is a product with the other: both are 0 for ever, and nothing is"
    " learned.",
)
class BothZero(Detour):
    def factors(self, out: int, width: int) -> tuple[Tensor, Tensor]:
        a, b = super().factors(out, width)
        return torch.zeros_like(a), b


@_lora(
    "both_random",
    "low-rank",
    "A and B are both random at the start.",
    "The layer no longer starts as the base: the pretrained model is disturbed before it has seen"
    " one text.",
)
class BothRandom(Detour):
    def factors(self, out: int, width: int) -> tuple[Tensor, Tensor]:
        a, b = super().factors(out, width)
        return a, torch.ones_like(b) / 3


@_lora(
    "zeros_in_a",
    "low-rank",
    "Your zeros are in A and your random numbers in B.",
    "It starts as the base and does train, but the contract, like the paper, has B zero: a state"
    " that is written for one does not fit what reads the other.",
)
class ZerosInA(Detour):
    def factors(self, out: int, width: int) -> tuple[Tensor, Tensor]:
        like = self.base.weight.detach()
        b = torch.ones(out, self.rank).to(like) / 3
        return like.new_zeros(self.rank, width), b


@_lora(
    "factors_transposed",
    "low-rank",
    "Your A is (in, rank) and your B (rank, out): the product is taken in the other order.",
    "W is (out, in), as in `nn.Linear`, so what is added to it is B A, (out, rank) times (rank,"
    " in). Other people's weights do not fit yours.",
)
class FactorsTransposed(Detour):
    def factors(self, out: int, width: int) -> tuple[Tensor, Tensor]:
        a, b = super().factors(out, width)
        return a.T.contiguous(), b.T.contiguous()

    def detour(self, x: Tensor) -> Tensor:
        return self.scale() * (x @ self.A @ self.B)

    def product(self) -> Tensor:
        return self.scale() * (self.A @ self.B).T


@_lora(
    "base_trained",
    "what-to-train",
    "The base is not frozen.",
    "All weights move, the optimizer keeps two moments for each, and A and B are only a burden.",
)
class BaseTrained(Detour):
    def settle(self) -> None:
        pass


@_lora(
    "bias_trained",
    "what-to-train",
    "The base's weight is frozen and its bias is not.",
    "What was learned is then more than A and B. Whoever stores those two loses the rest.",
)
class BiasTrained(Detour):
    def settle(self) -> None:
        self.base.weight.requires_grad_(False)


@_lora(
    "bias_lost",
    "low-rank",
    "The base's bias is lost: you multiply by its weight alone.",
    "The layer does not start as the base, and every pretrained layer with a bias is off.",
)
class BiasLost(Detour):
    def plain(self, x: Tensor) -> Tensor:
        return x @ self.base.weight.T


@_lora(
    "base_replaced",
    "low-rank",
    "Your layer computes the detour alone; the base's output is not added.",
    "What the model had learned is gone. At the start, with B zero, the layer's output is 0.",
)
class BaseReplaced(Detour):
    def plain(self, x: Tensor) -> Tensor:
        return 0 * self.base(x)


@_lora(
    "no_gradient_through_the_base",
    "what-to-train",
    "The base runs under `no_grad`, so no gradient passes through it to x.",
    "Frozen weights still pass gradients on. The layers before this one then learn from the detour"
    " alone, which is next to nothing at the start.",
)
class NoGradientThroughTheBase(Detour):
    def plain(self, x: Tensor) -> Tensor:
        return self.base(x).detach()


@_lora(
    "merged_twice",
    "merging",
    "A second `merge()` adds the product again.",
    "Whoever merges to evaluate and merges again to save stores a model that nobody trained. Keep a"
    " flag.",
)
class MergedTwice(Detour):
    def merge(self) -> None:
        self.put(self.product().detach())
        self.merged = True


@_lora(
    "unmerged_twice",
    "merging",
    "`unmerge()` subtracts the product even if it is not in the base.",
    "The base is changed for good: the next merge gives the old base, not the trained layer.",
)
class UnmergedTwice(Detour):
    def unmerge(self) -> None:
        self.put(-self.product().detach())
        self.merged = False


@_lora(
    "counted_twice_when_merged",
    "merging",
    "After `merge()` your forward pass still adds the detour.",
    "The product then counts twice: once in the base's weight, once beside it.",
)
class CountedTwiceWhenMerged(Detour):
    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x) + self.detour(x)


@_lora(
    "merged_without_the_scale",
    "merging",
    "`merge()` adds B A without the factor alpha / rank.",
    "The merged model is not the one that was trained; the outputs change the moment you merge.",
)
class MergedWithoutTheScale(Detour):
    def product(self) -> Tensor:
        return self.B @ self.A


@_lora(
    "merge_that_only_says_so",
    "merging",
    "`merge()` sets its flag and leaves the base's weight as it is.",
    "From then on the layer is the base: all that was learned is switched off.",
)
class MergeThatOnlySaysSo(Detour):
    def put(self, change: Tensor) -> None:
        pass


@_lora(
    "unmerge_does_nothing",
    "merging",
    "`unmerge()` clears the flag and leaves the product in the base.",
    "The forward pass then adds the detour to a base that holds it already.",
)
class UnmergeDoesNothing(Detour):
    def unmerge(self) -> None:
        self.merged = False


@_lora(
    "merging_thaws",
    "merging",
    "Merging puts a new `nn.Parameter` in the base, and that one requires a gradient.",
    "After one merge and unmerge the whole base is trained, without a word. Change the weight in"
    " place, under `no_grad`.",
)
class MergingThaws(Detour):
    def put(self, change: Tensor) -> None:
        self.base.weight = nn.Parameter(self.base.weight.detach() + change)


@_lora(
    "float32_factors",
    "low-rank",
    "A and B are made in float32 on the CPU, whatever the base is.",
    "On a GPU, or on a base in bfloat16, the first forward pass stops with an error. Make them from"
    " the base's weight.",
)
class Float32Factors(Detour):
    def factors(self, out: int, width: int) -> tuple[Tensor, Tensor]:
        return 0.1 * torch.randn(self.rank, width), torch.zeros(out, self.rank)
