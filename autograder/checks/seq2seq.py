"""Checks of chapter 04: masked softmax, additive attention, the loss, an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from autograder.engine.exercise import Assignment, Rng
from autograder.engine.expect import expect, fail, same
from autograder.engine.guards import DEVICE, guard
from autograder.engine.handle import Handle, Pullback, StudentError

ASSIGNMENT = Assignment(
    name="04-seq2seq",
    notebook="seq2seq",
    page="04_seq2seq",
    sections={
        "one-vector": "A sentence in one vector",
        "teacher-forcing": "Teacher forcing",
        "real-tokens": "A loss over real tokens",
        "looking-back": "Looking back",
        "masked-softmax": "A softmax that skips padding",
        "decoder": "The decoder that looks back",
        "greedy": "Greedy decoding",
    },
    minutes=90,
    modules=("data", "metrics", "ngram", "rnn", "lstm"),
)

FUSED_ATTENTION = (
    "MultiheadAttention",
    "multi_head_attention_forward",
    "scaled_dot_product_attention",
)


def real(lengths: Tensor, max_len: int) -> Tensor:
    """(B, S), true where there is a token and false where there is padding."""
    return torch.arange(max_len, device=lengths.device) < lengths[:, None]


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    """The gradient of <cotangent, function(x)> by autograd."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x, cotangent)[0]


# --- masked_softmax -----------------------------------------------------------------------------

masked_softmax = ASSIGNMENT.exercise(
    "masked_softmax",
    points=2,
    hints=(
        "Which score has to stand at a masked place so that its exponential is exactly 0, however"
        " low the other scores are?",
        "Mask before the softmax, so that the weights that stay still sum to 1. Then look at a row"
        " in which nothing may be attended to: what does 0 / 0 give, and what is asked for?",
        "weight_j = m_j · exp(a_j) / Σ_k m_k · exp(a_k), and 0 where that sum is empty. Subtract"
        " the largest score that is not masked before taking exp, or let `torch.softmax` do it.",
    ),
)


def softmax_of_the_allowed(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Row by row: the softmax of the scores that the mask lets through, zeros elsewhere."""
    rows = scores.movedim(dim, -1)
    allowed = mask.expand_as(scores).movedim(dim, -1)
    result = torch.zeros_like(rows)
    for index in torch.cartesian_prod(*map(torch.arange, rows.shape[:-1])).reshape(
        -1, rows.ndim - 1
    ):
        at = tuple(index.tolist())
        result[at] = result[at].masked_scatter(allowed[at], rows[at][allowed[at]].softmax(0))
    return result.movedim(-1, dim)


def some_mask(rng: Rng, *shape: int) -> Tensor:
    """A random mask, true in about two thirds of its places and at least once a row."""
    mask = rng.uniform(*shape) < 0.65
    return mask | (torch.arange(shape[-1]) == shape[-1] // 2)


def one_row_masked(mask: Tensor) -> Tensor:
    """The same mask with its first row masked from end to end."""
    mask = mask.clone()
    mask[(0,) * (mask.ndim - 1)] = False
    return mask


@masked_softmax.case("is the softmax over the places where the mask is true, and 0 elsewhere")
def _(student: Handle, rng: Rng) -> None:
    scores, mask = rng.strided(2, 3, 7), some_mask(rng, 2, 3, 7)
    expect(student(scores, mask), "the weights").close_to(softmax_of_the_allowed(scores, mask))


@masked_softmax.case("gives a row of zeros where everything is masked")
def _(student: Handle, rng: Rng) -> None:
    scores, mask = rng.normal(2, 3, 5), one_row_masked(some_mask(rng, 2, 3, 5))
    expect(student(scores, mask), "the weights").close_to(softmax_of_the_allowed(scores, mask))


@masked_softmax.case("takes masks of (T, S), (B, 1, S) and (B, T, S)")
def _(student: Handle, rng: Rng) -> None:
    scores = rng.normal(2, 3, 5)
    for shape in ((3, 5), (2, 1, 5), (2, 3, 5)):
        mask = one_row_masked(some_mask(rng, *shape))
        right = softmax_of_the_allowed(scores, mask)
        expect(student(scores, mask), f"the weights with a mask of {shape}").close_to(right)


@masked_softmax.case("normalizes along `dim`")
def _(student: Handle, rng: Rng) -> None:
    scores, mask = rng.normal(3, 5, 2), rng.uniform(3, 5, 2) < 0.7
    for dim in (1, 0):
        right = softmax_of_the_allowed(scores, mask, dim)
        expect(student(scores, mask, dim=dim), f"the weights along dim={dim}").close_to(right)


@masked_softmax.case("stays exact with scores far from 0, masked or not")
def _(student: Handle, rng: Rng) -> None:
    far = torch.tensor([[-30000.0], [30000.0]], dtype=torch.float64)
    scores, mask = far + rng.normal(2, 7), some_mask(rng, 2, 7)
    expect(student(scores, mask), "the weights").close_to(softmax_of_the_allowed(scores, mask))
    scores = torch.where(mask, rng.normal(2, 7), 20000.0)  # the masked ones are the largest
    expect(student(scores, mask), "the weights").close_to(softmax_of_the_allowed(scores, mask))


@masked_softmax.case("sends the right gradient to the scores, and 0 into a masked row")
def _(student: Handle, rng: Rng) -> None:
    scores, mask = rng.normal(2, 3, 5), one_row_masked(some_mask(rng, 2, 3, 5))
    cotangent = rng.normal(2, 3, 5)
    pulled: Pullback = student.vjp(scores, mask, cotangent=cotangent, wrt=(0,))
    right = gradient_of(lambda x: softmax_of_the_allowed(x, mask), scores, cotangent)
    expect(pulled.inputs[0], "the gradient of the scores").close_to(right)


guard(
    masked_softmax,
    lambda rng, dtype: (rng.normal(2, 3, 5, dtype=dtype), one_row_masked(some_mask(rng, 2, 3, 5))),
)


@masked_softmax.misconception(
    did="Your fully masked row is NaN: the softmax of nothing but −∞ is 0 / 0.",
    causes="One sentence of padding in a batch then turns the loss, and all weights with it, into"
    " NaN.",
    see="masked-softmax",
)
def nan_row(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    return scores.masked_fill(~mask, float("-inf")).softmax(dim)


@masked_softmax.misconception(
    did="Your masked scores become a large negative number, and a fully masked row comes out"
    " uniform.",
    causes="Where there is nothing to attend to, the model then reads the average of the padding.",
    see="masked-softmax",
)
def uniform_row(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    return scores.masked_fill(~mask, -1e9).softmax(dim)


@masked_softmax.misconception(
    did="You add a large negative number to the masked scores, and a fully masked row comes out as"
    " if it had no mask.",
    causes="All its scores are lowered alike, which a softmax does not notice: it attends to"
    " padding.",
    see="masked-softmax",
)
def lowered_row(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    return (scores + (~mask).to(scores.dtype) * -1e9).softmax(dim)


@masked_softmax.misconception(
    did="Your masked scores become −10⁴, which a score can well be lower than.",
    causes="Where the real scores are very negative, all the weight goes to the padding.",
    see="masked-softmax",
)
def small_fill(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    return scores.masked_fill(~mask, -1e4).softmax(dim) * mask.any(dim, keepdim=True)


@masked_softmax.misconception(
    did="Your masked scores become 0 before the softmax.",
    causes="exp(0) is 1, not 0: padding is attended to like a token of middling score.",
    see="masked-softmax",
)
def fill_zero(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    return (scores * mask).softmax(dim)


@masked_softmax.misconception(
    did="You multiply by the mask after the softmax, and the weights no longer sum to 1.",
    causes="The more padding a row has, the weaker is everything it reads.",
    see="masked-softmax",
)
def masks_afterwards(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    return scores.softmax(dim) * mask


@masked_softmax.misconception(
    did="You set the masked weights to 0 after the softmax and divide by what is left, which may be"
    " 0.",
    causes="A fully masked row is then NaN, and so is a row in which a masked score is by far the"
    " largest.",
    see="masked-softmax",
)
def normalizes_again(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    weights = scores.softmax(dim) * mask
    return weights / weights.sum(dim, keepdim=True)


@masked_softmax.misconception(
    did="Your mask is read the wrong way round: True means “may attend”.",
    causes="The model then attends to the padding, and to nothing else.",
    see="masked-softmax",
)
def polarity(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    return scores.masked_fill(mask, float("-inf")).softmax(dim).nan_to_num(0.0)


@masked_softmax.misconception(
    did="Your mask has no effect.",
    causes="Padding is attended to as if it were text, so the answer depends on how long the other"
    " sentences of the batch are.",
    see="masked-softmax",
)
def ignores_mask(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    return scores.softmax(dim)


@masked_softmax.misconception(
    did="You normalize along the last axis, whatever `dim` says.",
    causes="Along any other axis the weights do not sum to 1.",
    see="masked-softmax",
)
def ignores_dim(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).nan_to_num(0.0)


@masked_softmax.misconception(
    did="You take exp of the scores as they are.",
    causes="exp(710) is more than float64 can hold, and exp(−750) is 0: large scores give NaN, very"
    " negative ones a row of zeros.",
    see="masked-softmax",
)
def overflows(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    weights = scores.exp() * mask
    total = weights.sum(dim, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


@masked_softmax.misconception(
    did="The masked scores still take part: the softmax runs over them, or their maximum is"
    " subtracted, before they are left out.",
    causes="If a masked score is the largest by far, every exp that counts is rounded to 0 and the"
    " row attends to nothing.",
    see="masked-softmax",
)
def largest_of_all(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    weights = (scores - scores.amax(dim, keepdim=True)).exp() * mask
    return weights / weights.sum(dim, keepdim=True).clamp(min=1e-30)


@masked_softmax.misconception(
    did="You replace NaN in the result, but the gradient of a fully masked row is still NaN.",
    causes="The forward pass looks right, and the first update turns every weight into NaN.",
    see="masked-softmax",
)
def nan_gradient(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    return (scores + mask.to(scores.dtype).log()).softmax(dim).nan_to_num(0.0)


@masked_softmax.misconception(
    did="You index the scores with the mask, which works only if both have the same shape.",
    causes="A mask of (B, 1, S), one row for all queries, stops the program.",
    see="masked-softmax",
)
def indexes_with_mask(scores, mask, dim=-1):  # type: ignore[no-untyped-def]
    scores = scores.clone()
    scores[~mask] = float("-inf")
    return scores.softmax(dim).nan_to_num(0.0)


# --- AdditiveAttention --------------------------------------------------------------------------

AdditiveAttention = ASSIGNMENT.exercise(
    "AdditiveAttention",
    points=3,
    forbidden=FUSED_ATTENTION,
    needs=("masked_softmax",),
    hints=(
        "Every query is compared with every key. How many comparisons is that for one sentence,"
        " and which axes must an array that holds them all have?",
        "Map queries and keys to d_hidden separately, give each a new axis where the other has its"
        " own, and let broadcasting form all T · S sums. tanh and v then turn each sum into one"
        " score.",
        "(B, T, 1, d_hidden) + (B, 1, S, d_hidden) → (B, T, S, d_hidden); v makes it (B, T, S, 1)."
        " The context is weights (B, T, S) times keys (B, S, K). A mask of (B, S) needs an axis"
        " for the queries.",
    ),
)
ATTENTION_SIZES = (3, 5, 7)  # d_query, d_key, d_hidden


def attention_shapes(d_query: int, d_key: int, d_hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        "W_q.weight": (d_hidden, d_query),
        "W_k.weight": (d_hidden, d_key),
        "v.weight": (1, d_hidden),
    }


def loaded(
    student: Handle, rng: Rng, sizes: tuple[int, int, int] = ATTENTION_SIZES
) -> tuple[Handle, dict[str, Tensor]]:
    """The student's module with random weights, and those weights; checks names and shapes."""
    module = student.hold(*sizes)
    want = attention_shapes(*sizes)
    expect(dict(sorted(module.shapes().items())), "the parameters").equals(
        dict(sorted(want.items()))
    )
    weights = rng.like(want, scale=1.0)
    return module.load(weights), weights


def pair_by_pair(
    weights: dict[str, Tensor], query: Tensor, keys: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Bahdanau et al. 2015, appendix A.1.2, one query and one key at a time."""
    W_q, W_k, v = weights["W_q.weight"], weights["W_k.weight"], weights["v.weight"][0]
    contexts, all_weights = [], []
    for b in range(len(query)):
        s = torch.arange(keys.shape[1]) if mask is None else mask[b].nonzero()[:, 0]
        for q in query[b]:
            scores = torch.stack([v @ torch.tanh(W_q @ q + W_k @ k) for k in keys[b, s]])
            some = scores.softmax(0)
            contexts.append(some @ keys[b, s])
            all_weights.append(keys.new_zeros(keys.shape[1]).index_put((s,), some))
    shape = query.shape[:2]
    return torch.stack(contexts).unflatten(0, shape), torch.stack(all_weights).unflatten(0, shape)


def attention_inputs(rng: Rng, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """query (2, 4, 3), keys (2, 6, 5) and a mask in which each row has another length."""
    return (
        rng.strided(2, 4, 3, dtype=dtype),
        rng.strided(2, 6, 5, dtype=dtype),
        real(torch.tensor([4, 6]), 6),
    )


@AdditiveAttention.case("weighs the keys by softmax of v·tanh(W_q q + W_k k), without a mask")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    query, keys, _ = attention_inputs(rng, torch.float64)
    right = pair_by_pair(weights, query, keys)
    expect(module(query, keys), "context, weights").close_to(right)


@AdditiveAttention.case("gives padding no weight")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    query, keys, mask = attention_inputs(rng, torch.float64)
    right = pair_by_pair(weights, query, keys, mask)
    expect(module(query, keys, mask), "context, weights").close_to(right)


@AdditiveAttention.case("works on one row, one query, one key and one hidden unit")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, (2, 1, 1))
    query, keys = rng.normal(1, 1, 2), rng.normal(1, 1, 1)
    right = pair_by_pair(weights, query, keys)
    expect(module(query, keys), "context, weights").close_to(right)


@AdditiveAttention.case("stays finite when scores are in the thousands")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    weights["v.weight"] = 3000 * weights["v.weight"]
    module.load(weights)
    query, keys, mask = attention_inputs(rng, torch.float64)
    right = pair_by_pair(weights, query, keys, mask)
    expect(module(query, keys, mask), "context, weights").close_to(right)


@AdditiveAttention.case("sends the right gradients to queries, keys and the three maps")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    query, keys, mask = attention_inputs(rng, torch.float64)
    cotangent = rng.normal(2, 4, 5), rng.normal(2, 4, 6)
    pulled: Pullback = module.vjp(query, keys, mask, cotangent=cotangent, wrt=(0, 1))
    leaves = tree_map(lambda x: x.detach().requires_grad_(), (weights, query, keys))
    outputs = pair_by_pair(leaves[0], leaves[1], leaves[2], mask)
    right = iter(torch.autograd.grad(outputs, tree_leaves(leaves), cotangent))
    for name in weights:
        expect(pulled.parameters[name], f"the gradient of {name}").close_to(next(right))
    for have, name in zip(pulled.inputs, ("query", "keys"), strict=True):
        expect(have, f"the gradient of {name}").close_to(next(right))


guard(AdditiveAttention, attention_inputs, build=ATTENTION_SIZES)


class Additive(nn.Module):
    """What the wrong attentions below have in common; each spoils one of the small methods."""

    bias = False

    def __init__(self, d_query: int, d_key: int, d_hidden: int) -> None:
        super().__init__()
        self.W_q = nn.Linear(d_query, d_hidden, bias=self.bias)
        self.W_k = nn.Linear(d_key, d_hidden, bias=self.bias)
        self.v = nn.Linear(d_hidden, 1, bias=False)

    def join(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, T, 1, d_hidden) and (B, 1, S, d_hidden) → (B, T, S, d_hidden)"""
        return torch.tanh(q + k)

    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        return self.v(self.join(self.W_q(query)[:, :, None], self.W_k(keys)[:, None]))[..., 0]

    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return scores.softmax(-1)

    def mix(self, weights: Tensor, keys: Tensor) -> Tensor:
        return weights @ keys

    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        weights = self.normalize(self.score(query, keys), mask)
        return self.mix(weights, keys), weights


@AdditiveAttention.misconception(
    did="Your score has no tanh: it is v·(W_q q + W_k k).",
    causes="That is a sum of a number for the query and a number for the key. The query's part is"
    " the same for all keys and cancels in the softmax, so every query reads the same places.",
    see="looking-back",
    name="no_tanh",
)
class NoTanh(Additive):
    def join(self, q: Tensor, k: Tensor) -> Tensor:
        return q + k


@AdditiveAttention.misconception(
    did="You take tanh of W_q q and of W_k k before adding them.",
    causes="The score is then a number for the query plus a number for the key, and the query's"
    " cancels in the softmax: every query reads the same places.",
    see="looking-back",
    name="tanh_of_each",
)
class TanhOfEach(Additive):
    def join(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(q) + torch.tanh(k)


@AdditiveAttention.misconception(
    did="You multiply W_q q and W_k k where additive attention adds them.",
    causes="That is the multiplicative family, with other weights: scores trained for the sum do"
    " not fit.",
    see="looking-back",
    name="product_for_sum",
)
class ProductForSum(Additive):
    def join(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(q * k)


@AdditiveAttention.misconception(
    did="Your softmax runs over the queries; it belongs on the axis of the keys.",
    causes="The weights of one query then do not sum to 1, and how much it reads depends on the"
    " other target positions, later ones included.",
    see="looking-back",
    name="softmax_over_queries",
)
class SoftmaxOverQueries(Additive):
    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        weights = scores.softmax(1)
        return weights if mask is None else weights * mask[:, None]


@AdditiveAttention.misconception(
    did="Your softmax runs over the batch; it belongs on the axis of the keys.",
    causes="Sentences that have nothing to do with each other share the weight of one position.",
    see="looking-back",
    name="softmax_over_batch",
)
class SoftmaxOverBatch(Additive):
    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        weights = scores.softmax(0)
        return weights if mask is None else weights * mask[:, None]


@AdditiveAttention.misconception(
    did="Your weights fall on padding too: the mask is not used.",
    causes="The same sentence gets another translation when a longer one stands in its batch.",
    see="masked-softmax",
    name="attends_to_padding",
)
class AttendsToPadding(Additive):
    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores.softmax(-1)


@AdditiveAttention.misconception(
    did="Your mask is read the wrong way round: True means “may attend”.",
    causes="The weights fall on the padding, and on nothing else.",
    see="masked-softmax",
    name="attention_polarity",
)
class Polarity(Additive):
    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return scores.softmax(-1)
        return scores.masked_fill(mask[:, None], float("-inf")).softmax(-1).nan_to_num(0.0)


@AdditiveAttention.misconception(
    did="You set padding to 0 after the softmax, and the weights no longer sum to 1.",
    causes="A sentence with much padding in its batch is read more weakly than the same sentence"
    " alone.",
    see="masked-softmax",
    name="attention_masks_afterwards",
)
class MasksAfterwards(Additive):
    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        weights = scores.softmax(-1)
        return weights if mask is None else weights * mask[:, None]


@AdditiveAttention.misconception(
    did="Your code needs a mask; without one it stops.",
    causes="`mask=None` means that every key is real, as in a batch of equal lengths.",
    see="masked-softmax",
    name="needs_a_mask",
)
class NeedsAMask(Additive):
    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)  # type: ignore[operator,index]


@AdditiveAttention.misconception(
    did="You return the scores; the weights are their softmax.",
    causes="They do not sum to 1 and may be negative, so no picture drawn from them shows how much"
    " is read where.",
    see="looking-back",
    name="returns_scores",
)
class ReturnsScores(Additive):
    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        scores = self.score(query, keys)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return scores.softmax(-1) @ keys, scores


@AdditiveAttention.misconception(
    did="Your context mixes the mapped keys W_k k; mix the keys themselves.",
    causes="The context has d_hidden numbers where the decoder expects K, and only what helps to"
    " score a key is left of it.",
    see="looking-back",
    name="mixes_mapped_keys",
)
class MixesMappedKeys(Additive):
    def mix(self, weights: Tensor, keys: Tensor) -> Tensor:
        return weights @ self.W_k(keys)


@AdditiveAttention.misconception(
    did="You return (weights, context); the order is (context, weights).",
    causes="The decoder then feeds on the weights: it learns where the model looked, not what is"
    " there.",
    see="looking-back",
    name="weights_first",
)
class WeightsFirst(Additive):
    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        context, weights = super().forward(query, keys, mask)
        return weights, context


@AdditiveAttention.misconception(
    did="Your linear maps have biases; here they have none.",
    causes="Weights from a model without them do not load.",
    see="looking-back",
    name="with_biases",
)
class WithBiases(Additive):
    bias = True


@AdditiveAttention.misconception(
    did="v has a bias; here it has none.",
    causes="Added to every score alike, it cancels in the softmax: a weight that nothing can train,"
    " and weights from a model without it do not load.",
    see="looking-back",
    name="bias_in_v",
)
class BiasInV(Additive):
    def __init__(self, d_query: int, d_key: int, d_hidden: int) -> None:
        super().__init__(d_query, d_key, d_hidden)
        self.v = nn.Linear(d_hidden, 1)


@AdditiveAttention.misconception(
    did="You divide the scores by the square root of the width.",
    causes="That belongs to dot products, in the next chapter. Here v can have any length, so it"
    " only makes every softmax flatter than the weights were trained for.",
    see="looking-back",
    name="scaled",
)
class Scaled(Additive):
    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        return super().score(query, keys) / self.v.in_features**0.5


@AdditiveAttention.misconception(
    did="You add W_q q and W_k k without giving each an axis of its own.",
    causes="Query t then meets only key t: with T ≠ S the program stops, and with T = S it compares"
    " one key a query.",
    see="looking-back",
    name="adds_without_pairing",
)
class AddsWithoutPairing(Additive):
    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        scores = self.v(self.join(self.W_q(query), self.W_k(keys)))  # (B, T, 1)
        return scores.expand(-1, -1, keys.shape[1])


@AdditiveAttention.misconception(
    did="Your mask (B, S) meets the scores (B, T, S) without an axis for the queries.",
    causes="Its batch axis then meets the queries: with B ≠ T the program stops, and with B = T"
    " each query gets another sentence's padding.",
    see="looking-back",
    name="mask_without_query_axis",
)
class MaskWithoutQueryAxis(Additive):
    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1)


# --- shift_right --------------------------------------------------------------------------------

shift_right = ASSIGNMENT.exercise(
    "shift_right",
    points=1,
    hints=(
        "When the decoder has to write token t, which token has it just read?",
        "Put BOS in front of each row. The row is then one too long: which token is never read?",
        "(B, 1) and (B, T − 1) side by side give (B, T). `Tensor.new_full` makes a column of the"
        " right dtype on the right device.",
    ),
)


def shifted(targets: Tensor, bos_id: int) -> Tensor:
    """Token by token: BOS, then each token one place later, the last one gone."""
    rows = [[bos_id, *row[:-1]] for row in targets.tolist()]
    return torch.tensor(rows, dtype=targets.dtype)


def expect_shifted(student: Handle, targets: Tensor, bos_id: int) -> None:
    result = student(targets, bos_id)
    expect(result, "the decoder's input").equals(shifted(targets, bos_id))
    expect(result, "the decoder's input").has_dtype(targets.dtype)


@shift_right.case("puts BOS first and moves every token one place to the right")
def _(student: Handle, rng: Rng) -> None:
    expect_shifted(student, rng.integers(3, 50, 3, 5), 1)


@shift_right.case("takes any number as BOS")
def _(student: Handle, rng: Rng) -> None:
    expect_shifted(student, rng.integers(0, 40, 2, 7), rng.integer(40, 50))


@shift_right.case("makes BOS of a target of one token")
def _(student: Handle, rng: Rng) -> None:
    expect_shifted(student, rng.integers(3, 50, 2, 1), 2)


def targets_and_bos(rng: Rng, dtype: torch.dtype) -> tuple[Tensor, int]:
    return rng.integers(3, 50, 2, 5), 1


guard(shift_right, targets_and_bos, gradient=False, dtype=False)


@shift_right.misconception(
    did="You shift to the left.",
    causes="The decoder is then shown the token after the one it has to write.",
    see="teacher-forcing",
)
def left_shift(targets, bos_id):  # type: ignore[no-untyped-def]
    return torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], bos_id)], dim=1)


@shift_right.misconception(
    did="You put BOS in place of the first token and move nothing.",
    causes="At every later step the decoder is shown the very token that it has to write, and"
    " learns to copy its input.",
    see="teacher-forcing",
)
def drops_the_first(targets, bos_id):  # type: ignore[no-untyped-def]
    return torch.cat([torch.full_like(targets[:, :1], bos_id), targets[:, 1:]], dim=1)


@shift_right.misconception(
    did="You put BOS in front and drop nothing: the rows have T + 1 tokens.",
    causes="The decoder then gives one more row of logits than there are targets.",
    see="teacher-forcing",
)
def too_long(targets, bos_id):  # type: ignore[no-untyped-def]
    return torch.cat([torch.full_like(targets[:, :1], bos_id), targets], dim=1)


@shift_right.misconception(
    did="You roll the row, so its last token stands in front instead of BOS.",
    causes="The decoder learns to begin from the end of the answer, which nobody has when it is"
    " used.",
    see="teacher-forcing",
)
def rolls(targets, bos_id):  # type: ignore[no-untyped-def]
    return targets.roll(1, dims=1)


@shift_right.misconception(
    did="You shift along the batch: BOS fills the first row, and each row gets the one above.",
    causes="The decoder is then trained on another sentence's answer.",
    see="teacher-forcing",
)
def shifts_rows(targets, bos_id):  # type: ignore[no-untyped-def]
    return torch.cat([torch.full_like(targets[:1], bos_id), targets[:-1]], dim=0)


@shift_right.misconception(
    did="You put 0 in front, whatever `bos_id` says.",
    causes="0 is some other token, often the padding: the first word is then learned after padding"
    " and asked for after BOS.",
    see="teacher-forcing",
)
def zero_in_front(targets, bos_id):  # type: ignore[no-untyped-def]
    return torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], dim=1)


@shift_right.misconception(
    did="You shift in place: the targets themselves are changed.",
    causes="The loss then compares the logits with the shifted targets, so the model learns to"
    " repeat the token that it was given.",
    see="teacher-forcing",
)
def in_place(targets, bos_id):  # type: ignore[no-untyped-def]
    targets[:, 1:] = targets[:, :-1].clone()
    targets[:, 0] = bos_id
    return targets


# --- sequence_cross_entropy ---------------------------------------------------------------------

sequence_cross_entropy = ASSIGNMENT.exercise(
    "sequence_cross_entropy",
    points=2,
    hints=(
        "A batch holds one answer of 2 tokens and one of 12. If every real token is to count the"
        " same, what must the sum of losses be divided by?",
        "Find out where the real tokens are before you look anything up at the targets: `pad_id`"
        " may be a number that is no index. And decide what to divide by when no token is real.",
        "Σ −log softmax(logits)[target] over targets ≠ pad_id, divided by max(their number, 1)."
        " Logits of (B, T, V) become (N, V) with a boolean index of (B, T).",
    ),
)


def loss_inputs(
    rng: Rng, dtype: torch.dtype = torch.float64, pad_id: int = 0, scale: float = 1.0
) -> tuple[Tensor, Tensor, int]:
    """Logits (3, 5, 7), targets with rows of 5, 2 and 3 real tokens, and the padding's id."""
    logits = (scale * rng.strided(3, 5, 7)).to(dtype)
    ids = rng.integers(0, 6, 3, 5)
    targets = torch.where(ids >= pad_id, ids + 1, ids) if pad_id >= 0 else ids
    return logits, targets.where(real(torch.tensor([5, 2, 3]), 5), pad_id), pad_id


def mean_over_real_tokens(logits: Tensor, targets: Tensor, pad_id: int) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pad_id)


@sequence_cross_entropy.case("is the mean of −log p over the real tokens of the batch")
def _(student: Handle, rng: Rng) -> None:
    args = loss_inputs(rng)
    expect(student(*args), "the loss").close_to(mean_over_real_tokens(*args))


@sequence_cross_entropy.case("is the mean over all tokens when there is no padding")
def _(student: Handle, rng: Rng) -> None:
    logits, targets = rng.normal(2, 3, 5), rng.integers(1, 5, 2, 3)
    right = F.cross_entropy(logits.mT, targets)
    expect(student(logits, targets, 0), "the loss").close_to(right)


@sequence_cross_entropy.case("takes a `pad_id` other than 0, negative ones included")
def _(student: Handle, rng: Rng) -> None:
    for pad_id in (3, -100, -1, 99):  # −100 alone is what `cross_entropy` leaves out anyway
        args = loss_inputs(rng, pad_id=pad_id)
        right = mean_over_real_tokens(*args)
        expect(student(*args), f"the loss with pad_id={pad_id}").close_to(right)


@sequence_cross_entropy.case("is 0 for a batch of padding alone, with a gradient of 0 or none")
def _(student: Handle, rng: Rng) -> None:
    logits, targets = rng.normal(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64)
    expect(student(logits, targets, 0), "the loss").close_to(0.0)
    try:
        pulled: Pullback = student.vjp(
            logits, targets, 0, cotangent=torch.ones((), dtype=torch.float64), wrt=(0,)
        )
    except StudentError as error:
        if error.kind == "NoGradient":
            return
        raise
    if pulled.inputs[0] is not None:
        expect(pulled.inputs[0], "the gradient").close_to(torch.zeros_like(logits))


@sequence_cross_entropy.case("stays exact when logits are in the thousands")
def _(student: Handle, rng: Rng) -> None:
    args = loss_inputs(rng, scale=3000.0)
    expect(student(*args), "the loss").close_to(mean_over_real_tokens(*args))


@sequence_cross_entropy.case("sends the right gradient to the logits, none to those at padding")
def _(student: Handle, rng: Rng) -> None:
    logits, targets, pad_id = loss_inputs(rng)
    one = torch.ones((), dtype=torch.float64)
    pulled: Pullback = student.vjp(logits, targets, pad_id, cotangent=one, wrt=(0,))
    right = gradient_of(lambda x: mean_over_real_tokens(x, targets, pad_id), logits, one)
    expect(pulled.inputs[0], "the gradient of the logits").close_to(right)


guard(sequence_cross_entropy, loss_inputs)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each token, (B, T); what stands at padding is some number or other."""
    known = targets.clamp(0, logits.shape[-1] - 1)
    return -logits.log_softmax(-1).gather(-1, known[..., None])[..., 0]


@sequence_cross_entropy.misconception(
    did="Padding counts like any other token.",
    causes="The model learns above all to write padding, and the loss looks better the more of it"
    " there is.",
    see="real-tokens",
)
def padding_counted(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    return _losses(logits, targets).mean()


@sequence_cross_entropy.misconception(
    did="You leave padding out of the sum and then divide by all B · T places.",
    causes="A batch with much padding gets a small loss and small gradients, though its tokens are"
    " no easier.",
    see="real-tokens",
)
def divides_by_all(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    return (_losses(logits, targets) * (targets != pad_id)).mean()


@sequence_cross_entropy.misconception(
    did="You average each row and then the rows.",
    causes="A token of a two-token answer counts six times as much as one of twelve, so the model"
    " is taught the short answers.",
    see="real-tokens",
)
def mean_of_row_means(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    kept = targets != pad_id
    return ((_losses(logits, targets) * kept).sum(1) / kept.sum(1).clamp(min=1)).mean()


@sequence_cross_entropy.misconception(
    did="You return the sum over the tokens; divide by their number.",
    causes="The gradient then grows with the batch, and the learning rate means something else for"
    " every batch size.",
    see="real-tokens",
)
def returns_sum(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    return (_losses(logits, targets) * (targets != pad_id)).sum()


@sequence_cross_entropy.misconception(
    did="You divide by the number of rows, not by the number of real tokens.",
    causes="Long answers give large losses, so two losses can only be compared when their sentences"
    " are equally long.",
    see="real-tokens",
)
def per_sentence(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    return (_losses(logits, targets) * (targets != pad_id)).sum() / len(targets)


@sequence_cross_entropy.misconception(
    did="Your loss is NaN when no token is real: 0 / 0.",
    causes="One batch of padding, at the end of a data set say, turns every weight into NaN.",
    see="real-tokens",
)
def nan_when_empty(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    kept = targets != pad_id
    return (_losses(logits, targets) * kept).sum() / kept.sum()


@sequence_cross_entropy.misconception(
    did="Your loss is 0 when no token is real, but its gradient is NaN: the division by 0 is"
    " computed and only then left out.",
    causes="The loss looks right, and the update that follows turns every weight into NaN.",
    see="real-tokens",
)
def nan_gradient_when_empty(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    kept = targets != pad_id
    count = kept.sum()
    mean = (_losses(logits, targets) * kept).sum() / count
    return torch.where(count > 0, mean, torch.zeros_like(mean))


@sequence_cross_entropy.misconception(
    did="You take 0 for padding, whatever `pad_id` says.",
    causes="Real tokens with id 0 are never learned, and padding with another id is.",
    see="real-tokens",
)
def padding_is_zero(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    kept = targets != 0
    return (_losses(logits, targets) * kept).sum() / kept.sum().clamp(min=1)


@sequence_cross_entropy.misconception(
    did="You look up the loss at padding before you leave it out.",
    causes="A `pad_id` of −100 is no index: the look-up stops the program.",
    see="real-tokens",
)
def looks_up_padding(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-(10**6)
    )
    kept = (targets != pad_id).flatten()
    return (losses * kept).sum() / kept.sum().clamp(min=1)


@sequence_cross_entropy.misconception(
    did="You reshape the logits from (B, T, V) to (B, V, T); `cross_entropy` wants the axes"
    " exchanged, by a transpose.",
    causes="The numbers stay in their old order, so the score of one word is read as another's and"
    " nothing can be learned.",
    see="real-tokens",
)
def reshapes(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    logits = logits.reshape(logits.shape[0], logits.shape[2], logits.shape[1])
    total = F.cross_entropy(logits, targets, ignore_index=pad_id, reduction="sum")
    return total / (targets != pad_id).sum().clamp(min=1)


@sequence_cross_entropy.misconception(
    did="You take the softmax along the time axis; it belongs on the axis of the vocabulary.",
    causes="A token is then compared with the same token at other times, not with the other tokens"
    " it could be.",
    see="real-tokens",
)
def softmax_over_time(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    kept = targets != pad_id
    known = targets.clamp(0, logits.shape[-1] - 1)
    losses = -logits.log_softmax(1).gather(-1, known[..., None])[..., 0]
    return (losses * kept).sum() / kept.sum().clamp(min=1)


@sequence_cross_entropy.misconception(
    did="You take exp of the logits as they are.",
    causes="exp(710) is more than float64 can hold: large logits make the loss infinite or NaN.",
    see="real-tokens",
)
def loss_overflows(logits, targets, pad_id):  # type: ignore[no-untyped-def]
    kept = targets != pad_id
    known = targets.clamp(0, logits.shape[-1] - 1)[..., None]
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    losses = -p.gather(-1, known)[..., 0].log()
    return torch.where(kept, losses, 0.0).sum() / kept.sum().clamp(min=1)


# --- Seq2Seq ------------------------------------------------------------------------------------

Seq2Seq = ASSIGNMENT.exercise(
    "Seq2Seq",
    points=5,
    forbidden=FUSED_ATTENTION,
    needs=("masked_softmax", "AdditiveAttention"),
    hints=(
        "What does the decoder have to carry from one target token to the next, and what stays the"
        " same for the whole sentence?",
        "Write `decode_step` first. `forward` then is `encode` once and a loop over the columns of"
        " `target_in`; `greedy_decode` is the same loop, fed with its own last token. The state"
        " after row b is the one at position lengths[b] − 1.",
        "One step with attention: the state (B, D) is the query, memory (B, S, D) the keys, the"
        " context (B, D). The decoder's cell reads [embedding, context] of (B, 2D), the head turns"
        " the new state, or the state and the context, into (B, V).",
    ),
)
SIZES = (11, 13, 7)  # source vocabulary, target vocabulary, width
State = Any  # whatever encode returns: a tensor, a tuple of tensors


def built(student: Handle, rng: Rng, attention: bool = True) -> Handle:
    """The student's module with random weights, whatever they are called."""
    module = student.hold(*SIZES, attention=attention)
    return module.load(rng.like(module.shapes())).eval()


def sentences(
    rng: Rng, lengths: tuple[int, ...] = (5, 7, 2), steps: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """source, its lengths (not sorted), and the decoder's input; what pads the source is junk."""
    source = rng.integers(0, SIZES[0], len(lengths), max(lengths))
    return source, torch.tensor(lengths), rng.integers(0, SIZES[1], len(lengths), steps)


def encoded(module: Handle, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
    """memory and state, with memory's shape checked."""
    try:
        memory, state = module.method("encode")(source, lengths)
    except StudentError as error:
        if "enforce_sorted" in error.message:
            fail("`encode` stops at rows that are not sorted by length.", "needs_sorted_rows")
        raise
    if isinstance(memory, Tensor) and memory.ndim == 3 and memory.shape[1] < source.shape[1]:
        message = f"memory has {memory.shape[1]} positions for a source of {source.shape[1]}."
        fail(message, "memory_cut")
    expect(memory, "memory").has_shape(*source.shape, SIZES[2])
    return memory, state


def logits_of(module: Handle, source: Tensor, lengths: Tensor, target_in: Tensor) -> Tensor:
    """The logits of `forward`, with their shape checked."""
    try:
        logits = module(source, lengths, target_in)
    except StudentError as error:
        if "enforce_sorted" in error.message:
            fail("`forward` stops at rows that are not sorted by length.", "needs_sorted_rows")
        if error.kind == "IndexError" and "out of range" in error.message:
            fail("a target id is out of an embedding's range.", "one_vocabulary")
        raise
    shape = (*target_in.shape, SIZES[1])
    if isinstance(logits, Tensor) and tuple(logits.shape) == (*shape[:-1], SIZES[0]):
        fail(f"the logits are {tuple(logits.shape)}, expected {shape}.", "one_vocabulary")
    expect(logits, "the logits").has_shape(*shape)
    return logits


def walk(
    module: Handle, source: Tensor, lengths: Tensor, target_in: Tensor
) -> tuple[Tensor, list[Any]]:
    """`decode_step` along the target, with the state carried: logits (B, T, V), all weights."""
    memory, state = encoded(module, source, lengths)
    logits, weights = [], []
    for ids in target_in.unbind(1):
        step, state, one = module.method("decode_step")(
            ids, state, memory, real(lengths, source.shape[1])
        )
        logits.append(step)
        weights.append(one)
    return torch.stack(logits, dim=1), weights


def expect_alike(have: Any, want: Any, message: str, mistake: str | None = None) -> None:
    """Two answers of the student's that must agree."""
    if not same(have, want):
        fail(message, mistake)


def expect_moved(have: Tensor, before: Tensor, message: str, mistake: str | None = None) -> None:
    """Two answers of the student's that must differ, since something that counts was changed."""
    if torch.allclose(have, before, rtol=1e-9, atol=1e-12):
        fail(message, mistake)


@Seq2Seq.case("gives logits over the target's vocabulary, and a memory of the source's length")
def _(student: Handle, rng: Rng) -> None:
    for attention in (True, False):
        module = built(student, rng, attention)
        source, lengths, target_in = sentences(rng)
        memory, state = encoded(module, source, lengths)
        logits = logits_of(module, source, lengths, target_in)
        probabilities = (logits >= 0) & (logits <= 1)
        if probabilities.all() and torch.allclose(logits.sum(-1), logits.new_ones(())):
            fail("every row of logits is positive and sums to 1.", "returns_probabilities")
        step, _, _ = module.method("decode_step")(
            target_in[:, 0], state, memory, real(lengths, source.shape[1])
        )
        expect(step, "the logits of one step").has_shape(len(source), SIZES[1])
        alone = logits_of(module, source[:1, :1], torch.tensor([1]), target_in[:1, :1])
        expect(alone, "the logits of one token").has_shape(1, 1, SIZES[1])


@Seq2Seq.case("without attention, reads each row to its own end and not into the padding")
def _(student: Handle, rng: Rng) -> None:
    expect_padding_ignored(student, rng, False, "state_after_padding")
    module = built(student, rng, attention=False)
    source, lengths, target_in = sentences(rng)
    before = logits_of(module, source, lengths, target_in)
    for place, at in (("first", torch.zeros_like(lengths)), ("last", lengths - 1)):
        other = source.scatter(1, at[:, None], (source.gather(1, at[:, None]) + 1) % SIZES[0])
        after = logits_of(module, other, lengths, target_in)
        for b in range(len(source)):
            message = f"row {b}: another {place} token gives the same logits."
            expect_moved(after[b], before[b], message, "state_too_early")


@Seq2Seq.case("with attention, gives the same logits however far the source is padded")
def _(student: Handle, rng: Rng) -> None:
    expect_padding_ignored(student, rng, True, None)


def expect_padding_ignored(student: Handle, rng: Rng, attention: bool, mistake: str | None) -> None:
    module = built(student, rng, attention)
    source, lengths, target_in = sentences(rng)
    before = logits_of(module, source, lengths, target_in)
    junk = rng.integers(0, SIZES[0], 3, 10)
    kept = F.pad(source, (0, 3)).where(real(lengths, 10), junk)  # (B, S) → (B, S + 3)
    encoded(module, kept, lengths)
    after = logits_of(module, kept, lengths, target_in)
    expect_alike(after, before, "other ids in the padding change the logits.", mistake)


@Seq2Seq.case("answers a row in a batch as it answers the row alone")
def _(student: Handle, rng: Rng) -> None:
    for attention in (True, False):
        module = built(student, rng, attention)
        source, lengths, target_in = sentences(rng, (4, 4, 4))  # no padding: rows alone count
        together = logits_of(module, source, lengths, target_in)
        for b in range(len(source)):
            row = slice(b, b + 1)
            alone = logits_of(module, source[row], lengths[row], target_in[row])
            expect_alike(
                together[row], alone, f"row {b} gets other logits than alone.", "rows_mixed"
            )


@Seq2Seq.case("reads the given target: each token acts on its own step and later ones, on no other")
def _(student: Handle, rng: Rng) -> None:
    module = built(student, rng)
    source, lengths, target_in = sentences(rng)
    before = logits_of(module, source, lengths, target_in)
    t = 2
    other = target_in.clone()
    other[:, t] = (other[:, t] + 1) % SIZES[1]
    after = logits_of(module, source, lengths, other)
    if not same(after[:, :t], before[:, :t]):
        fail(f"the token at step {t} changes the logits before it.", "sees_the_future")
    if same(after, before):
        fail(f"the token at step {t} changes nothing.", "no_teacher_forcing")
    message = f"the token at step {t} does not change the logits at step {t}."
    expect_moved(after[:, t], before[:, t], message, "shifts_twice")
    message = f"the token at step {t} is forgotten at step {t + 1}."
    expect_moved(after[:, t + 1], before[:, t + 1], message, "state_not_carried")


@Seq2Seq.case("`forward` gives what `encode` and one `decode_step` a token give")
def _(student: Handle, rng: Rng) -> None:
    for attention in (True, False):
        module = built(student, rng, attention)
        inputs = sentences(rng)
        stepped, _ = walk(module, *inputs)
        message = "`forward` and the steps one by one give different logits."
        expect_alike(logits_of(module, *inputs), stepped, message, "forward_differs")


@Seq2Seq.case("looks at real source tokens alone, with weights that sum to 1 and move")
def _(student: Handle, rng: Rng) -> None:
    module = built(student, rng)
    source, lengths, target_in = sentences(rng)
    _, steps = walk(module, source, lengths, target_in)
    mask = real(lengths, source.shape[1])
    for weights in steps:
        expect(weights, "the weights").has_shape(*source.shape)
        on_padding = weights.masked_fill(mask, 0.0).abs().sum(1)
        if on_padding[:2].allclose(weights[:2].sum(1)) and on_padding[0] > 0:  # row 1 has none
            fail("the weights fall on the padding alone.", "decoder_polarity")
        if not same(weights.sum(1), torch.ones(len(source), dtype=weights.dtype)):
            fail("a row's weights do not sum to 1.", "weights_of_the_batch")
        if on_padding.max() > 1e-9:
            fail("some weight falls on padding.", "decoder_reads_padding")
        expect(weights, "the weights").holds(bool((weights >= 0).all()), "some are negative.")
    if same(steps[0], steps[-1]):
        fail("the weights are the same at every step.", "query_not_used")


@Seq2Seq.case("lets what it reads in the memory act on the logits, and padding not")
def _(student: Handle, rng: Rng) -> None:
    module = built(student, rng)
    source, lengths, target_in = sentences(rng)
    memory, state = encoded(module, source, lengths)
    mask = real(lengths, source.shape[1])
    step = module.method("decode_step")
    before, _, _ = step(target_in[:, 0], state, memory, mask)
    junk = torch.where(mask[..., None], memory, rng.normal(*memory.shape))
    after, _, _ = step(target_in[:, 0], state, junk, mask)
    message = "other numbers at the padding of the memory change the logits."
    expect_alike(after, before, message, "decoder_reads_padding")
    other = torch.where(mask[..., None], rng.normal(*memory.shape), memory)
    moved, _, _ = step(target_in[:, 0], state, other, mask)
    message = "with the same state, another memory gives the same logits."
    for b in range(len(source)):
        expect_moved(moved[b], before[b], message, "context_not_fed")


@Seq2Seq.case("without attention, learns of the source through the state alone")
def _(student: Handle, rng: Rng) -> None:
    module = built(student, rng, attention=False)
    source, lengths, target_in = sentences(rng)
    memory, state = encoded(module, source, lengths)
    mask = real(lengths, source.shape[1])
    step = module.method("decode_step")
    before, _, _ = step(target_in[:, 0], state, memory, mask)
    after, _, _ = step(target_in[:, 0], state, rng.normal(*memory.shape), mask)
    message = "with attention=False, another memory changes the logits."
    expect_alike(after, before, message, "flag_ignored")
    other = (source + 1) % SIZES[0]
    moved = logits_of(module, other, lengths, target_in)
    message = "another source gives the same logits."
    expect_moved(
        moved, logits_of(module, source, lengths, target_in), message, "encoder_state_dropped"
    )


Rows = list[list[int]]


def greedy_by_hand(
    module: Handle, source: Tensor, lengths: Tensor, max_len: int, bos_id: int, again: bool = True
) -> Tensor:
    """The likeliest token at every step, (B, max_len), with no regard to EOS.

    Without `again` every step is shown BOS instead of the last token.
    """
    memory, state = encoded(module, source, lengths)
    mask = real(lengths, source.shape[1])
    bos = torch.full((len(source),), bos_id)
    ids, written = bos, []
    for _ in range(max_len):
        logits, state, _ = module.method("decode_step")(ids, state, memory, mask)
        written.append(logits.argmax(-1))
        ids = written[-1] if again else bos
    return torch.stack(written, dim=1)


def cut_at(tokens: Tensor, eos_id: int, extra: int = 0) -> Rows:
    """Each row up to its first EOS (`extra` tokens more), or whole if it has none."""
    rows = tokens.tolist()
    return [row[: row.index(eos_id) + extra] if eos_id in row else row for row in rows]


Greedy = tuple[Handle, Tensor, Tensor, Tensor, int]


def uneven(student: Handle, rng: Rng, attention: bool, max_len: int) -> Greedy:
    """A model, sources and their lengths, what it writes to them, and an EOS that ends each of
    these rows at another step and stands before other tokens. Weights and sources are drawn again
    until there are such rows."""
    found: list[tuple[tuple[bool, int], Greedy]] = []
    for _ in range(8):
        module = built(student, rng, attention)
        source, lengths, _ = sentences(rng, 4 * (5, 7, 2, 4, 6, 3, 1, 7))
        tokens = greedy_by_hand(module, source, lengths, max_len, bos_id=1)
        for eos_id in range(2, SIZES[1]):
            ends = {len(row): b for b, row in enumerate(cut_at(tokens, eos_id))}
            ends.pop(max_len, None)  # these rows do not end
            rows = list(ends.values()) or [0]
            goes_on = any(bool((tokens[b, n:] != eos_id).any()) for n, b in ends.items())
            drawn = module, source[rows], lengths[rows], tokens[rows], eos_id
            found.append(((goes_on, len(ends)), drawn))
        if max(score for score, _ in found) >= (True, 3):
            break
    return max(found, key=lambda one: one[0])[1]


@Seq2Seq.case("`greedy_decode` writes the likeliest token, each row until its own EOS")
def _(student: Handle, rng: Rng) -> None:
    expect_greedy(student, rng, attention=True)


def expect_greedy(student: Handle, rng: Rng, attention: bool) -> None:
    max_len = 9
    module, source, lengths, tokens, eos_id = uneven(student, rng, attention, max_len)
    rows = module.method("greedy_decode")(source, lengths, max_len, 1, eos_id)
    right = cut_at(tokens, eos_id)
    if rows == right:
        return
    if isinstance(rows, Tensor):
        fail("the answer is a tensor, expected a list of lists.", "greedy_returns_tensor")
    ends = [len(row) for row in right]
    never = cut_at(greedy_by_hand(module, source, lengths, max_len, 1, again=False), eos_id)
    suspects: dict[str, Rows] = {
        "runs_past_eos": tokens.tolist(),
        "keeps_eos": cut_at(tokens, eos_id, extra=1),
        "ends_with_the_longest": [row[: max(ends)] for row in tokens.tolist()],
        "ends_with_the_shortest": [row[: min(ends)] for row in tokens.tolist()],
        "writes_on_after_eos": [[i for i in row if i != eos_id] for row in tokens.tolist()],
        "starts_with_bos": [[1, *row] for row in right],
        "shows_bos_again": never,
    }
    fail(
        f"expected {right}, got {rows!r:.300}.",
        next((name for name, wrong in suspects.items() if rows == wrong), None),
    )


@Seq2Seq.case("`greedy_decode` writes at most `max_len` tokens")
def _(student: Handle, rng: Rng) -> None:
    module = built(student, rng)
    source, lengths, _ = sentences(rng)
    tokens = greedy_by_hand(module, source, lengths, 5, bos_id=1)
    unwritten = next(i for i in range(SIZES[1]) if i not in tokens.unique())
    for max_len in (1, 4):
        rows = module.method("greedy_decode")(source, lengths, max_len, 1, unwritten)
        sizes = {len(row) for row in rows}
        expect(sizes, "the answers' lengths").holds(
            sizes == {max_len}, f"with max_len={max_len} and no EOS they are {sorted(sizes)}."
        )
        expect(rows, "the answers").equals(tokens[:, :max_len].tolist())


@Seq2Seq.case("sends the right gradient to every weight, the encoder's included")
def _(student: Handle, rng: Rng) -> None:
    for attention in (True, False):
        module = built(student, rng, attention)
        weights, inputs = module.parameters(), sentences(rng, steps=3)
        cotangent = rng.normal(3, 3, SIZES[1])
        pulled: Pullback = module.vjp(*inputs, cotangent=cotangent)
        direction = rng.like({name: tuple(w.shape) for name, w in weights.items()})

        def value(step: float) -> Tensor:
            moved = {name: w + step * direction[name] for name, w in weights.items()}  # noqa: B023
            return (module.load(moved)(*inputs) * cotangent).sum()  # noqa: B023

        slope = (value(1e-5) - value(-1e-5)) / 2e-5
        found = sum(
            (g * direction[name]).sum() for name, g in pulled.parameters.items() if g is not None
        )
        if not torch.isclose(torch.as_tensor(found), slope, rtol=1e-4, atol=1e-6):
            message = (
                f"with attention={attention}, the gradient along a random direction is"
                f" {float(found):.6g}, and the difference of two runs gives {float(slope):.6g}."
            )
            fail(message, "encoder_detached")


@Seq2Seq.case("`decode_step` leaves the state and the memory that it is given alone")
def _(student: Handle, rng: Rng) -> None:
    module = built(student, rng)
    source, lengths, target_in = sentences(rng)
    memory, state = encoded(module, source, lengths)
    args = target_in[:, 0], state, memory, real(lengths, source.shape[1])
    if not same(module.method("decode_step").after(*args).args, args):
        fail("`decode_step` changed one of its arguments.", "writes_into_the_state")


guard(Seq2Seq, lambda rng, dtype: sentences(rng, (2, 3, 1), steps=2), build=SIZES)


@Seq2Seq.case("`greedy_decode` works on any device", guard=True)
def _(student: Handle, rng: Rng) -> None:
    source, lengths, _ = sentences(rng, (2, 3, 1))
    reason = student.method("greedy_decode").on_fake_device(
        source, lengths, 2, 1, 2, build=SIZES, differentiate=False
    )
    if reason is not None:
        fail(DEVICE.get(reason, DEVICE["mixed"]), "bos_on_the_cpu")


class Model(nn.Module):
    """What the wrong models below have in common; each spoils one of the small methods."""

    def __init__(
        self, source_vocab: int, target_vocab: int, d_model: int, attention: bool = True
    ) -> None:
        super().__init__()
        self.attention = attention
        self.source_embedding = nn.Embedding(source_vocab, d_model)
        self.target_embedding = nn.Embedding(target_vocab, d_model)
        self.encoder = nn.GRU(d_model, d_model, batch_first=True)
        self.decoder = nn.GRUCell(2 * d_model if attention else d_model, d_model)
        self.head = nn.Linear(d_model, target_vocab)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        memory, _ = self.encoder(self.source_embedding(source))
        rows = torch.arange(len(source), device=source.device)
        return memory, memory[rows, lengths - 1]  # (B, S, D), (B, D)

    def weigh(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(~mask, float("-inf")).softmax(-1)

    def look(self, state: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.weigh((memory @ state[..., None])[..., 0], mask)  # (B, S)
        return (weights[:, None] @ memory)[:, 0], weights

    def decode_step(
        self, ids: Tensor, state: State, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, State, Tensor | None]:
        x, weights = self.target_embedding(ids), None
        if self.attention:
            context, weights = self.look(state, memory, mask)
            x = torch.cat([x, context], dim=-1)  # (B, 2D)
        state = self.decoder(x, state)
        return self.head(state), state, weights

    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor) -> Tensor:
        memory, state = self.encode(source, lengths)
        mask, logits = real(lengths, source.shape[1]), []
        for ids in target_in.unbind(1):
            step, state, _ = self.decode_step(ids, state, memory, mask)
            logits.append(step)
        return torch.stack(logits, dim=1)

    def tokens(self, source: Tensor, lengths: Tensor, max_len: int, bos_id: int) -> Tensor:
        """(B, max_len), with no regard to EOS."""
        memory, state = self.encode(source, lengths)
        mask, written = real(lengths, source.shape[1]), []
        ids = source.new_full((len(source),), bos_id)
        for _ in range(max_len):
            logits, state, _ = self.decode_step(ids, state, memory, mask)
            ids = logits.argmax(-1)
            written.append(ids)
        return torch.stack(written, dim=1)

    def finish(self, tokens: Tensor, bos_id: int, eos_id: int) -> Any:
        return cut_at(tokens, eos_id)

    @torch.no_grad()
    def greedy_decode(
        self, source: Tensor, lengths: Tensor, max_len: int, bos_id: int, eos_id: int
    ) -> Any:
        return self.finish(self.tokens(source, lengths, max_len, bos_id), bos_id, eos_id)


def _mistake(name: str, did: str, causes: str, see: str) -> Callable[[Any], Any]:
    return Seq2Seq.misconception(did=did, causes=causes, see=see, name=name)


@_mistake(
    "state_after_padding",
    "Your decoder starts from the state at the end of the padded row, not at the row's last real"
    " token.",
    "A short sentence is then remembered through a stretch of padding, and is translated"
    " differently for each length it is padded to.",
    "one-vector",
)
class StateAfterPadding(Model):
    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        memory, last = self.encoder(self.source_embedding(source))
        return memory, last[0]


@_mistake(
    "state_too_early",
    "Some real token of the source never reaches your decoder: the state is taken a step too early,"
    " say at `lengths - 2`.",
    "The last word is lost in every sentence, and in short ones nearly everything.",
    "one-vector",
)
class StateTooEarly(Model):
    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        return super().encode(source, (lengths - 1).clamp(min=1))


@_mistake(
    "needs_sorted_rows",
    "Your `encode` wants the rows sorted by length: `pack_padded_sequence` does so unless told"
    " `enforce_sorted=False`.",
    "Almost every batch stops the program, since nobody sorts sentences by length.",
    "one-vector",
)
class NeedsSortedRows(Model):
    enforce_sorted, cut = True, False

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.source_embedding(source),
            lengths.cpu(),
            batch_first=True,
            enforce_sorted=self.enforce_sorted,
        )
        states, last = self.encoder(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(
            states, batch_first=True, total_length=None if self.cut else source.shape[1]
        )
        return memory, last[0]


@_mistake(
    "memory_cut",
    "Your memory is as long as the longest row, not as long as the source: `pad_packed_sequence`"
    " cuts padding that all rows share.",
    "A mask of the source's length then does not fit: give it `total_length=source.shape[1]`.",
    "one-vector",
)
class MemoryCut(NeedsSortedRows):
    enforce_sorted, cut = False, True


@_mistake(
    "one_vocabulary",
    "Your decoder embeds or scores its tokens with the source's vocabulary.",
    "Source and target have vocabularies of their own: ids beyond the smaller one stop the program,"
    " and words that exist in one language alone can never be written.",
    "decoder",
)
class OneVocabulary(Model):
    def __init__(
        self, source_vocab: int, target_vocab: int, d_model: int, attention: bool = True
    ) -> None:
        super().__init__(source_vocab, target_vocab, d_model, attention)
        self.head = nn.Linear(d_model, source_vocab)


@_mistake(
    "returns_probabilities",
    "Your logits have already been through a softmax.",
    "The loss takes a softmax too. Of numbers between 0 and 1 it makes an almost even distribution,"
    " so the loss cannot come near 0.",
    "decoder",
)
class ReturnsProbabilities(Model):
    def decode_step(
        self, ids: Tensor, state: State, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, State, Tensor | None]:
        logits, state, weights = super().decode_step(ids, state, memory, mask)
        return logits.softmax(-1), state, weights


@_mistake(
    "rows_mixed",
    "Your code moves numbers from one row of the batch to another: a `view` or `reshape` where the"
    " axes should be exchanged, say.",
    "Each sentence is translated with a part of its neighbor's state.",
    "one-vector",
)
class RowsMixed(Model):
    def __init__(
        self, source_vocab: int, target_vocab: int, d_model: int, attention: bool = True
    ) -> None:
        super().__init__(source_vocab, target_vocab, d_model, attention)
        self.backward_encoder = nn.GRU(d_model, d_model, batch_first=True)
        self.bridge = nn.Linear(2 * d_model, d_model)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        memory, last = super().encode(source, lengths)
        both = torch.stack([last, memory[:, 0]])  # (2, B, D)
        return memory, self.bridge(both.reshape(len(source), -1)).tanh()


@_mistake(
    "sees_the_future",
    "Your decoder reads target tokens from later steps.",
    "In training it finds the answer in its input. In use there is nothing there, and it writes"
    " nonsense.",
    "teacher-forcing",
)
class SeesTheFuture(Model):
    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor) -> Tensor:
        later = torch.cat([target_in[:, 1:], target_in[:, -1:]], dim=1)
        return super().forward(source, lengths, later)


@_mistake(
    "no_teacher_forcing",
    "Your `forward` feeds the decoder with its own guesses and not with `target_in`.",
    "Early in training the guesses are wrong, and everything after the first wrong one is learned"
    " from a context that no answer has.",
    "teacher-forcing",
)
class NoTeacherForcing(Model):
    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor) -> Tensor:
        memory, state = self.encode(source, lengths)
        mask, ids, logits = real(lengths, source.shape[1]), target_in[:, 0], []
        for _ in range(target_in.shape[1]):
            step, state, _ = self.decode_step(ids, state, memory, mask)
            ids = step.argmax(-1)
            logits.append(step)
        return torch.stack(logits, dim=1)


@_mistake(
    "shifts_twice",
    "Your `forward` shifts its input once more; `target_in` comes shifted, with BOS in front.",
    "At each step the decoder is shown the token before the last one, and what it wrote just now is"
    " unknown to it.",
    "teacher-forcing",
)
class ShiftsTwice(Model):
    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor) -> Tensor:
        again = torch.cat([target_in[:, :1], target_in[:, :-1]], dim=1)
        return super().forward(source, lengths, again)


@_mistake(
    "state_not_carried",
    "Every step of your decoder starts from the encoder's state; the state of the last step is"
    " lost.",
    "The decoder does not know what it has already written beyond the last token, so it repeats"
    " itself and does not end.",
    "decoder",
)
class StateNotCarried(Model):
    def decode_step(
        self, ids: Tensor, state: State, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, State, Tensor | None]:
        logits, _, weights = super().decode_step(ids, state, memory, mask)
        return logits, state, weights


@_mistake(
    "forward_differs",
    "Your `forward` computes something else than `decode_step` called once a token.",
    "The model is trained in one way and used in another, so it writes worse than its loss"
    " promises.",
    "decoder",
)
class ForwardDiffers(Model):
    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor) -> Tensor:
        memory, state = self.encode(source, lengths)
        everything, logits = torch.ones_like(source, dtype=torch.bool), []
        state = torch.zeros_like(state) if self.attention else state
        for ids in target_in.unbind(1):
            everything = real(lengths, source.shape[1])
            step, state, _ = self.decode_step(ids, state, memory, everything)
            logits.append(step)
        return torch.stack(logits, dim=1)


@_mistake(
    "decoder_polarity",
    "Your decoder attends where the mask is False; True means “may attend”.",
    "It reads the padding, and of a sentence without padding nothing.",
    "masked-softmax",
)
class DecoderPolarity(Model):
    def weigh(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(mask, float("-inf")).softmax(-1).nan_to_num(0.0)


@_mistake(
    "decoder_reads_padding",
    "Your decoder attends to padding: the mask does not reach its softmax.",
    "The same sentence gets another translation when a longer one stands in its batch.",
    "masked-softmax",
)
class DecoderReadsPadding(Model):
    def weigh(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.softmax(-1)


@_mistake(
    "weights_of_the_batch",
    "Your decoder's weights do not sum to 1 over the source.",
    "Normalized over the batch, or masked after the softmax, they make what is read depend on the"
    " other sentences or on the padding.",
    "looking-back",
)
class WeightsOfTheBatch(Model):
    def weigh(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.softmax(0) * mask


@_mistake(
    "query_not_used",
    "Your weights do not depend on the decoder's state: they are the same at every step.",
    "The decoder reads one fixed average of the source throughout, which is the bottleneck again.",
    "looking-back",
)
class QueryNotUsed(Model):
    def look(self, state: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().look(torch.ones_like(state), memory, mask)


@_mistake(
    "context_not_fed",
    "Your context is computed and then not used: the logits depend on the state alone.",
    "The weights may look like attention, but the model is the one without it.",
    "decoder",
)
class ContextNotFed(Model):
    def look(self, state: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        context, weights = super().look(state, memory, mask)
        return torch.zeros_like(context), weights


@_mistake(
    "flag_ignored",
    "With attention=False your decoder still reads the memory.",
    "The comparison of the two models then compares a model with itself.",
    "decoder",
)
class FlagIgnored(Model):
    def __init__(
        self, source_vocab: int, target_vocab: int, d_model: int, attention: bool = True
    ) -> None:
        super().__init__(source_vocab, target_vocab, d_model, True)


@_mistake(
    "encoder_state_dropped",
    "Without attention your decoder starts from zeros: nothing of the source reaches it.",
    "It learns which answers are frequent and gives them to every question.",
    "one-vector",
)
class EncoderStateDropped(Model):
    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        memory, state = super().encode(source, lengths)
        return memory, torch.zeros_like(state)


@_mistake(
    "encoder_detached",
    "Your gradient is not that of your logits: a tensor on the way is detached.",
    "What stands before the cut, the encoder say, keeps its random weights and is never trained.",
    "one-vector",
)
class EncoderDetached(Model):
    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        memory, state = super().encode(source, lengths)
        return memory.detach(), state.detach()


@_mistake(
    "writes_into_the_state",
    "Your `decode_step` writes the new state into the tensor that it was given.",
    "Whoever kept the old state, to try two continuations say, finds it changed, and the backward"
    " pass may stop with an error.",
    "decoder",
)
class WritesIntoTheState(Model):
    def decode_step(
        self, ids: Tensor, state: State, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, State, Tensor | None]:
        logits, new, weights = super().decode_step(ids, state.clone(), memory, mask)
        state.data.copy_(new)
        return logits, new, weights


@_mistake(
    "runs_past_eos",
    "Your `greedy_decode` does not stop at EOS: every row has `max_len` tokens.",
    "The answer is followed by whatever the decoder writes after its end, which it was never"
    " trained on.",
    "greedy",
)
class RunsPastEos(Model):
    def finish(self, tokens: Tensor, bos_id: int, eos_id: int) -> Any:
        return tokens.tolist()


@_mistake(
    "keeps_eos",
    "Your answers end with EOS; leave it out.",
    "Compared with the right answer, every one of them is a token too long and counts as wrong.",
    "greedy",
)
class KeepsEos(Model):
    def finish(self, tokens: Tensor, bos_id: int, eos_id: int) -> Any:
        return cut_at(tokens, eos_id, extra=1)


@_mistake(
    "ends_with_the_longest",
    "Your answers all have one length, that of the longest.",
    "Rows that ended early go on with tokens after their EOS: each row has its own end.",
    "greedy",
)
class EndsWithTheLongest(Model):
    def finish(self, tokens: Tensor, bos_id: int, eos_id: int) -> Any:
        longest = max(map(len, cut_at(tokens, eos_id)))
        return tokens[:, :longest].tolist()


@_mistake(
    "ends_with_the_shortest",
    "Your whole batch stops when the first row writes EOS.",
    "All longer answers are cut off in the middle.",
    "greedy",
)
class EndsWithTheShortest(Model):
    def finish(self, tokens: Tensor, bos_id: int, eos_id: int) -> Any:
        shortest = min(map(len, cut_at(tokens, eos_id)))
        return tokens[:, :shortest].tolist()


@_mistake(
    "writes_on_after_eos",
    "You remove EOS from the answer and keep what stands after it.",
    "EOS means that the answer is over; what follows is noise, glued to its end.",
    "greedy",
)
class WritesOnAfterEos(Model):
    def finish(self, tokens: Tensor, bos_id: int, eos_id: int) -> Any:
        return [[i for i in row if i != eos_id] for row in tokens.tolist()]


@_mistake(
    "starts_with_bos",
    "Your answers begin with BOS; leave it out.",
    "BOS is what the decoder is shown first, not what it writes: every answer is a token too long.",
    "greedy",
)
class StartsWithBos(Model):
    def finish(self, tokens: Tensor, bos_id: int, eos_id: int) -> Any:
        return [[bos_id, *row] for row in cut_at(tokens, eos_id)]


@_mistake(
    "shows_bos_again",
    "Your `greedy_decode` shows the decoder BOS at every step, not the token it has just written.",
    "It cannot know how far the answer has come, so it writes its beginning over and over.",
    "greedy",
)
class ShowsBosAgain(Model):
    def tokens(self, source: Tensor, lengths: Tensor, max_len: int, bos_id: int) -> Tensor:
        memory, state = self.encode(source, lengths)
        mask, written = real(lengths, source.shape[1]), []
        for _ in range(max_len):
            ids = source.new_full((len(source),), bos_id)
            logits, state, _ = self.decode_step(ids, state, memory, mask)
            written.append(logits.argmax(-1))
        return torch.stack(written, dim=1)


@_mistake(
    "greedy_returns_tensor",
    "Your `greedy_decode` returns a tensor, in which all rows have one length.",
    "Answers end at different steps: return a list of lists, each as long as its answer.",
    "greedy",
)
class GreedyReturnsTensor(Model):
    def finish(self, tokens: Tensor, bos_id: int, eos_id: int) -> Any:
        return tokens


@_mistake(
    "bos_on_the_cpu",
    "Your `greedy_decode` makes a tensor on the CPU, the first BOS say: pass"
    " `device=source.device`.",
    "On a GPU the first step stops the program, though training went well.",
    "greedy",
)
class BosOnTheCpu(Model):
    def tokens(self, source: Tensor, lengths: Tensor, max_len: int, bos_id: int) -> Tensor:
        memory, state = self.encode(source, lengths)
        mask, written = real(lengths, source.shape[1]), []
        ids = torch.full((len(source),), bos_id)
        for _ in range(max_len):
            logits, state, _ = self.decode_step(ids, state, memory, mask)
            ids = logits.argmax(-1)
            written.append(ids)
        return torch.stack(written, dim=1)
