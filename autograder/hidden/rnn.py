"""Hidden cases of chapter 02."""

from __future__ import annotations

import torch

from autograder.checks.rnn import (
    ASSIGNMENT,
    CharRNN,
    agrees_with_autograd,
    backward_case,
    build,
    cell_by_operator,
    clip_grad_norm_,
    clipped,
    differ,
    loop_inputs,
    read,
    rnn_backward,
    rnn_cell,
    rnn_forward,
    states_by_operator,
    weights,
    with_gradients,
)
from autograder.child.protocol import Parameter
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@rnn_cell.hidden(
    "gives tanh(b) for a zero input and a zero state",
    hint="With zeros for input and state, only the bias is left.",
)
def _(student: Handle, rng: Rng) -> None:
    x, h = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)
    inputs = x, h, *weights(rng, 3, 5)
    expect(student(*inputs), "the new state").close_to(cell_by_operator(*inputs))


@rnn_forward.hidden(
    "reads inputs that do not lie contiguously in memory",
    hint="An input can be a transposed or sliced view: index it instead of reshaping it.",
)
def _(student: Handle, rng: Rng) -> None:
    _, h0, *rest = loop_inputs(rng, batch=2, steps=6)
    x = rng.strided(2, 6, 4)
    expect(student(x, h0, *rest), "the states").close_to(states_by_operator(x, h0, *rest))


@rnn_forward.hidden(
    "two halves with the state handed over give the same states as the whole",
    hint="Reading a text in two pieces, the second from the last state of the first, must give the"
    " same states as reading it at once.",
)
def _(student: Handle, rng: Rng) -> None:
    x, h0, *rest = loop_inputs(rng, steps=8)
    first = student(x[:, :3], h0, *rest)
    expect(first, "the states of the first part").has_shape(3, 3, 7)
    second = student(x[:, 3:], first[:, -1], *rest)
    expect(torch.cat([first, second], dim=1), "the states of both parts").close_to(
        states_by_operator(x, h0, *rest)
    )


@rnn_backward.hidden(
    "a long run and tensors that do not lie contiguously in memory",
    hint="The inputs can be transposed views, and a run can have dozens of steps.",
)
def _(student: Handle, rng: Rng) -> None:
    (_, _, _, h0, W_xh, W_hh), (_, _, _, _, b) = backward_case(rng, batch=2, steps=37)
    x, dhs = rng.strided(2, 37, 4), rng.strided(2, 37, 7)
    hs = states_by_operator(x, h0, W_xh, W_hh, b)
    agrees_with_autograd(student, (dhs, x, hs, h0, W_xh, W_hh), (x, h0, W_xh, W_hh, b))


@rnn_backward.hidden(
    "no gradient in, no gradient out",
    hint="If the loss depends on no state, all five gradients are zero.",
)
def _(student: Handle, rng: Rng) -> None:
    (dhs, *rest), run = backward_case(rng, batch=2, steps=3)
    agrees_with_autograd(student, (0 * dhs, *rest), run)


@clip_grad_norm_.hidden(
    "one enormous gradient among tiny ones",
    hint="Numbers as large as those of an exploding gradient must come out at max_norm too.",
)
def _(student: Handle, rng: Rng) -> None:
    clipped(student, with_gradients(rng, 1e-3, 1e12, 1.0), 5.0)


@clip_grad_norm_.hidden(
    "float32 gradients stay float32", hint="The gradients keep their own floating-point type."
)
def _(student: Handle, rng: Rng) -> None:
    parameters = with_gradients(rng, 6.0, 2.0, dtype=torch.float32)
    for left in clipped(student, parameters, 1.3):
        expect(left.grad, "the gradient").has_dtype(torch.float32)


@clip_grad_norm_.hidden(
    "a model whose parameters have no gradients yet",
    hint="If no parameter has a gradient, there is nothing to scale and the norm is 0.",
)
def _(student: Handle, rng: Rng) -> None:
    value = student([Parameter(rng.normal(3)), Parameter(rng.normal(2, 2))], 1.0)
    expect(value, "the returned norm").close_to(0.0)


@CharRNN.hidden(
    "writes one character at a time as it reads many",
    hint="Feeding a text one character per call, with the state handed on, must give the logits of"
    " reading it at once.",
)
def _(student: Handle, rng: Rng) -> None:
    model, ids = build(student, rng, 5, 13), rng.integers(0, 5, 2, 7)
    whole, h_whole = read(model, ids)
    logits, h = [], None
    for t in range(7):
        one, h = read(model, ids[:, t : t + 1], h)
        logits.append(one)
    expect(torch.cat(logits, dim=1), "the logits, character by character").close_to(whole)
    expect(h, "the last state").close_to(h_whole)


@CharRNN.hidden(
    "learns with every one of its parameters",
    hint="After a loss over a whole text, every parameter of the model has a gradient.",
)
def _(student: Handle, rng: Rng) -> None:
    model, ids = build(student, rng), rng.integers(0, 11, 2, 6)
    logits, _ = read(model, ids)
    pulled = model.vjp(ids, cotangent=(rng.normal(*logits.shape), None))
    still = [name for name, g in pulled.parameters.items() if g is None or not bool(g.any())]
    expect(still, "the parameters").holds(not still, f"no gradient reaches {', '.join(still)}.")


@CharRNN.hidden(
    "starts differently with every new model",
    hint="A new model needs random weights: with all of them equal, all units learn the same.",
)
def _(student: Handle, rng: Rng) -> None:
    model, ids = student.hold(11, 7), rng.integers(0, 11, 2, 6)
    logits, h = read(model, ids)
    expect(h, "the state of a new model").holds(
        differ(h, h[:, :1].expand_as(h)), "all of its numbers are equal."
    )
    expect(logits, "the logits of a new model").holds(
        bool(logits.isfinite().all()), "they are not finite."
    )
