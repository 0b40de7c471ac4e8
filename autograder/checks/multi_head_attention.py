"""Checks of chapter 06: splitting heads, multi-head attention, sinusoidal and rotary positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autograder.engine.exercise import Assignment, Rng
from autograder.engine.expect import expect, fail
from autograder.engine.guards import guard
from autograder.engine.handle import Handle, Pullback, StudentError

ASSIGNMENT = Assignment(
    name="06-multi-head-attention",
    notebook="multi_head_attention",
    page="06_multi_head_attention",
    sections={
        "splitting-the-width": "Splitting the width",
        "several-heads": "Several heads at once",
        "heads-and-masks": "Masks, and reading another sequence",
        "sinusoids": "Sinusoidal positions",
        "rotary": "Rotary positions",
    },
    minutes=80,
    modules=("data", "metrics", "ngram", "rnn", "lstm", "attention"),
)


def expect_refused(ask: Callable[[], Any], call: str, why: str, mistake: str) -> None:
    """The call must raise a ValueError; anything else is the named mistake."""
    try:
        ask()
    except StudentError as error:
        if "ValueError" in error.kinds:
            return
        fail(f"{call} stopped with {error.kind} instead of a ValueError: {why}.", mistake)
    fail(f"{call} must raise a ValueError: {why}.", mistake)


# --- split_heads --------------------------------------------------------------------------------

split_heads = ASSIGNMENT.exercise(
    "split_heads",
    points=2,
    hints=(
        "A token's D numbers are to become H rows of D/H numbers. Which axis do they lie on, and"
        " which axis must stay whole?",
        "First cut the last axis in two, with the head in front of its channels. Only then move"
        " the head's axis to where it belongs: a reshape never changes the order in memory.",
        "(B, T, D) → (B, T, H, D/H) → (B, H, T, D/H): `reshape`, then `transpose`.",
    ),
)


def heads_of(x: Tensor, n_heads: int) -> Tensor:
    """The definition: head h is the h-th block of channels. (B, T, D) → (B, H, T, D/H)."""
    return torch.stack(x.chunk(n_heads, dim=-1), dim=1)


@split_heads.case("gives head h the channels from h·D/H up to (h + 1)·D/H")
def _(student: Handle, rng: Rng) -> None:
    x = rng.strided(2, 5, 21)
    expect(student(x, 3), "the heads").close_to(heads_of(x, 3))


@split_heads.case("tells time from heads also where T = H = D/H")
def _(student: Handle, rng: Rng) -> None:
    x = rng.normal(3, 3, 9)
    expect(student(x, 3), "the heads").close_to(heads_of(x, 3))


@split_heads.case("makes one head of the whole width, and D heads of one channel each")
def _(student: Handle, rng: Rng) -> None:
    x = rng.normal(2, 5, 7)
    expect(student(x, 1), "the only head").close_to(x[:, None])
    expect(student(x, 7), "seven heads").close_to(x.mT[..., None])


@split_heads.case("refuses a width that the heads do not divide, with a ValueError")
def _(student: Handle, rng: Rng) -> None:
    x = rng.normal(2, 3, 10)
    why = "10 channels make no 4 equal heads"
    try:
        heads = student(x, 4)
    except StudentError:
        expect_refused(lambda: student(x, 4), "split_heads(x, 4) with D = 10", why, "not_refused")
        return
    shape = tuple(getattr(heads, "shape", ()))
    fail(
        f"split_heads(x, 4) with D = 10 gave shape {shape}; it must raise a ValueError: {why}.",
        "drops_the_rest" if shape == (2, 4, 3, 2) else None,
    )


guard(split_heads, lambda rng, dtype: (rng.strided(2, 3, 10, dtype=dtype), 5))


def _dividing(split: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """A wrong split that at least refuses what it cannot divide."""

    def wrong(x: Tensor, n_heads: int) -> Tensor:
        if x.shape[-1] % n_heads:
            raise ValueError("not divisible")
        return split(x, n_heads)

    wrong.__name__ = split.__name__
    return wrong


@split_heads.misconception(
    did="You reshape straight to (B, H, T, D/H); the transpose is missing.",
    causes="A reshape cuts memory in order, so each head gets whole tokens of one stretch of the"
    " text instead of a part of every token.",
    see="splitting-the-width",
)
@_dividing
def view_without_transpose(x: Tensor, n_heads: int) -> Tensor:
    batch, t, d = x.shape
    return x.reshape(batch, n_heads, t, d // n_heads)


@split_heads.misconception(
    did="Your heads are interleaved: head h gets every H-th channel.",
    causes="Weights from PyTorch or GPT-2 hold each head in one block of channels, so every head"
    " would be mixed from all of theirs.",
    see="splitting-the-width",
)
@_dividing
def interleaved_channels(x: Tensor, n_heads: int) -> Tensor:
    batch, t, d = x.shape
    return x.reshape(batch, t, d // n_heads, n_heads).permute(0, 3, 1, 2)


@split_heads.misconception(
    did="You leave time in front of the heads: (B, T, H, D/H).",
    causes="Attention works on the last two axes. It would then compare the heads of one token with"
    " each other and never read another token.",
    see="splitting-the-width",
)
@_dividing
def time_before_heads(x: Tensor, n_heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], n_heads, -1)


@split_heads.misconception(
    did="Your heads are mixed into the batch: (B·H, T, D/H).",
    causes="A mask of shape (B, 1, 1, S) no longer fits, and who repeats it in the wrong order"
    " masks one text with another's padding.",
    see="splitting-the-width",
)
@_dividing
def heads_in_the_batch(x: Tensor, n_heads: int) -> Tensor:
    return heads_of(x, n_heads).flatten(0, 1)


@split_heads.misconception(
    did="You take `n_heads` for the width of a head.",
    causes="Eight heads of a width of 512 become 64 heads of width 8, each too narrow to tell"
    " tokens apart.",
    see="splitting-the-width",
)
@_dividing
def heads_for_width(x: Tensor, n_heads: int) -> Tensor:
    return heads_of(x, x.shape[-1] // n_heads)


@split_heads.misconception(
    did="Your heads come out in reverse order of channels and time: (B, H, D/H, T).",
    causes="The product of queries and keys then compares channels, over time, and its size is"
    " D/H by D/H whatever the text.",
    see="splitting-the-width",
)
@_dividing
def channels_before_time(x: Tensor, n_heads: int) -> Tensor:
    return heads_of(x, n_heads).mT


@split_heads.misconception(
    did="A width that the heads do not divide is not refused with a ValueError.",
    causes="The reshape fails somewhere inside with sizes that say nothing, instead of naming the"
    " two numbers that do not fit.",
    see="splitting-the-width",
)
def not_refused(x: Tensor, n_heads: int) -> Tensor:
    batch, t, d = x.shape
    return x.reshape(batch, t, n_heads, d // n_heads).transpose(1, 2)


@split_heads.misconception(
    did="Where the heads do not divide the width, you drop the channels that are left over.",
    causes="The model runs, and some of its channels are never read by any head.",
    see="splitting-the-width",
)
def drops_the_rest(x: Tensor, n_heads: int) -> Tensor:
    width = x.shape[-1] // n_heads
    return heads_of(x[..., : n_heads * width], n_heads)


# --- merge_heads --------------------------------------------------------------------------------

merge_heads = ASSIGNMENT.exercise(
    "merge_heads",
    points=1,
    hints=(
        "Which two axes have to lie next to each other before they can become one?",
        "Undo the two steps of `split_heads`, in the opposite order.",
        "(B, H, T, D/H) → (B, T, H, D/H) → (B, T, D). After a transpose use `reshape`; `view` needs"
        " contiguous memory.",
    ),
)


@merge_heads.case("lays the heads' channels side by side, head 0 first")
def _(student: Handle, rng: Rng) -> None:
    x = rng.normal(2, 3, 5, 7)
    expect(student(x), "the merged heads").close_to(torch.cat(x.unbind(dim=1), dim=-1))


@merge_heads.case("undoes the split, also where T = H = D/H")
def _(student: Handle, rng: Rng) -> None:
    whole = rng.normal(3, 3, 9)
    expect(student(heads_of(whole, 3)), "split and merged").close_to(whole)


@merge_heads.case("works on one head, on one token and on heads of one channel")
def _(student: Handle, rng: Rng) -> None:
    for sizes in ((2, 1, 5, 3), (2, 3, 1, 5), (1, 5, 3, 1)):
        x = rng.strided(*sizes)
        expect(student(x), "the merged heads").close_to(torch.cat(x.unbind(dim=1), dim=-1))


guard(merge_heads, lambda rng, dtype: (rng.strided(2, 3, 5, 4, dtype=dtype),))


@merge_heads.misconception(
    did="You reshape straight to (B, T, D); the transpose is missing.",
    causes="Each position of the result is then filled with several tokens of one head, so the"
    " tokens are scrambled along time.",
    see="splitting-the-width",
)
def merges_without_transpose(x: Tensor) -> Tensor:
    batch, n_heads, t, d = x.shape
    return x.reshape(batch, t, n_heads * d)


@merge_heads.misconception(
    did="You call `view` on a transposed tensor.",
    causes="Its numbers no longer lie in memory in that order, so PyTorch refuses. `reshape` copies"
    " them where it must.",
    see="splitting-the-width",
)
def view_after_transpose(x: Tensor) -> Tensor:
    batch, n_heads, t, d = x.shape
    return x.transpose(1, 2).view(batch, t, n_heads * d)


@merge_heads.misconception(
    did="Your merged channels are interleaved: the first channel of every head comes first.",
    causes="It does not undo the split, and W_o, which expects block h from head h, mixes the"
    " wrong channels.",
    see="splitting-the-width",
)
def interleaves_channels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(2)


@merge_heads.misconception(
    did="You add the heads up.",
    causes="What one head read can no longer be told from what another read, which is what the"
    " heads are for.",
    see="splitting-the-width",
)
def adds_the_heads(x: Tensor) -> Tensor:
    return x.sum(dim=1)


@merge_heads.misconception(
    did="You average the heads.",
    causes="The result has one head's width, and what the heads read is blended as in a single"
    " softmax.",
    see="splitting-the-width",
)
def averages_the_heads(x: Tensor) -> Tensor:
    return x.mean(dim=1)


@merge_heads.misconception(
    did="You merge the heads with time: the result is (B, H·T, D/H).",
    causes="The text becomes H times as long and as narrow as one head.",
    see="splitting-the-width",
)
def merges_heads_with_time(x: Tensor) -> Tensor:
    return x.flatten(1, 2)


# --- MultiHeadAttention -------------------------------------------------------------------------

MultiHeadAttention = ASSIGNMENT.exercise(
    "MultiHeadAttention",
    points=5,
    needs=("split_heads", "merge_heads"),
    forbidden=("MultiheadAttention", "multi_head_attention_forward"),
    hints=(
        "How long is a query when it meets a key inside one head? What does that say about the"
        " square root?",
        "Project with the full D × D maps first and split the result. After that every head is one"
        " more leading axis, and chapter 5's attention does not care how many there are.",
        "q, k, v: (B, H, T or S, D/H) → weights (B, H, T, S) → heads (B, H, T, D/H) → merged"
        " (B, T, D) → W_o. A mask that broadcasts to (B, H, T, S) needs nothing done to it.",
    ),
)

Result = tuple[Tensor, Tensor]


def projection_shapes(d_model: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """The parameters that the curriculum names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("W_q", "W_k", "W_v", "W_o"):
        shapes[f"{name}.weight"] = (d_model, d_model)
        if bias:
            shapes[f"{name}.bias"] = (d_model,)
    return shapes


def loaded(
    student: Handle, rng: Rng, d_model: int, n_heads: int, bias: bool = True
) -> tuple[Handle, dict[str, Tensor]]:
    """The student's module with random weights, and those weights; checks names and shapes."""
    module = student.hold(d_model, n_heads, bias)
    have, want = module.shapes(), projection_shapes(d_model, bias)
    if not bias and sorted(have) == sorted(projection_shapes(d_model, True)):
        fail("with bias=False the module still has biases.", "always_has_biases")
    expect(sorted(have), "the parameters' names").equals(sorted(want))
    for name, shape in want.items():
        expect(have[name], f"the shape of {name}").equals(shape)
    weights = rng.like(want)
    return module.load(weights).eval(), weights


def twin_of(
    weights: dict[str, Tensor], d_model: int, n_heads: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Result]:
    """PyTorch's own layer with the same weights; it takes our masks and gives every head's."""
    bias = "W_q.bias" in weights
    twin = nn.MultiheadAttention(d_model, n_heads, bias=bias, batch_first=True).double()
    inputs = ("W_q", "W_k", "W_v")
    state = {"in_proj_weight": torch.cat([weights[f"{name}.weight"] for name in inputs])}
    state["out_proj.weight"] = weights["W_o.weight"]
    if bias:
        state["in_proj_bias"] = torch.cat([weights[f"{name}.bias"] for name in inputs])
        state["out_proj.bias"] = weights["W_o.bias"]
    twin.load_state_dict(state)

    def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Result:
        (batch, t, _), s = query.shape, key.shape[1]
        hidden = None
        if mask is not None:  # there True means: may not attend; and the axes are (B·H, T, S)
            hidden = ~mask.expand(batch, n_heads, t, s).reshape(batch * n_heads, t, s)
        return twin.eval()(query, key, value, attn_mask=hidden, average_attn_weights=False)

    return forward


def a_mask(rng: Rng, *shape: int) -> Tensor:
    """A random mask with at least one True in every row."""
    mask = rng.uniform(*shape) < 0.5
    kept = rng.integers(0, shape[-1], *shape[:-1], 1)
    return mask.scatter(-1, kept, True)


def three_inputs(rng: Rng, batch: int, t: int, s: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """query (B, T, D), key and value (B, S, D), all different; one is not contiguous."""
    return rng.normal(batch, t, d), rng.strided(batch, s, d), rng.normal(batch, s, d)


def expect_like_twin(module: Handle, weights: dict[str, Tensor], n_heads: int, *args: Any) -> None:
    d_model = len(weights["W_q.weight"])
    output, attention = module(*args)
    right, right_attention = twin_of(weights, d_model, n_heads)(*args)
    expect(attention, "the weights").close_to(right_attention)
    expect(output, "the output").close_to(right)


@MultiHeadAttention.case("agrees with PyTorch's layer on copied weights, head by head")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, 15, 3)
    x = rng.strided(2, 7, 15)
    expect_like_twin(module, weights, 3, x, x, x)


@MultiHeadAttention.case("reads another sequence: T ≠ S, and keys that are not the values")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, 14, 2)
    expect_like_twin(module, weights, 2, *three_inputs(rng, 3, 4, 5, 14))


@MultiHeadAttention.case("has no biases with bias=False")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, 10, 5, bias=False)
    expect_like_twin(module, weights, 5, *three_inputs(rng, 2, 3, 4, 10))


@MultiHeadAttention.case("obeys a mask of shape (T, S): the same for all rows and heads")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, 12, 3)
    expect_like_twin(module, weights, 3, *three_inputs(rng, 2, 5, 7, 12), a_mask(rng, 5, 7))


@MultiHeadAttention.case("obeys a mask of shape (B, 1, 1, S): each row's own padding")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, 12, 3)
    expect_like_twin(module, weights, 3, *three_inputs(rng, 4, 5, 7, 12), a_mask(rng, 4, 1, 1, 7))


@MultiHeadAttention.case("obeys masks of shape (B, 1, T, S) and (B, H, T, S)")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, 8, 2)
    for heads in (1, 2):
        mask = a_mask(rng, 3, heads, 4, 5)
        expect_like_twin(module, weights, 2, *three_inputs(rng, 3, 4, 5, 8), mask)


@MultiHeadAttention.case("works with one head, one channel a head, one row and one token")
def _(student: Handle, rng: Rng) -> None:
    for n_heads in (1, 3):
        module, weights = loaded(student, rng, 3, n_heads)
        expect_like_twin(module, weights, n_heads, *three_inputs(rng, 1, 1, 2, 3))


@MultiHeadAttention.case("refuses a width that the heads do not divide, when it is built")
def _(student: Handle, rng: Rng) -> None:
    expect_refused(
        lambda: student.hold(10, 4),
        "MultiHeadAttention(10, 4)",
        "10 channels make no 4 equal heads",
        "any_width",
    )


@MultiHeadAttention.case("sends the right gradients to query, key, value and every weight")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, 6, 2)
    args = three_inputs(rng, 2, 3, 5, 6)
    mask, cotangent = a_mask(rng, 2, 1, 3, 5), (rng.normal(2, 3, 6), rng.normal(2, 2, 3, 5))
    pulled: Pullback = module.vjp(*args, mask, cotangent=cotangent, wrt=(0, 1, 2))
    leaves = [x.detach().requires_grad_() for x in (*args, *weights.values())]
    query, key, value, *rest = leaves
    outputs = by_hand(dict(zip(weights, rest, strict=True)), 2, query, key, value, mask)
    found = torch.autograd.grad(outputs, leaves, cotangent)
    for name, have, want in zip(("query", "key", "value"), pulled.inputs, found, strict=False):
        expect(have, f"the gradient of {name}").close_to(want)
    for name, want in zip(weights, found[3:], strict=True):
        expect(pulled.parameters[name], f"the gradient of {name}").close_to(want)


def by_hand(
    weights: dict[str, Tensor], n_heads: int, query: Tensor, key: Tensor, value: Tensor, mask: Any
) -> Result:
    """One head after another, each from its own rows of the projections."""
    d = query.shape[-1] // n_heads
    outputs, attentions = [], []

    def project(x: Tensor, name: str, h: int) -> Tensor:
        rows = slice(h * d, (h + 1) * d)
        return x @ weights[f"{name}.weight"][rows].mT + weights[f"{name}.bias"][rows]

    for h in range(n_heads):
        q, k, v = (project(x, n, h) for x, n in ((query, "W_q"), (key, "W_k"), (value, "W_v")))
        scores = (q @ k.mT / math.sqrt(d)).masked_fill(~mask[:, 0], -math.inf)
        attentions.append(scores.softmax(-1))
        outputs.append(attentions[-1] @ v)
    merged = torch.cat(outputs, dim=-1)  # H of (B, T, D/H) → (B, T, D)
    output = merged @ weights["W_o.weight"].mT + weights["W_o.bias"]
    return output, torch.stack(attentions, dim=1)


def _guard_inputs(rng: Rng, dtype: torch.dtype) -> tuple[Any, ...]:
    query, key, value = (x.to(dtype) for x in three_inputs(rng, 2, 3, 4, 6))
    return query, key, value, a_mask(rng, 2, 1, 1, 4)


guard(MultiHeadAttention, _guard_inputs, build=(6, 2))


class Heads(nn.Module):
    """What the wrong layers below have in common; each spoils one of the small methods."""

    W_q: nn.Linear
    W_k: nn.Linear
    W_v: nn.Linear
    W_o: nn.Linear

    def __init__(self, d_model: int, n_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.check(d_model, n_heads)
        self.n_heads, self.d_model = n_heads, d_model
        for name in ("W_q", "W_k", "W_v", "W_o"):
            setattr(self, name, nn.Linear(d_model, d_model, self.has_bias(bias)))

    def check(self, d_model: int, n_heads: int) -> None:
        if d_model % n_heads:
            raise ValueError("not divisible")

    def has_bias(self, bias: bool) -> bool:
        return bias

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_q(query), self.W_k(key), self.W_v(value)

    def split(self, x: Tensor) -> Tensor:
        return heads_of(x, self.n_heads)

    def scale(self, scores: Tensor) -> Tensor:
        return scores / math.sqrt(self.d_model // self.n_heads)

    def hide(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(~mask, -math.inf)

    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores.softmax(dim=-1)

    def choose(self, weights: Tensor) -> Tensor:
        return weights

    def merge(self, x: Tensor) -> Tensor:
        return torch.cat(x.unbind(1), dim=-1)

    def finish(self, merged: Tensor) -> Tensor:
        return self.W_o(merged)

    def report(self, weights: Tensor) -> Tensor:
        return weights

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Result:
        q, k, v = (self.split(x) for x in self.project(query, key, value))
        scores = self.scale(q @ k.mT)  # (B, H, T, S)
        if mask is not None:
            scores = self.hide(scores, mask)
        weights = self.choose(self.normalize(scores, mask))
        return self.finish(self.merge(weights @ v)), self.report(weights)


def _mistake(did: str, causes: str, see: str = "several-heads") -> Callable[[type], type]:
    """A wrong layer whose name is its class's, in small letters."""

    def register(wrong: type) -> type:
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in wrong.__name__)
        return MultiHeadAttention.misconception(
            did=did, causes=causes, see=see, name=words.lstrip("_")
        )(wrong)

    return register


@_mistake(
    "Your scores are divided by √D, the width of the model.",
    "A head's queries and keys have D/H numbers, so the scores come out √H times too small and"
    " every head looks almost evenly at everything.",
)
class ScaledByModelWidth(Heads):
    def scale(self, scores: Tensor) -> Tensor:
        return scores / math.sqrt(self.d_model)


@_mistake(
    "Your scores are not scaled.",
    "A sum of D/H products has variance D/H; unscaled, the softmax starts near one-hot and hardly"
    " any gradient passes it.",
)
class NotScaled(Heads):
    def scale(self, scores: Tensor) -> Tensor:
        return scores


@_mistake(
    "Your scores are divided by D/H instead of √(D/H).",
    "The scores come out too small, and every head looks almost evenly at everything.",
)
class ScaledWithoutRoot(Heads):
    def scale(self, scores: Tensor) -> Tensor:
        return scores * self.n_heads / self.d_model


@_mistake(
    "Your output is not projected: W_o is missing.",
    "What the heads read then stays in separate blocks of channels; only W_o can combine them.",
)
class NoOutputProjection(Heads):
    def finish(self, merged: Tensor) -> Tensor:
        return merged


@_mistake(
    "You use the first head's weights for all heads.",
    "H heads that look at the same places are one head with H names.",
)
class FirstHeadForAll(Heads):
    def choose(self, weights: Tensor) -> Tensor:
        return weights[:, :1].expand_as(weights)


@_mistake(
    "You average the heads' weights before they mix the values.",
    "Every head then reads the same mixture, which is what a single softmax could do.",
)
class AveragedBeforeMixing(Heads):
    def choose(self, weights: Tensor) -> Tensor:
        return weights.mean(dim=1, keepdim=True).expand_as(weights)


@_mistake(
    "The weights that you return are averaged over the heads.",
    "That is what `nn.MultiheadAttention` returns by default. Nobody can see from it what a single"
    " head looks at: return (B, H, T, S).",
)
class WeightsAveraged(Heads):
    def report(self, weights: Tensor) -> Tensor:
        return weights.mean(dim=1)


@_mistake(
    "Key and value have changed places: W_k is applied to `value` and W_v to `key`.",
    "In self-attention the two are equal and nothing shows; a decoder that reads other keys than"
    " values mixes up where to look with what to take.",
    "heads-and-masks",
)
class KeyAndValueSwapped(Heads):
    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_q(query), self.W_k(value), self.W_v(key)


@_mistake(
    "Your values are made from `key`; the argument `value` is not used.",
    "In self-attention nothing shows; where keys and values differ, the layer looks in the right"
    " place and takes the wrong thing.",
    "heads-and-masks",
)
class ValuesFromKey(Heads):
    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_q(query), self.W_k(key), self.W_v(key)


@_mistake(
    "Queries, keys and values are all made from `query`.",
    "A decoder built on it attends to itself and never reads the source.",
    "heads-and-masks",
)
class ReadsOnlyItself(Heads):
    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_q(query), self.W_k(query), self.W_v(query)


@_mistake(
    "Your keys are projected with W_q, the queries' map.",
    "Scores are then symmetric: if a verb looks for its noun, the noun must look for that verb.",
)
class KeysFromQueryMap(Heads):
    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_q(query), self.W_q(key), self.W_v(value)


@_mistake(
    "Your values are not projected: W_v is missing.",
    "Head h can then only pass on the h-th block of the input's channels.",
)
class ValuesNotProjected(Heads):
    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_q(query), self.W_k(key), value


@_mistake(
    "You split by a reshape straight to (B, H, T, D/H); the transpose is missing.",
    "Each head then gets whole tokens of one stretch of the text, and heads read nothing from the"
    " rest of it.",
    "splitting-the-width",
)
class SplitWithoutTranspose(Heads):
    def split(self, x: Tensor) -> Tensor:
        batch, t, d = x.shape
        return x.reshape(batch, self.n_heads, t, d // self.n_heads)


@_mistake(
    "You merge by a reshape straight to (B, T, D); the transpose is missing.",
    "Each position is then filled with several tokens of one head, so what was read lands at the"
    " wrong token.",
    "splitting-the-width",
)
class MergedWithoutTranspose(Heads):
    def merge(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[2], self.d_model)


@_mistake(
    "Your heads attend to each other: the scores are (B, T, H, H).",
    "The last two axes must be time and channels. As it is, no token ever reads another token.",
    "splitting-the-width",
)
class HeadsAttendToHeads(Heads):
    def split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.n_heads, -1)

    def merge(self, x: Tensor) -> Tensor:
        return x.flatten(-2)


@_mistake(
    "Your softmax runs over the queries.",
    "Each key's weights then sum to one instead of each query's, so a query's output can be of any"
    " size.",
)
class SoftmaxOverQueries(Heads):
    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores.softmax(dim=-2)


@_mistake(
    "Your softmax runs over the heads.",
    "The heads then share one unit of weight for every pair of tokens, and a row of weights does"
    " not sum to one.",
)
class SoftmaxOverHeads(Heads):
    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores.softmax(dim=1)


@_mistake(
    "Your mask is read the wrong way around.",
    "True means: may attend. Turned around, every query reads just what it must not see.",
    "heads-and-masks",
)
class MaskInverted(Heads):
    def hide(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(mask, -math.inf)


@_mistake(
    "Your mask is not used.",
    "Padding is read as if it were text, and a language model sees the characters that it is to"
    " predict.",
    "heads-and-masks",
)
class MaskIgnored(Heads):
    def hide(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores


@_mistake(
    "You mask the weights after the softmax.",
    "The rows no longer sum to one, and the hidden tokens still shape the weights of the others.",
    "heads-and-masks",
)
class MaskAfterSoftmax(Heads):
    def hide(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores

    def normalize(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        weights = scores.softmax(dim=-1)
        return weights if mask is None else weights * mask


@_mistake(
    "You add an axis for the heads to the mask.",
    "The mask already broadcasts to (B, H, T, S). With one axis more it lines up with the wrong"
    " axes, or with none.",
    "heads-and-masks",
)
class MaskGetsAnAxis(Heads):
    def hide(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(~mask.unsqueeze(1), -math.inf)


@_mistake(
    "Your mask reaches the first head only.",
    "The other heads read padding and the future, and W_o mixes what they saw into every token.",
    "heads-and-masks",
)
class MaskOnFirstHead(Heads):
    def hide(self, scores: Tensor, mask: Tensor) -> Tensor:
        hidden = scores.masked_fill(~mask, -math.inf)
        return torch.cat([hidden[:, :1], scores[:, 1:]], dim=1)


@_mistake(
    "Your heads are folded into the batch and the mask is repeated in another order than they.",
    "Row b·H + h of the scores then gets another text's mask, so texts are masked with each"
    " other's padding.",
    "heads-and-masks",
)
class MaskRepeatedInTheWrongOrder(Heads):
    def hide(self, scores: Tensor, mask: Tensor) -> Tensor:
        batch, n_heads, t, s = scores.shape
        if mask.ndim == 4 and mask.shape[1] == 1:  # b, b, … would be right; it gets 0, 1, 2, 0, …
            mask = mask.expand(batch, 1, t, s).repeat(n_heads, 1, 1, 1)
            mask = mask.reshape(batch, n_heads, t, s)
        return scores.masked_fill(~mask, -math.inf)


@_mistake(
    "`bias=False` has no effect: the four maps keep their biases.",
    "Weights of a model without biases do not fit, and the layer has 4·D parameters too many.",
)
class AlwaysHasBiases(Heads):
    def has_bias(self, bias: bool) -> bool:
        return True


@_mistake(
    "A width that the heads do not divide is not refused when the layer is built.",
    "The model is made without complaint and stops in its first forward pass, with sizes that say"
    " nothing.",
    "splitting-the-width",
)
class AnyWidth(Heads):
    def check(self, d_model: int, n_heads: int) -> None: ...


# --- sinusoidal_positions -----------------------------------------------------------------------

sinusoidal_positions = ASSIGNMENT.exercise(
    "sinusoidal_positions",
    points=2,
    hints=(
        "Channels 4 and 5 turn at the same speed. What do channels 6 and 7 do?",
        "Make the D/2 frequencies first, then all angles position × frequency as one table, then"
        " write its sines to the even columns and its cosines to the odd ones.",
        "Pair i has the frequency 10000^(−2i/D), where 2i is the even channel: 0, 2, 4, …"
        " An odd D has one sine more than it has cosines.",
    ),
)


def waves(max_len: int, d_model: int) -> Tensor:
    """Entry by entry, as the paper's two formulas say. (max_len, D), float64."""
    rows = []
    for p in range(max_len):
        angles = [p / 10000 ** ((c - c % 2) / d_model) for c in range(d_model)]
        rows.append([math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(angles)])
    return torch.tensor(rows, dtype=torch.float64)


@sinusoidal_positions.case("puts sines in the even channels and cosines in the odd ones")
def _(student: Handle, rng: Rng) -> None:
    expect(student(11, 8), "the table").close_to(waves(11, 8), atol=1e-5)


@sinusoidal_positions.case("starts at position 0: zeros and ones in turn")
def _(student: Handle, rng: Rng) -> None:
    first = torch.tensor([[0.0, 1.0] * 5], dtype=torch.float64)
    expect(student(1, 10), "the only row").close_to(first, atol=1e-6)


@sinusoidal_positions.case("ends an odd width with a sine that has no cosine")
def _(student: Handle, rng: Rng) -> None:
    expect(student(5, 7), "the table").close_to(waves(5, 7), atol=1e-5)


@sinusoidal_positions.case("is float32, the type that embeddings have")
def _(student: Handle, rng: Rng) -> None:
    table = student(3, 4)
    expect(table, "the table").has_shape(3, 4)
    double = table.dtype is torch.float64
    expect(table, "the table").holds(
        table.dtype is torch.float32,
        f"expected dtype torch.float32, got {table.dtype}.",
        "double_precision" if double else None,
    )


@sinusoidal_positions.case("a shift by k positions turns every pair by the same angle everywhere")
def _(student: Handle, rng: Rng) -> None:
    n, d, k = 40, 6, rng.integer(1, 9)
    table = student(n, d)
    expect(table, "the table").has_shape(n, d)
    pairs = torch.view_as_complex(table.double().reshape(n, d // 2, 2).contiguous())  # cos as i·
    turned = pairs[k:] * pairs[:-k].conj()  # (n − k, d/2): of angle −k·frequency, wherever
    expect(turned, "the turn from position p to p + k").holds(
        bool((turned - turned[:1]).abs().max() < 1e-3 and (pairs.abs() - 1).abs().max() < 1e-3),
        "it must depend on k alone, not on p.",
    )


Pairs = Callable[[Tensor, Tensor], Tensor]


def _table(max_len: int, frequencies: Tensor, first: int = 0) -> Tensor:
    """Angles position × frequency, (max_len, pairs)."""
    return torch.arange(first, first + max_len)[:, None] * frequencies


def _frequencies(d_model: int) -> Tensor:
    return 10000.0 ** (-torch.arange(0, d_model, 2) / d_model)


def _interleave(even: Tensor, odd: Tensor, d_model: int) -> Tensor:
    return torch.stack([even, odd], dim=-1).flatten(1)[:, :d_model]


@sinusoidal_positions.misconception(
    did="All your sines come first and all cosines after them; they should alternate.",
    causes="A model trained with the paper's order finds every wave in another channel. Some"
    " libraries do it your way; the numbers are then the same, their places not.",
    see="sinusoids",
)
def sines_then_cosines(max_len: int, d_model: int) -> Tensor:
    angles = _table(max_len, _frequencies(d_model))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :d_model]


@sinusoidal_positions.misconception(
    did="Your exponent is i/D for pair i; it should be 2i/D.",
    causes="The frequencies end near 1/100 instead of 1/10000, so the slowest wave repeats every"
    " 600 positions or so.",
    see="sinusoids",
)
def exponent_too_small(max_len: int, d_model: int) -> Tensor:
    angles = _table(max_len, 10000.0 ** (-torch.arange((d_model + 1) // 2) / d_model))
    return _interleave(angles.sin(), angles.cos(), d_model)


@sinusoidal_positions.misconception(
    did="Your exponent is 4i/D for pair i: the 2 is counted twice. It should be 2i/D.",
    causes="From the middle channels on the waves are so slow that neighboring positions look"
    " alike.",
    see="sinusoids",
)
def exponent_too_large(max_len: int, d_model: int) -> Tensor:
    angles = _table(max_len, 10000.0 ** (-4 * torch.arange((d_model + 1) // 2) / d_model))
    return _interleave(angles.sin(), angles.cos(), d_model)


@sinusoidal_positions.misconception(
    did="You count 2i for every channel: a sine and the cosine beside it have different speeds.",
    causes="Pairs no longer turn together, so a shift is no rotation and distances cannot be read"
    " off the products.",
    see="sinusoids",
)
def own_speed_for_each_channel(max_len: int, d_model: int) -> Tensor:
    angles = _table(max_len, 10000.0 ** (-2 * torch.arange(d_model) / d_model))
    return torch.where(torch.arange(d_model) % 2 == 0, angles.sin(), angles.cos())


@sinusoidal_positions.misconception(
    did="Your exponent is the channel's own number over D, so a cosine turns slower than its sine.",
    causes="Pairs no longer turn together, so a shift is no rotation and distances cannot be read"
    " off the products.",
    see="sinusoids",
)
def channel_for_pair(max_len: int, d_model: int) -> Tensor:
    angles = _table(max_len, 10000.0 ** (-torch.arange(d_model) / d_model))
    return torch.where(torch.arange(d_model) % 2 == 0, angles.sin(), angles.cos())


@sinusoidal_positions.misconception(
    did="Your positions start at 1.",
    causes="Every row stands one place too early: position 0 gets what belongs to position 1.",
    see="sinusoids",
)
def starts_at_one(max_len: int, d_model: int) -> Tensor:
    angles = _table(max_len, _frequencies(d_model), first=1)
    return _interleave(angles.sin(), angles.cos(), d_model)


@sinusoidal_positions.misconception(
    did="Sine and cosine have changed places.",
    causes="Position 0 becomes 1, 0, 1, 0, …, and weights trained with the paper's table read"
    " another position.",
    see="sinusoids",
)
def cosines_first(max_len: int, d_model: int) -> Tensor:
    angles = _table(max_len, _frequencies(d_model))
    return _interleave(angles.cos(), angles.sin(), d_model)


@sinusoidal_positions.misconception(
    did="Your angle is position times 10000^(2i/D) instead of divided by it.",
    causes="The waves turn many times between one position and the next, so neighbors look as"
    " different as strangers.",
    see="sinusoids",
)
def multiplies(max_len: int, d_model: int) -> Tensor:
    angles = _table(max_len, 1 / _frequencies(d_model).double())
    return _interleave(angles.sin(), angles.cos(), d_model).float()


@sinusoidal_positions.misconception(
    did="An odd width stops your function: there is one sine more than there are cosines.",
    causes="Writing D/2 cosines, rounded up, into one column fewer cannot work.",
    see="sinusoids",
)
def odd_width_crashes(max_len: int, d_model: int) -> Tensor:
    table, angles = torch.zeros(max_len, d_model), _table(max_len, _frequencies(d_model))
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles.cos()
    return table


@sinusoidal_positions.misconception(
    did="Your table is float64.",
    causes="Added to float32 embeddings it turns them into float64, and the next layer refuses"
    " them or the whole model runs at half its speed.",
    see="sinusoids",
)
def double_precision(max_len: int, d_model: int) -> Tensor:
    angles = _table(max_len, _frequencies(d_model).double())
    return _interleave(angles.sin(), angles.cos(), d_model)


# --- apply_rotary -------------------------------------------------------------------------------

apply_rotary = ASSIGNMENT.exercise(
    "apply_rotary",
    points=3,
    hints=(
        "What does a rotation by an angle do to the point (1, 0)? And to (0, 1)?",
        "Take the even channels as one tensor and the odd channels as another, compute both rotated"
        " halves from them, and lay the results back in turn, not one half after the other.",
        "a′ = a·cos − b·sin and b′ = a·sin + b·cos, with angles (T, D/2) = positions[:, None] ·"
        " base^(−2i/D). `torch.stack(…, dim=-1)` and a flatten interleave.",
    ),
)


def rotated(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Pairs as complex numbers, multiplied by e^(i·angle)."""
    d = x.shape[-1]
    frequencies = base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)  # (D/2,)
    angles = positions.double()[:, None] * frequencies  # (T, D/2)
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], d // 2, 2).contiguous())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)  # (..., T, D/2, 2) → (..., T, D)


def expect_rotated(student: Handle, x: Tensor, positions: Tensor, *base: float) -> None:
    # Angles in single precision are good enough, so six digits are.
    right = rotated(x, positions, *base)
    expect(student(x, positions, *base), "the rotated x").close_to(right, rtol=1e-4, atol=1e-4)


@apply_rotary.case("turns channels 2i and 2i + 1 together, by position · base^(−2i/D)")
def _(student: Handle, rng: Rng) -> None:
    expect_rotated(student, rng.normal(7, 6), torch.arange(7))


@apply_rotary.case("turns by the positions that it is given: any order, with gaps, from any start")
def _(student: Handle, rng: Rng) -> None:
    expect_rotated(student, rng.normal(5, 8), torch.tensor([3, 29, 0, 11, 11]))
    expect_rotated(student, rng.normal(3, 4), torch.arange(40, 43))


@apply_rotary.case("treats every row and head alike: x of shape (B, H, T, D)")
def _(student: Handle, rng: Rng) -> None:
    expect_rotated(student, rng.strided(2, 3, 5, 6), torch.tensor([1, 4, 9, 16, 25]))


@apply_rotary.case("uses the base that it is given")
def _(student: Handle, rng: Rng) -> None:
    expect_rotated(student, rng.normal(5, 6), torch.arange(5), 7.0)


@apply_rotary.case("a score depends on the distance alone: shifting both tokens changes nothing")
def _(student: Handle, rng: Rng) -> None:
    q, k, at = rng.normal(5, 6), rng.normal(5, 6), torch.arange(5)
    shift = rng.integer(3, 20)

    def scores(offset: int) -> Tensor:
        turned_q, turned_k = student(q, at + offset), student(k, at + offset)
        expect(turned_q, "the rotated q").has_shape(5, 6)
        return turned_q @ turned_k.mT

    expect(scores(shift), "the scores after the shift").close_to(scores(0), rtol=1e-4, atol=1e-4)
    norms = student(q, at).norm(dim=-1)
    expect(norms, "the lengths after rotation").close_to(q.norm(dim=-1), rtol=1e-4, atol=1e-5)


@apply_rotary.case("works on one token and on one pair of channels")
def _(student: Handle, rng: Rng) -> None:
    expect_rotated(student, rng.normal(1, 4), torch.tensor([13]))
    expect_rotated(student, rng.normal(3, 2), torch.tensor([0, 1, 2]))


@apply_rotary.case("refuses an odd width with a ValueError")
def _(student: Handle, rng: Rng) -> None:
    x, at = rng.normal(3, 5), torch.arange(3)
    why = "five channels make no pairs"
    try:
        student(x, at)
    except StudentError:
        expect_refused(lambda: student(x, at), "D = 5", why, "odd_width_not_refused")
        return
    fail(f"D = 5 must raise a ValueError: {why}.", "odd_channel_dropped")


@apply_rotary.case("turns gradients back by the same angles")
def _(student: Handle, rng: Rng) -> None:
    x, at, cotangent = rng.normal(2, 5, 4), torch.tensor([2, 7, 1, 8, 28]), rng.normal(2, 5, 4)
    pulled: Pullback = student.vjp(x, at, cotangent=cotangent, wrt=(0,))
    back = rotated(cotangent, -at)  # a rotation's transpose is the rotation back
    expect(pulled.inputs[0], "the gradient of x").close_to(back, rtol=1e-4, atol=1e-4)


guard(
    apply_rotary,
    lambda rng, dtype: (rng.strided(2, 3, 4, dtype=dtype), torch.tensor([5, 0, 9])),
)


def _rotary_variant(turn: Callable[..., Tensor], *, refuses: bool = True) -> Callable[..., Tensor]:
    """A wrong rotation from a, b, angles: `turn(a, b, angles) -> (..., T, D)`."""

    def wrong(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
        if refuses and x.shape[-1] % 2:
            raise ValueError("odd width")
        return turn(x[..., 0::2], x[..., 1::2], _angles(x, positions, base))

    wrong.__name__ = turn.__name__
    return wrong


def _angles(x: Tensor, positions: Tensor, base: float, factor: float = 2.0) -> Tensor:
    """positions · base^(−factor·i/D), (T, ⌈D/2⌉)."""
    d = x.shape[-1]
    i = torch.arange((d + 1) // 2, device=x.device, dtype=x.dtype)
    return positions[:, None] * base ** (-factor * i / d)


def _turned(a: Tensor, b: Tensor, angles: Tensor) -> Tensor:
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def _even(x: Tensor) -> None:
    if x.shape[-1] % 2:
        raise ValueError("odd width")


@apply_rotary.misconception(
    did="You pair channel i with channel i + D/2, as Llama does; here neighbors are paired.",
    causes="Both are rotary embeddings, and trained weights fit only one of them: loaded into the"
    " other, a model speaks nonsense.",
    see="rotary",
)
def pairs_of_halves(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    _even(x)
    (a, b), angles = x.chunk(2, dim=-1), _angles(x, positions, base)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


@apply_rotary.misconception(
    did="You pair neighbors, but lay the results down as two halves.",
    causes="The channels come out in another order than they went in. Scores survive it, since"
    " queries and keys are shuffled alike; weights trained elsewhere and caches do not.",
    see="rotary",
)
@_rotary_variant
def halves_after_pairs(a: Tensor, b: Tensor, angles: Tensor) -> Tensor:
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


@apply_rotary.misconception(
    did="Your rotation goes the wrong way around: by minus the angle.",
    causes="Scores are the mirror image: what should be k tokens back is k tokens ahead. Weights"
    " trained the other way read the wrong side.",
    see="rotary",
)
@_rotary_variant
def wrong_direction(a: Tensor, b: Tensor, angles: Tensor) -> Tensor:
    return _turned(a, b, -angles)


@apply_rotary.misconception(
    did="You ignore `positions` and count 0, 1, 2, … instead.",
    causes="A token read on its own, as when a model continues a text with cached keys, is turned"
    " as if it stood at the start.",
    see="rotary",
)
def ignores_positions(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    _even(x)
    counted = torch.arange(x.shape[-2], device=x.device)
    return _turned(x[..., 0::2], x[..., 1::2], _angles(x, counted, base))


@apply_rotary.misconception(
    did="Your base is always 10000, whatever is passed.",
    causes="Models for long texts use a larger base; their weights would be read with the wrong"
    " angles.",
    see="rotary",
)
def base_hard_coded(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    _even(x)
    return _turned(x[..., 0::2], x[..., 1::2], _angles(x, positions, 10000.0))


@apply_rotary.misconception(
    did="Your exponent is i/D for pair i; it should be 2i/D.",
    causes="The slow pairs turn too fast: the slowest goes once around in about 600 positions"
    " instead of tens of thousands.",
    see="rotary",
)
def rotary_exponent_too_small(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    _even(x)
    return _turned(x[..., 0::2], x[..., 1::2], _angles(x, positions, base, factor=1.0))


@apply_rotary.misconception(
    did="Your exponent is 4i/D for pair i: the 2 is counted twice. It should be 2i/D.",
    causes="Half of the pairs hardly turn at all, so they cannot tell positions apart.",
    see="rotary",
)
def rotary_exponent_too_large(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    _even(x)
    return _turned(x[..., 0::2], x[..., 1::2], _angles(x, positions, base, factor=4.0))


@apply_rotary.misconception(
    did="Your angles grow with the pair: base^(+2i/D).",
    causes="Most pairs turn many times from one token to the next, so distance cannot be read from"
    " them.",
    see="rotary",
)
def angles_grow(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    _even(x)
    return _turned(x[..., 0::2], x[..., 1::2], _angles(x, positions, base, factor=-2.0))


@apply_rotary.misconception(
    did="Every pair turns at the same speed.",
    causes="The scores then repeat every 2π positions: a token 44 back looks almost like the token"
    " itself.",
    see="rotary",
)
@_rotary_variant
def one_speed(a: Tensor, b: Tensor, angles: Tensor) -> Tensor:
    return _turned(a, b, angles[:, :1].expand_as(angles))


@apply_rotary.misconception(
    did="Your angles are laid out for halves (θ₀, θ₁, …, θ₀, θ₁, …) and your pairs are neighbors.",
    causes="The two channels of a pair are turned by different angles. That is no rotation:"
    " lengths change, and scores depend on where the tokens stand.",
    see="rotary",
)
def tiled_angles(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    _even(x)
    angles = _angles(x, positions, base).repeat(1, 2)  # (T, D/2) → (T, D), half after half
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * angles.cos() + turned * angles.sin()


@apply_rotary.misconception(
    did="The minus sign is missing: a′ = a·cos + b·sin.",
    causes="Only one of the four terms differs, and it is no rotation any more: lengths change with"
    " the position, and scores with them.",
    see="rotary",
)
@_rotary_variant
def minus_missing(a: Tensor, b: Tensor, angles: Tensor) -> Tensor:
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos + b * sin, a * sin + b * cos], dim=-1).flatten(-2)


@apply_rotary.misconception(
    did="You add the sines and cosines to x; here they rotate it.",
    causes="Added positions mix with the content, and a score then depends on both places, not on"
    " their distance.",
    see="rotary",
)
@_rotary_variant
def adds_waves(a: Tensor, b: Tensor, angles: Tensor) -> Tensor:
    return torch.stack([a + angles.sin(), b + angles.cos()], dim=-1).flatten(-2)


odd_width_not_refused = apply_rotary.misconception(
    did="An odd width is not refused with a ValueError.",
    causes="The function stops in the middle of the arithmetic, with sizes that say nothing about"
    " the cause.",
    see="rotary",
    name="odd_width_not_refused",
)(_rotary_variant(_turned, refuses=False))


@apply_rotary.misconception(
    did="With an odd width you leave the last channel out or as it is.",
    causes="That channel knows no position, and nobody is told that the width does not fit.",
    see="rotary",
)
def odd_channel_dropped(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    whole = x.shape[-1] // 2 * 2
    paired = x[..., :whole]
    turned = _turned(paired[..., 0::2], paired[..., 1::2], _angles(paired, positions, base))
    return torch.cat([turned, x[..., whole:]], dim=-1)
