"""Checks of chapter 03: LSTM and GRU cells, stacked layers, detached state, sampled text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from autograder.child.protocol import Seed
from autograder.engine.exercise import Assignment, Rng
from autograder.engine.expect import expect, fail, pulled_by_autograd
from autograder.engine.guards import DEVICE, DEVICE_TITLE, MUTATES, MUTATION_TITLE, guard
from autograder.engine.handle import Handle, Pullback, StudentError

ASSIGNMENT = Assignment(
    name="03-lstm",
    notebook="lstm",
    page="03_lstm",
    sections={
        "additive-path": "The additive path",
        "three-gates": "Three gates",
        "gru": "The GRU: two gates, one state",
        "stacked-layers": "Layers",
        "long-text": "Training on a text longer than a window",
        "sampling": "Sampling text",
    },
    minutes=75,
    modules=("data", "metrics", "ngram", "rnn"),
)

State = tuple[Tensor, Tensor]
FUSED_CELLS = ("lstm_cell", "gru_cell", "LSTMCell", "GRUCell", "LSTM", "GRU")


# --- lstm_cell ----------------------------------------------------------------------------------

lstm_cell = ASSIGNMENT.exercise(
    "lstm_cell",
    points=3,
    forbidden=FUSED_CELLS,
    hints=(
        "The four gates look at the same x and the same h. How many matrix products do you need"
        " for all four together?",
        "Compute one (B, 4H) array of affine values, cut it into four blocks of H columns in the"
        " order i, f, g, o, and give each block its own function: three of them answer “how much”,"
        " one answers “what”.",
        "c′ = f ⊙ c + i ⊙ g, then h′ = o ⊙ tanh(c′). `Tensor.chunk` cuts an array in equal blocks.",
    ),
)


def lstm_inputs(rng: Rng, batch: int, n_in: int, n_hidden: int, dtype: torch.dtype) -> Any:
    """x, (h, c), W_ih, W_hh, b_ih, b_hh; x and W_hh do not lie contiguously in memory."""
    return (
        rng.strided(batch, n_in, dtype=dtype),
        (rng.normal(batch, n_hidden, dtype=dtype), rng.normal(batch, n_hidden, dtype=dtype)),
        rng.normal(4 * n_hidden, n_in, dtype=dtype),
        0.5 * rng.strided(4 * n_hidden, n_hidden, dtype=dtype),
        rng.normal(4 * n_hidden, dtype=dtype),
        rng.normal(4 * n_hidden, dtype=dtype),
    )


def gate_inputs(
    rng: Rng, batch: int, n_hidden: int, i: float, f: float, g: float, o: float
) -> tuple[Any, ...]:
    """Inputs whose gates are set by the biases alone: all weights are zero."""
    bias = torch.tensor([i, f, g, o], dtype=torch.float64).repeat_interleave(n_hidden)
    state = rng.normal(batch, n_hidden), rng.normal(batch, n_hidden)
    zeros = torch.zeros(4 * n_hidden, n_hidden, dtype=torch.float64)
    return rng.normal(batch, n_hidden), state, zeros, zeros, bias / 2, bias / 2


def reference_lstm_cell(*args: Any) -> State:
    """PyTorch's own cell, on either kind of memory layout."""
    h, c = torch.lstm_cell(*args)
    return h, c


@lstm_cell.case("computes the state and the cell of one step")
def _(student: Handle, rng: Rng) -> None:
    args = lstm_inputs(rng, 3, 5, 7, torch.float64)
    expect(student(*args), "(h, c)").close_to(reference_lstm_cell(*args))


@lstm_cell.case("keeps the cell as it is when the forget gate is open and the input gate closed")
def _(student: Handle, rng: Rng) -> None:
    args = gate_inputs(rng, 2, 3, i=-800.0, f=800.0, g=0.7, o=0.2)
    _, c = student(*args)
    expect(c, "the new cell").close_to(args[1][1])


@lstm_cell.case("replaces the cell when the forget gate is closed and the input gate open")
def _(student: Handle, rng: Rng) -> None:
    args = gate_inputs(rng, 2, 3, i=800.0, f=-800.0, g=0.7, o=800.0)
    h, c = student(*args)
    expect(c, "the new cell").close_to(torch.full((2, 3), 0.7, dtype=torch.float64).tanh())
    expect(h, "the new state").close_to(c.tanh())


@lstm_cell.case("works on one row, one input and one unit")
def _(student: Handle, rng: Rng) -> None:
    args = lstm_inputs(rng, 1, 1, 1, torch.float64)
    expect(student(*args), "(h, c)").close_to(reference_lstm_cell(*args))


@lstm_cell.case("sends the right gradients to x, h, c and the weights")
def _(student: Handle, rng: Rng) -> None:
    args = lstm_inputs(rng, 3, 2, 5, torch.float64)
    cotangent = rng.normal(3, 5), rng.normal(3, 5)
    pulled: Pullback = student.vjp(*args, cotangent=cotangent, wrt=(0, 1, 2, 3, 4, 5))
    right = pulled_by_autograd(reference_lstm_cell, args, cotangent)
    names = ("x", "(h, c)", "W_ih", "W_hh", "b_ih", "b_hh")
    for name, have, want in zip(names, pulled.inputs, right, strict=True):
        expect(have, f"the gradient of {name}").close_to(want)


guard(lstm_cell, lambda rng, dtype: lstm_inputs(rng, 2, 3, 5, dtype))


def affine(x: Tensor, h: Tensor, W_ih: Tensor, W_hh: Tensor, b: Any) -> Tensor:
    return x @ W_ih.mT + h @ W_hh.mT + b


def _reordered(order: str) -> Callable[..., State]:
    """An LSTM step that reads the four blocks of rows in another order than i, f, g, o."""

    def wrong(x, state, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
        h, c = state
        blocks = affine(x, h, W_ih, W_hh, b_ih + b_hh).chunk(4, dim=-1)
        i, f, g, o = (blocks[order.index(gate)] for gate in "ifgo")
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    return wrong


for _order in ("ifog", "igfo", "figo"):
    lstm_cell.misconception(
        did=f"Your blocks of rows are read in the order {', '.join(_order)}; here they stand in the"
        " order i, f, g, o.",
        causes="A gate then works with another gate's weights, so weights copied from PyTorch"
        " give a different network.",
        see="three-gates",
        name=f"order_{_order}",
    )(_reordered(_order))


@lstm_cell.misconception(
    did="Your gates are interleaved: every fourth column goes to the same gate.",
    causes="The rows of the weights stand in four blocks of H rows, one block for each gate, so"
    " each gate gets a quarter of every other gate's rows.",
    see="three-gates",
)
def interleaved(x, state, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
    h, c = state
    values = affine(x, h, W_ih, W_hh, b_ih + b_hh)  # (B, 4H)
    i, f, g, o = values.reshape(len(x), -1, 4).unbind(-1)  # (B, 4H) → 4 of (B, H)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _variant(step: Callable[..., State]) -> Callable[..., State]:
    """A wrong step from the cell's affine values: `step(i, f, g, o, c) -> (h, c)`."""

    def wrong(x, state, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
        h, c = state
        return step(*affine(x, h, W_ih, W_hh, b_ih + b_hh).chunk(4, dim=-1), c)

    wrong.__name__ = step.__name__
    return wrong


@lstm_cell.misconception(
    did="Your candidate g goes through a sigmoid instead of tanh.",
    causes="What is written to the cell is then never negative, so nothing can pull a cell's value"
    " down except forgetting.",
    see="three-gates",
)
@_variant
def sigmoid_candidate(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> State:
    c = f.sigmoid() * c + i.sigmoid() * g.sigmoid()
    return o.sigmoid() * c.tanh(), c


@lstm_cell.misconception(
    did="Your input gate i and your candidate g have changed functions: tanh on i, sigmoid on g.",
    causes="A gate that can be negative turns around what it lets in instead of scaling it.",
    see="three-gates",
)
@_variant
def swapped_functions(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> State:
    c = f.sigmoid() * c + i.tanh() * g.sigmoid()
    return o.sigmoid() * c.tanh(), c


@lstm_cell.misconception(
    did="Your old cell is added whole: the forget gate does nothing.",
    causes="The cell can only pile up, so after a long text it holds the sum of everything it ever"
    " wrote.",
    see="additive-path",
)
@_variant
def no_forget(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> State:
    c = c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@lstm_cell.misconception(
    did="Your state is o ⊙ c; the tanh around c is missing.",
    causes="A cell can grow far beyond 1, and the next step's gates are then pushed to their ends.",
    see="three-gates",
)
@_variant
def no_output_tanh(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> State:
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c, c


@lstm_cell.misconception(
    did="Your state is read from the old cell, not from the new one.",
    causes="Every output comes one step late: the model cannot use the character it has just read.",
    see="three-gates",
)
@_variant
def reads_old_cell(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> State:
    return o.sigmoid() * c.tanh(), f.sigmoid() * c + i.sigmoid() * g.tanh()


@lstm_cell.misconception(
    did="You return (c, h); the order is (h, c).",
    causes="The next step then takes the cell for the state: it reads what should only be carried.",
    see="three-gates",
)
@_variant
def returns_c_first(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> State:
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return c, o.sigmoid() * c.tanh()


def _one_bias(which: int) -> Callable[..., State]:
    def wrong(x, state, W_ih, W_hh, *biases):  # type: ignore[no-untyped-def]
        h, c = state
        i, f, g, o = affine(x, h, W_ih, W_hh, biases[which]).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    return wrong


for _which, _dropped in ((1, "b_ih"), (0, "b_hh")):
    lstm_cell.misconception(
        did=f"Your gates leave out {_dropped}.",
        causes="PyTorch keeps two biases and adds both, so weights copied from it give other gates"
        " here.",
        see="three-gates",
        name=f"without_{_dropped}",
    )(_one_bias(_which))

# --- gru_cell -----------------------------------------------------------------------------------

gru_cell = ASSIGNMENT.exercise(
    "gru_cell",
    points=2,
    forbidden=FUSED_CELLS,
    hints=(
        "Which of the three blocks cannot be computed from the sum of the input's and the state's"
        " affine maps, and why not?",
        "Keep the two affine maps apart, x's and h's, and cut each into three blocks in the order"
        " r, z, n. Only n's two blocks meet through r.",
        "n = tanh(a_n + r ⊙ u_n), where a = W_ih x + b_ih and u = W_hh h + b_hh, each (B, 3H)."
        " z says how much of the old state stays.",
    ),
)


def gru_inputs(rng: Rng, batch: int, n_in: int, n_hidden: int, dtype: torch.dtype) -> Any:
    """x, h, W_ih, W_hh, b_ih, b_hh; x and W_hh do not lie contiguously in memory."""
    return (
        rng.strided(batch, n_in, dtype=dtype),
        rng.normal(batch, n_hidden, dtype=dtype),
        rng.normal(3 * n_hidden, n_in, dtype=dtype),
        0.5 * rng.strided(3 * n_hidden, n_hidden, dtype=dtype),
        rng.normal(3 * n_hidden, dtype=dtype),
        rng.normal(3 * n_hidden, dtype=dtype),
    )


@gru_cell.case("computes the state of one step")
def _(student: Handle, rng: Rng) -> None:
    args = gru_inputs(rng, 3, 5, 7, torch.float64)
    expect(student(*args), "the new state").close_to(torch.gru_cell(*args))


@gru_cell.case("keeps the state as it is when z is 1")
def _(student: Handle, rng: Rng) -> None:
    x, h, W_ih, W_hh, b_ih, b_hh = gru_inputs(rng, 2, 3, 5, torch.float64)
    b_ih[5:10] = 800.0  # the rows of z
    expect(student(x, h, W_ih, W_hh, b_ih, b_hh), "the new state").close_to(h)


@gru_cell.case("ignores the old state, but for its bias, when r is 0 and z is 0")
def _(student: Handle, rng: Rng) -> None:
    x, h, W_ih, W_hh, b_ih, b_hh = gru_inputs(rng, 2, 3, 5, torch.float64)
    b_ih[:10] = -800.0  # the rows of r and z
    right = torch.gru_cell(x, h, W_ih, W_hh, b_ih, b_hh)
    expect(student(x, h, W_ih, W_hh, b_ih, b_hh), "the new state").close_to(right)


@gru_cell.case("works on one row, one input and one unit")
def _(student: Handle, rng: Rng) -> None:
    args = gru_inputs(rng, 1, 1, 1, torch.float64)
    expect(student(*args), "the new state").close_to(torch.gru_cell(*args))


@gru_cell.case("sends the right gradients to x, h and the weights")
def _(student: Handle, rng: Rng) -> None:
    args = gru_inputs(rng, 3, 2, 5, torch.float64)
    cotangent = rng.normal(3, 5)
    pulled: Pullback = student.vjp(*args, cotangent=cotangent, wrt=(0, 1, 2, 3, 4, 5))
    right = pulled_by_autograd(torch.gru_cell, args, cotangent)
    names = ("x", "h", "W_ih", "W_hh", "b_ih", "b_hh")
    for name, have, want in zip(names, pulled.inputs, right, strict=True):
        expect(have, f"the gradient of {name}").close_to(want)


guard(gru_cell, lambda rng, dtype: gru_inputs(rng, 2, 3, 5, dtype))


def _gru_variant(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A wrong step from r, z (after the sigmoid), the two affine values of n, and h."""

    def wrong(x, h, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
        of_x = (x @ W_ih.mT + b_ih).chunk(3, dim=-1)
        of_h = (h @ W_hh.mT + b_hh).chunk(3, dim=-1)
        r, z = (of_x[0] + of_h[0]).sigmoid(), (of_x[1] + of_h[1]).sigmoid()
        return step(r, z, of_x[2], of_h[2], h)

    wrong.__name__ = step.__name__
    return wrong


@gru_cell.misconception(
    did="Your z is flipped: it weighs the candidate, and 1 − z the old state.",
    causes="The gate that should keep the state overwrites it; papers differ here, and the weights"
    " follow PyTorch, where z keeps.",
    see="gru",
)
@_gru_variant
def flipped_z(r: Tensor, z: Tensor, of_x: Tensor, of_h: Tensor, h: Tensor) -> Tensor:
    return (1 - z) * h + z * (of_x + r * of_h).tanh()


@gru_cell.misconception(
    did="Your r resets h before the affine map: W_hn (r ⊙ h). Here it scales the map's result.",
    causes="That is the first paper's form. The products differ, so weights from PyTorch, which"
    " needs one fused product for all three blocks, no longer fit.",
    see="gru",
)
def resets_before_the_map(x, h, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
    a_r, a_z, a_n = (x @ W_ih.mT + b_ih).chunk(3, dim=-1)
    (w_r, w_z, w_n), (b_r, b_z, b_n) = W_hh.chunk(3), b_hh.chunk(3)
    r, z = (a_r + h @ w_r.mT + b_r).sigmoid(), (a_z + h @ w_z.mT + b_z).sigmoid()
    return (1 - z) * (a_n + (r * h) @ w_n.mT + b_n).tanh() + z * h


@gru_cell.misconception(
    did="Your b_hn stands outside the reset: r scales W_hn h alone.",
    causes="A closed reset gate then still lets that bias through, and weights from PyTorch give"
    " other candidates.",
    see="gru",
)
def bias_outside_the_reset(x, h, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
    a_r, a_z, a_n = (x @ W_ih.mT + b_ih + b_hh).chunk(3, dim=-1)
    u_r, u_z, u_n = (h @ W_hh.mT).chunk(3, dim=-1)
    r, z = (a_r + u_r).sigmoid(), (a_z + u_z).sigmoid()
    return (1 - z) * (a_n + r * u_n).tanh() + z * h


@gru_cell.misconception(
    did="Your r scales the input's part of the candidate too.",
    causes="With r near 0 the unit then ignores the character it is reading, not only the past.",
    see="gru",
)
@_gru_variant
def resets_the_input(r: Tensor, z: Tensor, of_x: Tensor, of_h: Tensor, h: Tensor) -> Tensor:
    return (1 - z) * (r * (of_x + of_h)).tanh() + z * h


@gru_cell.misconception(
    did="Your candidate does not use r at all.",
    causes="The unit can then never start afresh: every candidate carries the whole old state.",
    see="gru",
)
@_gru_variant
def no_reset(r: Tensor, z: Tensor, of_x: Tensor, of_h: Tensor, h: Tensor) -> Tensor:
    return (1 - z) * (of_x + of_h).tanh() + z * h


@gru_cell.misconception(
    did="Your candidate n goes through a sigmoid instead of tanh.",
    causes="The state is then an average of numbers between 0 and 1 and can never turn negative.",
    see="gru",
)
@_gru_variant
def sigmoid_n(r: Tensor, z: Tensor, of_x: Tensor, of_h: Tensor, h: Tensor) -> Tensor:
    return (1 - z) * (of_x + r * of_h).sigmoid() + z * h


@gru_cell.misconception(
    did="Your blocks of rows are read in the order z, r, n; here they stand in the order r, z, n.",
    causes="Reset and update change places, so weights copied from PyTorch give a different"
    " network.",
    see="gru",
)
def order_zrn(x, h, W_ih, W_hh, b_ih, b_hh):  # type: ignore[no-untyped-def]
    a_z, a_r, a_n = (x @ W_ih.mT + b_ih).chunk(3, dim=-1)
    u_z, u_r, u_n = (h @ W_hh.mT + b_hh).chunk(3, dim=-1)
    r, z = (a_r + u_r).sigmoid(), (a_z + u_z).sigmoid()
    return (1 - z) * (a_n + r * u_n).tanh() + z * h


# --- LSTM ---------------------------------------------------------------------------------------

LSTM = ASSIGNMENT.exercise(
    "LSTM",
    points=4,
    forbidden=("LSTM", "GRU", "RNN", "lstm"),
    needs=("lstm_cell",),
    hints=(
        "What does the second layer read at time t? What did it remember from time t − 1?",
        "Run one layer over all T steps, stack its states into (B, T, H), and give that to the next"
        " layer as its x. Each layer starts from its own slice of the given state.",
        "Layer k holds weight_ih_lk of (4H, I) for k = 0 and (4H, H) above, weight_hh_lk (4H, H),"
        " bias_ih_lk and bias_hh_lk (4H). `self.register_parameter` takes a name as text, and"
        " `getattr` finds it again.",
    ),
)


def lstm_shapes(n_in: int, n_hidden: int, n_layers: int) -> dict[str, tuple[int, ...]]:
    """The parameters that an `nn.LSTM` of this size has."""
    twin = nn.LSTM(n_in, n_hidden, n_layers)
    return {name: tuple(p.shape) for name, p in twin.named_parameters()}


def twin_of(
    weights: dict[str, Tensor], n_in: int, n_hidden: int, n_layers: int
) -> Callable[..., Any]:
    """PyTorch's own layer with the same weights: the reference."""
    twin = nn.LSTM(n_in, n_hidden, n_layers, batch_first=True, dtype=torch.float64)
    twin.load_state_dict(weights)
    return twin.eval()


def loaded(
    student: Handle, rng: Rng, sizes: tuple[int, int, int], dropout: float = 0.0
) -> tuple[Handle, dict[str, Tensor]]:
    """The student's module with random weights, and those weights; checks names and shapes."""
    module = student.hold(*sizes, dropout)
    have, want = module.shapes(), lstm_shapes(*sizes)
    expect(sorted(have), "the parameters' names").equals(sorted(want))
    for name, shape in want.items():
        expect(have[name], f"the shape of {name}").equals(shape)
    weights = rng.like(want)
    return module.load(weights), weights


def lstm_state(rng: Rng, n_layers: int, batch: int, n_hidden: int) -> State:
    return rng.normal(n_layers, batch, n_hidden), rng.normal(n_layers, batch, n_hidden)


@LSTM.case("one layer agrees with PyTorch's")
def _(student: Handle, rng: Rng) -> None:
    sizes = 5, 7, 1
    module, weights = loaded(student, rng, sizes)
    x = rng.strided(3, 11, 5)
    output, (h, c) = module.eval()(x)
    right, (right_h, right_c) = twin_of(weights, *sizes)(x)
    expect(output, "output").close_to(right)
    expect(h, "h").close_to(right_h)
    expect(c, "c").close_to(right_c)


@LSTM.case("three layers agree with PyTorch's")
def _(student: Handle, rng: Rng) -> None:
    sizes = 4, 5, 3
    module, weights = loaded(student, rng, sizes)
    x = rng.normal(2, 7, 4)
    expect(module.eval()(x), "output, (h, c)").close_to(twin_of(weights, *sizes)(x))


@LSTM.case("starts from the state it is given, each layer from its own")
def _(student: Handle, rng: Rng) -> None:
    sizes = 4, 5, 2
    module, weights = loaded(student, rng, sizes)
    x, state = rng.normal(3, 6, 4), lstm_state(rng, 2, 3, 5)
    expect(module.eval()(x, state), "output, (h, c)").close_to(twin_of(weights, *sizes)(x, state))


@LSTM.case("a text read in two pieces with the state carried is the text read in one")
def _(student: Handle, rng: Rng) -> None:
    module, _ = loaded(student, rng, (3, 5, 2))
    x = rng.normal(2, 9, 3)
    module.eval()
    whole, state = module(x)
    first, middle = module(x[:, :4])
    second, last = module(x[:, 4:], middle)
    expect(torch.cat([first, second], dim=1), "the outputs").close_to(whole)
    expect(last, "the last state").close_to(state)


@LSTM.case("one step, one row and one unit work too")
def _(student: Handle, rng: Rng) -> None:
    sizes = 1, 1, 2
    module, weights = loaded(student, rng, sizes)
    x = rng.normal(1, 1, 1)
    expect(module.eval()(x), "output, (h, c)").close_to(twin_of(weights, *sizes)(x))


@LSTM.case("sends the right gradients to its input, its state and every weight")
def _(student: Handle, rng: Rng) -> None:
    sizes = 3, 5, 2
    module, weights = loaded(student, rng, sizes)
    x, state = rng.normal(2, 7, 3), lstm_state(rng, 2, 2, 5)
    cotangent = rng.normal(2, 7, 5), lstm_state(rng, 2, 2, 5)
    pulled: Pullback = module.eval().vjp(x, state, cotangent=cotangent, wrt=(0, 1))
    twin = twin_of(weights, *sizes)
    right_x, right_state = pulled_by_autograd(twin, (x, state), cotangent)
    expect(pulled.inputs[0], "the gradient of x").close_to(right_x)
    expect(pulled.inputs[1], "the gradient of the state").close_to(right_state)
    assert isinstance(twin, nn.Module)
    outputs = tree_leaves(twin(x, state))
    names, parameters = zip(*twin.named_parameters(), strict=True)
    found = torch.autograd.grad(outputs, parameters, tree_leaves(cotangent))
    for name, want in zip(names, found, strict=True):
        expect(pulled.parameters[name], f"the gradient of {name}").close_to(want)


def _zeros_share(output: Tensor) -> float:
    return float((output == 0).double().mean())


@LSTM.case("has no dropout around a single layer, whatever `dropout` says")
def _(student: Handle, rng: Rng) -> None:
    module, _ = loaded(student, rng, (4, 13, 1), dropout=0.5)
    x = rng.normal(3, 17, 4)
    evaluated, _ = module.eval()(x)
    trained, _ = module.train()(x)
    if _zeros_share(trained) > 0.2:
        fail("in training, many outputs of the only layer are zero.", "dropout_after_last_layer")
    if not torch.allclose(trained, evaluated):
        fail("training and evaluation differ though only one layer is there.", "drops_the_input")


@LSTM.case("drops values between the layers, in training alone")
def _(student: Handle, rng: Rng) -> None:
    sizes = 4, 13, 2
    module, weights = loaded(student, rng, sizes, dropout=0.5)
    x = rng.normal(3, 17, 4)
    evaluated, _ = module.eval()(x)
    again, _ = module(x)
    if not torch.equal(evaluated, again):
        fail("two runs in evaluation mode give different outputs.", "dropout_in_evaluation")
    expect(evaluated, "output in evaluation mode").close_to(twin_of(weights, *sizes)(x)[0])
    trained, (h, _) = module.train()(x)
    if torch.equal(trained, evaluated):
        fail("with dropout=0.5, training and evaluation give the same output.", "no_dropout")
    if _zeros_share(trained) > 0.2:
        fail("in training, many outputs of the last layer are zero.", "dropout_after_last_layer")
    expect(h[-1], "the last layer's h").close_to(trained[:, -1])


guard(
    LSTM,
    lambda rng, dtype: (rng.normal(2, 5, 3, dtype=dtype),),
    build=(3, 7, 2),
)


class Stack(nn.Module):
    """What the wrong layers below have in common; each spoils one of the small methods."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_layers, self.hidden_size, self.dropout = num_layers, hidden_size, dropout
        for layer in range(num_layers):
            for name, shape in self.shapes(input_size, hidden_size, layer).items():
                bound = hidden_size**-0.5
                weight = torch.empty(shape).uniform_(-bound, bound)
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(weight))

    def shapes(self, n_in: int, n_hidden: int, layer: int) -> dict[str, tuple[int, ...]]:
        width = n_in if layer == 0 else n_hidden
        return {
            "weight_ih": (4 * n_hidden, width),
            "weight_hh": (4 * n_hidden, n_hidden),
            "bias_ih": (4 * n_hidden,),
            "bias_hh": (4 * n_hidden,),
        }

    def start(self, x: Tensor, state: State | None) -> State:
        if state is not None:
            return state
        zeros = x.new_zeros(self.num_layers, x.shape[0], self.hidden_size)
        return zeros, zeros

    def scan(self, x: Tensor, state: State, layer: int) -> tuple[Tensor, State]:
        """One layer over time: (B, T, I) → (B, T, H) and its last state."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self, f"{name}_l{layer}") for name in names]
        outputs = []
        for t in range(x.shape[1]):
            h, c = torch.lstm_cell(x[:, t], state, *weights)
            outputs.append(h)
            state = self.carry(state, (h, c))
        return torch.stack(outputs, dim=1), (h, c)

    def carry(self, old: State, new: State) -> State:
        return new

    def drop(self, x: Tensor, layer: int) -> Tensor:
        """What happens to what layer number `layer` is about to read."""
        p = self.dropout if layer > 0 else 0.0
        return nn.functional.dropout(x, p, self.training)

    def begin(self, starts: State, ends: list[State], layer: int) -> State:
        return starts[0][layer], starts[1][layer]

    def collect(self, ends: list[State]) -> State:
        h, c = zip(*ends, strict=True)
        return torch.stack(h), torch.stack(c)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        starts, ends = self.start(x, state), list[State]()
        for layer in range(self.num_layers):
            x = self.drop(x, layer)
            x, end = self.scan(x, self.begin(starts, ends, layer), layer)
            ends.append(end)
        return x, self.collect(ends)


@LSTM.misconception(
    did="Each of your layers goes on from the state in which the layer below ended.",
    causes="A layer remembers its own past: handed another layer's, it starts every text from"
    " numbers that mean something else.",
    see="stacked-layers",
    name="state_shared_by_layers",
)
class StateSharedByLayers(Stack):
    def begin(self, starts: State, ends: list[State], layer: int) -> State:
        return ends[-1] if ends else (starts[0][0], starts[1][0])


@LSTM.misconception(
    did="All your layers start from the first layer's state.",
    causes="A text read in pieces then differs from the text read in one: the upper layers lose"
    " their memory at every cut.",
    see="stacked-layers",
    name="first_layers_state_for_all",
)
class FirstLayersStateForAll(Stack):
    def begin(self, starts: State, ends: list[State], layer: int) -> State:
        return starts[0][0], starts[1][0]


@LSTM.misconception(
    did="You return only the last layer's state.",
    causes="The lower layers' memory is lost, so a text cannot be continued where it stopped.",
    see="stacked-layers",
    name="last_layers_state_only",
)
class LastLayersStateOnly(Stack):
    def collect(self, ends: list[State]) -> State:
        return ends[-1][0][None], ends[-1][1][None]


@LSTM.misconception(
    did="Your states come out as (B, layers, H); the order is (layers, B, H).",
    causes="`batch_first` speaks of x and output alone. Handed back to the layer, such a state"
    " mixes up rows and layers.",
    see="stacked-layers",
    name="state_batch_first",
)
class StateBatchFirst(Stack):
    def collect(self, ends: list[State]) -> State:
        h, c = zip(*ends, strict=True)
        return torch.stack(h, dim=1), torch.stack(c, dim=1)


@LSTM.misconception(
    did="You ignore the state you are given and start from zeros.",
    causes="Each window of a long text is then read as if the text began there.",
    see="long-text",
    name="ignores_the_state",
)
class IgnoresTheState(Stack):
    def start(self, x: Tensor, state: State | None) -> State:
        return super().start(x, None)


@LSTM.misconception(
    did="Every time step starts from the initial state: nothing is carried from step to step.",
    causes="Each output depends on one character alone, which makes it a bigram model.",
    see="stacked-layers",
    name="state_not_carried",
)
class StateNotCarried(Stack):
    def carry(self, old: State, new: State) -> State:
        return old


@LSTM.misconception(
    did="Your loop runs over the batch: x is (B, T, I), and you take its first dimension for time.",
    causes="Each row is then read as what follows the row before, so the texts of a batch leak into"
    " each other.",
    see="stacked-layers",
    name="time_first",
)
class TimeFirst(Stack):
    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        output, state = super().forward(x.transpose(0, 1), state)
        return output.transpose(0, 1), state


@LSTM.misconception(
    did="Every layer's weight_ih takes the input's width; above the first it must take the"
    " hidden width.",
    causes="The second layer reads the first one's states, which have H numbers, so it only runs"
    " where I happens to equal H.",
    see="stacked-layers",
    name="input_width_everywhere",
)
class InputWidthEverywhere(Stack):
    def shapes(self, n_in: int, n_hidden: int, layer: int) -> dict[str, tuple[int, ...]]:
        return super().shapes(n_in, n_hidden, 0)


@LSTM.misconception(
    did="Your dropout also falls on the last layer's output.",
    causes="PyTorch drops values between layers only; what follows the last layer, the head say,"
    " decides for itself.",
    see="stacked-layers",
    name="dropout_after_last_layer",
)
class DropoutAfterLastLayer(Stack):
    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        output, state = super().forward(x, state)
        return nn.functional.dropout(output, self.dropout, self.training), state


@LSTM.misconception(
    did="Your dropout also falls on the input, before the first layer.",
    causes="Parts of the characters themselves are hidden from the model, even with a single"
    " layer, where PyTorch drops nothing.",
    see="stacked-layers",
    name="drops_the_input",
)
class DropsTheInput(Stack):
    def drop(self, x: Tensor, layer: int) -> Tensor:
        return nn.functional.dropout(x, self.dropout, self.training)


@LSTM.misconception(
    did="Your dropout stays on in evaluation mode.",
    causes="The same text then gets a different probability on every run, and a worse one on"
    " average.",
    see="stacked-layers",
    name="dropout_in_evaluation",
)
class DropoutInEvaluation(Stack):
    def drop(self, x: Tensor, layer: int) -> Tensor:
        return nn.functional.dropout(x, self.dropout if layer > 0 else 0.0)


@LSTM.misconception(
    did="`dropout` is accepted and never used.",
    causes="Training and evaluation are the same, so nothing keeps the upper layers from leaning on"
    " single units.",
    see="stacked-layers",
    name="no_dropout",
)
class NoDropout(Stack):
    def drop(self, x: Tensor, layer: int) -> Tensor:
        return x


# --- detach_state -------------------------------------------------------------------------------

detach_state = ASSIGNMENT.exercise(
    "detach_state",
    points=1,
    hints=(
        "Which of an LSTM's two tensors still knows how it was computed?",
        "Three kinds of state come in, and each goes out as the same kind. Treat None first.",
        "`Tensor.detach` gives the same numbers without their history; a tuple goes part by part.",
    ),
)


def attached_parts(student: Handle, rng: Rng, state: Any) -> list[int]:
    """The numbers of those parts of a state through which a gradient still flows back."""
    parts = tree_leaves(state)
    attached = []
    for number, part in enumerate(parts):
        pull = rng.normal(*part.shape)
        cotangent = tuple(pull if n == number else None for n in range(len(parts)))
        try:
            pulled = student.vjp(
                state, cotangent=cotangent if isinstance(state, tuple) else pull, wrt=(0,)
            )
        except StudentError as error:
            if error.kind != "NoGradient":
                raise
            continue
        if any(gradient is not None for gradient in tree_leaves(pulled.inputs)):
            attached.append(number)
    return attached


def expect_detached(student: Handle, rng: Rng, state: Any) -> None:
    attached = attached_parts(student, rng, state)
    if isinstance(state, tuple) and attached and 0 not in attached:
        fail("a gradient still flows back through the cell c.", "detaches_h_only")
    if attached:
        fail("a gradient still flows back through the state.", "does_nothing")


def expect_same_state(student: Handle, state: Any) -> None:
    detached = student(state)
    expect(type(detached).__name__, "the kind of state").equals(type(state).__name__)
    for have, want in zip(tree_leaves(detached), tree_leaves(state), strict=True):
        expect(have, "the state").close_to(want)


@detach_state.case("cuts a tensor from the graph and keeps its numbers")
def _(student: Handle, rng: Rng) -> None:
    state = rng.normal(3, 5)
    expect_same_state(student, state)
    expect_detached(student, rng, state)


@detach_state.case("cuts both h and c, and gives a tuple back")
def _(student: Handle, rng: Rng) -> None:
    state = lstm_state(rng, 2, 3, 5)
    expect_same_state(student, state)
    expect_detached(student, rng, state)


@detach_state.case("gives None back for None: the state before the first window")
def _(student: Handle, rng: Rng) -> None:
    expect(student(None), "the result for None").equals(None)


guard(
    detach_state,
    lambda rng, dtype: ((rng.normal(1, 2, 3, dtype=dtype), rng.normal(1, 2, 3, dtype=dtype)),),
    gradient=False,
)


@detach_state.misconception(
    did="Your state comes back still attached to the graph.",
    causes="Each window's backward pass then runs through all windows before it: PyTorch refuses"
    " the second one, or memory grows with the text.",
    see="long-text",
)
def does_nothing(state: Any) -> Any:
    return state


@detach_state.misconception(
    did="You detach h and leave c attached.",
    causes="c is the path that carries gradients farthest, so the backward pass still reaches into"
    " the windows before.",
    see="long-text",
)
def detaches_h_only(state: Any) -> Any:
    if isinstance(state, tuple):
        return state[0].detach(), *state[1:]
    return None if state is None else state.detach()


@detach_state.misconception(
    did="You give back zeros.",
    causes="The gradient is cut, and the memory with it: each window is read as if the text began"
    " there.",
    see="long-text",
)
def forgets(state: Any) -> Any:
    return tree_map(lambda part: None if part is None else torch.zeros_like(part), state)


@detach_state.misconception(
    did="None is not handled: `.detach()` is called on it.",
    causes="There is no state before the first window, so the training loop stops at its first"
    " step.",
    see="long-text",
)
def crashes_on_none(state: Any) -> Any:
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return state.detach()


# --- generate -----------------------------------------------------------------------------------

generate = ASSIGNMENT.exercise(
    "generate",
    points=3,
    hints=(
        "After the prompt has been read, which part of the text does the model still have to see"
        " when it writes the next character?",
        "Keep two things from one step to the next: the state the model gave back, and the token"
        " you drew. Of the logits only the last position's speak about the next token.",
        "p = softmax(logits[:, -1] / temperature), (B, V); `torch.multinomial(p, 1, generator=…)`"
        " draws (B, 1). At temperature 0 nothing is drawn.",
    ),
)


class HashModel:
    """A language model whose logits depend on the whole history, and which notes every call.

    The state is one number a row, s′ = (3 s + id + 1) mod M, and the logits are row s′ of a table.
    It runs on the check's side; the student's code sees only tensors.
    """

    def __init__(self, table: Tensor):
        self.table = table  # (M, V)
        self.calls: list[tuple[Tensor, Tensor | None]] = []
        self.given: list[Tensor] = []  # the states that were returned

    def __call__(self, ids: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.calls.append((ids.clone(), None if state is None else state.clone()))
        logits, state = self.read(ids, state)
        self.given.append(state)
        return logits, state.clone()

    def read(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        state = torch.zeros_like(ids[:, 0]) if state is None else state
        rows = []
        for t in range(ids.shape[1]):
            state = (3 * state + ids[:, t] + 1) % len(self.table)
            rows.append(self.table[state])  # (B, V)
        return torch.stack(rows, dim=1), state

    def greedy(self, ids: Tensor, n_tokens: int) -> Tensor:
        """What the likeliest continuation is, read from the start for every token."""
        for _ in range(n_tokens):
            logits, _ = self.read(ids, None)
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        return ids


def hash_model(rng: Rng, n_states: int = 31, vocab_size: int = 11) -> HashModel:
    return HashModel(2 * rng.normal(n_states, vocab_size))


@generate.case("takes the likeliest token at temperature 0, prompt included in the result")
def _(student: Handle, rng: Rng) -> None:
    model, ids = hash_model(rng), rng.integers(0, 11, 3, 5)
    try:
        result = student(model, ids, 7, temperature=0.0)
    except StudentError as error:
        if error.kind in ("RuntimeError", "ZeroDivisionError") and model.calls:
            fail(f"temperature 0 stops with {error.kind}: {error.message}", "divides_by_zero")
        raise
    expect(result, "the text").equals(model.greedy(ids, 7))


@generate.case("shows the model the prompt once, then one new token at a time with its state")
def _(student: Handle, rng: Rng) -> None:
    model, ids = hash_model(rng), rng.integers(0, 11, 2, 4)
    result = student(model, ids, 5, temperature=0.7, generator=Seed(rng.integer(0, 1000)))
    expect(model.calls[0][0], "the model's first input").equals(ids)
    for number, (seen, state) in enumerate(model.calls[1:], start=2):
        width = seen.shape[1]
        if width != 1 and state is None:
            fail(f"call {number} to the model shows it {width} tokens.", "reads_it_all_again")
        if width != 1:
            fail(
                f"call {number} to the model shows it {width} tokens together with a state that"
                " has seen some of them.",
                "feeds_tokens_again",
            )
        if state is None:
            fail(f"call {number} to the model comes without its state.", "loses_the_state")
        expect(state, f"the state in call {number}").equals(model.given[number - 2])
        expect(seen, f"the tokens in call {number}").equals(result[:, number + 2 : number + 3])


def share_of_tokens(student: Handle, seed: int, logits: Tensor, temperature: float) -> Tensor:
    """How often each token is drawn from one row of logits, over 4,000 rows at once."""
    rows = 4000
    ids = torch.zeros(rows, 1, dtype=torch.int64)
    model = HashModel(logits.repeat(2, 1))
    result = student(model, ids, 1, temperature=temperature, generator=Seed(seed))
    expect(result, "the text").has_shape(rows, 2)
    drawn = result[:, 1]
    expect(drawn, "the drawn tokens").holds(
        not drawn.is_floating_point() and bool(((drawn >= 0) & (drawn < len(logits))).all()),
        f"expected whole numbers from 0 to {len(logits) - 1}.",
    )
    return torch.bincount(drawn, minlength=len(logits)).double() / rows


def fits(share: Tensor, p: Tensor, rows: int = 4000) -> bool:
    """Whether the shares are within six standard deviations of p: chance misses once in 10⁸."""
    return bool(((share - p).abs() <= 6 * (p * (1 - p) / rows).sqrt() + 2 / rows).all())


def expect_share(share: Tensor, logits: Tensor, temperature: float) -> None:
    """Reject shares that are not softmax(logits / temperature); name the mistake that fits."""
    right = (logits / temperature).softmax(-1)
    if fits(share, right):
        return
    suspects = {
        "temperature_multiplies": (logits * temperature).softmax(-1),
        "temperature_lost": logits.softmax(-1),
        "always_greedy": (logits == logits.max()).double(),
        "samples_from_logits": logits.clamp(min=0) / logits.clamp(min=0).sum(),
    }
    worst = int((share - right).abs().argmax())
    fail(
        f"at temperature {temperature:g}, token {worst} has probability {right[worst]:.3f} and was"
        f" drawn in {share[worst]:.3f} of 4,000 draws.",
        next((name for name, p in suspects.items() if fits(share, p)), None),
    )


@generate.case("a low temperature sharpens the distribution")
def _(student: Handle, rng: Rng) -> None:
    logits = torch.tensor([-0.5, 1.1, 0.4, -1.0, 0.8], dtype=torch.float64)[rng.permutation(5)]
    expect_share(share_of_tokens(student, rng.integer(0, 1000), logits, 0.4), logits, 0.4)


@generate.case("a high temperature flattens the distribution")
def _(student: Handle, rng: Rng) -> None:
    logits = torch.tensor([-1.5, 2.2, 0.3, -3.0, 1.4], dtype=torch.float64)[rng.permutation(5)]
    expect_share(share_of_tokens(student, rng.integer(0, 1000), logits, 2.5), logits, 2.5)


@generate.case("draws in proportion to exp(logit), also where all logits are positive")
def _(student: Handle, rng: Rng) -> None:
    logits = torch.tensor([1.0, 4.0, 2.0, 3.0], dtype=torch.float64)[rng.permutation(4)]
    expect_share(share_of_tokens(student, rng.integer(0, 1000), logits, 1.0), logits, 1.0)


@generate.case("draws from `generator` alone: one seed, one text")
def _(student: Handle, rng: Rng) -> None:
    model, ids, seed = hash_model(rng), rng.integers(0, 11, 3, 2), rng.integer(0, 1000)
    one = student(model, ids, 9, generator=Seed(seed))
    again = student(model, ids, 9, generator=Seed(seed))
    other = student(model, ids, 9, generator=Seed(seed + 1))
    expect(one, "the text").has_shape(3, 11)
    if not torch.equal(one, again):
        fail("two generators with the same seed gave different texts.", "ignores_the_generator")
    if torch.equal(one, other):
        greedy = torch.equal(one, model.greedy(ids, 9))
        fail("two different seeds gave the same text.", "always_greedy" if greedy else None)


@generate.case(MUTATION_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    ids = rng.integers(0, 11, 2, 6)
    kept = student.keep(ids)
    student(hash_model(rng), kept, 3, temperature=0.0)
    if not torch.equal(kept.method("clone")(), ids):
        fail(MUTATES)


@generate.case(DEVICE_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    for temperature in (0.0, 0.8):
        model, ids = student.peer("rnn2gpt.rnn:CharRNN", 11, 5), rng.integers(0, 11, 2, 3)
        reason = student.on_fake_device(model, ids, 2, temperature, differentiate=False)
        if reason is not None:
            fail(DEVICE.get(reason, DEVICE["mixed"]))


def _sampler(
    *,
    p: Callable[[Tensor, float], Tensor] = lambda logits, t: (logits / t).softmax(-1),
    feed: str = "token",
    position: int = -1,
    prompt: bool = True,
    greedy_at_zero: bool = True,
    generator_used: bool = True,
) -> Callable[..., Tensor]:
    """A text generator with one thing wrong."""

    @torch.no_grad()
    def wrong(model, ids, n_tokens, temperature=1.0, generator=None):  # type: ignore[no-untyped-def]
        text, token, state = ids, ids, None
        for _ in range(n_tokens):
            logits, state = model(
                text if feed in ("text", "all") else token,
                None if feed in ("all", "stateless") else state,
            )
            last = logits[:, position]
            if temperature == 0 and greedy_at_zero:
                token = last.argmax(-1, keepdim=True)
            else:
                chance = p(last, temperature)
                token = torch.multinomial(
                    chance.cpu(), 1, generator=generator if generator_used else None
                ).to(ids.device)
            text = torch.cat([text, token], dim=1)
        return text if prompt else text[:, ids.shape[1] :]

    return wrong


def _mistake(name: str, did: str, causes: str, wrong: Callable[..., Tensor]) -> None:
    generate.misconception(did=did, causes=causes, see="sampling", name=name)(wrong)


_mistake(
    "feeds_tokens_again",
    "You hand the whole text to the model again together with a state that has already read it.",
    "The model reads every earlier character twice and more: it continues a text that nobody"
    " wrote.",
    _sampler(feed="text"),
)
_mistake(
    "reads_it_all_again",
    "You run the model over the whole text, from no state, for every new token.",
    "The text comes out the same, at a cost that grows with the square of its length; the state"
    " already holds what was read.",
    _sampler(feed="all"),
)
_mistake(
    "loses_the_state",
    "You hand the model each new token without the state.",
    "It then knows one character of the past, so it writes like a bigram model.",
    _sampler(feed="stateless"),
)
_mistake(
    "temperature_multiplies",
    "You multiply the logits by the temperature; divide them.",
    "A low temperature then makes the text wilder, and a high one tamer.",
    _sampler(p=lambda logits, t: (logits * t).softmax(-1)),
)
_mistake(
    "temperature_lost",
    "Your temperature has no effect: dividing probabilities, after the softmax, cancels when they"
    " are normalized to be drawn from.",
    "The text is as wild at temperature 0.1 as at 1.",
    _sampler(p=lambda logits, t: logits.softmax(-1) / t),
)
_mistake(
    "samples_from_logits",
    "You draw from the logits themselves; the softmax is missing.",
    "Negative logits stop the program, and positive ones are drawn far too evenly.",
    _sampler(p=lambda logits, t: logits / t),
)
_mistake(
    "always_greedy",
    "You always take the likeliest token, whatever the temperature.",
    "The text soon runs in a circle, and every seed gives the same one.",
    _sampler(p=lambda logits, t: (logits == logits.amax(-1, keepdim=True)).double()),
)
_mistake(
    "divides_by_zero",
    "You divide by the temperature when it is 0.",
    "The probabilities become NaN and nothing can be drawn; 0 means: take the likeliest token.",
    _sampler(greedy_at_zero=False),
)
_mistake(
    "prompt_left_out",
    "You return the new tokens without the prompt.",
    "The result is T tokens short, and the text starts in the middle of a word.",
    _sampler(prompt=False),
)
_mistake(
    "first_position",
    "You read the logits of the prompt's first position; the last one's speak about the next"
    " token.",
    "The first new token continues the prompt's first character instead of its last.",
    _sampler(position=0),
)
_mistake(
    "ignores_the_generator",
    "You draw from PyTorch's global source of chance and ignore `generator`.",
    "The same seed gives another text each time, so no result can be repeated.",
    _sampler(generator_used=False),
)
