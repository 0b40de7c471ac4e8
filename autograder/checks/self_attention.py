"""Checks of chapter 05: scaled dot-product attention, masks, self-attention, online softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autograder.child.devices import fake_device
from autograder.engine.exercise import Assignment, Exercise, Rng
from autograder.engine.expect import expect, fail, pulled_by_autograd
from autograder.engine.guards import DEVICE, guard
from autograder.engine.handle import Handle, Pullback, StudentError

ASSIGNMENT = Assignment(
    name="05-self-attention",
    notebook="self_attention",
    page="05_self_attention",
    sections={
        "soft-dictionary": "A dictionary that answers in shares",
        "why-the-square-root": "Why the square root",
        "masks": "Masks",
        "self-attention": "Self-attention",
        "attention-cost": "What it costs",
        "online-softmax": "Softmax in one pass",
    },
    minutes=90,
    modules=("data", "metrics", "ngram", "rnn", "lstm"),
)

Attended = tuple[Tensor, Tensor]
FUSED = (
    "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math",
    "MultiheadAttention",
    "multi_head_attention_forward",
    "flex_attention",
)

# --- scaled_dot_product_attention ---------------------------------------------------------------

scaled_dot_product_attention = ASSIGNMENT.exercise(
    "scaled_dot_product_attention",
    points=4,
    forbidden=FUSED,
    hints=(
        "Row t of the weights says how query t shares itself out. Over which axis must it sum to 1,"
        " and what must a forbidden key's score be for its share to be exactly 0?",
        "Three steps: scores (…, T, S), then weights by a softmax along the keys, then the weighted"
        " mean of the values. The mask acts on the scores, before the softmax.",
        "scores = q kᵀ / √d_k. `Tensor.mT` swaps the last two axes only, whatever stands before"
        " them; `Tensor.masked_fill` writes where its mask is True.",
    ),
)


def attention_inputs(
    rng: Rng, *leading: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """q (…, 4, 5), k (…, 7, 5), v (…, 7, 11); q and v do not lie contiguously in memory."""
    return (
        rng.strided(*leading, 4, 5, dtype=dtype),
        rng.normal(*leading, 7, 5, dtype=dtype),
        rng.strided(*leading, 7, 11, dtype=dtype),
    )


def random_mask(rng: Rng, *shape: int) -> Tensor:
    """A boolean mask with at least one True and one False in every row."""
    noise = rng.normal(*shape)
    mask = noise > -0.2
    mask = mask.scatter(-1, noise.argmax(-1, keepdim=True), True)
    return mask.scatter(-1, noise.argmin(-1, keepdim=True), False)


def reference_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Attended:
    """PyTorch's own operator; with the identity for values it gives the weights."""
    n_keys = k.shape[-2]
    identity = torch.eye(n_keys, dtype=k.dtype).expand(*k.shape[:-2], n_keys, n_keys)
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return output, F.scaled_dot_product_attention(q, k, identity, attn_mask=mask)


def expect_attention(student: Handle, *args: Any) -> None:
    expect(student(*args), "output, weights").close_to(reference_attention(*args))


def runs(student: Handle, *args: Any) -> bool:
    """Whether the student's object gets through this call."""
    try:
        student(*args)
    except StudentError:
        return False
    return True


@scaled_dot_product_attention.case("mixes the values by softmax(q·kᵀ/√d_k), for any T, S and d_v")
def _(student: Handle, rng: Rng) -> None:
    q, k, v = attention_inputs(rng, 2, 3)
    try:
        result = student(q, k, v)
    except StudentError:
        if runs(student, q, k[:, :, :4], v[:, :, :4]):
            fail("it runs with T = S = 4 and stops with T = 4, S = 7.", "assumes_equal_lengths")
        if runs(student, q, k, v, torch.ones(4, 7, dtype=torch.bool)):
            fail("it stops when no mask is given.", "crashes_without_mask")
        if runs(student, q[0], k[0], v[0]):
            fail("it runs on (3, T, d) and stops on (2, 3, T, d).", "three_axes_only")
        raise
    expect(result, "output, weights").close_to(reference_attention(q, k, v))


@scaled_dot_product_attention.case("works on one query, two keys and one number each")
def _(student: Handle, rng: Rng) -> None:
    expect_attention(student, rng.normal(1, 1), rng.normal(2, 1), rng.normal(2, 1))


@scaled_dot_product_attention.case("stays finite when the products are huge")
def _(student: Handle, rng: Rng) -> None:
    q, k, v = attention_inputs(rng, 3)
    q = q * torch.tensor([1.0, 2000.0, 30.0, -9000.0], dtype=torch.float64)[:, None]
    expect_attention(student, q, k, v)


@scaled_dot_product_attention.case("attends where the mask is True and nowhere else")
def _(student: Handle, rng: Rng) -> None:
    q, k, v = attention_inputs(rng, 2, 3)
    expect_attention(student, q, k, v, random_mask(rng, 4, 7))


@scaled_dot_product_attention.case("takes a mask of every shape that broadcasts to the scores")
def _(student: Handle, rng: Rng) -> None:
    q, k, v = attention_inputs(rng, 2, 3)
    for batch, heads, queries in ((2, 1, 1), (2, 1, 4), (2, 3, 4)):
        expect_attention(student, q, k, v, random_mask(rng, batch, heads, queries, 7))
    q, k, v = attention_inputs(rng, 3)
    for mask in random_mask(rng, 4, 7), random_mask(rng, 3, 1, 7), random_mask(rng, 3, 4, 7):
        expect_attention(student, q, k, v, mask)


@scaled_dot_product_attention.case("gives a forbidden key nothing, however large its product")
def _(student: Handle, rng: Rng) -> None:
    q, k, v = attention_inputs(rng, 2, 3)
    mask = random_mask(rng, 2, 1, 1, 7)
    q[..., 0] = 1.0
    k[..., 0] = torch.where(mask[..., 0, :], -3e5, 3e5)  # (2, 1, 7) → (2, 3, 7)
    expect_attention(student, q, k, v, mask)


@scaled_dot_product_attention.case("with a causal mask, the future changes nothing in the past")
def _(student: Handle, rng: Rng) -> None:
    q, k, v = rng.normal(2, 6, 3), rng.normal(2, 6, 3), rng.normal(2, 6, 5)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    before, weights = student(q, k, v, mask)
    k[:, 4:], v[:, 4:] = rng.normal(2, 2, 3), rng.normal(2, 2, 5)
    after, _ = student(q, k, v, mask)
    expect(after[:, :4], "the first 4 outputs after tokens 4 and 5 changed").close_to(before[:, :4])
    expect(weights.sum(-1), "the sum of each row of weights").close_to(torch.ones_like(q[..., 0]))


@scaled_dot_product_attention.case("sends the right gradients to q, k and v")
def _(student: Handle, rng: Rng) -> None:
    args = attention_inputs(rng, 2)
    mask = random_mask(rng, 4, 7)
    cotangent = rng.normal(2, 4, 11), rng.normal(2, 4, 7)
    pulled: Pullback = student.vjp(*args, mask, cotangent=cotangent, wrt=(0, 1, 2))
    right = pulled_by_autograd(lambda q, k, v: reference_attention(q, k, v, mask), args, cotangent)
    for name, have, want in zip("qkv", pulled.inputs, right, strict=True):
        expect(have, f"the gradient of {name}").close_to(want)


def masked_inputs(rng: Rng, dtype: torch.dtype) -> Any:
    return (*attention_inputs(rng, 2, 3, dtype=dtype), random_mask(rng, 2, 1, 1, 7))


guard(scaled_dot_product_attention, masked_inputs)


@scaled_dot_product_attention.case("works on any device without a mask, too", guard=True)
def _(student: Handle, rng: Rng) -> None:
    reason = student.on_fake_device(*attention_inputs(rng, 2, dtype=torch.float32))
    if reason is not None:
        fail(DEVICE.get(reason, DEVICE["mixed"]))


def allow(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores with the forbidden ones at minus infinity."""
    return scores if mask is None else scores.masked_fill(~mask, -math.inf)


def _attention(
    *,
    scale: Callable[[Tensor, Tensor, Tensor], float] = lambda q, k, v: q.shape[-1] ** -0.5,
    masked: Callable[[Tensor, Tensor | None], Tensor] = allow,
    weigh: Callable[[Tensor, Tensor | None], Tensor] = lambda scores, mask: scores.softmax(-1),
    answer: Callable[[Tensor, Tensor, Tensor], Any] = lambda weights, v, s: (weights @ v, weights),
) -> Callable[..., Any]:
    """An attention with one thing wrong: scale, mask, softmax, or what is returned."""

    def wrong(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
        scores = masked(q @ k.mT * scale(q, k, v), mask)
        return answer(weigh(scores, mask), v, scores)

    return wrong


def _mistake(
    exercise: Exercise, name: str, see: str, did: str, causes: str, wrong: Callable[..., Any]
) -> None:
    exercise.misconception(did=did, causes=causes, see=see, name=name)(wrong)


def _sdpa(name: str, see: str, did: str, causes: str, wrong: Callable[..., Any]) -> None:
    _mistake(scaled_dot_product_attention, name, see, did, causes, wrong)


_sdpa(
    "not_scaled",
    "why-the-square-root",
    "Your scores are not divided by √d_k.",
    "A product of d_k terms grows with √d_k, so at width 64 nearly all weight falls on one key and"
    " the softmax's gradient vanishes.",
    _attention(scale=lambda q, k, v: 1.0),
)
_sdpa(
    "divided_by_d_k",
    "why-the-square-root",
    "Your scores are divided by d_k; divide by √d_k.",
    "They come out √d_k times too small, so the softmax is almost uniform and every token reads the"
    " average of all.",
    _attention(scale=lambda q, k, v: 1 / q.shape[-1]),
)
_sdpa(
    "multiplied_by_root_d_k",
    "why-the-square-root",
    "Your scores are multiplied by √d_k; divide by it.",
    "They come out d_k times too large: one key takes all the weight and no gradient is left to"
    " change that.",
    _attention(scale=lambda q, k, v: q.shape[-1] ** 0.5),
)
_sdpa(
    "divided_by_root_d_v",
    "why-the-square-root",
    "Your scale comes from the width of the values, √d_v.",
    "The products are sums of d_k terms and know nothing of the values: a wider v would flatten the"
    " weights.",
    _attention(scale=lambda q, k, v: v.shape[-1] ** -0.5),
)
for _axis, _letter in (("keys", "S"), ("queries", "T")):
    _sdpa(
        f"divided_by_root_number_of_{_axis}",
        "why-the-square-root",
        f"Your scores are divided by √{_letter}, the root of the number of {_axis}.",
        "A score is a sum over d_k terms, not over tokens: yours change with the length of the text"
        " and say nothing else about it.",
        _attention(
            scale=(lambda q, k, v: k.shape[-2] ** -0.5)
            if _letter == "S"
            else (lambda q, k, v: q.shape[-2] ** -0.5)
        ),
    )
_sdpa(
    "scale_is_written_in",
    "why-the-square-root",
    "Your scale is the number 8, which is √64, whatever the width of your queries.",
    "At any other width the softmax is too flat or too sharp; take d_k from `q.shape[-1]`.",
    _attention(scale=lambda q, k, v: 1 / 8),
)


@scaled_dot_product_attention.misconception(
    did="You divide by √d_k after the softmax; divide the scores before it.",
    causes="The weights no longer sum to 1, and the softmax is as sharp as without a scale.",
    see="why-the-square-root",
)
def scaled_after_the_softmax(q, k, v, mask=None):  # type: ignore[no-untyped-def]
    weights = allow(q @ k.mT, mask).softmax(-1) * q.shape[-1] ** -0.5
    return weights @ v, weights


_sdpa(
    "softmax_over_queries",
    "soft-dictionary",
    "Your softmax runs over the queries; it must run over the keys, the last axis.",
    "Each key then shares itself out among the queries, and a query's own weights sum to anything.",
    _attention(weigh=lambda scores, mask: scores.softmax(-2)),
)
_sdpa(
    "softmax_over_axis_1",
    "soft-dictionary",
    "Your softmax runs over axis 1; it must run over the last axis, the keys.",
    "In (B, H, T, S) axis 1 is the heads, so the heads compete with each other; count the axis from"
    " the end.",
    _attention(weigh=lambda scores, mask: scores.softmax(1 if scores.ndim > 2 else -1)),
)
_sdpa(
    "unstable_softmax",
    "soft-dictionary",
    "You exponentiate the scores as they are.",
    "Beyond about 709 (88 in float32) the exponential overflows, the row becomes NaN, and training"
    " stops for good. `torch.softmax` subtracts the row's maximum first.",
    _attention(weigh=lambda s, mask: s.exp() / s.exp().sum(-1, keepdim=True)),
)


def _softmax_by_one_maximum(scores: Tensor, mask: Tensor | None) -> Tensor:
    raised = (scores - scores.max()).exp()
    return raised / raised.sum(-1, keepdim=True)


_sdpa(
    "one_maximum_for_all_rows",
    "soft-dictionary",
    "You subtract the largest score of the whole tensor; subtract each row's own.",
    "A row that lies far below it underflows to zeros, and zero divided by zero is NaN.",
    _attention(weigh=_softmax_by_one_maximum),
)
_sdpa(
    "polarity",
    "masks",
    "Your mask is turned around: True means “may attend”, and you shut those keys out.",
    "A causal model then reads the future alone and copies the answer it should predict.",
    _attention(masked=lambda s, mask: s if mask is None else s.masked_fill(mask, -math.inf)),
)
_sdpa(
    "mask_ignored",
    "masks",
    "`mask` is accepted and never used.",
    "Every token reads the future and the padding: the training loss looks wonderful, and the model"
    " cannot write.",
    _attention(masked=lambda scores, mask: scores),
)
_sdpa(
    "always_causal",
    "masks",
    "You apply a causal mask although nobody asked for one.",
    "The caller decides by `mask`: an encoder, and a decoder that reads a source, must see every"
    " key.",
    _attention(masked=lambda scores, mask: allow(allow(scores, mask), causal_like(scores))),
)


def causal_like(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool).tril()


_sdpa(
    "mask_multiplies_scores",
    "masks",
    "A forbidden score becomes 0: you multiply by the mask, or fill with 0.",
    "0 is an ordinary score and e⁰ is 1, so a forbidden key keeps a share, often a larger one than"
    " an allowed key. The score must be minus infinity.",
    _attention(masked=lambda s, mask: s if mask is None else s * mask),
)
_sdpa(
    "mask_is_added",
    "masks",
    "You add the mask to the scores, where True counts as 1 and False as 0.",
    "Allowed keys gain a factor e and forbidden ones stay in: a boolean mask has to be turned into"
    " 0 and minus infinity first.",
    _attention(masked=lambda s, mask: s if mask is None else s + mask),
)
_sdpa(
    "zero_times_infinity",
    "masks",
    "You multiply infinity by 0 where a key is allowed, and 0 · ∞ is NaN.",
    "Every score is lost, not only the forbidden ones. Write minus infinity where the mask is"
    " False, with `masked_fill` or `torch.where`.",
    _attention(masked=lambda s, mask: s if mask is None else s + (~mask).to(s.dtype) * -math.inf),
)
_sdpa(
    "filled_with_minus_10",
    "masks",
    "A forbidden score is set to −10; it must be minus infinity.",
    "Beside a score of 0 that is a share of 1 in 22,000 for every forbidden key, and beside a score"
    " of −10 it is a full share: the future leaks.",
    _attention(masked=lambda s, mask: s if mask is None else s.masked_fill(~mask, -10.0)),
)
_sdpa(
    "filled_with_minus_10000",
    "masks",
    "A forbidden score is set to a number such as −10,000; it must be minus infinity.",
    "It holds while all scores stay above that. When a row's allowed scores fall below it, the"
    " forbidden keys take all the weight.",
    _attention(masked=lambda s, mask: s if mask is None else s.masked_fill(~mask, -1e4)),
)


def _zero_after(scores: Tensor, mask: Tensor | None) -> Tensor:
    weights = scores.softmax(-1)
    return weights if mask is None else weights * mask


_sdpa(
    "mask_after_softmax",
    "masks",
    "You set weights to 0 after the softmax.",
    "What is left does not sum to 1, and its size still tells how large the forbidden scores were:"
    " the future leaks through the sum.",
    _attention(masked=lambda scores, mask: scores, weigh=_zero_after),
)


def _normalize_after(scores: Tensor, mask: Tensor | None) -> Tensor:
    weights = _zero_after(scores, mask)
    return weights / weights.sum(-1, keepdim=True)


_sdpa(
    "masked_and_normalized_again",
    "masks",
    "You mask after the softmax and divide by what is left.",
    "Where a forbidden score is far above the allowed ones, the softmax has rounded those to 0"
    " already, and you divide 0 by 0.",
    _attention(masked=lambda scores, mask: scores, weigh=_normalize_after),
)
_sdpa(
    "mixes_by_scores",
    "soft-dictionary",
    "Your values are mixed by the scores; the softmax is missing.",
    "Scores may be negative and do not sum to 1, so the output grows with the number of keys"
    " instead of being a mean.",
    _attention(weigh=lambda scores, mask: scores),
)
_sdpa(
    "returns_scores",
    "soft-dictionary",
    "You return the scores in place of the weights.",
    "Every picture of what the model attends to would show products that sum to nothing in"
    " particular.",
    _attention(answer=lambda weights, v, scores: (weights @ v, scores)),
)
_sdpa(
    "weights_first",
    "soft-dictionary",
    "You return (weights, output); the order is (output, weights).",
    "The next layer then takes shares for features.",
    _attention(answer=lambda weights, v, scores: (weights, weights @ v)),
)
_sdpa(
    "output_alone",
    "soft-dictionary",
    "You return the output alone; the weights belong to the answer.",
    "Without them nobody can see what the model attends to, and the chapter's pictures are made of"
    " them.",
    _attention(answer=lambda weights, v, scores: weights @ v),
)


@scaled_dot_product_attention.misconception(
    did="You mix the keys; the keys only find, the values are what is handed over.",
    causes="What a token is found by and what it has to say are then the same vector, and the"
    " values are never read.",
    see="soft-dictionary",
)
def mixes_keys(q, k, v, mask=None):  # type: ignore[no-untyped-def]
    weights = allow(q @ k.mT * q.shape[-1] ** -0.5, mask).softmax(-1)
    return weights @ k, weights


_sdpa(
    "crashes_without_mask",
    "masks",
    "`mask=None` is not handled: you use the mask without asking whether there is one.",
    "No mask means that every query may attend to every key, as in an encoder without padding.",
    _attention(masked=lambda s, mask: s.masked_fill(~mask, -math.inf)),  # type: ignore[operator]
)


def _square(scores: Tensor, mask: Tensor | None) -> Tensor:
    n_queries = scores.shape[-2]
    full = torch.ones(n_queries, n_queries, dtype=torch.bool, device=scores.device)
    return allow(scores, full if mask is None else mask)


_sdpa(
    "assumes_equal_lengths",
    "soft-dictionary",
    "Your code takes for granted that there are as many keys as queries.",
    "A decoder that reads a source, and a model that writes one token at a time, have T ≠ S: take S"
    " from `k.shape[-2]`.",
    _attention(masked=_square),
)


@scaled_dot_product_attention.misconception(
    did="You swap axes by counting from the front, which fits (B, T, d) alone.",
    causes="With heads, (B, H, T, d), that swaps heads and tokens. Count from the end:"
    " `k.transpose(-2, -1)` or `k.mT`.",
    see="soft-dictionary",
)
def three_axes_only(q, k, v, mask=None):  # type: ignore[no-untyped-def]
    scores = q @ (k.transpose(1, 2) if k.ndim > 2 else k.mT) * q.shape[-1] ** -0.5
    weights = allow(scores, mask).softmax(-1)
    return weights @ v, weights


@scaled_dot_product_attention.misconception(
    did="You write `k.T`, which turns all axes around and not the last two alone.",
    causes="It fits one matrix. With a batch the first axis becomes the last, and the product stops"
    " or mixes sentences: write `k.mT` or `k.transpose(-2, -1)`.",
    see="soft-dictionary",
)
def reverses_all_axes(q, k, v, mask=None):  # type: ignore[no-untyped-def]
    reversed_k = k.permute(*reversed(range(k.ndim)))
    weights = allow(q @ reversed_k * q.shape[-1] ** -0.5, mask).softmax(-1)
    return weights @ v, weights


# --- causal_mask --------------------------------------------------------------------------------

causal_mask = ASSIGNMENT.exercise(
    "causal_mask",
    points=2,
    hints=(
        "Query 0 of t stands at which position, when there are s keys and the queries are the last"
        " t of them?",
        "Number the keys 0 to s − 1. Query i stands at position i + (s − t) and may see itself and"
        " what came before.",
        "True where j ≤ i + s − t. `torch.arange` with `device=device` makes both numberings.",
    ),
)


def reference_causal(t: int, s: int) -> Tensor:
    """Entry by entry: query i stands at i + s − t."""
    return torch.tensor([[j <= i + s - t for j in range(s)] for i in range(t)])


def expect_mask(value: Any, right: Tensor, name: str = "the mask") -> None:
    """A boolean mask of these entries; other dtypes are named before the entries are compared."""
    if isinstance(value, Tensor) and value.dtype is not torch.bool:
        fail(f"{name}: expected dtype torch.bool, got {value.dtype}.", "not_boolean")
    expect(value, name).equals(right)


@causal_mask.case("lets query i see keys 0 to i")
def _(student: Handle, rng: Rng) -> None:
    expect_mask(student(5), reference_causal(5, 5))


@causal_mask.case("lets one token see itself")
def _(student: Handle, rng: Rng) -> None:
    expect_mask(student(1), reference_causal(1, 1))


@causal_mask.case("with s > t, the queries are the last t of the s positions")
def _(student: Handle, rng: Rng) -> None:
    for t, s in ((3, 7), (1, 4), (5, 6)):
        expect_mask(student(t, s), reference_causal(t, s), f"causal_mask({t}, {s})")


@causal_mask.case("refuses s < t with a ValueError")
def _(student: Handle, rng: Rng) -> None:
    try:
        student(4, 3)
    except StudentError as error:
        if "ValueError" in error.kinds:
            return
        fail(f"causal_mask(4, 3) stopped with {error.kind} instead of a ValueError.")
    fail("causal_mask(4, 3) must raise a ValueError: the first query has no place.", "not_refused")


@causal_mask.case("stands on the device it is asked for", guard=True)
def _(student: Handle, rng: Rng) -> None:
    device = torch.device(fake_device())
    if student.on_fake_device(3, 5, device=device, differentiate=False) is not None:
        fail("with `device` given, the mask is not made there.", "made_on_the_cpu")


def _cm(name: str, did: str, causes: str, wrong: Callable[..., Any]) -> None:
    _mistake(causal_mask, name, "masks", did, causes, wrong)


def _triangle(
    entry: Callable[[Tensor, Tensor, int], Tensor] = lambda i, j, ahead: j <= i + ahead,
    *,
    dtype: torch.dtype = torch.bool,
    on_device: bool = True,
    refuses: bool = True,
) -> Callable[..., Tensor]:
    """A causal mask with one thing wrong; `entry(i, j, s − t)` says what is True."""

    def wrong(t: int, s: int | None = None, device: Any = None) -> Tensor:
        s = t if s is None else s
        if refuses and s < t:
            raise ValueError("fewer keys than queries")
        device = device if on_device else None
        i, j = torch.arange(t, device=device)[:, None], torch.arange(s, device=device)
        return entry(i, j, s - t).to(dtype)

    return wrong


_cm(
    "excludes_the_query_itself",
    "Your diagonal is False: a token may not see itself.",
    "The first token may then see nothing at all, and a softmax over nothing is NaN.",
    _triangle(lambda i, j, ahead: j < i + ahead),
)
_cm(
    "sees_one_ahead",
    "Your mask lets each token see the one after it.",
    "That is the token to be predicted: the model learns to copy it, the loss falls to almost 0,"
    " and when it writes there is nothing to copy.",
    _triangle(lambda i, j, ahead: j <= i + ahead + 1),
)
_cm(
    "transposed",
    "Your triangle is transposed: token i sees itself and what comes after it.",
    "The model predicts from the future and has never read a beginning.",
    _triangle(lambda i, j, ahead: j >= i + ahead),
)
_cm(
    "polarity",
    "Your mask is True where attending is forbidden; here True means “may attend”.",
    "Every token sees only what it must not, and the last one sees nothing, which is NaN.",
    _triangle(lambda i, j, ahead: j > i + ahead),
)
_cm(
    "aligned_top_left",
    "With s > t, your mask is aligned at the first key; the t queries are the last of the s"
    " positions.",
    "A model that writes with stored keys would show its newest token only the oldest key."
    " PyTorch's `is_causal` aligns like that, so it is no model here.",
    _triangle(lambda i, j, ahead: j <= i),
)
_cm(
    "shifted_the_wrong_way",
    "With s > t, your diagonal moves the wrong way: query i may see up to i − (s − t).",
    "The first query then stands before the first key and sees nothing, which is NaN. It is the"
    " last of s − t + 1 positions: add s − t.",
    _triangle(lambda i, j, ahead: j <= i - ahead),
)
_cm(
    "ignores_s",
    "`s` is accepted and never used.",
    "With stored keys, s > t, a (t, t) mask does not fit the scores.",
    lambda t, s=None, device=None: _triangle()(t, None if s is None or s >= t else s, device),
)
_cm(
    "not_refused",
    "You answer causal_mask(4, 3) instead of refusing it.",
    "With fewer keys than queries the first query stands before the first key and may see nothing:"
    " its row turns to NaN far from here.",
    _triangle(refuses=False),
)
_cm(
    "not_boolean",
    "Your mask holds numbers; it must be boolean, True where attending is allowed.",
    "`~mask` and `masked_fill` refuse numbers or misread them, and added to scores such a mask"
    " forbids nothing.",
    _triangle(dtype=torch.float32),
)
_cm(
    "made_on_the_cpu",
    "Your mask is made on the CPU: pass `device=device` to what makes it.",
    "On a GPU the first masked step stops, since the scores and the mask stand on two devices.",
    _triangle(on_device=False),
)

# --- padding_mask -------------------------------------------------------------------------------

padding_mask = ASSIGNMENT.exercise(
    "padding_mask",
    points=2,
    hints=(
        "A row of length 2 in a batch of width 4 holds real tokens at which positions, counted"
        " from 0?",
        "Compare the positions 0 to S − 1 with each row's length, then put in axes of size 1 so"
        " that the mask meets the scores (B, H, T, S) at the right axes.",
        "True where j < lengths[b]; shape (B, 1, 1, S).",
    ),
)


def reference_padding(lengths: Tensor, max_len: int) -> Tensor:
    rows = [[[[j < n for j in range(max_len)]]] for n in lengths.tolist()]
    return torch.tensor(rows)


@padding_mask.case("is True at each row's real tokens, in the shape (B, 1, 1, S)")
def _(student: Handle, rng: Rng) -> None:
    lengths = torch.tensor([3, 1, 5, 2])
    expect_mask(student(lengths, 5), reference_padding(lengths, 5))


@padding_mask.case("works when no row fills the width, and for a single row")
def _(student: Handle, rng: Rng) -> None:
    for lengths, max_len in ((torch.tensor([2, 4]), 7), (torch.tensor([1]), 1)):
        name = f"the mask of lengths {lengths.tolist()}, max_len {max_len}"
        expect_mask(student(lengths, max_len), reference_padding(lengths, max_len), name)


@padding_mask.case("works on as many rows as there are positions")
def _(student: Handle, rng: Rng) -> None:
    lengths = 1 + rng.permutation(4)
    expect_mask(student(lengths, 4), reference_padding(lengths, 4))


guard(
    padding_mask,
    lambda rng, dtype: (rng.integers(1, 6, 3), 5),
    gradient=False,
    dtype=False,
)


def _pm(name: str, did: str, causes: str, wrong: Callable[..., Any]) -> None:
    _mistake(padding_mask, name, "masks", did, causes, wrong)


def _positions(lengths: Tensor, max_len: int) -> Tensor:
    return torch.arange(max_len, device=lengths.device)


_pm(
    "polarity",
    "Your mask is True at the padding; here True means “may attend”.",
    "Every query reads the padding and nothing else. PyTorch's `key_padding_mask` has that"
    " polarity, this course's masks have the other.",
    lambda lengths, n: (_positions(lengths, n) >= lengths[:, None])[:, None, None],
)
_pm(
    "one_too_many",
    "You compare with ≤: position 0 is the first token, so a row of length n ends at n − 1.",
    "Each row attends to one padding token, and its output changes with what stands there.",
    lambda lengths, n: (_positions(lengths, n) <= lengths[:, None])[:, None, None],
)
_pm(
    "one_too_few",
    "Your mask ends one position early.",
    "The last real token of every row is never read, and a row of length 1 may attend to nothing.",
    lambda lengths, n: (_positions(lengths, n) < lengths[:, None] - 1)[:, None, None],
)
_pm(
    "masks_the_queries",
    "Your lengths run along the queries: the shape is (B, 1, S, 1).",
    "It must be (B, 1, 1, S), one entry a key. Yours lets real queries read the padding and leaves"
    " padding queries nothing, which is NaN.",
    lambda lengths, n: (_positions(lengths, n) < lengths[:, None])[:, None, :, None],
)
_pm(
    "two_axes",
    "Your mask has the shape (B, S); it must be (B, 1, 1, S).",
    "Against scores (B, H, T, S) the batch axis would meet the queries: where B equals T, rows get"
    " each other's masks and nothing fails.",
    lambda lengths, n: _positions(lengths, n) < lengths[:, None],
)
_pm(
    "three_axes",
    "Your mask has the shape (B, 1, S); it must be (B, 1, 1, S).",
    "Against scores (B, H, T, S) the batch axis would meet the heads.",
    lambda lengths, n: (_positions(lengths, n) < lengths[:, None])[:, None],
)
_pm(
    "expanded_over_queries",
    "Your mask has the shape (B, 1, S, S); it must be (B, 1, 1, S).",
    "Padding is the same for every query, and broadcasting repeats it for nothing. Yours takes S"
    " times the memory, and it fits no scores with T ≠ S.",
    lambda lengths, n: (_positions(lengths, n) < lengths[:, None])[:, None, None].expand(
        -1, -1, n, -1
    ),
)
_pm(
    "padding_on_the_left",
    "Your mask takes the padding to be on the left.",
    "The real tokens stand first in each row, so you hide words and read padding.",
    lambda lengths, n: (_positions(lengths, n) >= n - lengths[:, None])[:, None, None],
)
_pm(
    "width_from_the_lengths",
    "You take the width from the longest row; it is `max_len`.",
    "A batch may be wider than its longest row, and then your mask does not fit the scores.",
    lambda lengths, n: (_positions(lengths, int(lengths.max())) < lengths[:, None])[:, None, None],
)
_pm(
    "not_boolean",
    "Your mask holds numbers; it must be boolean, True where attending is allowed.",
    "`~mask` and `masked_fill` refuse numbers or misread them, and added to scores such a mask"
    " forbids nothing.",
    lambda lengths, n: (_positions(lengths, n) < lengths[:, None])[:, None, None].float(),
)
_pm(
    "made_on_the_cpu",
    "Your positions are made on the CPU: pass `device=lengths.device` to `torch.arange`.",
    "On a GPU the comparison stops, since the two sides stand on two devices.",
    lambda lengths, n: (torch.arange(n) < lengths[:, None])[:, None, None],
)

# --- SelfAttention ------------------------------------------------------------------------------

SelfAttention = ASSIGNMENT.exercise(
    "SelfAttention",
    points=2,
    forbidden=FUSED,
    needs=("scaled_dot_product_attention",),
    hints=(
        "Queries, keys and values are three readings of the same tokens. What makes them differ?",
        "Three linear maps without bias, made once in `__init__`; `forward` applies each to x and"
        " hands the results, with the mask, to the function you wrote.",
        "`nn.Linear(d_model, d_k, bias=False)` for W_q and W_k, d_v columns out for W_v.",
    ),
)

WIDTHS = (7, 5, 3)  # d_model, d_k, d_v


def projection_shapes(d_model: int, d_k: int, d_v: int) -> dict[str, tuple[int, ...]]:
    return {
        "W_q.weight": (d_k, d_model),
        "W_k.weight": (d_k, d_model),
        "W_v.weight": (d_v, d_model),
    }


def loaded(student: Handle, rng: Rng) -> tuple[Handle, dict[str, Tensor]]:
    """The student's module with random weights, and those weights; checks names and shapes."""
    module = student.hold(*WIDTHS)
    have, want = module.shapes(), projection_shapes(*WIDTHS)
    if any(name.endswith("bias") for name in have):
        fail(f"it has the parameters {sorted(have)}.", "with_bias")
    expect(sorted(have), "the parameters' names").equals(sorted(want))
    for name, shape in want.items():
        expect(have[name], f"the shape of {name}").equals(shape)
    weights = rng.like(want)
    return module.load(weights), weights


def reference_self(weights: dict[str, Tensor], x: Tensor, mask: Tensor | None = None) -> Attended:
    q, k, v = (F.linear(x, weights[f"W_{name}.weight"]) for name in "qkv")
    return reference_attention(q, k, v, mask)


@SelfAttention.case("attends with queries, keys and values made from x")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    x = rng.strided(2, 6, 7)
    expect(module(x), "output, weights").close_to(reference_self(weights, x))


@SelfAttention.case("hands the mask on, (T, T) or (B, 1, T)")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    x = rng.normal(2, 6, 7)
    for mask in (torch.ones(6, 6, dtype=torch.bool).tril(), random_mask(rng, 2, 1, 6)):
        expect(module(x, mask), "output, weights").close_to(reference_self(weights, x, mask))


@SelfAttention.case("works on one row of one token")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    x = rng.normal(1, 1, 7)
    expect(module(x), "output, weights").close_to(reference_self(weights, x))


@SelfAttention.case("permuting the tokens permutes the outputs and changes nothing else")
def _(student: Handle, rng: Rng) -> None:
    module, _ = loaded(student, rng)
    x, order = rng.normal(2, 6, 7), rng.permutation(6)
    output, weights = module(x)
    again, moved = module(x[:, order])
    expect(again, "the outputs of permuted tokens").close_to(output[:, order])
    expect(moved, "their weights").close_to(weights[:, order][:, :, order])


@SelfAttention.case("sends the right gradients to x and to all three weights")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    x, cotangent = rng.normal(2, 5, 7), (rng.normal(2, 5, 3), rng.normal(2, 5, 5))
    pulled: Pullback = module.vjp(x, cotangent=cotangent, wrt=(0,))
    names = list(weights)

    def reference(x: Tensor, *values: Tensor) -> Attended:
        return reference_self(dict(zip(names, values, strict=True)), x)

    right = pulled_by_autograd(reference, (x, *weights.values()), cotangent)
    expect(pulled.inputs[0], "the gradient of x").close_to(right[0])
    for name, want in zip(names, right[1:], strict=True):
        expect(pulled.parameters[name], f"the gradient of {name}").close_to(want)


guard(
    SelfAttention,
    lambda rng, dtype: (
        rng.normal(2, 5, 7, dtype=dtype),
        torch.ones(5, 5, dtype=torch.bool).tril(),
    ),
    build=WIDTHS,
)


class Attending(nn.Module):
    """What the wrong modules below have in common; each spoils one of the small methods."""

    bias = False

    def __init__(self, d_model: int, d_k: int, d_v: int) -> None:
        super().__init__()
        self.W_q = nn.Linear(d_model, d_k, bias=self.bias)
        self.W_k = nn.Linear(d_model, d_k, bias=self.bias)
        self.W_v = nn.Linear(d_model, d_v, bias=self.bias)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_q(x), self.W_k(x), self.W_v(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
        return _attention()(q, k, v, mask)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.attend(*self.read(x), mask)


@SelfAttention.misconception(
    did="Your linear maps have a bias; W_q, W_k and W_v are matrices alone.",
    causes="Weights of this chapter's layers cannot be copied in: they hold no biases.",
    see="self-attention",
    name="with_bias",
)
class WithBias(Attending):
    bias = True


@SelfAttention.misconception(
    did="Your W_q, W_k and W_v are bare matrices, so their names do not end in `.weight`.",
    causes="Weights of a module are copied by name; make the maps with `nn.Linear`.",
    see="self-attention",
    name="bare_matrices",
)
class BareMatrices(nn.Module):
    def __init__(self, d_model: int, d_k: int, d_v: int) -> None:
        super().__init__()
        self.W_q = nn.Parameter(torch.randn(d_model, d_k))
        self.W_k = nn.Parameter(torch.randn(d_model, d_k))
        self.W_v = nn.Parameter(torch.randn(d_model, d_v))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Attended:
        return _attention()(x @ self.W_q, x @ self.W_k, x @ self.W_v, mask)


@SelfAttention.misconception(
    did="Your values have the width d_k; W_v makes d_v numbers.",
    causes="The values' width is the output's and is free: only queries and keys must match, since"
    " they are multiplied with each other.",
    see="self-attention",
    name="values_as_wide_as_keys",
)
class ValuesAsWideAsKeys(Attending):
    def __init__(self, d_model: int, d_k: int, d_v: int) -> None:
        super().__init__(d_model, d_k, d_k)


@SelfAttention.misconception(
    did="Your keys are made with W_q.",
    causes="A token's product with itself is then never negative, so each looks at itself first,"
    " and “what I seek” cannot differ from “what I am”.",
    see="self-attention",
    name="keys_from_w_q",
)
class KeysFromWq(Attending):
    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_q(x), self.W_q(x), self.W_v(x)


@SelfAttention.misconception(
    did="Your queries and keys have changed places.",
    causes="Token t is then weighed by how it is found instead of by what it seeks: row t shows who"
    " looks at t.",
    see="self-attention",
    name="queries_and_keys_swapped",
)
class QueriesAndKeysSwapped(Attending):
    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_k(x), self.W_q(x), self.W_v(x)


@SelfAttention.misconception(
    did="Your values are x itself; W_v is never used.",
    causes="The layer can choose what to read and not what to say, and no gradient reaches W_v.",
    see="self-attention",
    name="values_not_projected",
)
class ValuesNotProjected(Attending):
    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_q(x), self.W_k(x), x


@SelfAttention.misconception(
    did="Your layer takes `mask` and does not hand it on.",
    causes="A language model built on it reads the token it should predict.",
    see="masks",
    name="mask_lost",
)
class MaskLost(Attending):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
        return _attention()(q, k, v)


@SelfAttention.misconception(
    did="Your layer masks the future by itself.",
    causes="Whether it may be seen is the caller's choice; without a mask every token sees all"
    " tokens.",
    see="masks",
    name="always_causal",
)
class AlwaysCausal(Attending):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
        causal = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        return _attention()(q, k, v, causal if mask is None else mask & causal)


@SelfAttention.misconception(
    did="Your layer puts in a causal mask when it gets none.",
    causes="`mask=None` means that every token may see every token, as an encoder does; the model"
    " that writes hands its causal mask in.",
    see="masks",
    name="causal_when_not_told",
)
class CausalWhenNotTold(Attending):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
        if mask is None:
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        return _attention()(q, k, v, mask)


@SelfAttention.misconception(
    did="Your scores are divided by √d_model; divide by √d_k, the width of the queries.",
    causes="A score is a sum over d_k products, so yours are too small wherever d_k is smaller than"
    " d_model, and with heads it always is.",
    see="why-the-square-root",
    name="scaled_by_d_model",
)
class ScaledByDModel(Attending):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        scale = x.shape[-1] ** -0.5
        return _attention(scale=lambda q, k, v: scale)(*self.read(x), mask)


@SelfAttention.misconception(
    did="Your layer does not divide its scores by √d_k.",
    causes="The softmax is too sharp, the more so the wider the queries; call the function you"
    " wrote above.",
    see="why-the-square-root",
    name="not_scaled",
)
class NotScaled(Attending):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
        return _attention(scale=lambda q, k, v: 1.0)(q, k, v, mask)


@SelfAttention.misconception(
    did="Your layer attends along the batch: it takes the first axis for the tokens.",
    causes="Each text then reads the other texts of its batch, and its result depends on which"
    " they are.",
    see="self-attention",
    name="attends_over_the_batch",
)
class AttendsOverTheBatch(Attending):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        output, weights = self.attend(*self.read(x.transpose(0, 1)), None)
        return output.transpose(0, 1), weights


@SelfAttention.misconception(
    did="Your layer returns the output alone; the answer is (output, weights).",
    causes="The chapter's pictures are made of the weights, and the caller's unpacking takes the"
    " batch apart instead.",
    see="self-attention",
    name="output_alone",
)
class OutputAlone(Attending):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return super().forward(x, mask)[0]


# --- online_softmax_attention -------------------------------------------------------------------

online_softmax_attention = ASSIGNMENT.exercise(
    "online_softmax_attention",
    points=4,
    forbidden=FUSED,
    hints=(
        "After a few blocks of keys you hold a sum that was made with an old maximum. What must it"
        " be multiplied by when a later block brings a larger one?",
        "Carry three things for each query: the largest score so far, the sum of the exponentials,"
        " and the sum of the values weighted by them. Both sums are relative to the maximum.",
        "With m′ = max(m, largest score of the block): both old sums times exp(m − m′), plus the"
        " block's own with exp(score − m′). m starts at −∞. At the end, one division.",
    ),
)


def expect_tiled(student: Handle, q: Tensor, k: Tensor, v: Tensor, block_size: int) -> None:
    right = F.scaled_dot_product_attention(q, k, v)
    expect(student(q, k, v, block_size), f"the output in blocks of {block_size}").close_to(right)


@online_softmax_attention.case("agrees with attention on all keys at once")
def _(student: Handle, rng: Rng) -> None:
    expect_tiled(student, *attention_inputs(rng, 2, 3), 3)


@online_softmax_attention.case("takes any block size: 1, one that leaves a rest, S, and more")
def _(student: Handle, rng: Rng) -> None:
    args = attention_inputs(rng)
    for block_size in (1, 5, 7, 100):
        expect_tiled(student, *args, block_size)


@online_softmax_attention.case("keeps earlier blocks right when the scores rise or fall")
def _(student: Handle, rng: Rng) -> None:
    q, k, v = attention_inputs(rng, 2)
    q[..., 0] = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)  # rising, falling
    k[..., 0] = torch.arange(7, dtype=torch.float64)
    expect_tiled(student, q, k, v, 2)


@online_softmax_attention.case("stays finite when the products are huge, of either sign")
def _(student: Handle, rng: Rng) -> None:
    q, k, v = attention_inputs(rng, 2)
    expect_tiled(student, 3000 * q, k, v, 3)
    q[..., 0] = torch.tensor([1.0, -1.0, 1e-3, 1.0], dtype=torch.float64)
    k[..., 0] = 1e4
    expect_tiled(student, q, k, v, 3)


@online_softmax_attention.case("works on one query and one key")
def _(student: Handle, rng: Rng) -> None:
    expect_tiled(student, rng.normal(1, 3), rng.normal(1, 3), rng.normal(1, 2), 4)


@online_softmax_attention.case("never holds all T × S scores")
def _(student: Handle, rng: Rng) -> None:
    q, k, v = rng.normal(97, 2), rng.normal(101, 2), rng.normal(101, 2)
    expect_tiled(student, q, k, v, 25)
    largest = student.largest(q, k, v, 25)
    if largest >= 97 * 101:
        fail(
            f"T = 97, S = 101 and blocks of 25 keys: you made a tensor of {largest:,} numbers.",
            "all_scores_at_once",
        )


@online_softmax_attention.case("sends the right gradients to q, k and v")
def _(student: Handle, rng: Rng) -> None:
    args, cotangent = attention_inputs(rng, 2), rng.normal(2, 4, 11)
    pulled: Pullback = student.vjp(*args, 3, cotangent=cotangent, wrt=(0, 1, 2))
    right = pulled_by_autograd(F.scaled_dot_product_attention, args, cotangent)
    for name, have, want in zip("qkv", pulled.inputs, right, strict=True):
        expect(have, f"the gradient of {name}").close_to(want)


guard(online_softmax_attention, lambda rng, dtype: (*attention_inputs(rng, 2, dtype=dtype), 3))

Sums = tuple[
    Tensor, Tensor, Tensor
]  # maximum (…, T, 1), sum (…, T, 1), weighted values (…, T, d_v)


class Online:
    """Attention block by block, with small methods to spoil.

    An object, not a module: calling it answers the exercise.
    """

    __name__ = "online_softmax_attention"
    start = -math.inf

    def scale(self, q: Tensor) -> float:
        return q.shape[-1] ** -0.5

    def blocks(self, n_keys: int, size: int) -> list[slice]:
        return [slice(start, start + size) for start in range(0, n_keys, size)]

    def maximum(self, scores: Tensor, m: Tensor) -> Tensor:
        return torch.maximum(m, scores.amax(-1, keepdim=True))

    def rescaled(self, old: Sums, m: Tensor) -> tuple[Tensor, Tensor]:
        """The two old sums, made relative to the new maximum."""
        factor = (old[0] - m).exp()
        return old[1] * factor, old[2] * factor

    def finish(self, total: Tensor, mixed: Tensor) -> Tensor:
        return mixed / total

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, block_size: int) -> Tensor:
        m = torch.full_like(q[..., :1], self.start)
        total, mixed = torch.zeros_like(m), torch.zeros_like(q @ k[..., :1, :].mT @ v[..., :1, :])
        for block in self.blocks(k.shape[-2], block_size):
            scores = q @ k[..., block, :].mT * self.scale(q)  # (…, T, size)
            old, m = (m, total, mixed), self.maximum(scores, m)
            p, (total, mixed) = (scores - m).exp(), self.rescaled(old, m)
            total, mixed = total + p.sum(-1, keepdim=True), mixed + p @ v[..., block, :]
        return self.finish(total, mixed)


def _online(name: str, did: str, causes: str, see: str = "online-softmax") -> Any:
    """Declare the class beneath; what the exercise is asked is an instance of it."""

    def register(wrong: type[Online]) -> type[Online]:
        _mistake(online_softmax_attention, name, see, did, causes, wrong())
        return wrong

    return register


@_online(
    "not_rescaled",
    "Earlier blocks are not rescaled when a later one brings a larger maximum.",
    "Their exponentials are relative to the old maximum, so they count e^(m′ − m) times too much.",
)
class NotRescaled(Online):
    def rescaled(self, old: Sums, m: Tensor) -> tuple[Tensor, Tensor]:
        return old[1], old[2]


@_online(
    "only_the_sum_rescaled",
    "You rescale the sum of the exponentials and leave the mixed values as they were.",
    "Numerator and denominator then count in different units, and the weights do not sum to 1.",
)
class OnlyTheSumRescaled(Online):
    def rescaled(self, old: Sums, m: Tensor) -> tuple[Tensor, Tensor]:
        return super().rescaled(old, m)[0], old[2]


@_online(
    "only_the_values_rescaled",
    "You rescale the mixed values and leave the sum of the exponentials as it was.",
    "Numerator and denominator then count in different units, and the weights do not sum to 1.",
)
class OnlyTheValuesRescaled(Online):
    def rescaled(self, old: Sums, m: Tensor) -> tuple[Tensor, Tensor]:
        return old[1], super().rescaled(old, m)[1]


@_online(
    "rescaled_the_wrong_way",
    "You rescale by exp(m′ − m), where m′ is the new maximum; the factor is exp(m − m′).",
    "The sums grow where they should shrink, and the first block, where m is −∞, makes them NaN.",
)
class RescaledTheWrongWay(Online):
    def rescaled(self, old: Sums, m: Tensor) -> tuple[Tensor, Tensor]:
        factor = (m - old[0]).exp()
        return old[1] * factor, old[2] * factor


@_online(
    "maximum_of_the_block_alone",
    "Each block subtracts its own maximum, and the blocks are added as if they had the same one.",
    "The best key of every block gets the weight 1, however poor it is beside the others.",
)
class MaximumOfTheBlockAlone(NotRescaled):
    def maximum(self, scores: Tensor, m: Tensor) -> Tensor:
        return scores.amax(-1, keepdim=True)


@_online(
    "no_maximum",
    "No maximum is subtracted: you add up exponentials of the scores as they are.",
    "Beyond about 709 (88 in float32) they overflow to infinity, and the output is NaN.",
)
class NoMaximum(NotRescaled):
    def maximum(self, scores: Tensor, m: Tensor) -> Tensor:
        return torch.zeros_like(m)


@_online(
    "maximum_starts_at_zero",
    "Your running maximum starts at 0; it must start at minus infinity.",
    "Where all scores of a query lie far below 0, every exponential is 0, and the output is 0/0.",
)
class MaximumStartsAtZero(Online):
    start = 0.0


@_online(
    "one_maximum_for_all_queries",
    "You keep one maximum for all queries; each query needs its own.",
    "Queries whose scores lie far below another's underflow to 0/0.",
)
class OneMaximumForAllQueries(Online):
    def maximum(self, scores: Tensor, m: Tensor) -> Tensor:
        return torch.maximum(m, scores.max())


@_online(
    "last_block_dropped",
    "The last block is dropped when block_size does not divide S.",
    "The newest keys are never read, and with a block larger than S none is.",
)
class LastBlockDropped(Online):
    def blocks(self, n_keys: int, size: int) -> list[slice]:
        return [slice(n * size, (n + 1) * size) for n in range(n_keys // size)]


@_online(
    "never_divided",
    "The division by the sum of the exponentials is missing.",
    "The output is a sum of values and not their mean: it grows with the number of keys.",
)
class NeverDivided(Online):
    def finish(self, total: Tensor, mixed: Tensor) -> Tensor:
        return mixed


@_online(
    "not_scaled",
    "Your scores are not divided by √d_k.",
    "The function must give what attention gives, and there the division keeps the softmax from"
    " turning into a choice of one.",
    see="why-the-square-root",
)
class NotScaledInBlocks(Online):
    def scale(self, q: Tensor) -> float:
        return 1.0


@online_softmax_attention.misconception(
    did="You take a softmax within each block and average the blocks' outputs.",
    causes="A block of poor keys then counts as much as the block that holds the best one.",
    see="online-softmax",
)
def average_of_blocks(q, k, v, block_size):  # type: ignore[no-untyped-def]
    attend = _attention(answer=lambda weights, v, scores: weights @ v)
    pairs = zip(k.split(block_size, -2), v.split(block_size, -2), strict=True)
    return torch.stack([attend(q, *pair) for pair in pairs]).mean(0)


@online_softmax_attention.misconception(
    did="You compute all T × S scores at once; the blocks play no part in it.",
    causes="The numbers are right and the point is lost: memory still grows with the square of the"
    " length.",
    see="online-softmax",
)
def all_scores_at_once(q, k, v, block_size):  # type: ignore[no-untyped-def]
    return _attention(answer=lambda weights, v, scores: weights @ v)(q, k, v)
