"""Checks of chapter 02: cell, loop, backpropagation through time, clipping, language model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autograder.child.protocol import Items, Parameter
from autograder.engine.exercise import Assignment, Rng
from autograder.engine.expect import expect, fail
from autograder.engine.guards import guard
from autograder.engine.handle import Handle, StudentError

ASSIGNMENT = Assignment(
    name="02-rnn",
    notebook="rnn",
    page="02_rnn",
    sections={
        "one-cell": "One cell, used again and again",
        "unrolled": "Unrolled through time",
        "backpropagation-through-time": "Backpropagation through time",
        "clipping": "Clipping the gradient",
        "truncation": "Truncation",
        "language-model": "A language model with a state",
    },
    minutes=90,
    modules=("data", "metrics", "ngram"),
)

FUSED = ("RNN", "RNNBase", "RNNCell", "RNNCellBase", "rnn_tanh", "rnn_tanh_cell", "rnn_relu")
GATED = ("LSTM", "LSTMCell", "lstm", "lstm_cell", "GRU", "GRUCell", "gru", "gru_cell")


def weights(rng: Rng, n_in: int, n_state: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """W_xh, W_hh and b, large enough that every product and every tanh matters."""
    shapes = ((n_in, n_state), (n_state, n_state), (n_state,))
    return [0.7 * rng.normal(*shape, dtype=dtype) for shape in shapes]


# --- rnn_cell -----------------------------------------------------------------------------------

rnn_cell = ASSIGNMENT.exercise(
    "rnn_cell",
    points=2,
    forbidden=FUSED + GATED,
    hints=(
        "Two things decide the next state: the input and the last state. Which matrix does each"
        " of them meet?",
        "Rows are the examples of a batch, so the weights stand on the right: a row times a"
        " matrix. Add everything up first and bend it last.",
        "(B, I) · (I, H) and (B, H) · (H, H) are both (B, H), and b of shape (H,) is added to"
        " every row. All of it goes through one function with values between −1 and 1.",
    ),
)


def cell_by_operator(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.rnn_tanh_cell(x, h, W_xh.T, W_hh.T, b, torch.zeros_like(b))


def cell_inputs(rng: Rng, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return (
        rng.normal(3, 5, dtype=dtype),
        rng.normal(3, 7, dtype=dtype),
        *weights(rng, 5, 7, dtype),
    )


@rnn_cell.case("mixes the input and the last state as tanh(x W_xh + h W_hh + b)")
def _(student: Handle, rng: Rng) -> None:
    inputs = cell_inputs(rng)
    expect(student(*inputs), "the new state").close_to(cell_by_operator(*inputs))


@rnn_cell.case("works when the input is as wide as the state")
def _(student: Handle, rng: Rng) -> None:
    inputs = rng.normal(2, 4), rng.normal(2, 4), *weights(rng, 4, 4)
    expect(student(*inputs), "the new state").close_to(cell_by_operator(*inputs))


@rnn_cell.case("keeps every number between −1 and 1, however large the input")
def _(student: Handle, rng: Rng) -> None:
    x, h, *rest = cell_inputs(rng)
    expect(student(100 * x, h, *rest), "the new state").close_to(
        cell_by_operator(100 * x, h, *rest)
    )


@rnn_cell.case("reads tensors that do not lie contiguously in memory, and a batch of one")
def _(student: Handle, rng: Rng) -> None:
    inputs = rng.strided(4, 2), rng.strided(4, 3), rng.strided(2, 3), rng.strided(3, 3)
    b = rng.normal(3)
    expect(student(*inputs, b), "the new state").close_to(cell_by_operator(*inputs, b))
    one = rng.normal(1, 2), rng.normal(1, 3), *inputs[2:]
    expect(student(*one, b), "the new state of one row").close_to(cell_by_operator(*one, b))


guard(rnn_cell, cell_inputs)


@rnn_cell.misconception(
    did="Your new state does not depend on the last state: h W_hh is missing.",
    causes="Nothing passes from one character to the next, so the network knows one character of"
    " context, like a bigram table.",
    see="one-cell",
)
def no_recurrence(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(x @ W_xh + b)


@rnn_cell.misconception(
    did="You bend the sum with the sigmoid instead of tanh.",
    causes="The state then has no negative numbers, and each step back in time multiplies the"
    " gradient by at most ¼ where tanh passes up to 1.",
    see="one-cell",
)
def sigmoid(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.sigmoid(x @ W_xh + h @ W_hh + b)


@rnn_cell.misconception(
    did="Your state is the bare sum: the tanh is missing.",
    causes="Without it all steps together are one linear map, and the state grows without limit"
    " wherever W_hh stretches.",
    see="one-cell",
)
def no_tanh(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return x @ W_xh + h @ W_hh + b


@rnn_cell.misconception(
    did="You multiply the state by the transpose of W_hh.",
    causes="W_hh is square, so nothing crashes, but entry [i, j] then carries unit j to unit i"
    " instead of unit i to unit j.",
    see="one-cell",
)
def recurrence_transposed(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(x @ W_xh + h @ W_hh.T + b)


@rnn_cell.misconception(
    did="You treat the weights as `nn.Linear` stores them, (outputs, inputs).",
    causes="Here W_xh is (I, H): your product works only where I = H, and then it reads both"
    " matrices transposed.",
    see="one-cell",
)
def weights_as_in_linear(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(F.linear(x, W_xh) + F.linear(h, W_hh) + b)


@rnn_cell.misconception(
    did="The bias b is missing from the sum.",
    causes="Every unit then has to switch at zero, and a zero input from a zero state can only"
    " give zero.",
    see="one-cell",
)
def no_bias(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(x @ W_xh + h @ W_hh)


@rnn_cell.misconception(
    did="You add the bias after tanh.",
    causes="The state then leaves the range from −1 to 1, and b shifts the result instead of the"
    " point where a unit switches.",
    see="one-cell",
)
def bias_outside(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(x @ W_xh + h @ W_hh) + b


@rnn_cell.misconception(
    did="You put the input and the state through tanh one by one and add the results.",
    causes="The sum lies between −2 and 2, and a unit can no longer weigh the input against the"
    " state before it switches.",
    see="one-cell",
)
def two_tanhs(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(x @ W_xh + b) + torch.tanh(h @ W_hh)


# --- rnn_forward --------------------------------------------------------------------------------

rnn_forward = ASSIGNMENT.exercise(
    "rnn_forward",
    points=2,
    forbidden=FUSED + GATED,
    needs=("rnn_cell",),
    hints=(
        "The state after step t is an argument of step t + 1. Which variable must live on from"
        " one turn of the loop to the next?",
        "`x[:, t]` is the input of step t for the whole batch. Collect the states in a list and"
        " stack them when the loop is done.",
        "T tensors of shape (B, H), stacked along a new axis 1, are (B, T, H).",
    ),
)


def states_by_operator(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    parameters = [W_xh.T.contiguous(), W_hh.T.contiguous(), b, torch.zeros_like(b)]
    # Last arguments: biases, one layer, no dropout, not training, one direction, batch first.
    return torch.rnn_tanh(
        x.contiguous(), h0[None].contiguous(), parameters, True, 1, 0.0, False, False, True
    )[0]


def loop_inputs(
    rng: Rng,
    dtype: torch.dtype = torch.float64,
    *,
    batch: int = 3,
    steps: int = 5,
    n_in: int = 4,
    n_state: int = 7,
) -> tuple[Tensor, ...]:
    return (
        rng.normal(batch, steps, n_in, dtype=dtype),
        rng.normal(batch, n_state, dtype=dtype),
        *weights(rng, n_in, n_state, dtype),
    )


@rnn_forward.case("returns the state after each step")
def _(student: Handle, rng: Rng) -> None:
    inputs = loop_inputs(rng)
    expect(student(*inputs), "the states").close_to(states_by_operator(*inputs))


@rnn_forward.case("keeps batch and time apart when they are equally long")
def _(student: Handle, rng: Rng) -> None:
    inputs = loop_inputs(rng, batch=4, steps=4)
    expect(student(*inputs), "the states").close_to(states_by_operator(*inputs))


@rnn_forward.case("handles one step and a batch of one")
def _(student: Handle, rng: Rng) -> None:
    for batch, steps in ((1, 6), (2, 1)):
        inputs = loop_inputs(rng, batch=batch, steps=steps)
        expect(student(*inputs), f"the states for x of shape ({batch}, {steps}, 4)").close_to(
            states_by_operator(*inputs)
        )


@rnn_forward.case("starts from h0")
def _(student: Handle, rng: Rng) -> None:
    x, h0, *rest = loop_inputs(rng, steps=2)
    x = torch.zeros_like(x)  # only h0 is left to tell the rows apart
    expect(student(x, h0, *rest), "the states").close_to(states_by_operator(x, h0, *rest))


@rnn_forward.case("lets the gradient flow back through every step")
def _(student: Handle, rng: Rng) -> None:
    inputs = loop_inputs(rng)
    cotangent = torch.zeros(3, 5, 7, dtype=torch.float64)
    cotangent[:, -1] = rng.normal(3, 7)  # the last state alone is asked
    pulled = student.vjp(*inputs, cotangent=cotangent, wrt=(0, 1, 2, 3, 4))
    right = gradients_of(inputs, cotangent)
    for name, have, want in zip(
        ("x", "h0", "W_xh", "W_hh", "b"), pulled.inputs, right, strict=True
    ):
        have = torch.zeros_like(want) if have is None else have
        expect(have, f"the gradient for {name}").close_to(want)


def gradients_of(inputs: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """Autograd's gradients of <cotangent, states> for x, h0, W_xh, W_hh and b."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(states_by_operator(*leaves), leaves, cotangent)


guard(rnn_forward, loop_inputs)


@rnn_forward.misconception(
    did="Every step starts from h0 again: the state is not carried on.",
    causes="State t then knows x_t and nothing before it, so the network forgets after one"
    " character.",
    see="unrolled",
)
def state_not_carried(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    steps = range(x.shape[1])
    return torch.stack([torch.tanh(x[:, t] @ W_xh + h0 @ W_hh + b) for t in steps], dim=1)


def loop(x: Tensor, h: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> list[Tensor]:
    """The states after each step, as a list; the wrong answers below misuse it."""
    states = []
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ W_xh + h @ W_hh + b)
        states.append(h)
    return states


@rnn_forward.misconception(
    did="Your result has time first: `torch.stack` puts its new axis at 0 unless told otherwise.",
    causes="The shape is (T, B, H), so whoever reads `hs[:, t]` gets one text's states instead of"
    " one step's.",
    see="unrolled",
)
def stacked_time_first(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.stack(loop(x, h0, W_xh, W_hh, b))


@rnn_forward.misconception(
    did="You loop over the first axis of x, which is the batch, as if it were time.",
    causes="The state then travels from one text to the next one instead of along the text.",
    see="unrolled",
)
def loops_over_batch(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    h, states = h0, []
    for step in x:
        h = torch.tanh(step @ W_xh + h @ W_hh + b)
        states.append(h)
    return torch.stack(states)


@rnn_forward.misconception(
    did="You read x from its end, so state t has seen x_t and what follows it.",
    causes="In training the model sees the very characters it has to predict, and it has nothing"
    " to go on when it must write.",
    see="unrolled",
)
def reads_backward(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.stack(loop(x.flip(1), h0, W_xh, W_hh, b)[::-1], dim=1)


@rnn_forward.misconception(
    did="You read x from its end and return the states in that order.",
    causes="State t then belongs to step T − 1 − t and knows only what comes after it.",
    see="unrolled",
)
def reads_reversed(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.stack(loop(x.flip(1), h0, W_xh, W_hh, b), dim=1)


@rnn_forward.misconception(
    did="You return the last state alone.",
    causes="A language model predicts after every character, so it needs all T states: of shape"
    " (B, T, H).",
    see="unrolled",
)
def only_last_state(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return loop(x, h0, W_xh, W_hh, b)[-1]


@rnn_forward.misconception(
    did="Your list of states begins with h0 and so lacks the last one.",
    causes="State t has not read x_t yet, so every prediction is made one character too early.",
    see="unrolled",
)
def state_before_step(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.stack([h0, *loop(x, h0, W_xh, W_hh, b)[:-1]], dim=1)


@rnn_forward.misconception(
    did="You return h0 together with the T states.",
    causes="There are then T + 1 states for T targets, and each state stands one place too late.",
    see="unrolled",
)
def includes_h0(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.stack([h0, *loop(x, h0, W_xh, W_hh, b)], dim=1)


@rnn_forward.misconception(
    did="You start from zeros instead of h0.",
    causes="A text that is read in pieces then starts afresh with every piece.",
    see="unrolled",
)
def ignores_h0(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    return torch.stack(loop(x, torch.zeros_like(h0), W_xh, W_hh, b), dim=1)


@rnn_forward.misconception(
    did="You detach the state between two steps.",
    causes="The numbers are right, but no gradient reaches an earlier step: W_hh learns from one"
    " step of context only.",
    see="truncation",
)
def detaches_between_steps(x: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor, b: Tensor) -> Tensor:
    h, states = h0, []
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ W_xh + h.detach() @ W_hh + b)
        states.append(h)
    return torch.stack(states, dim=1)


# --- rnn_backward -------------------------------------------------------------------------------

GRADIENTS = ("dx", "dh0", "dW_xh", "dW_hh", "db")

rnn_backward = ASSIGNMENT.exercise(
    "rnn_backward",
    points=4,
    forbidden=(*FUSED, *GATED, "autograd", "grad", "backward", "vjp", "jacrev", "jvp"),
    hints=(
        "Which two roads lead from state h_t to the loss? One is `dhs[:, t]`. Where does the other"
        " one come from, and in which direction must the loop run to know it?",
        "Carry one tensor of shape (B, H) back through the loop: the gradient that arrives from"
        " the step after. Add it to `dhs[:, t]`, go through tanh′, then through each of the five"
        " inputs of that step.",
        "tanh′ of the sum is 1 − h_t². The gradient of a product a W is (gradient) Wᵀ for a and"
        " aᵀ (gradient) for W; the a that met W_hh at step t is the state before it, and at the"
        " first step that is h0. Weights are used T times, so their gradients add up.",
    ),
)


def backward_inputs(
    rng: Rng, dtype: torch.dtype = torch.float64, *, scale: float = 1.0, **sizes: int
) -> tuple[Tensor, ...]:
    """dhs, x, hs, h0, W_xh and W_hh of one run."""
    return backward_case(rng, dtype, scale=scale, **sizes)[0]


def backward_case(
    rng: Rng, dtype: torch.dtype = torch.float64, *, scale: float = 1.0, **sizes: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The arguments of `rnn_backward`, dhs at random, and the run they came from."""
    x, h0, W_xh, W_hh, b = run = loop_inputs(rng, dtype, **sizes)
    run = (scale * x, h0, W_xh, W_hh, b)
    hs = states_by_operator(*run)
    dhs = rng.normal(*hs.shape, dtype=dtype)
    return (dhs, run[0], hs, h0, W_xh, W_hh), run


def agrees_with_autograd(
    student: Handle,
    asked: Sequence[Tensor],
    run: Sequence[Tensor],
    names: Sequence[str] = GRADIENTS,
) -> None:
    result = student(*asked)
    expect(result, "the result").holds(
        isinstance(result, (tuple, list)) and len(result) == 5,
        "expected five gradients: dx, dh0, dW_xh, dW_hh, db.",
    )
    right = dict(zip(GRADIENTS, gradients_of(run, asked[0]), strict=True))
    have = dict(zip(GRADIENTS, result, strict=True))
    for name in names:
        expect(have[name], name).close_to(right[name])


@rnn_backward.case("gives autograd's gradient for the inputs and the first state")
def _(student: Handle, rng: Rng) -> None:
    agrees_with_autograd(student, *backward_case(rng), names=("dx", "dh0"))


@rnn_backward.case("gives autograd's gradient for W_xh and b")
def _(student: Handle, rng: Rng) -> None:
    agrees_with_autograd(student, *backward_case(rng), names=("dW_xh", "db"))


@rnn_backward.case("gives autograd's gradient for W_hh")
def _(student: Handle, rng: Rng) -> None:
    agrees_with_autograd(student, *backward_case(rng), names=("dW_hh",))


@rnn_backward.case("sends a loss on the last state back to every step")
def _(student: Handle, rng: Rng) -> None:
    (dhs, *rest), run = backward_case(rng, batch=2, steps=9, n_in=3, n_state=5)
    dhs[:, :-1] = 0
    agrees_with_autograd(student, (dhs, *rest), run)


@rnn_backward.case("sends a loss on the first state to the first step alone")
def _(student: Handle, rng: Rng) -> None:
    (dhs, *rest), run = backward_case(rng, batch=2, steps=4, n_in=3, n_state=5)
    dhs[:, 1:] = 0
    agrees_with_autograd(student, (dhs, *rest), run)


@rnn_backward.case("handles one step and a batch of one")
def _(student: Handle, rng: Rng) -> None:
    agrees_with_autograd(student, *backward_case(rng, batch=1, steps=1, n_in=2, n_state=3))
    agrees_with_autograd(student, *backward_case(rng, batch=1, steps=7, n_in=2, n_state=3))


@rnn_backward.case("passes nothing through a unit that sits at −1 or 1")
def _(student: Handle, rng: Rng) -> None:
    agrees_with_autograd(student, *backward_case(rng, scale=100.0, steps=3))


guard(rnn_backward, backward_inputs, gradient=False)


def back(
    dhs: Tensor,
    x: Tensor,
    hs: Tensor,
    h0: Tensor,
    W_xh: Tensor,
    W_hh: Tensor,
    *,
    slope: Any = lambda h: 1 - h**2,
    carry: bool = True,
    W_back: Tensor | None = None,
    before: Tensor | None = None,
    order: Iterable[int] | None = None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients before tanh at each step, the states before each step, and what reaches h0.

    The wrong answers below are this loop with one thing changed.
    """
    n_steps = x.shape[1]
    before = torch.cat([h0[:, None], hs[:, :-1]], dim=1) if before is None else before  # (B, T, H)
    W_back = W_hh.T if W_back is None else W_back
    das, arriving = [torch.zeros_like(h0)] * n_steps, torch.zeros_like(h0)  # (B, H) each
    for t in reversed(range(n_steps)) if order is None else order:
        das[t] = (dhs[:, t] + (arriving if carry else 0)) * slope(hs[:, t])
        arriving = das[t] @ W_back
    return das, before, arriving


def collect(
    das: list[Tensor], before: Tensor, dh0: Tensor, x: Tensor, W_xh: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five gradients from the gradient before tanh at each step."""
    da = torch.stack(das, dim=1)  # (B, T, H)
    dW_xh, dW_hh = torch.einsum("bti,bth->ih", x, da), torch.einsum("btg,bth->gh", before, da)
    return da @ W_xh.T, dh0, dW_xh, dW_hh, da.sum((0, 1))


Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@rnn_backward.misconception(
    did="Each step uses `dhs[:, t]` alone: what comes back from the step after is left out.",
    causes="That is backpropagation cut after one step, so the network cannot learn to keep"
    " anything for later.",
    see="backpropagation-through-time",
)
def truncated_to_one_step(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    return collect(*back(dhs, x, hs, h0, W_xh, W_hh, carry=False), x, W_xh)


@rnn_backward.misconception(
    did="Each step overwrites the gradients of the weights, so only the first step's remain.",
    causes="The weights were used at all T steps and learn from one of them.",
    see="backpropagation-through-time",
)
def weights_not_summed(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    das, before, dh0 = back(dhs, x, hs, h0, W_xh, W_hh)
    dx = torch.stack(das, dim=1) @ W_xh.T
    return dx, dh0, x[:, 0].T @ das[0], before[:, 0].T @ das[0], das[0].sum(0)


@rnn_backward.misconception(
    did="You average the gradients of the weights over the steps.",
    causes="They come out T times too small: the loss already says how its parts are weighed,"
    " and the backward pass only adds.",
    see="backpropagation-through-time",
)
def weights_averaged(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    dx, dh0, *rest = collect(*back(dhs, x, hs, h0, W_xh, W_hh), x, W_xh)
    dW_xh, dW_hh, db = (gradient / x.shape[1] for gradient in rest)
    return dx, dh0, dW_xh, dW_hh, db


@rnn_backward.misconception(
    did="You take tanh once more for tanh′: 1 − tanh(h)² where h is already a tanh.",
    causes="A unit that sits at ±1 must pass nothing back; yours passes 42 %.",
    see="backpropagation-through-time",
)
def slope_of_the_state(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    def slope(h: Tensor) -> Tensor:
        return 1 - torch.tanh(h) ** 2

    return collect(*back(dhs, x, hs, h0, W_xh, W_hh, slope=slope), x, W_xh)


@rnn_backward.misconception(
    did="The slope of tanh is missing: the gradient passes every unit unchanged.",
    causes="A unit stuck at ±1 then keeps sending gradient back, and nothing keeps it from"
    " growing step by step.",
    see="backpropagation-through-time",
)
def no_slope(dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor) -> Five:
    return collect(*back(dhs, x, hs, h0, W_xh, W_hh, slope=torch.ones_like), x, W_xh)


@rnn_backward.misconception(
    did="You take h_t for the state that met W_hh at step t; it was h_{t−1}.",
    causes="dW_hh then ties each state to itself instead of to the one before, and h0 has no part"
    " in it.",
    see="backpropagation-through-time",
)
def same_state(dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor) -> Five:
    return collect(*back(dhs, x, hs, h0, W_xh, W_hh, before=hs), x, W_xh)


@rnn_backward.misconception(
    did="Your sum for dW_hh leaves out the first step, where the state before was h0.",
    causes="With h0 = 0 nobody notices; as soon as a state is carried over, W_hh learns from"
    " T − 1 steps instead of T.",
    see="backpropagation-through-time",
)
def first_state_forgotten(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    before = torch.cat([torch.zeros_like(h0)[:, None], hs[:, :-1]], dim=1)
    return collect(*back(dhs, x, hs, h0, W_xh, W_hh, before=before), x, W_xh)


@rnn_backward.misconception(
    did="You send the gradient back through W_hh instead of its transpose.",
    causes="Going forward, [i, j] carries unit i to unit j; going back, the gradient must take the"
    " same wire the other way.",
    see="backpropagation-through-time",
)
def back_without_transpose(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    return collect(*back(dhs, x, hs, h0, W_xh, W_hh, W_back=W_hh), x, W_xh)


@rnn_backward.misconception(
    did="Your loop runs forward in time.",
    causes="The gradient of h_t needs what step t + 1 sends back, and going forward that is not"
    " known yet: losses reach later steps instead of earlier ones.",
    see="backpropagation-through-time",
)
def forward_in_time(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    das, before, dh0 = back(dhs, x, hs, h0, W_xh, W_hh, order=range(x.shape[1]))
    return collect(das, before, dh0, x, W_xh)


@rnn_backward.misconception(
    did="Your dh0 is the gradient before tanh of the first step; it has not gone back through"
    " W_hh.",
    causes="When a text is read in pieces, the piece before gets the gradient of the wrong units.",
    see="backpropagation-through-time",
)
def first_state_not_reached(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    das, before, _ = back(dhs, x, hs, h0, W_xh, W_hh)
    return collect(das, before, das[0], x, W_xh)


@rnn_backward.misconception(
    did="You start from the last state's gradient and leave out `dhs` at the other steps.",
    causes="A language model has a loss at every character; all but the last one are then never"
    " learned from.",
    see="backpropagation-through-time",
)
def only_last_loss(
    dhs: Tensor, x: Tensor, hs: Tensor, h0: Tensor, W_xh: Tensor, W_hh: Tensor
) -> Five:
    last = torch.zeros_like(dhs)
    last[:, -1] = dhs[:, -1]
    return collect(*back(last, x, hs, h0, W_xh, W_hh), x, W_xh)


# --- clip_grad_norm_ ----------------------------------------------------------------------------

clip_grad_norm_ = ASSIGNMENT.exercise(
    "clip_grad_norm_",
    points=3,
    forbidden=(
        "clip_grad_norm_",
        "clip_grad_norm",
        "clip_grads_with_norm_",
        "clip_grad_value_",
        "get_total_norm",
    ),
    hints=(
        "If all gradients were written one after the other into one long vector, how long would"
        " that vector be?",
        "A generator can be read only once, so make a list of the gradients first, and leave out"
        " parameters whose `.grad` is None.",
        "total = √(Σ over all entries of g²). If total > max_norm, multiply every gradient, in"
        " place, by max_norm / total. Return total.",
    ),
)


def with_gradients(rng: Rng, *scales: float, dtype: torch.dtype = torch.float64) -> list[Parameter]:
    """Parameters of several shapes whose gradients have the given scales."""
    shapes = itertools.cycle(((3, 5), (7,), (2, 3, 2), ()))
    return [
        Parameter(rng.normal(*shape, dtype=dtype), scale * rng.normal(*shape, dtype=dtype))
        for scale, shape in zip(scales, shapes, strict=False)
    ]


def joint_norm(parameters: Sequence[Parameter]) -> float:
    gradients = [p.grad.double().flatten() for p in parameters if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.cat(gradients)))


# PyTorch divides by norm + 1e-6 and a textbook by the norm: both are right.
NEARLY = {"rtol": 1e-4, "atol": 1e-6}


def clipped(
    student: Handle, parameters: Sequence[Parameter], max_norm: float, *, once: bool = False
) -> list[Parameter]:
    """Clip with the student's function, check everything but identity, return what is left."""
    sent = Items(parameters) if once else list(parameters)
    value, (after, _), _ = student.after(sent, max_norm)
    after = list(after.items if isinstance(after, Items) else after)
    norm = joint_norm(parameters)
    factor = min(1.0, max_norm / norm) if norm > 0 else 1.0
    for i, (old, new) in enumerate(zip(parameters, after, strict=True)):
        if old.grad is None:
            continue
        expect(new.grad, f"the gradient of parameter {i} after the call").close_to(
            factor * old.grad, **NEARLY
        )
    expect(value, "the returned norm").close_to(norm, **NEARLY)
    for i, (old, new) in enumerate(zip(parameters, after, strict=True)):
        expect(new.data, f"parameter {i} itself").close_to(old.data)
    return after


@clip_grad_norm_.case("shrinks all gradients by one factor and returns the norm from before")
def _(student: Handle, rng: Rng) -> None:
    clipped(student, with_gradients(rng, 3.0, 0.5, 11.0), 1.7)


@clip_grad_norm_.case("leaves gradients alone whose joint norm is small enough")
def _(student: Handle, rng: Rng) -> None:
    clipped(student, with_gradients(rng, 0.3, 0.2, 0.1), 50.0)


@clip_grad_norm_.case("clips when no single gradient is too long but all together are")
def _(student: Handle, rng: Rng) -> None:
    gradients = torch.eye(4, dtype=torch.float64)  # four gradients of norm 1: joint norm 2
    parameters = [Parameter(rng.normal(4), rng.integer(3, 7) / 5 * g) for g in gradients]
    longest = max(joint_norm([p]) for p in parameters)
    clipped(student, parameters, 1.1 * longest)


@clip_grad_norm_.case("takes a generator, and parameters without a gradient")
def _(student: Handle, rng: Rng) -> None:
    parameters = with_gradients(rng, 2.0, 5.0, 3.0)
    parameters.insert(1, Parameter(rng.normal(4)))
    try:
        clipped(student, parameters, 2.3)
    except StudentError as error:
        if "NoneType" in error.message:
            fail(
                f"a parameter without a gradient stops it ({error.message}).",
                mistake="trips_over_none",
            )
        raise
    clipped(student, parameters, 2.3, once=True)


@clip_grad_norm_.case("changes the gradients in place")
def _(student: Handle, rng: Rng) -> None:
    for i, left in enumerate(clipped(student, with_gradients(rng, 4.0, 7.0), 0.9)):
        expect(left.grad_before, f"the tensor that was parameter {i}'s gradient").close_to(
            left.grad
        )


@clip_grad_norm_.case("leaves gradients of zero at zero")
def _(student: Handle, rng: Rng) -> None:
    parameters = with_gradients(rng, 0.0, 0.0)
    clipped(student, parameters, 1.0)


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.sqrt(sum((g**2).sum() for g in gradients))  # type: ignore[arg-type]


def _scale(gradients: Sequence[Tensor], total: Tensor, max_norm: float) -> None:
    if total > max_norm:
        for g in gradients:
            g *= max_norm / total


@clip_grad_norm_.misconception(
    did="You rescale even when the norm is below max_norm.",
    causes="Small gradients are blown up to length max_norm, so training never settles: near the"
    " minimum every step is as long as at the start.",
    see="clipping",
)
def always_scales(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    gradients = _gradients(parameters)
    total = _norm(gradients)
    for g in gradients:
        g *= max_norm / total
    return total


@clip_grad_norm_.misconception(
    did="You clip each tensor by its own norm.",
    causes="Long gradients shrink and short ones do not, so the step leaves the direction of the"
    " gradient.",
    see="clipping",
)
def per_tensor(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    gradients = _gradients(parameters)
    total = _norm(gradients)
    for g in gradients:
        _scale([g], _norm([g]), max_norm)
    return total


@clip_grad_norm_.misconception(
    did="You clamp each number to ±max_norm.",
    causes="The joint norm may still be far above max_norm, and the direction of the step changes.",
    see="clipping",
)
def clamps_values(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    gradients = _gradients(parameters)
    total = _norm(gradients)
    for g in gradients:
        g.clamp_(-max_norm, max_norm)
    return total


@clip_grad_norm_.misconception(
    did="You add up absolute values, which is the L1 norm.",
    causes="For a million equal gradients it is a thousand times the length, so a large model is"
    " clipped at every step. The norm meant here is the root of the sum of squares.",
    see="clipping",
)
def l1_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    gradients = _gradients(parameters)
    total = torch.stack([g.abs().sum() for g in gradients]).sum()
    _scale(gradients, total, max_norm)
    return total


@clip_grad_norm_.misconception(
    did="You add up the norms of the tensors instead of their squares.",
    causes="The sum of lengths is longer than the joint length, so you clip too early and too"
    " much.",
    see="clipping",
)
def sum_of_norms(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    gradients = _gradients(parameters)
    total = torch.stack([g.norm() for g in gradients]).sum()
    _scale(gradients, total, max_norm)
    return total


@clip_grad_norm_.misconception(
    did="The root is missing: you use the square of the norm.",
    causes="A gradient of norm 10 passes for 100 and is cut to a tenth of what it should keep.",
    see="clipping",
)
def squared_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    gradients = _gradients(parameters)
    total = _norm(gradients) ** 2
    _scale(gradients, total, max_norm)
    return total


@clip_grad_norm_.misconception(
    did="You return the norm after clipping.",
    causes="It is max_norm whenever something was clipped, so a log of it cannot show an"
    " explosion.",
    see="clipping",
)
def returns_clipped_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    gradients = _gradients(parameters)
    _scale(gradients, _norm(gradients), max_norm)
    return _norm(gradients)


@clip_grad_norm_.misconception(
    did="You give each parameter a new gradient tensor instead of changing the one it has.",
    causes="Whoever holds the old tensor (an optimizer's buffer, a view of all gradients) keeps"
    " the unclipped numbers. The name's underscore says: in place.",
    see="clipping",
)
def rebinds(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    parameters = [p for p in parameters if p.grad is not None]
    total = _norm(_gradients(parameters))
    if total > max_norm:
        for p in parameters:
            p.grad = p.grad * (max_norm / total)  # type: ignore[operator]
    return total


@clip_grad_norm_.misconception(
    did="The gradients are what they were: `g = g * c` makes a new tensor and changes no `.grad`.",
    causes="Nothing is ever clipped, and the norm you return hides it. Scale with `g.mul_(c)`.",
    see="clipping",
)
def rebinds_a_name(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    return _norm(_gradients([p for p in parameters if p.grad is not None]))


@clip_grad_norm_.misconception(
    did="You go through `parameters` twice.",
    causes="`model.parameters()` is a generator and empty the second time, so nothing is clipped."
    " Make a list of it first.",
    see="clipping",
)
def reads_twice(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    total = _norm(_gradients(parameters))
    _scale(_gradients(parameters), total, max_norm)
    return total


@clip_grad_norm_.misconception(
    did="You read `.grad` of a parameter that has none.",
    causes="A frozen or unused parameter has `.grad` None, and the first such model stops your"
    " training.",
    see="clipping",
)
def trips_over_none(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    gradients: list[Any] = [p.grad for p in parameters]
    total = _norm(gradients)
    _scale(gradients, total, max_norm)
    return total


@clip_grad_norm_.misconception(
    did="You scale the parameters instead of their gradients.",
    causes="The model's weights shrink whenever the gradient is long, and the long step is taken"
    " all the same.",
    see="clipping",
)
def scales_parameters(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    parameters = list(parameters)
    total = _norm(_gradients(parameters))
    _scale([p.data for p in parameters], total, max_norm)
    return total


# --- CharRNN ------------------------------------------------------------------------------------

CharRNN = ASSIGNMENT.exercise(
    "CharRNN",
    points=3,
    forbidden=GATED,
    needs=("rnn_cell", "rnn_forward"),
    hints=(
        "Three parts stand one after the other: what turns an id into a vector, what carries a"
        " state along, what turns a state into V scores. Which sizes does each of them have?",
        "The recurrence gives a state for every step. The head reads all of them; the caller gets"
        " the last one back, to hand it in again with the next piece of text.",
        "(B, T) → embedding (B, T, D) → states (B, T, D) → logits (B, T, V). Without h the first"
        " state is zeros of shape (B, D), on the device and of the dtype of the embeddings.",
    ),
)

V, D = 11, 7  # of the model that most cases build


def build(student: Handle, rng: Rng, vocab_size: int = V, d_model: int = D) -> Handle:
    """A student's model with random weights, the same in every replay."""
    model = student.hold(vocab_size, d_model)
    return model.load(rng.like(model.shapes())).eval()


def read(model: Handle, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits and state, once it is sure that there are two tensors."""
    result = model(*inputs)
    expect(result, "the result of forward").holds(
        isinstance(result, (tuple, list))
        and len(result) == 2
        and all(isinstance(part, Tensor) for part in result),
        "expected two tensors, logits and h.",
    )
    return result[0], result[1]


def state(batch: int) -> Tensor:
    """A first state of zeros. Cases hand it in, so that a wrong default shows only where asked."""
    return torch.zeros(batch, D, dtype=torch.float64)


def differ(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape differ by more than rounding."""
    return not torch.allclose(one, other, rtol=1e-6, atol=1e-9)


@CharRNN.case("gives V logits for every character, and a state of D numbers")
def _(student: Handle, rng: Rng) -> None:
    for batch, steps, vocab_size, d_model in ((3, 5, V, D), (1, 1, 2, 13)):
        model = build(student, rng, vocab_size, d_model)
        logits, h = read(model, rng.integers(0, vocab_size, batch, steps))
        if tuple(logits.shape) == (batch, vocab_size):
            fail("the logits stand for the last character alone.", mistake="only_last_logits")
        expect(logits, "the logits").has_shape(batch, steps, vocab_size)
        if tuple(h.shape) == (steps, d_model) != (batch, d_model):
            fail("h has one row for every character of a text.", mistake="mixes_texts")
        if tuple(h.shape) == (1, batch, d_model):
            fail("h has one axis too many.", mistake="state_with_layer_axis")
        if tuple(h.shape) == (batch, steps, d_model):
            fail("h holds the states of all steps.", mistake="returns_all_states")
        expect(h, "the state h").has_shape(batch, d_model)


@CharRNN.case("remembers the characters before, and only those")
def _(student: Handle, rng: Rng) -> None:
    model, ids, h0 = build(student, rng), rng.integers(0, V, 2, 6), state(2)
    logits, _ = read(model, ids, h0)
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 1) % V
    again, _ = read(model, changed, h0)
    if differ(again[:, :3], logits[:, :3]):
        fail(
            "changing character 3 changed the logits of characters 0 to 2.",
            mistake="sees_the_future",
        )
    expect(again, "the logits").holds(
        differ(again[:, 3], logits[:, 3]),
        "changing character 3 left its own logits as they were.",
    )
    expect(again, "the logits").holds(
        differ(again[:, 4:], logits[:, 4:]),
        "changing character 3 left the logits of characters 4 and 5 as they were.",
        mistake="no_memory",
    )


@CharRNN.case("reads each text of the batch by itself")
def _(student: Handle, rng: Rng) -> None:
    model, ids = build(student, rng), rng.integers(0, V, 5, 4)
    logits, h = read(model, ids, state(5))
    alone, h_alone = read(model, ids[1:2], state(1))
    if differ(alone[0], logits[1]):
        fail("a text's logits depend on the other texts of its batch.", mistake="mixes_texts")
    expect(h_alone[0], "the state of a text read alone").close_to(h[1])


@CharRNN.case("goes on from the state it is given")
def _(student: Handle, rng: Rng) -> None:
    model, ids, h0 = build(student, rng), rng.integers(0, V, 3, 9), state(3)
    whole, h_whole = read(model, ids, h0)
    first, h = read(model, ids[:, :4], h0)
    second, h_second = read(model, ids[:, 4:], h)
    other, _ = read(model, ids[:, 4:], -h)
    expect(second, "the logits of the second part").holds(
        differ(second, other),
        "they are the same whatever h is handed in.",
        mistake="ignores_the_state",
    )
    changed = ids[:, :4].clone()
    changed[:, 3] = (changed[:, 3] + 1) % V
    expect(h, "the returned state").holds(
        differ(h, read(model, changed, h0)[1]),
        "it does not depend on the last character read.",
        mistake="state_before_last",
    )
    expect(torch.cat([first, second], dim=1), "the logits of a text read in two parts").close_to(
        whole
    )
    expect(h_second, "the state after a text read in two parts").close_to(h_whole)


@CharRNN.case("starts from zeros when no state is given, every time")
def _(student: Handle, rng: Rng) -> None:
    model, ids = build(student, rng), rng.integers(0, V, 3, 4)
    logits, h = read(model, ids)
    again, _ = read(model, ids)
    if differ(again, logits):
        kept = not differ(again, read(model, ids, h)[0])
        fail(
            "the same text gives other logits the second time.",
            mistake="keeps_its_state" if kept else "random_start",
        )
    expect(logits, "the logits without a state").close_to(read(model, ids, state(3))[0])


@CharRNN.case("gives logits, not probabilities")
def _(student: Handle, rng: Rng) -> None:
    logits, _ = read(build(student, rng), rng.integers(0, V, 3, 5), state(3))
    rows = logits.sum(dim=-1)
    expect(logits, "the logits").holds(
        differ(rows, torch.ones_like(rows)),
        "every row adds up to 1, so a softmax has been at work.",
        mistake="returns_probabilities",
    )


@CharRNN.case("keeps the numbers of the state between −1 and 1, on both sides of zero")
def _(student: Handle, rng: Rng) -> None:
    model = student.hold(V, D)
    model.load(rng.like(model.shapes(), scale=2.0)).eval()
    _, h = read(model, rng.integers(0, V, 13, 5), state(13))
    expect(h, "the state h").holds(
        bool((h.abs() <= 1).all() and (h < 0).any() and (h > 0).any()),
        f"a tanh gives numbers between −1 and 1, but these run from {h.min():.3g} to"
        f" {h.max():.3g}.",
        mistake="state_without_tanh",
    )


@CharRNN.case(
    "lets the gradient flow back into the state it was given, and out of the one it gives"
)
def _(student: Handle, rng: Rng) -> None:
    model, ids, h = build(student, rng), rng.integers(0, V, 2, 4), 0.5 * rng.normal(2, D)
    logits, _ = read(model, ids, h)
    last = torch.zeros_like(logits)
    last[:, -1] = rng.normal(2, V)
    for name, cotangent in (("last logits", (last, None)), ("h", (None, rng.normal(2, D)))):
        try:
            found = model.vjp(ids, h, cotangent=cotangent, wrt=(1,)).inputs[0]
        except StudentError as error:
            if error.kind != "NoGradient":
                raise
            found = None
        if found is None or not bool((found != 0).any()):
            fail(
                f"no gradient flows from the {name} back to the state handed in.",
                mistake="detaches_the_state",
            )


guard(CharRNN, lambda rng, dtype: (rng.integers(0, V, 3, 5),), build=(V, D))


class Wrong(nn.Module):
    """A `CharRNN` to be spoiled: each wrong answer below overrides one of its steps."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.rnn = nn.RNN(d_model, d_model, batch_first=True)
        self.head = nn.Linear(d_model, vocab_size)

    def start(self, ids: Tensor, h: Tensor | None) -> Tensor:
        width = self.embedding.weight
        return width.new_zeros(len(ids), width.shape[1]) if h is None else h

    def states(self, x: Tensor, h: Tensor) -> Tensor:
        return self.rnn(x, h[None])[0]

    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        states = self.states(self.embedding(ids), self.start(ids, h))
        return self.head(states), states[:, -1]


@CharRNN.misconception(
    did="Your logits stand for the last character alone.",
    causes="A text of T characters has T targets; with one of them counted, training sees 1/T of"
    " what it was shown.",
    see="language-model",
)
class only_last_logits(Wrong):
    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits, h = super().forward(ids, h)
        return logits[:, -1], h


@CharRNN.misconception(
    did="Your state has shape (1, B, D), as `nn.RNN` returns it.",
    causes="The first axis counts layers, and here there is one: return its (B, D), or whoever"
    " carries the state on meets an axis too many.",
    see="language-model",
)
class state_with_layer_axis(Wrong):
    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits, h = super().forward(ids, None if h is None else h.reshape(-1, h.shape[-1]))
        return logits, h[None]


@CharRNN.misconception(
    did="You return the states of all steps where the last one was asked for.",
    causes="The next call needs one state of shape (B, D) to go on from.",
    see="language-model",
)
class returns_all_states(Wrong):
    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        states = self.states(self.embedding(ids), self.start(ids, h))
        return self.head(states), states


@CharRNN.misconception(
    did="Your state comes from the end of the text to its beginning.",
    causes="Every prediction is made with the answer in sight: the loss falls to nothing in"
    " training, and the model cannot write.",
    see="language-model",
)
class sees_the_future(Wrong):
    def states(self, x: Tensor, h: Tensor) -> Tensor:
        return super().states(x.flip(1), h).flip(1)


@CharRNN.misconception(
    did="Your logits depend on the current character alone.",
    causes="The head must read the states, not the embeddings, and the state must travel from step"
    " to step; this is a bigram table with extra steps.",
    see="language-model",
)
class no_memory(Wrong):
    def states(self, x: Tensor, h: Tensor) -> Tensor:
        start = h[:, None].expand(-1, x.shape[1], -1).reshape(-1, h.shape[-1])  # (B T, D)
        return super().states(x.reshape(-1, 1, x.shape[-1]), start).reshape(x.shape)


@CharRNN.misconception(
    did="Your recurrence runs across the batch: `batch_first=True`, or an axis, is missing.",
    causes="The state travels from one text to its neighbor in the batch, and no text remembers"
    " its own beginning.",
    see="language-model",
)
class mixes_texts(Wrong):
    def states(self, x: Tensor, h: Tensor) -> Tensor:
        return super().states(x.transpose(0, 1), h[:1].expand(x.shape[1], -1)).transpose(0, 1)


@CharRNN.misconception(
    did="You do not use the state that is handed in.",
    causes="Every call starts from zeros, so a model that writes one character at a time knows only"
    " that character.",
    see="language-model",
)
class ignores_the_state(Wrong):
    def start(self, ids: Tensor, h: Tensor | None) -> Tensor:
        return super().start(ids, None)


@CharRNN.misconception(
    did="The state you return is the one from before the last character.",
    causes="The next call then never learns of that character.",
    see="language-model",
)
class state_before_last(Wrong):
    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        start = self.start(ids, h)
        states = self.states(self.embedding(ids), start)
        return self.head(states), torch.cat([start[:, None], states], dim=1)[:, -2]


@CharRNN.misconception(
    did="Your model starts from random numbers when no state is given.",
    causes="The same text gets other probabilities with every call, and the first characters of"
    " each text are guessed from noise.",
    see="language-model",
)
class random_start(Wrong):
    def start(self, ids: Tensor, h: Tensor | None) -> Tensor:
        return torch.randn_like(super().start(ids, None)) if h is None else h


@CharRNN.misconception(
    did="Your model keeps its last state inside and goes on from it in the next call.",
    causes="A new text then continues the one before, and the loss on it depends on what was read"
    " earlier. The state belongs to the caller.",
    see="language-model",
)
class keeps_its_state(Wrong):
    kept: Tensor | None = None

    def start(self, ids: Tensor, h: Tensor | None) -> Tensor:
        fits = self.kept is not None and len(self.kept) == len(ids)
        return self.kept if h is None and fits else super().start(ids, h)  # type: ignore[return-value]

    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits, h = super().forward(ids, h)
        self.kept = h.detach()
        return logits, h


@CharRNN.misconception(
    did="Your model returns probabilities: there is a softmax at its end.",
    causes="`cross_entropy` applies a softmax itself. After two of them even the surest prediction"
    " is nearly uniform, and training stalls.",
    see="language-model",
)
class returns_probabilities(Wrong):
    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits, h = super().forward(ids, h)
        return logits.softmax(dim=-1), h


@CharRNN.misconception(
    did="Your recurrence does not go through tanh.",
    causes="A state that is not held between −1 and 1 grows or dies out along the text, and with it"
    " the gradient.",
    see="language-model",
)
class state_without_tanh(Wrong):
    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(vocab_size, d_model)
        self.rnn = nn.RNN(d_model, d_model, batch_first=True, nonlinearity="relu")


@CharRNN.misconception(
    did="You detach the state inside the model.",
    causes="The gradient then ends at that place in every training step, and the caller can no"
    " longer choose where to cut.",
    see="truncation",
)
class detaches_the_state(Wrong):
    def forward(self, ids: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits, h = super().forward(ids, None if h is None else h.detach())
        return logits, h.detach()
