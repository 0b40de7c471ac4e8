"""Checks of chapter 16: six functions that are handed over with twelve bugs in them.

Each bug has a case on inputs for which the other bugs of its function make no difference, so it
earns its point in any order. What a function must do besides are guards, worth one point together:
they pay only when every bug is gone, and a fix that breaks something else fails one of them.

A function's wrong answers are made from its bugs: one left, two left, all of them left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autograder.engine.exercise import Assignment, Exercise, Rng
from autograder.engine.expect import expect, fail, same
from autograder.engine.guards import MUTATES, MUTATION_TITLE, guard
from autograder.engine.handle import Handle

ASSIGNMENT = Assignment(
    name="16-reading-critically",
    notebook="reading_critically",
    page="16_reading_critically",
    sections={
        "where-positions-go": "Where positions go in",
        "which-way-attention-looks": "Which way attention looks",
        "one-activation": "One activation, and which",
        "the-open-stream": "The stream stays open",
        "a-head-for-the-loss": "Hidden states are no predictions",
        "a-text-takes-many-passes": "A text takes many passes",
    },
    minutes=75,
    modules=("data", "metrics", "ngram", "rnn", "lstm", "positions", "tokenizer"),
)

BUG = 5.0  # the weight of a bug's case: as much as an exercise's guards weigh together
COUNT = ("", "one", "two", "three")


class Bug(NamedTuple):
    """A planted bug: what the code does, and what that causes."""

    did: str
    causes: str


def plant(
    exercise: Exercise, see: str, variant: Callable[..., Any], bugs: Mapping[str, Bug]
) -> None:
    """Declare the function with one bug left, with several, and as it was handed over.

    `variant(left)` is the function with the bugs in `left`.
    """

    def declare(name: str, did: str, causes: str, left: tuple[str, ...]) -> None:
        exercise.misconception(did=did, causes=causes, see=see, name=name)(variant(left))

    for name, bug in bugs.items():
        declare(name, bug.did, bug.causes, (name,))
    for n in range(2, len(bugs)):
        for left in itertools.combinations(bugs, n):
            names = " and ".join(left)
            declare(names, f"{COUNT[n].capitalize()} bugs are left.", " ".join(
                bugs[name].did for name in left), left)  # fmt: skip
    if len(bugs) > 1:
        declare(
            "as_handed_over",
            f"This still does what it did when it was handed to you: it has {COUNT[len(bugs)]}"
            " bugs, and none is found.",
            "It runs and returns numbers of a plausible size; so did the article's.",
            tuple(bugs),
        )


def _wrong_fix(
    exercise: Exercise, name: str, see: str, did: str, causes: str, wrong: Callable[..., Any]
) -> None:
    exercise.misconception(did=did, causes=causes, see=see, name=name)(wrong)


# --- embed --------------------------------------------------------------------------------------

embed = ASSIGNMENT.exercise(
    "embed",
    points=3,
    hints=(
        "Take one token and one position by hand. Is what comes out their sum?",
        "Print the shape of what is looked up in `positions`, and think how it meets (B, T, D).",
        "Positions 0 … T − 1 give (T, D), which broadcasts over the batch: tokens[ids] is"
        " (B, T, D).",
    ),
)


def embedded(ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    """Token and position vectors added, by the fused lookups."""
    places = torch.arange(ids.shape[1]).expand_as(ids)
    return F.embedding(ids, tokens) + F.embedding(places, positions)


@embed.case("one token: its vector plus the first position's", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    tokens, positions, ids = rng.normal(7, 5), rng.normal(11, 5), rng.integers(1, 7, 1, 1)
    expect(student(ids, tokens, positions)).close_to(embedded(ids, tokens, positions))


@embed.case("every row has position t at its token t", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    tokens = 2 + rng.uniform(7, 5)
    positions = tokens / (tokens - 1)  # a + a/(a − 1) = a · a/(a − 1): sum and product agree
    ids = torch.arange(4).repeat(4, 1)
    expect(student(ids, tokens, positions)).close_to(embedded(ids, tokens, positions))


@embed.case("together: any ids, any batch", guard=True)
def _(student: Handle, rng: Rng) -> None:
    for b, t in ((2, 5), (5, 5), (3, 1), (1, 7)):
        ids, tokens, positions = rng.integers(0, 7, b, t), rng.normal(7, 3), rng.strided(11, 3)
        expect(student(ids, tokens, positions)).close_to(embedded(ids, tokens, positions))


def _embed_inputs(rng: Rng, dtype: torch.dtype) -> Any:
    return rng.integers(0, 7, 2, 3), rng.normal(7, 5, dtype=dtype), rng.normal(11, 5, dtype=dtype)


guard(embed, _embed_inputs)


def _embed_with(left: tuple[str, ...]) -> Callable[..., Tensor]:
    def wrong(ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        here = positions[: ids.shape[1]]
        here = here.unsqueeze(1) if "stray_axis" in left else here
        return F.embedding(ids, tokens) * here if "multiplied" in left else tokens[ids] + here

    return wrong


plant(
    embed,
    "where-positions-go",
    _embed_with,
    {
        "multiplied": Bug(
            "You multiply token and position vectors; they are added.",
            "A position whose entry is near 0 wipes out that entry of every token, and no linear"
            " map can take the two apart again.",
        ),
        "stray_axis": Bug(
            "Your positions have a stray axis, (T, 1, D): they run along the batch.",
            "Row b gets position b at all of its tokens, so the order inside a text is lost; where"
            " B ≠ T it stops, or one text becomes T.",
        ),
    },
)
_wrong_fix(
    embed,
    "by_the_tokens_id",
    "where-positions-go",
    "You look the position up by the token's id.",
    "A token then has one vector wherever it stands, and the model sees a bag of tokens.",
    lambda ids, tokens, positions: tokens[ids] + positions[ids],
)
_wrong_fix(
    embed,
    "positions_from_one",
    "where-positions-go",
    "Your first position is 1; it is 0.",
    "Trained weights are read one row off, and the last position of a full window is missing.",
    lambda ids, tokens, positions: tokens[ids] + positions[1 : ids.shape[1] + 1],
)
_wrong_fix(
    embed,
    "scaled_by_width",
    "where-positions-go",
    "You scale the token vectors by √D; a GPT adds them as they are.",
    "The 2017 Transformer does so. In a GPT's weights the positions would drown beside them.",
    lambda ids, tokens, positions: (
        tokens[ids] * math.sqrt(tokens.shape[1]) + positions[: ids.shape[1]]
    ),
)
_wrong_fix(
    embed,
    "position_left_out",
    "where-positions-go",
    "Your positions are not in the result.",
    "Without them attention cannot tell *dog bites man* from *man bites dog* by its keys.",
    lambda ids, tokens, positions: tokens[ids] + 0 * positions[: ids.shape[1]],
)

# --- attention ----------------------------------------------------------------------------------

attention = ASSIGNMENT.exercise(
    "attention",
    points=4,
    forbidden=("scaled_dot_product_attention", "MultiheadAttention"),
    hints=(
        "Three questions: by what are the scores divided, over what do the weights sum to 1, and"
        " which keys may query t see?",
        "Write down the shape of k and read each `shape[…]` and `dim=…` against it, axis by axis.",
        "Scores are (B, T, T) with queries down and keys across: entry [b, t, s] is allowed where"
        " s ≤ t, is divided by √d_k, and row t is what the softmax normalizes.",
    ),
)


@attention.case("two tokens: the second one's weights come from q·k / √d_k", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    a = rng.normal(1, 1, 7)
    q = torch.cat([a, a.flip(-1)], dim=1)  # (1, 2, 7): scores [[x, y], [y, x]]
    v = torch.cat([rng.normal(1, 1, 3), torch.zeros(1, 1, 3)], dim=1)
    right = F.scaled_dot_product_attention(q, q, v, is_causal=True)
    expect(student(q, q, v)[:, 1], "the second token's output").close_to(right[:, 1])


@attention.case("weights sum to 1 for every query: equal values come out as they are", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    q, k, v = rng.normal(2, 5, 5), rng.normal(2, 5, 5), rng.normal(2, 1, 3).repeat(1, 5, 1)
    expect(student(q, k, v), "the output where all values are equal").close_to(v)
    _reads_the_past(student, rng)


@attention.case("what comes later changes nothing before it", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    q, k, v = rng.normal(2, 5, 3), rng.normal(2, 5, 3), rng.normal(2, 5, 4)
    now, before = torch.arange(5)[:, None] >= 3, student(q, k, v)
    after = student(q, k.where(~now, rng.normal(2, 5, 3)), v.where(~now, rng.normal(2, 5, 4)))
    expect(after[:, :3], "the first 3 tokens, with another ending").close_to(before[:, :3])
    _reads_the_past(student, rng)


def _reads_the_past(student: Handle, rng: Rng) -> None:
    """What returns its values, or nothing, has looked at no other token."""
    q, k, v = rng.normal(1, 3, 3), rng.normal(1, 3, 3), rng.normal(1, 3, 2)
    other = torch.cat([v[:, :1] + 1, v[:, 1:]], dim=1)
    unmoved = same(student(q, k, v)[:, 2], student(q, k, other)[:, 2])
    expect(None, "the third token").holds(not unmoved, "its output does not depend on the first.")


@attention.case("together: causal attention on batches", guard=True)
def _(student: Handle, rng: Rng) -> None:
    for b, t, d_k, d_v in ((2, 5, 3, 7), (3, 1, 5, 2)):
        q, k, v = rng.strided(b, t, d_k), rng.normal(b, t, d_k), rng.strided(b, t, d_v)
        right = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        expect(student(q, k, v)).close_to(right)


def _attention_inputs(rng: Rng, dtype: torch.dtype) -> Any:
    return tuple(rng.normal(2, 5, d, dtype=dtype) for d in (3, 3, 4))


guard(attention, _attention_inputs)


def _attention_with(
    left: tuple[str, ...] = (),
    scale: Callable[[Tensor, Tensor], float] = lambda k, v: math.sqrt(k.shape[-1]),
    fill: Callable[[Tensor, Tensor], Tensor] = lambda s, seen: s.where(seen, -math.inf),
    weights: Callable[[Tensor], Tensor] = lambda s: torch.softmax(s, -1),
    finish: Callable[[Tensor, Tensor], Tensor] = lambda w, seen: w,
    diagonal: int = 0,
) -> Callable[..., Tensor]:
    def wrong(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        seen = seen if "sees_the_future" in left else seen.tril(diagonal)
        size = math.sqrt(k.shape[1]) if "scaled_by_length" in left else scale(k, v)
        scores = fill(torch.einsum("btd,bsd->bts", q, k) / size, seen)
        over = torch.softmax(scores, 1) if "softmax_over_queries" in left else weights(scores)
        return torch.einsum("bts,bsd->btd", finish(over, seen), v)

    return wrong


plant(
    attention,
    "which-way-attention-looks",
    _attention_with,
    {
        "scaled_by_length": Bug(
            "Your scores are divided by √T: `shape[1]` of (B, T, d_k) is the length.",
            "The same two tokens get other weights in a longer text, and the size of a sum of d_k"
            " products is not undone.",
        ),
        "softmax_over_queries": Bug(
            "Your softmax runs over the queries: dim 1 of (B, T, T).",
            "The weights of one query sum to anything, and how much a token reads depends on what"
            " other tokens ask.",
        ),
        "sees_the_future": Bug(
            "You have no causal mask: a token reads those after it.",
            "In training the next token stands in the input. The loss falls to nearly 0, and the"
            " model has learned to copy.",
        ),
    },
)


def _attention_fix(name: str, did: str, causes: str, **how: Any) -> None:
    wrong = _attention_with(**how)
    _wrong_fix(attention, name, "which-way-attention-looks", did, causes, wrong)


_attention_fix(
    "no_scale",
    "Your scores are not divided by anything; divide by √d_k.",
    "Their size grows with √d_k, the softmax saturates, and its gradient vanishes.",
    scale=lambda k, v: 1.0,
)
_attention_fix(
    "scaled_by_d_k",
    "Your scores are divided by d_k; divide by its square root.",
    "They come out √d_k times too small, and every token reads nearly the average of all.",
    scale=lambda k, v: float(k.shape[-1]),
)
_attention_fix(
    "scaled_by_d_v",
    "Your scores are divided by √d_v, the width of the values.",
    "The values take no part in the scores. It shows as soon as the two widths differ.",
    scale=lambda k, v: math.sqrt(v.shape[-1]),
)
_attention_fix(
    "softmax_over_the_batch",
    "Your softmax runs over the batch.",
    "The texts of a batch compete for each weight, and a text alone gives every key the weight 1.",
    weights=lambda scores: torch.softmax(scores, 0),
)
_attention_fix(
    "mask_reversed",
    "Your mask is upside down: a token reads itself and those after it.",
    "Each token sees what it should predict and nothing of what led to it.",
    fill=lambda scores, seen: scores.where(seen.T, -math.inf),
)
_attention_fix(
    "may_not_see_itself",
    "Your mask hides the diagonal: a token may not read itself.",
    "The first token has nothing to read, and its softmax over nothing is NaN.",
    diagonal=-1,
)
_attention_fix(
    "filled_with_zero",
    "You set forbidden scores to 0; they must become −∞.",
    "e⁰ is 1: the future keeps a weight, and where the other scores are negative the largest.",
    fill=lambda scores, seen: scores.where(seen, 0.0),
)
_attention_fix(
    "masked_after_softmax",
    "You mask the weights after the softmax; mask the scores before it.",
    "The weights left no longer sum to 1, and they depend on keys that are not to be seen.",
    fill=lambda scores, seen: scores,
    finish=lambda weights, seen: weights * seen,
)

# --- feed_forward -------------------------------------------------------------------------------

feed_forward = ASSIGNMENT.exercise(
    "feed_forward",
    points=3,
    hints=(
        "What numbers can come out of this layer? Should a layer that writes into a sum be unable"
        " to subtract?",
        "Count the activations. Then ask which one a GPT has.",
        "activation(x W₁ + b₁) W₂ + b₂, with GPT-2's activation `F.gelu(…, approximate=…)`.",
    ),
)


def fed_forward(x: Tensor, W_1: Tensor, b_1: Tensor, W_2: Tensor, b_2: Tensor) -> Tensor:
    """The tanh form of GELU, spelled out, between two `F.linear`."""
    z = F.linear(x, W_1.T, b_1)
    gate = 1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    return F.linear(0.5 * z * gate, W_2.T, b_2)


def _weights(rng: Rng) -> list[Tensor]:
    return [rng.normal(5, 7), rng.normal(7), rng.normal(7, 5), rng.normal(5)]


@feed_forward.case("what comes out may be negative", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    x, (W_1, b_1, W_2, b_2) = 0.3 * rng.normal(2, 3, 5), _weights(rng)
    b_1 = 60.0 * torch.tensor([1, -1, 1, -1, 1, -1, 1]).double()  # so far out ReLU and GELU agree
    W_2 = W_2 / 60  # and sums of ordinary size, where they do not
    expect(student(x, W_1, b_1, W_2, b_2)).close_to(fed_forward(x, W_1, b_1, W_2, b_2))


@feed_forward.case("hidden units take GPT-2's activation", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    x, (W_1, b_1, W_2, b_2) = rng.normal(2, 3, 5), _weights(rng)
    b_1[0], W_2[0] = 60.0, 9.0 + rng.uniform(5)  # one unit lifts every sum far above 0
    expect(student(x, W_1, b_1, W_2, b_2)).close_to(fed_forward(x, W_1, b_1, W_2, b_2))


@feed_forward.case("together: any weights", guard=True)
def _(student: Handle, rng: Rng) -> None:
    x, W_1, W_2 = rng.strided(2, 3, 5), rng.strided(5, 11), rng.strided(11, 5)
    b_1, b_2 = rng.normal(11), rng.normal(5)
    expect(student(x, W_1, b_1, W_2, b_2)).close_to(fed_forward(x, W_1, b_1, W_2, b_2))


def _feed_forward_inputs(rng: Rng, dtype: torch.dtype) -> Any:
    shapes = (2, 3, 5), (5, 7), (7,), (7, 5), (5,)
    return tuple(rng.normal(*shape, dtype=dtype) for shape in shapes)


guard(feed_forward, _feed_forward_inputs)


def _tanh_gelu(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


def _feed_forward_with(
    left: tuple[str, ...] = (),
    inner: Callable[[Tensor], Tensor] = _tanh_gelu,
    outer: Callable[[Tensor], Tensor] = lambda z: z,
    last: Callable[[Tensor], Tensor] = lambda z: z,
) -> Callable[..., Tensor]:
    def wrong(x: Tensor, W_1: Tensor, b_1: Tensor, W_2: Tensor, b_2: Tensor) -> Tensor:
        hidden = (F.relu if "relu_inside" in left else inner)(F.linear(x, W_1.T, b_1))
        return last((F.relu if "outer_activation" in left else outer)(hidden @ W_2) + b_2)

    return wrong


plant(
    feed_forward,
    "one-activation",
    _feed_forward_with,
    {
        "outer_activation": Bug(
            "You have an activation behind the second product as well.",
            "The layer can then only add to the stream, never take away, and where the sum is"
            " negative it learns nothing.",
        ),
        "relu_inside": Bug(
            "Your hidden units have ReLU; GPT's have GELU.",
            "Weights trained with one are read with the other: every slightly negative unit is"
            " wrong, in every layer.",
        ),
    },
)


def _feed_forward_fix(name: str, did: str, causes: str, **how: Any) -> None:
    _wrong_fix(feed_forward, name, "one-activation", did, causes, _feed_forward_with(**how))


_feed_forward_fix(
    "exact_gelu",
    "Your GELU is the exact one; GPT-2's is the tanh form.",
    "The two differ by up to 0.0005 a unit, enough for published weights to give other logits.",
    inner=F.gelu,
)
_feed_forward_fix(
    "no_activation",
    "You took out the inner activation, too.",
    "Two linear maps in a row are one linear map: the layer's width of 4 D buys nothing.",
    inner=lambda z: z,
)
_feed_forward_fix(
    "gelu_outside",
    "You made the outer activation a GELU; there is none outside.",
    "The layer can still hardly subtract from the stream.",
    outer=_tanh_gelu,
)
_feed_forward_fix(
    "activation_over_all",
    "You have an activation around everything, the second bias too.",
    "Nothing negative can come out of the layer.",
    last=F.relu,
)

# --- block --------------------------------------------------------------------------------------

block = ASSIGNMENT.exercise(
    "block",
    points=3,
    hints=(
        "Follow x from top to bottom with a finger. Where does the path from input to output leave"
        " the sum?",
        "A pre-norm block normalizes what a layer reads. What does it do to what the layer's"
        " result is added to?",
        "Twice the same pattern: x + layer(norm(x)), all of shape (B, T, D).",
    ),
)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def gained(x: Tensor) -> Tensor:
    return 1.7 * F.layer_norm(x, x.shape[-1:]) + 0.3


def unchanged(x: Tensor) -> Tensor:
    return x


def past_mean(x: Tensor) -> Tensor:
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


def bent(x: Tensor) -> Tensor:
    return torch.tanh(2 * x.roll(1, -1))


Layer = Callable[[Tensor], Tensor]


def through(x: Tensor, layers: tuple[Layer, ...]) -> Tensor:
    """The block's result, summed from what each layer writes."""
    norm_1, attend, norm_2, feed = layers
    middle = torch.stack([x, attend(norm_1(x))]).sum(0)
    return torch.stack([middle, feed(norm_2(middle))]).sum(0)


@block.case("where attention takes all of x away, nothing of it is left", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    x, rest = rng.normal(2, 3, 5), rng.normal(5)
    layers = (gained, lambda y: -x, unchanged, lambda y: y + rest)
    expect(student(x, *layers), "the output where attend returns −x").close_to(rest.expand(2, 3, 5))


@block.case("with a norm_1 that changes nothing, both layers' results are added", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    x, layers = rng.normal(2, 3, 5), (unchanged, past_mean, gained, bent)
    expect(student(x, *layers), "the output where norm_1(x) is x").close_to(through(x, layers))


@block.case("together: two norms, two layers", guard=True, weight=3.0)
def _(student: Handle, rng: Rng) -> None:
    for layers in ((norm, past_mean, gained, bent), (gained, bent, norm, past_mean)):
        x = rng.strided(2, 5, 7)
        expect(student(x, *layers)).close_to(through(x, layers))


@block.case("one token", guard=True)
def _(student: Handle, rng: Rng) -> None:
    x, layers = rng.normal(1, 1, 3), (norm, past_mean, gained, bent)
    expect(student(x, *layers)).close_to(through(x, layers))


@block.case(MUTATION_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    x, layers = student.keep(rng.normal(2, 3, 5)), (norm, past_mean, gained, bent)
    if not same(student(x, *layers), student(x, *layers)):  # the second call finds x as it is left
        fail(MUTATES)


def _block_with(left: tuple[str, ...]) -> Callable[..., Tensor]:
    def wrong(x: Tensor, norm_1: Layer, attend: Layer, norm_2: Layer, feed: Layer) -> Tensor:
        read = norm_1(x)
        middle = (read if "norm_on_the_stream" in left else x) + attend(read)
        out = feed(norm_2(middle))
        return out if "residual_missing" in left else middle + out

    return wrong


plant(
    block,
    "the-open-stream",
    _block_with,
    {
        "norm_on_the_stream": Bug(
            "You overwrite x by its norm, so the norm stands on the stream.",
            "The plain sum from input to output is gone: each block rescales all that came before,"
            " and deep stacks train badly.",
        ),
        "residual_missing": Bug(
            "The feed-forward layer's result replaces the stream; it must be added.",
            "What earlier layers wrote is lost unless this one repeats it, and the gradient has no"
            " open way back.",
        ),
    },
)


def _post_norm(x: Tensor, norm_1: Layer, attend: Layer, norm_2: Layer, feed: Layer) -> Tensor:
    x = norm_1(x + attend(x))
    return norm_2(x + feed(x))


def _no_norms(x: Tensor, norm_1: Layer, attend: Layer, norm_2: Layer, feed: Layer) -> Tensor:
    x = x + attend(x)
    return x + feed(x)


def _one_norm(x: Tensor, norm_1: Layer, attend: Layer, norm_2: Layer, feed: Layer) -> Tensor:
    x = x + attend(norm_1(x))
    return x + feed(norm_1(x))


def _side_by_side(x: Tensor, norm_1: Layer, attend: Layer, norm_2: Layer, feed: Layer) -> Tensor:
    return x + attend(norm_1(x)) + feed(norm_2(x))


def _added_to_x(x: Tensor, norm_1: Layer, attend: Layer, norm_2: Layer, feed: Layer) -> Tensor:
    return x + feed(norm_2(x + attend(norm_1(x))))


def _block_fix(did: str, causes: str, wrong: Callable[..., Tensor]) -> None:
    _wrong_fix(block, wrong.__name__.lstrip("_"), "the-open-stream", did, causes, wrong)


_block_fix(
    "You normalize after each sum, as the 2017 Transformer does; a GPT normalizes before each"
    " layer.",
    "The norm stands on the stream again, and GPT-2's weights do not fit.",
    _post_norm,
)
_block_fix(
    "You took the norms out.",
    "What each layer reads grows with depth, and training diverges at ordinary learning rates.",
    _no_norms,
)
_block_fix(
    "You use norm_1 twice.",
    "norm_2's gain and bias are never trained, and the two layers must share one scale.",
    _one_norm,
)
_block_fix(
    "The feed-forward layer reads x as it was before attention.",
    "It works beside attention and not on its result (GPT-J is built so, GPT-2 is not).",
    _side_by_side,
)
_block_fix(
    "You add the feed-forward layer's result to the old x.",
    "What attention found reaches the output only through the feed-forward layer.",
    _added_to_x,
)

# --- lm_loss ------------------------------------------------------------------------------------

lm_loss = ASSIGNMENT.exercise(
    "lm_loss",
    points=3,
    hints=(
        "Which numbers here stand for tokens of the vocabulary? What does a target of 40,000 mean"
        " among D hidden features?",
        "Look up what `F.cross_entropy` expects of its first argument, and what it does to it.",
        "Logits are (B, T, V), one dot product of a hidden vector with each row of W_embedding;"
        " the loss takes them as they are.",
    ),
)


def loss_by_hand(hidden: Tensor, W_embedding: Tensor, targets: Tensor) -> Tensor:
    """−log p of each target, from logits, averaged."""
    logits = torch.einsum("btd,vd->btv", hidden, W_embedding)
    chosen = logits.gather(2, targets[..., None])[..., 0]
    return (torch.logsumexp(logits, 2) - chosen).mean()


@lm_loss.case("seven tokens with one and the same vector: the loss is ln 7", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    hidden, W_embedding = rng.normal(2, 3, 11), rng.normal(1, 11).repeat(7, 1)
    loss = student(hidden, W_embedding, rng.integers(0, 7, 2, 3))
    expect(loss, "the loss, where no token is likelier than another").close_to(math.log(7))


@lm_loss.case("where W_embedding is the identity, hidden states are the logits", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    hidden, targets = 3 * rng.normal(2, 3, 5), rng.integers(0, 5, 2, 3)
    W_embedding = torch.eye(5).double()
    right = loss_by_hand(hidden, W_embedding, targets)
    expect(student(hidden, W_embedding, targets), "the loss").close_to(right)


@lm_loss.case("together: any vocabulary", guard=True)
def _(student: Handle, rng: Rng) -> None:
    for d, vocab_size in ((3, 13), (11, 5)):
        hidden, W_embedding = rng.strided(2, 7, d), rng.normal(vocab_size, d)
        targets = rng.integers(0, vocab_size, 2, 7)
        right = loss_by_hand(hidden, W_embedding, targets)
        expect(student(hidden, W_embedding, targets), "the loss").close_to(right)


def _loss_inputs(rng: Rng, dtype: torch.dtype) -> Any:
    hidden, W_embedding = rng.normal(2, 3, 5, dtype=dtype), rng.normal(7, 5, dtype=dtype)
    return hidden, W_embedding, rng.integers(0, 7, 2, 3)


guard(lm_loss, _loss_inputs)

Scores = Callable[[Tensor], Tensor]


def _lm_loss_with(
    left: tuple[str, ...] = (),
    scores: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(-1),
    reduction: str = "mean",
    shift: int = 0,
    base: float = 1.0,
) -> Callable[..., Tensor]:
    def wrong(hidden: Tensor, W_embedding: Tensor, targets: Tensor) -> Tensor:
        logits = hidden if "no_head" in left else F.linear(hidden, W_embedding)
        logits = logits.softmax(-1) if "softmax_twice" in left else logits
        log_p = scores(logits)[:, : logits.shape[1] - shift]
        flat = log_p.flatten(0, 1), targets[:, shift:].flatten()
        return F.nll_loss(*flat, reduction=reduction) / base

    return wrong


plant(
    lm_loss,
    "a-head-for-the-loss",
    _lm_loss_with,
    {
        "no_head": Bug(
            "You take the loss over the D hidden features; multiply by W_embedding first.",
            "A target is a number of a token, and here it picks a feature: the loss is lowest when"
            " feature 7 is large wherever token 7 follows.",
        ),
        "softmax_twice": Bug(
            "You hand probabilities to `F.cross_entropy`, which takes logits.",
            "It applies a second softmax to numbers between 0 and 1: even a perfect prediction"
            " costs nearly ln V, and the gradient is tiny.",
        ),
    },
)


def _lm_loss_fix(name: str, did: str, causes: str, **how: Any) -> None:
    _wrong_fix(lm_loss, name, "a-head-for-the-loss", did, causes, _lm_loss_with(**how))


_lm_loss_fix(
    "softmax_over_time",
    "Your softmax runs over the T positions; it must run over the vocabulary.",
    "The positions of a text compete for each token, and p over the vocabulary does not sum to 1.",
    scores=lambda logits: logits.log_softmax(1),
)
_lm_loss_fix(
    "log_left_out",
    "You average −p in place of −log p.",
    "A token given no chance at all costs 0, and hardly more than one at 10 %: nothing corrects"
    " a model that is sure and wrong.",
    scores=lambda logits: logits.softmax(-1),
)
_lm_loss_fix(
    "shifted_again",
    "You shift the targets by one; they are the next tokens already.",
    "The model learns to predict the token after the next.",
    shift=1,
)
_lm_loss_fix(
    "summed",
    "You sum over the tokens; the loss is their mean.",
    "The size of a step then depends on how much text is in the batch.",
    reduction="sum",
)
_lm_loss_fix(
    "in_bits",
    "Your loss is in bits; nats are asked for.",
    "It is too large by 1/ln 2 beside every other loss of the course.",
    base=math.log(2),
)

# --- greedy -------------------------------------------------------------------------------------

greedy = ASSIGNMENT.exercise(
    "greedy",
    points=2,
    hints=(
        "What does the model's prediction at position 3 know of the token that was chosen for"
        " position 5?",
        "One pass gives one new token that can be used. What must happen before the second?",
        "n_tokens passes; each takes the last position's logits (B, V) and makes ids (B, T) into"
        " (B, T + 1).",
    ),
)


def _speaker(rng: Rng, vocab_size: int = 7) -> Callable[[Tensor], Tensor]:
    """A model whose next token depends on every token so far: (B, T) to logits (B, T, V)."""
    table, step = rng.normal(31, vocab_size), rng.integers(1, 31, vocab_size)

    def next_logits(ids: Tensor) -> Tensor:
        places = torch.arange(1, ids.shape[1] + 1)
        return table[(step[ids] * places).cumsum(1) % 31]

    return next_logits


def spoken(next_logits: Callable[[Tensor], Tensor], ids: Tensor, n_tokens: int) -> Tensor:
    """Row by row, token by token."""
    rows = []
    for row in ids.tolist():
        for _ in range(n_tokens):
            row = [*row, int(next_logits(torch.tensor([row]))[0, -1].argmax())]
        rows.append(row)
    return torch.tensor(rows)


def expect_spoken(student: Handle, rng: Rng, b: int, t: int, n_tokens: int) -> None:
    next_logits, ids = _speaker(rng), rng.integers(0, 7, b, t)
    right = spoken(next_logits, ids, n_tokens)
    expect(student(next_logits, ids, n_tokens), "the ids").equals(right)


@greedy.case("each new token is chosen with the ones before it in sight", weight=BUG)
def _(student: Handle, rng: Rng) -> None:
    expect_spoken(student, rng, 3, 5, 4)


@greedy.case("one token, or none at all", guard=True)
def _(student: Handle, rng: Rng) -> None:
    expect_spoken(student, rng, 2, 4, 1)
    expect_spoken(student, rng, 2, 4, 0)


@greedy.case("more new tokens than the prompt has", guard=True, weight=3.0)
def _(student: Handle, rng: Rng) -> None:
    expect_spoken(student, rng, 2, 1, 6)


@greedy.case(MUTATION_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    next_logits, ids = _speaker(rng), student.keep(rng.integers(0, 7, 2, 4))
    if not same(student(next_logits, ids, 3), student(next_logits, ids, 3)):
        fail(MUTATES)


def _greedy_with(
    read: Callable[[Tensor], Tensor] = lambda ids: ids,
    pick: Callable[[Tensor], Tensor] = lambda logits: logits[:, -1].argmax(-1),
    finish: Callable[[Tensor, int], Tensor] = lambda ids, t: ids,
) -> Callable[..., Tensor]:
    def wrong(next_logits: Callable[[Tensor], Tensor], ids: Tensor, n_tokens: int) -> Tensor:
        t = ids.shape[1]
        for _ in range(n_tokens):
            ids = torch.cat([ids, pick(next_logits(read(ids)))[:, None]], dim=1)
        return finish(ids, t)

    return wrong


def _in_one_pass(next_logits: Callable[[Tensor], Tensor], ids: Tensor, n_tokens: int) -> Tensor:
    predicted = next_logits(ids).argmax(-1)
    return torch.cat([ids, predicted[:, -n_tokens:]], dim=1)


def _prompt_rewritten(
    next_logits: Callable[[Tensor], Tensor], ids: Tensor, n_tokens: int
) -> Tensor:
    for _ in range(n_tokens):
        ids = torch.cat([ids[:, :1], next_logits(ids).argmax(-1)], dim=1)
    return ids


def _greedy_fix(name: str, did: str, causes: str, wrong: Callable[..., Tensor]) -> None:
    _wrong_fix(greedy, name, "a-text-takes-many-passes", did, causes, wrong)


_greedy_fix(
    "one_pass",
    "You take all new tokens from one pass.",
    "They are what the model expects after each token of the prompt, nearly the prompt again; no"
    " new token has seen another.",
    _in_one_pass,
)
_greedy_fix(
    "prompt_rewritten",
    "You put the predictions of all positions in the text's place.",
    "The prompt is overwritten by what the model expected of it, again in every pass.",
    _prompt_rewritten,
)
_greedy_fix(
    "last_token_alone",
    "You show the model the last token alone.",
    "Without a cache it has forgotten all before it, and writes as a table of pairs would.",
    _greedy_with(read=lambda ids: ids[:, -1:]),
)
_greedy_fix(
    "first_positions_logits",
    "You take the logits of the first position; the last one's predict the next token.",
    "The same token comes again and again, whatever has been written.",
    _greedy_with(pick=lambda logits: logits[:, 0].argmax(-1)),
)
_greedy_fix(
    "prompt_left_out",
    "You return the new tokens alone; the prompt belongs to the result.",
    "Whoever decodes it reads a text without its beginning.",
    _greedy_with(finish=lambda ids, t: ids[:, t:]),
)
_greedy_fix(
    "one_row_for_all",
    "You take one token for the whole batch: the likeliest of all rows together.",
    "Every text of the batch goes on with the first one's word.",
    _greedy_with(pick=lambda logits: logits[:, -1].amax(0).argmax() + 0 * logits[:, 0, 0].long()),
)
