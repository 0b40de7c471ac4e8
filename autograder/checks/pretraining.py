"""Checks of chapter 10: AdamW, the schedule, parameter groups, accumulation, compute."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autograder.child.protocol import Parameter
from autograder.engine.exercise import Assignment, Exercise, Rng
from autograder.engine.expect import expect, fail, same
from autograder.engine.guards import MUTATES, MUTATION_TITLE
from autograder.engine.handle import Handle, StudentError
from rnn2gpt.gpt import GPT, GPTConfig

ASSIGNMENT = Assignment(
    name="10-pretraining",
    notebook="pretraining",
    page="10_pretraining",
    sections={
        "adam": "Adam: a step for every weight",
        "decoupled-decay": "Decay, decoupled",
        "which-tensors-decay": "Which tensors decay",
        "learning-rate-schedule": "Warm up, then cool down",
        "gradient-accumulation": "A large batch in small pieces",
        "compute-optimal": "How large, and for how long",
    },
    minutes=100,
    modules=(
        "data", "metrics", "ngram", "rnn", "lstm", "attention", "multi_head", "positions",
        "transformer", "tokenizer", "gpt", "kv_cache",
    ),
)  # fmt: skip

Optimizer = torch.optim.Optimizer
Batches = Sequence[tuple[Tensor, Tensor]]


def _mistake(
    exercise: Exercise, name: str, see: str, did: str, causes: str, wrong: Callable[..., Any]
) -> None:
    exercise.misconception(did=did, causes=causes, see=see, name=name)(wrong)


# --- AdamW --------------------------------------------------------------------------------------

AdamW = ASSIGNMENT.exercise(
    "AdamW",
    points=4,
    forbidden=(
        "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SparseAdam", "adam", "adamw",
        "_multi_tensor_adam", "_single_tensor_adam", "_fused_adam", "_fused_adam_",
        "_fused_adamw_", "_functional",
    ),
    hints=(
        "Two numbers are remembered for every weight, and one for every parameter. Which, and what"
        " are they before the first step?",
        "`self.state[p]` is a dictionary of your own for the parameter p, empty at first, and what"
        " stands in it is saved with the optimizer. Read lr, betas, eps and weight_decay from the"
        " group at every step, since a schedule changes them there.",
        "m ← β₁m + (1 − β₁)g and v ← β₂v + (1 − β₂)g². With t = 1 at the first step,"
        " p ← (1 − lr·λ)·p − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε).",
    ),
)  # fmt: skip

Gradients = Sequence[Sequence[Tensor | None]]  # a row for each step, an entry for each parameter


def hold(student: Handle, values: Sequence[Tensor]) -> list[Handle]:
    """Live parameters beside the student's code."""
    return [student.keep(Parameter(value)) for value in values]


def walk(optimizer: Handle, parameters: Sequence[Handle], gradients: Gradients) -> None:
    """Give the parameters each row of gradients, and take a step after each."""
    for row in gradients:
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.method("__setattr__")("grad", gradient)
        try:
            optimizer.method("step")()
        except StudentError as error:
            if "NoneType" in error.message and None in row:
                fail(
                    f"a parameter without a gradient stops it ({error.message}).",
                    "trips_over_none",
                )
            raise


def expect_at(parameters: Sequence[Handle], right: Sequence[Tensor], when: str) -> None:
    """The parameters are where they should be, up to what moments in float32 cost: that they are
    as precise as the parameters is a case of its own, far from the edge of a tolerance."""
    for i, (parameter, want) in enumerate(zip(parameters, right, strict=True)):
        have = parameter.method("clone")()
        expect(have, f"parameter {i} {when}").close_to(want, rtol=1e-6, atol=1e-6)


def reference_walk(
    values: Sequence[Tensor],
    gradients: Gradients,
    rates: Sequence[float] | None = None,
    own: Sequence[dict[str, Any]] | None = None,
    **options: Any,
) -> list[Tensor]:
    """Where PyTorch's own AdamW takes the parameters. `own`: each one's settings as a group."""
    leaves = [nn.Parameter(value.clone()) for value in values]
    settings = own or [{} for _ in leaves]
    groups = [{"params": [p], **more} for p, more in zip(leaves, settings, strict=True)]
    optimizer = torch.optim.AdamW(groups, **options)
    for step, row in enumerate(gradients):
        if rates:
            optimizer.param_groups[0]["lr"] = rates[step]
        for leaf, gradient in zip(leaves, row, strict=True):
            leaf.grad = None if gradient is None else gradient.clone()
        optimizer.step()
    return [leaf.detach() for leaf in leaves]


def expect_walk(
    student: Handle, values: Sequence[Tensor], gradients: Gradients, **options: Any
) -> None:
    """The student's optimizer leads where PyTorch's does.

    The default `eps` is tiny here: Kingma and Ba add it before the correction at the end of their
    section 2, which is right, too, and differs where eps is not small beside √v.
    """
    options = {"eps": 1e-14} | options
    parameters = hold(student, values)
    walk(student.hold(parameters, **options), parameters, gradients)
    when = f"after {len(gradients)} steps" if len(gradients) > 1 else "after one step"
    expect_at(parameters, reference_walk(values, gradients, **options), when)


def some(rng: Rng, n_steps: int, *scales: float) -> tuple[list[Tensor], list[list[Tensor]]]:
    """A matrix and a vector, and gradients for them; `scales` multiplies them step by step."""
    shapes = ((2, 3), (5,))
    sizes = scales or (1.0,) * n_steps
    gradients = [[size * rng.normal(*shape) for shape in shapes] for size in sizes]
    return [rng.normal(*shape) for shape in shapes], gradients


@AdamW.case("moves each weight by its mean gradient, divided by its usual size")
def _(student: Handle, rng: Rng) -> None:
    values, gradients = some(rng, 3, 1.0, 30.0, 0.2)
    expect_walk(student, values, gradients, lr=0.05, betas=(0.8, 0.95), weight_decay=0.0)


@AdamW.case("shrinks the weights apart from the gradient")
def _(student: Handle, rng: Rng) -> None:
    values, gradients = some(rng, 3)
    expect_walk(student, values, gradients, lr=0.1, betas=(0.8, 0.95), weight_decay=0.3)


@AdamW.case("only shrinks a weight whose gradient is zero")
def _(student: Handle, rng: Rng) -> None:
    values = [rng.normal(5)]
    expect_walk(student, values, [[0 * values[0]]] * 2, lr=0.1, eps=1e-8, weight_decay=0.3)


@AdamW.case("adds eps to the root, not beneath it")
def _(student: Handle, rng: Rng) -> None:
    values, gradients = some(rng, 2)
    # With β₂ = 0 nothing is left to correct in v, so eps stands where every textbook has it.
    expect_walk(student, values, gradients, lr=0.05, betas=(0.7, 0.0), eps=0.1, weight_decay=0.0)


@AdamW.case("has PyTorch's settings when none are given")
def _(student: Handle, rng: Rng) -> None:
    values, gradients = some(rng, 2)
    values = [3 + value.abs() for value in values]  # so that their decay shows
    parameters = hold(student, values)
    walk(student.hold(parameters), parameters, gradients)
    right = torch.cat([value.flatten() for value in reference_walk(values, gradients)])
    have = torch.cat([parameter.method("clone")().flatten() for parameter in parameters])
    expect(have, "all weights after 2 steps").close_to(right, rtol=3e-6, atol=1e-7)


@AdamW.case("reads rate and decay from its groups at every step")
def _(student: Handle, rng: Rng) -> None:
    values, gradients = some(rng, 3)
    parameters, rates = hold(student, values), (0.1, 0.02, 0.3)
    own = ({"weight_decay": 0.4}, {"weight_decay": 0.0, "lr": 0.03})
    groups = [{"params": [p], **more} for p, more in zip(parameters, own, strict=True)]
    optimizer = student.hold(groups, lr=0.5, eps=1e-14)
    first = optimizer.method("__getattribute__").hold("param_groups").method("__getitem__").hold(0)
    for rate, row in zip(rates, gradients, strict=True):
        first.method("__setitem__")("lr", rate)
        walk(optimizer, parameters, [row])
    right = reference_walk(values, gradients, rates, own, lr=0.5, eps=1e-14)
    expect_at(parameters, right, "after 3 steps at 3 rates")


@AdamW.case("passes over a parameter without a gradient, and counts each one's own steps")
def _(student: Handle, rng: Rng) -> None:
    values, gradients = some(rng, 3)
    late: Gradients = [[gradients[0][0], None], [gradients[1][0], None], gradients[2]]
    parameters = hold(student, values)
    options: dict[str, Any] = {
        "lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-14, "weight_decay": 0.3,
    }  # fmt: skip
    walk(student.hold(parameters, **options), parameters, late)
    right = reference_walk(values, late, **options)
    # With a clock for all, the late one's first step is corrected as if it were its third.
    factor = (1 - 0.8) / (1 - 0.8**3) * math.sqrt((1 - 0.95**3) / (1 - 0.95))
    shared = 0.97 * values[1] + factor * (right[1] - 0.97 * values[1])
    if same(parameters[1].method("clone")(), shared):
        fail(
            "a parameter that gets its first gradient in step 3 is corrected with t = 3.",
            "one_clock_for_all",
        )
    expect_at(parameters, right, "after 3 steps, two of them without a gradient for parameter 1")


@AdamW.case("goes on from its saved state as if it had never stopped")
def _(student: Handle, rng: Rng) -> None:
    options: dict[str, Any] = {
        "lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-14, "weight_decay": 0.1,
    }  # fmt: skip
    values, gradients = some(rng, 4)
    parameters = hold(student, values)
    optimizer = student.hold(parameters, **options)
    walk(optimizer, parameters, gradients[:2])
    saved = optimizer.method("state_dict").hold()
    copies = hold(student, [p.method("clone")() for p in parameters])
    resumed = student.hold(copies, **options)
    resumed.method("load_state_dict")(saved)
    walk(resumed, copies, gradients[2:])
    right = reference_walk(values, gradients, **options)
    expect_at(copies, right, "after 2 steps, a restart from `state_dict()` and 2 more")


@AdamW.case("leaves the gradients as they are", guard=True)
def _(student: Handle, rng: Rng) -> None:
    values, gradients = some(rng, 1)
    parameters = hold(student, values)
    walk(student.hold(parameters, lr=0.1, weight_decay=0.3), parameters, gradients)
    for i, (parameter, right) in enumerate(zip(parameters, gradients[0], strict=True)):
        expect(parameter.get("grad"), f"the gradient of parameter {i} after the step").close_to(
            right
        )


@AdamW.case("keeps its moments as precisely as the parameters", guard=True)
def _(student: Handle, rng: Rng) -> None:
    values, gradients = some(rng, 3)
    options: dict[str, Any] = {"lr": 1.0, "betas": (0.7, 0.0), "weight_decay": 0.0}
    parameters = hold(student, values)
    walk(student.hold(parameters, **options), parameters, gradients)
    for parameter, right in zip(
        parameters, reference_walk(values, gradients, **options), strict=True
    ):
        if not torch.allclose(parameter.method("clone")(), right, rtol=1e-10, atol=1e-10):
            fail("in float64 the step is right to about seven digits.", "moments_of_another_type")


class Written(Optimizer):
    """AdamW in pieces; each mistake below replaces one."""

    start_of_time = 0

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def memory(self, p: Tensor) -> dict[str, Any]:
        return self.state[p]

    def moments(self, p: Tensor, memory: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if "v" not in memory:
            memory.update(m=torch.zeros_like(p), v=torch.zeros_like(p))
        return memory["m"], memory["v"]

    def tick(self, memory: dict[str, Any]) -> int:
        memory["n"] = 1 + memory.get("n", self.start_of_time)
        return memory["n"]

    def pull(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor:
        return g

    def betas(self, group: dict[str, Any]) -> tuple[float, float]:
        return group["betas"]

    def rate(self, group: dict[str, Any]) -> float:
        return group["lr"]

    def shrink(self, group: dict[str, Any]) -> float:
        return 1 - self.rate(group) * group["weight_decay"]

    def correct(self, moment: Tensor, beta: float, n: int) -> Tensor:
        return moment / (1 - beta**n)

    def size(self, v: Tensor, beta: float, n: int) -> Tensor:
        return self.correct(v, beta, n)

    def below(self, v: Tensor, eps: float) -> Tensor:
        return v.sqrt() + eps

    def newest(self, beta: float) -> float:
        return 1 - beta

    def put(self, p: Tensor, move: Tensor, shrink: float) -> None:
        p.copy_(shrink * p + move)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.one(p, p.grad, group)

    def one(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        memory, (b1, b2) = self.memory(p), self.betas(group)
        (m, v), g = self.moments(p, memory), self.pull(p, gradient, group)
        n = self.tick(memory)
        m.copy_(b1 * m + self.newest(b1) * g)
        v.copy_(b2 * v + (1 - b2) * g * g)
        scale = self.below(self.size(v, b2, n), group["eps"])
        move = -self.rate(group) * self.correct(m, b1, n) / scale
        self.put(p, move, self.shrink(group))


def _adam(name: str, did: str, causes: str, see: str = "adam") -> Callable[[Any], Any]:
    return AdamW.misconception(did=did, causes=causes, see=see, name=name)


@_adam(
    "l2_for_decoupled_decay",
    "You add λp to the gradient, which is L2 regularization and not decoupled decay.",
    "The term is then divided by √v like the rest, so weights with large gradients hardly decay and"
    " those with small ones decay too much.",
    see="decoupled-decay",
)
class L2(Written):
    def pull(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor:
        return g + group["weight_decay"] * p

    def shrink(self, group: dict[str, Any]) -> float:
        return 1.0


@_adam(
    "clears_the_gradients",
    "Your `step` changes the gradients that it was given.",
    "Whoever logs their norm after the step, or adds another micro-batch to them, reads your"
    " numbers. Clearing them is the training loop's work.",
)
class ClearsGradients(Written):
    def one(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        super().one(p, gradient, group)
        gradient.zero_()


@_adam(
    "decay_without_the_rate",
    "Your decay is not multiplied by the learning rate.",
    "Each step takes λ of every weight, 1,000 times too much at a rate of 0.001, and the schedule"
    " does not slow it down.",
    see="decoupled-decay",
)
class DecayWithoutRate(Written):
    def shrink(self, group: dict[str, Any]) -> float:
        return 1 - group["weight_decay"]


@_adam(
    "decays_the_step_too",
    "Your decay comes after the step, so it shrinks the step as well.",
    "The loss hardly changes, but your weights part from PyTorch's at the first step, and a run"
    " cannot be compared with another. Decay first, then step.",
    see="decoupled-decay",
)
class DecaysAfterwards(Written):
    def put(self, p: Tensor, move: Tensor, shrink: float) -> None:
        p.copy_(shrink * (p + move))


@_adam(
    "no_decay",
    "`weight_decay` is accepted and never used.",
    "Weights grow as they please, and the groups that say which tensors decay say it to nobody.",
    see="decoupled-decay",
)
class NoDecay(Written):
    def shrink(self, group: dict[str, Any]) -> float:
        return 1.0


@_adam(
    "no_bias_correction",
    "The bias correction is missing: m and v start at 0 and are used as they are.",
    "With β₁ = 0.9 and β₂ = 0.999 the first step is 0.1 / √0.001, more than three times too long,"
    " just when the model knows least.",
)
class Uncorrected(Written):
    def correct(self, moment: Tensor, beta: float, n: int) -> Tensor:
        return moment


@_adam(
    "only_the_mean_is_corrected",
    "You correct m and not v.",
    "At the start v is far too small, so the first step comes out at 1 / √(1 − β₂) times the rate:"
    " 32 times too long with β₂ = 0.999.",
)
class MeanCorrected(Written):
    def size(self, v: Tensor, beta: float, n: int) -> Tensor:
        return v


@_adam(
    "counts_from_zero",
    "Your t is 0 at the first step.",
    "1 − β⁰ is 0, and dividing by it gives infinity or NaN: the first step destroys the model."
    " Count the step before you use it.",
)
class FromZero(Written):
    start_of_time = -1


@_adam(
    "counts_every_parameter",
    "Your t goes up once for every parameter, not once for every step.",
    "In a model of 150 tensors the correction is over within the first step, so the later tensors"
    " start with steps that are too long.",
)
class CountsParameters(Written):
    count = 0

    def tick(self, memory: dict[str, Any]) -> int:
        self.count += 1
        return self.count


@_adam(
    "one_clock_for_all",
    "All your parameters share one t; each must count its own steps.",
    "A parameter that gets its first gradient late (a layer that was frozen, say) has fresh moments"
    " and an old t, so its first steps are not corrected.",
)
class OneClock(Written):
    def tick(self, memory: dict[str, Any]) -> int:
        return self.param_groups[0]["clock"]

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["clock"] = 1 + group.get("clock", 0)
        super().step()


@_adam(
    "eps_inside_the_root",
    "Your ε stands beneath the root: √(v + ε).",
    "The root of 10⁻⁸ is 10⁻⁴: a weight whose gradients are smaller than that, as many are, moves"
    " far too little.",
)
class InsideRoot(Written):
    def below(self, v: Tensor, eps: float) -> Tensor:
        return (v + eps).sqrt()


@_adam(
    "no_eps",
    "Nothing is added to √v.",
    "A weight whose gradient is exactly 0, an unused row of the embedding say, becomes 0/0, which"
    " is NaN.",
)
class NoEps(Written):
    def below(self, v: Tensor, eps: float) -> Tensor:
        return v.sqrt()


@_adam(
    "eps_written_in",
    "Your ε is the number 10⁻⁸; the `eps` of the group plays no part.",
    "Whoever trains in half precision needs a larger one, sets it, and nothing happens.",
)
class EpsWrittenIn(Written):
    def below(self, v: Tensor, eps: float) -> Tensor:
        return v.sqrt() + 1e-8


@_adam(
    "no_root",
    "You divide by v and not by its root.",
    "v is a square: gradients ten times as large make the step ten times shorter, and tiny"
    " gradients make it explode.",
)
class NoRoot(Written):
    def below(self, v: Tensor, eps: float) -> Tensor:
        return v + eps


@_adam(
    "betas_swapped",
    "β₁ and β₂ have changed places.",
    "The mean then averages over a thousand steps and its size over ten: the steps follow old"
    " gradients and are scaled by noise.",
)
class Swapped(Written):
    def betas(self, group: dict[str, Any]) -> tuple[float, float]:
        return group["betas"][1], group["betas"][0]


@_adam(
    "momentum_without_its_share",
    "Your m is β₁m + g; the new gradient's share (1 − β₁) is missing.",
    "That is the momentum of SGD. Divided by √v it makes every step 1 / (1 − β₁) times too long,"
    " ten times with β₁ = 0.9.",
)
class PlainMomentum(Written):
    def newest(self, beta: float) -> float:
        return 1.0


@_adam(
    "climbs",
    "You add the step; subtract it.",
    "The gradient points to where the loss grows, so the model learns to be wrong.",
)
class Climbs(Written):
    def put(self, p: Tensor, move: Tensor, shrink: float) -> None:
        p.copy_(shrink * p - move)


@_adam(
    "rebinds_a_name",
    "The parameters are what they were: `p = p - step` gives the name p to a new tensor.",
    "The model still holds the old one, so nothing is learned. Change it in place: `p.sub_(step)`.",
)
class RebindsAName(Written):
    def put(self, p: Tensor, move: Tensor, shrink: float) -> None:
        p = shrink * p + move


@_adam(
    "rate_of_the_start",
    "You use the learning rate that was given when the optimizer was made.",
    "A schedule writes the rate of the coming step into `group['lr']`; read it there, or the"
    " warm-up and the decay never happen.",
)
class RateOfTheStart(Written):
    def rate(self, group: dict[str, Any]) -> float:
        return self.defaults["lr"]


@_adam(
    "decay_of_the_start",
    "You use the `weight_decay` that was given when the optimizer was made, for every group.",
    "Biases and norms then decay with the matrices, although their group says 0.",
    see="which-tensors-decay",
)
class DecayOfTheStart(Written):
    def shrink(self, group: dict[str, Any]) -> float:
        return 1 - self.rate(group) * self.defaults["weight_decay"]


@_adam(
    "first_group_only",
    "Only the first group is stepped.",
    "The others, biases and norms for the most part, stay as they were initialized.",
    see="which-tensors-decay",
)
class FirstGroup(Written):
    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        first = self.param_groups[0]
        for p in first["params"]:
            if p.grad is not None:
                self.one(p, p.grad, first)


@_adam(
    "trips_over_none",
    "You read the gradient of a parameter that has none.",
    "A frozen or unused parameter has `.grad` None, and the first such model stops your training.",
)
class TripsOverNone(Written):
    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.one(p, 1 * p.grad, group)


@_adam(
    "memory_outside_the_state",
    "Your m, v and t are not in `self.state`, so `state_dict()` does not hold them.",
    "A run that resumes from a checkpoint starts with empty moments and an early t, and its loss"
    " jumps.",
)
class MemoryOutside(Written):
    def memory(self, p: Tensor) -> dict[str, Any]:
        own = self.__dict__.setdefault("own", {})
        return own.setdefault(p, {})


@_adam(
    "moments_of_another_type",
    "m and v are made with `torch.zeros(p.shape)`: on the CPU and in float32, whatever p is.",
    "On a GPU the first step stops with an error, and in float64 half of the digits are lost. Use"
    " `torch.zeros_like(p)`.",
)
class Float32Moments(Written):
    def moments(self, p: Tensor, memory: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if "v" not in memory:
            memory.update(m=torch.zeros(p.shape), v=torch.zeros(p.shape))
        return memory["m"], memory["v"]


@_adam(
    "one_v_for_the_tensor",
    "You keep one v for the whole tensor; every weight needs its own.",
    "The weights with the largest gradients then set the step of all the others, which is what Adam"
    " is there to prevent.",
)
class OneSize(Written):
    def size(self, v: Tensor, beta: float, n: int) -> Tensor:
        return self.correct(v, beta, n).mean()


# --- cosine_schedule ----------------------------------------------------------------------------

cosine_schedule = ASSIGNMENT.exercise(
    "cosine_schedule",
    points=2,
    forbidden=("CosineAnnealingLR", "CosineAnnealingWarmRestarts", "LambdaLR", "SequentialLR"),
    hints=(
        "Three stretches: before `warmup_steps`, between the two, from `total_steps` on. What must"
        " the rate be at each end of each stretch?",
        "Turn the step into the share of the cosine that is done: 0 at `warmup_steps`, 1 at"
        " `total_steps`.",
        "min_lr + (max_lr − min_lr) · (1 + cos(π · done)) / 2.",
    ),
)


def reference_rate(step: int, high: float, low: float, warmup: int, total: int) -> float:
    """The closed form, by the half angle: (1 + cos x) / 2 = cos²(x / 2)."""
    if step < warmup:
        return high * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / (total - warmup))
    return low + (high - low) * math.cos(done * math.pi / 2) ** 2


def expect_rates(
    student: Handle, steps: Iterable[int], high: float, low: float, warmup: int, total: int
) -> None:
    for step in steps:
        rate = student(step, high, low, warmup, total)
        what = f"the rate of step {step}, with {warmup} steps of warm-up and {total} in all"
        expect(rate, what).close_to(reference_rate(step, high, low, warmup, total))


@cosine_schedule.case("rises in equal parts, and above zero from the first step")
def _(student: Handle, rng: Rng) -> None:
    warmup = rng.integer(4, 8)
    expect_rates(student, (0, 1, warmup - 1), 0.6, 0.05, warmup, 31)


@cosine_schedule.case("has its peak at the step after the warm-up")
def _(student: Handle, rng: Rng) -> None:
    warmup = rng.integer(4, 8)
    expect_rates(student, (warmup,), 0.6, 0.05, warmup, 31)


@cosine_schedule.case("falls along half a cosine")
def _(student: Handle, rng: Rng) -> None:
    warmup = rng.integer(4, 8)
    expect_rates(student, (warmup + 1, warmup + 7, 25, 30), 0.6, 0.05, warmup, 31)


@cosine_schedule.case("is at its least at `total_steps` and stays there")
def _(student: Handle, rng: Rng) -> None:
    warmup = rng.integer(4, 8)
    expect_rates(student, (31, 32, 47), 0.6, 0.05, warmup, 31)


@cosine_schedule.case("works without any warm-up")
def _(student: Handle, rng: Rng) -> None:
    try:
        expect_rates(student, (0, 1, 5, 13), 0.3, 0.0, 0, 13)
    except StudentError as error:
        if error.kind == "ZeroDivisionError":
            fail("it divides by zero when warmup_steps is 0.", "divides_by_no_warmup")
        raise


def _rates(
    *,
    rise: Callable[[int, int], float] = lambda step, warmup: (step + 1) / (warmup + 1),
    done: Callable[[int, int, int], float] = lambda s, w, t: (s - w) / (t - w),
    shape: Callable[[float], float] = lambda x: 0.5 + 0.5 * math.cos(math.pi * x),
    over: Callable[[int, int], bool] = lambda step, total: step >= total,
    at_end: Callable[[float, float], float] = lambda high, low: low,
    span: Callable[[float, float], float] = lambda high, low: high - low,
    floor: Callable[[float], float] = lambda low: low,
) -> Callable[..., float]:
    """A schedule with one thing wrong."""

    def wrong(step, max_lr, min_lr, warmup_steps, total_steps):  # type: ignore[no-untyped-def]
        if step < warmup_steps:
            return max_lr * rise(step, warmup_steps)
        if over(step, total_steps):
            return at_end(max_lr, min_lr)
        share = shape(done(step, warmup_steps, total_steps))
        return floor(min_lr) + span(max_lr, min_lr) * share

    return wrong


def _rate(name: str, did: str, causes: str, **wrong: Any) -> None:
    see = "learning-rate-schedule"
    _mistake(cosine_schedule, name, see, did, causes, _rates(**wrong))


_rate(
    "starts_at_zero",
    "Your warm-up is step / warmup_steps, which is 0 at the first step.",
    "The first batch is read and nothing is learned from it.",
    rise=lambda step, warmup: step / warmup,
)
_rate(
    "peaks_one_step_early",
    "Your warm-up is (step + 1) / warmup_steps, so the peak comes at step warmup_steps − 1.",
    "The rate is at its peak for two steps, and every rate of the warm-up is too high.",
    rise=lambda step, warmup: (step + 1) / warmup,
)
_rate(
    "no_warmup",
    "There is no warm-up: `warmup_steps` only delays the cosine.",
    "The first steps are taken at the full rate, while Adam's v knows one gradient: that is where"
    " runs diverge.",
    rise=lambda step, warmup: 1.0,
)
_rate(
    "decay_counted_from_zero",
    "Your cosine is counted from step 0: step / total_steps.",
    "When the warm-up ends the cosine is already on its way, so the rate jumps down and the peak is"
    " never reached.",
    done=lambda s, w, t: s / t,
)
_rate(
    "decay_too_slow",
    "You divide by total_steps; the cosine has only total_steps − warmup_steps to run.",
    "It is cut off before it is down, and the rate jumps to min_lr at the end.",
    done=lambda s, w, t: (s - w) / t,
)
_rate(
    "ends_one_step_early",
    "Your cosine ends at total_steps − 1.",
    "Every rate on the way down is a little too low, and PyTorch's schedule differs from yours.",
    done=lambda s, w, t: min(1.0, (s - w) / (t - 1 - w)),
)
_rate(
    "rises_again",
    "After total_steps your cosine goes on, and the rate rises again.",
    "A run that is prolonged by a few steps is thrown out of what it had settled in. From"
    " total_steps on the rate is min_lr.",
    over=lambda step, total: False,
)
_rate(
    "zero_after_the_end",
    "From total_steps on your rate is 0, not min_lr.",
    "The remaining steps cost as much as any and change nothing.",
    at_end=lambda high, low: 0.0,
)
_rate(
    "falls_to_zero",
    "Your cosine falls to 0 and `min_lr` comes only after it.",
    "The last part of the run is slower than was asked, and at total_steps the rate jumps up.",
    floor=lambda low: 0.0,
    span=lambda high, low: high,
)
_rate(
    "min_on_top_of_max",
    "You add min_lr to a cosine of height max_lr; its height is max_lr − min_lr.",
    "The peak comes out at max_lr + min_lr.",
    span=lambda high, low: high,
)
_rate(
    "straight_line",
    "Your rate falls in a straight line.",
    "It leaves the high rates sooner and the low ones later than a cosine does.",
    shape=lambda x: 1 - x,
)
_rate(
    "whole_cosine",
    "Your cosine runs over a whole period, 2π: down and up again.",
    "The run ends at the full rate, without the slow last steps in which the loss falls most.",
    shape=lambda x: 0.5 + 0.5 * math.cos(2 * math.pi * x),
)


@cosine_schedule.misconception(
    did="You divide by warmup_steps, which may be 0.",
    causes="A run without warm-up, which is legal, stops at its first step.",
    see="learning-rate-schedule",
)
def divides_by_no_warmup(step, max_lr, min_lr, warmup_steps, total_steps):  # type: ignore[no-untyped-def]
    parts = step / warmup_steps
    return reference_rate(round(parts * warmup_steps), max_lr, min_lr, warmup_steps, total_steps)


# --- parameter_groups ---------------------------------------------------------------------------

parameter_groups = ASSIGNMENT.exercise(
    "parameter_groups",
    points=2,
    hints=(
        "What does shrinking a matrix do to what a layer computes, and what does shrinking a norm's"
        " weight do?",
        "`model.parameters()` yields each tensor once, tied or not. Sort the trained ones by their"
        " number of dimensions.",
        "[{'params': [...], 'weight_decay': weight_decay}, {'params': [...], 'weight_decay': 0.0}],"
        " the first with `p.dim() >= 2`.",
    ),
)

SIZES = {"vocab_size": 7, "block_size": 5, "n_layers": 1, "n_heads": 1, "d_model": 2}


@functools.cache
def our_gpt(bias: bool) -> GPT:
    """The same model on this side of the pipe."""
    return GPT(GPTConfig(**SIZES, bias=bias)).double()


def small_gpt(student: Handle, rng: Rng, bias: bool = True) -> tuple[Handle, dict[str, Tensor]]:
    """The package's GPT with random weights beside the student's code, and those weights."""
    config = student.peer("rnn2gpt.gpt:GPTConfig", **SIZES, bias=bias)
    model = student.peer("rnn2gpt.gpt:GPT", config)
    named = our_gpt(bias).named_parameters()  # a tied one once
    weights = rng.like({name: tuple(p.shape) for name, p in named})
    return model.load(weights), weights


def equal_to(tensor: Tensor, weights: dict[str, Tensor]) -> str | None:
    """The name of the weight that holds the same numbers."""
    alike = (n for n, w in weights.items() if w.shape == tensor.shape and torch.equal(w, tensor))
    return next(alike, None)


def decay_of(groups: Any, weights: dict[str, Tensor]) -> dict[str, list[float]]:
    """For each named tensor, the decay of every group that it stands in."""
    form = isinstance(groups, list) and all(
        isinstance(group, dict) and {"params", "weight_decay"} <= group.keys() for group in groups
    )
    expect(groups, "the groups").holds(
        form, 'expected a list of dictionaries, each with "params" and "weight_decay".'
    )
    found: dict[str, list[float]] = {name: [] for name in weights}
    for group in groups:
        for tensor in group["params"]:
            name = equal_to(tensor, weights)
            expect(tensor, "a tensor in the groups").holds(
                name is not None, "it is no parameter of the model."
            )
            found[str(name)].append(float(group["weight_decay"]))
    return found


def expect_decay(student: Handle, model: Handle, weights: dict[str, Tensor], decay: float) -> None:
    """Every tensor stands in the groups, with the decay that its dimensions ask for."""
    for name, found in decay_of(student(model, decay), weights).items():
        kind = f"`{name}`, of shape {tuple(weights[name].shape)},"
        expect(found, kind).holds(bool(found), "is in no group, so it is never trained.")
        right = decay if weights[name].dim() >= 2 else 0.0
        if any(value != right for value in found):
            fail(f"{kind} has the weight_decay {found[0]:g}; it should be {right:g}.")


@parameter_groups.case("lets matrices and embeddings decay, and nothing else")
def _(student: Handle, rng: Rng) -> None:
    model, weights = small_gpt(student, rng)
    expect_decay(student, model, weights, 0.3)


@parameter_groups.case("goes by the number of dimensions, be it none or three")
def _(student: Handle, rng: Rng) -> None:
    model, weights = small_gpt(student, rng)
    for name, shape in (("scale", ()), ("kernel", (2, 3, 2))):
        weights[name] = rng.normal(*shape)
        model.method("register_parameter")(name, Parameter(weights[name]))
    expect_decay(student, model, weights, 0.07)


@parameter_groups.case("holds every tensor once, a tied one too")
def _(student: Handle, rng: Rng) -> None:
    model, weights = small_gpt(student, rng)
    for name, found in decay_of(student(model, 0.3), weights).items():
        expect(found, f"`{name}`").holds(
            len(found) < 2, f"stands {len(found)} times in the groups."
        )


@parameter_groups.case("leaves frozen parameters out")
def _(student: Handle, rng: Rng) -> None:
    model, weights = small_gpt(student, rng)
    frozen = ("token_embedding.weight", "norm.weight")
    for name in frozen:
        parameter = model.method("get_parameter").hold(name)
        parameter.method("requires_grad_").hold(False)
    found = decay_of(student(model, 0.3), weights)
    for name in frozen:
        expect(found[name], f"`{name}`").holds(not found[name], "is frozen, and in a group.")


@parameter_groups.case("hands over the parameters themselves, not copies")
def _(student: Handle, rng: Rng) -> None:
    model, weights = small_gpt(student, rng)
    held = student.hold(model, 0.3)
    moved = {name: weight + 1 for name, weight in weights.items()}
    model.load(moved)
    groups = held.method("copy")()  # of the list; what it holds is read only now
    follow = [equal_to(tensor, moved) for group in groups for tensor in group["params"]]
    filled = next(i for i, group in enumerate(groups) if group["params"])
    first = held.method("__getitem__").hold(filled).method("__getitem__").hold("params")
    trained = first.method("__getitem__").hold(0).get("requires_grad")
    if not (all(follow) and trained):
        fail("the tensors in the groups are not the model's parameters.", "copies")


def _groups(
    *,
    decays: Callable[[str, nn.Parameter], bool] = lambda name, p: p.dim() >= 2,
    takes: Callable[[nn.Parameter], bool] = lambda p: p.requires_grad,
    twice: bool = False,
    decay: Callable[[float], tuple[float, float]] = lambda decay: (decay, 0.0),
    hands: Callable[[Tensor], Tensor] = lambda p: p,
) -> Callable[..., Any]:
    """Groups with one thing wrong."""

    def wrong(model, weight_decay):  # type: ignore[no-untyped-def]
        named = model.named_parameters(remove_duplicate=not twice)
        sides: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, p in named:
            if takes(p):
                sides[decays(name, p)].append(hands(p))
        values = zip(sides.values(), decay(weight_decay), strict=True)
        return [{"params": tensors, "weight_decay": value} for tensors, value in values]

    return wrong


def _group(name: str, did: str, causes: str, **wrong: Any) -> None:
    _mistake(parameter_groups, name, "which-tensors-decay", did, causes, _groups(**wrong))


_group(
    "decays_everything",
    "Everything decays, biases and norms too.",
    "A norm's weight sets a scale and a bias an offset; pulling them to 0 costs the model something"
    " and does not make it simpler.",
    decays=lambda name, p: True,
)
_group(
    "decays_nothing",
    "Nothing decays: every tensor has the weight_decay 0.",
    "The argument has no effect, and the weights grow as they please.",
    decays=lambda name, p: False,
)
_group(
    "groups_swapped",
    "The groups are swapped: vectors decay and matrices do not.",
    "The decay acts where it harms and not where it helps.",
    decay=lambda decay: (0.0, decay),
)
_group(
    "by_the_name_weight",
    "You go by the name: everything that is called `weight` decays.",
    "A norm's scale is called `weight` too, and is a vector. Go by the number of dimensions.",
    decays=lambda name, p: name.endswith("weight"),
)
_group(
    "embeddings_do_not_decay",
    "Your embeddings do not decay.",
    "They are tables of two dimensions and here count as such; tied to the head they are also the"
    " largest matrix of the output.",
    decays=lambda name, p: p.dim() >= 2 and "embedding" not in name,
)
_group(
    "matrices_only",
    "Only tensors of exactly two dimensions decay; those of three and more must, too.",
    "The kernels of a convolution have three or four and would be left out.",
    decays=lambda name, p: p.dim() == 2,
)
_group(
    "more_than_a_number",
    "Tensors of one dimension decay: you ask for `dim() >= 1` or for more than one number.",
    "Biases and norms are vectors of many numbers, and they are what should not decay.",
    decays=lambda name, p: p.dim() >= 1,
)
_group(
    "tied_weight_twice",
    "A tied tensor stands twice: once as the embedding, once as the head.",
    "PyTorch warns, and refuses if they stand in two groups; an optimizer that does neither steps"
    " the tensor twice.",
    twice=True,
)
_group(
    "frozen_ones_too",
    "Frozen parameters are in the groups; leave out those with `requires_grad` False.",
    "An optimizer that has seen a gradient for them once may go on moving or shrinking what was"
    " meant to stay.",
    takes=lambda p: True,
)
_group(
    "copies",
    "The tensors in your groups are not the model's parameters: you cut them off with `.data`,"
    " `.detach()` or `.clone()`.",
    "They never receive a gradient, so the optimizer passes over every one and nothing is learned.",
    hands=lambda p: p.detach().clone(),
)
_group(
    "decay_written_in",
    "The decay is the number 0.1, whatever `weight_decay` says.",
    "Whoever tunes it tunes nothing.",
    decay=lambda decay: (0.1, 0.0),
)

# --- accumulate_gradients -----------------------------------------------------------------------

accumulate_gradients = ASSIGNMENT.exercise(
    "accumulate_gradients",
    points=3,
    hints=(
        "One micro-batch has 2 targets that count, another 10. What share of the mean over all 12"
        " does each one's own mean have?",
        "Clear the gradients first. `backward()` adds to `.grad`, so call it for each micro-batch,"
        " on a loss that is already multiplied by its share. A mean over no target is NaN: leave"
        " such a micro-batch out.",
        "n_k = (targets ≠ −100).sum(); loss = Σ_k (n_k / Σ n) · loss_k, where Σ n is over all"
        " micro-batches and known before the first one runs.",
    ),
)

Weights = dict[str, Tensor]


def micro_batch(rng: Rng, rows: int, length: int, ignored: int = 0) -> tuple[Tensor, Tensor]:
    """Random ids and targets (rows, length); the last `ignored` targets of all are −100."""
    ids, targets = (rng.integers(0, SIZES["vocab_size"], rows, length) for _ in range(2))
    if ignored:
        targets.view(-1)[-ignored:] = -100
    return ids, targets


def reference_accumulation(weights: Weights, batches: Batches) -> tuple[Tensor, Weights]:
    """The mean over all targets at once, and its gradients, by autograd."""
    model = our_gpt(bias=False)
    model.load_state_dict(weights, strict=False)
    total = sum(
        F.cross_entropy(model(ids)[0].mT, targets, ignore_index=-100, reduction="sum")
        for ids, targets in batches
    )  # logits (B, T, V) as (B, V, T)
    loss = total / sum(int((targets != -100).sum()) for _, targets in batches)
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))  # type: ignore[arg-type]
    return loss.detach(), dict(zip(named, gradients, strict=True))  # type: ignore[union-attr]


def expect_accumulated(model: Handle, loss: Any, weights: Weights, batches: Batches) -> None:
    right, gradients = reference_accumulation(weights, batches)
    have = model.gradients()
    for name, gradient in gradients.items():
        expect(have[name], f"the gradient of `{name}`").close_to(gradient)
    expect(loss, "the loss returned").close_to(right)


def accumulated(student: Handle, rng: Rng, batches: Batches) -> None:
    model, weights = small_gpt(student, rng, bias=False)
    loss = student(model, list(batches))
    expect_accumulated(model, loss, weights, batches)


@accumulate_gradients.case("leaves the gradients of the one big batch, and returns its loss")
def _(student: Handle, rng: Rng) -> None:
    accumulated(student, rng, [micro_batch(rng, 2, 5) for _ in range(3)])


@accumulate_gradients.case("lets every target count the same, however they are spread")
def _(student: Handle, rng: Rng) -> None:
    accumulated(student, rng, [micro_batch(rng, 2, 5, n) for n in (1, 8, 4)])


@accumulate_gradients.case("takes micro-batches of any shape")
def _(student: Handle, rng: Rng) -> None:
    accumulated(student, rng, [micro_batch(rng, 1, 5), micro_batch(rng, 3, 2, 1)])


@accumulate_gradients.case("clears what an earlier call left")
def _(student: Handle, rng: Rng) -> None:
    model, weights = small_gpt(student, rng, bias=False)
    student(model, [micro_batch(rng, 2, 3)])
    batches = [micro_batch(rng, 2, 3), micro_batch(rng, 2, 3)]
    expect_accumulated(model, student(model, batches), weights, batches)


@accumulate_gradients.case("leaves out micro-batches without a target that counts", guard=True)
def _(student: Handle, rng: Rng) -> None:
    model, weights = small_gpt(student, rng, bias=False)
    empty, batches = micro_batch(rng, 2, 3, 6), [micro_batch(rng, 2, 3, 2)]
    loss = student(model, [empty, *batches])
    if math.isnan(float(loss)):
        fail("a micro-batch without a target that counts makes the loss NaN.", "empty_micro_batch")
    expect_accumulated(model, loss, weights, batches)
    try:
        student(model, [empty])
    except StudentError as error:
        if "ValueError" in error.kinds:
            return
    fail("with no target that counts it should raise a ValueError.", "nothing_to_learn_from")


@accumulate_gradients.case("runs one micro-batch at a time", guard=True)
def _(student: Handle, rng: Rng) -> None:
    model, _ = small_gpt(student, rng, bias=False)
    one = micro_batch(rng, 3, 5)
    few, many = (student.largest(model, [one] * n) for n in (1, 4))
    if many > 2 * few:
        fail(
            f"the largest tensor grows with the number of micro-batches, from {few} numbers for one"
            f" to {many} for four.",
            "one_big_batch",
        )


@accumulate_gradients.case(MUTATION_TITLE, guard=True)
def _(student: Handle, rng: Rng) -> None:
    model, _ = small_gpt(student, rng, bias=False)
    batches = [micro_batch(rng, 2, 3, 2), micro_batch(rng, 2, 3)]
    kept = student.keep(batches)
    student(model, kept)
    if not same(kept.method("copy")(), batches):
        fail(MUTATES)


Share = Callable[[Tensor, Batches], float]


def counted(targets: Tensor) -> int:
    return int((targets != -100).sum())


def fair(targets: Tensor, batches: Batches) -> float:
    return counted(targets) / sum(counted(t) for _, t in batches)


def _accumulation(
    *,
    share: Share = fair,
    clear: Callable[[nn.Module, int], bool] = lambda model, n: n == 0,
    skips: bool = True,
    refuses: bool = True,
    returns: Callable[[list[Tensor], list[float]], Any] = lambda losses, shares: sum(
        loss * share for loss, share in zip(losses, shares, strict=True)
    ),
) -> Callable[..., Any]:
    """An accumulation with one thing wrong."""

    def wrong(model, micro_batches):  # type: ignore[no-untyped-def]
        if refuses and not any(counted(targets) for _, targets in micro_batches):
            raise ValueError("no target counts")
        losses, shares = [], []
        for n, (ids, targets) in enumerate(micro_batches):
            if clear(model, n):
                model.zero_grad()
            if skips and not counted(targets):
                continue
            _, loss = model(ids, targets)
            part = share(targets, micro_batches)
            (loss * part).backward()
            losses.append(loss.detach())
            shares.append(part)
        return returns(losses, shares)

    return wrong


def _accumulate(name: str, did: str, causes: str, **wrong: Any) -> None:
    see = "gradient-accumulation"
    _mistake(accumulate_gradients, name, see, did, causes, _accumulation(**wrong))


_accumulate(
    "mean_of_means",
    "You take the mean of the micro-batches' means.",
    "A target in a micro-batch with few of them then counts more than one in a full batch: the"
    " gradient is not that of the whole, and the model leans toward short texts.",
    share=lambda targets, batches: 1 / len(batches),
)
_accumulate(
    "not_divided",
    "You add the micro-batches' losses and do not divide.",
    "Loss and gradient grow with the number of micro-batches, so clipping cuts where it should not"
    " and the loss cannot be compared.",
    share=lambda targets, batches: 1.0,
)
_accumulate(
    "counts_ignored_targets",
    "Your shares count all targets, those of −100 too.",
    "A micro-batch of padding gets the weight of a full one, and its few real targets count too"
    " much.",
    share=lambda targets, batches: targets.numel() / sum(t.numel() for _, t in batches),
)
_accumulate(
    "counts_rows",
    "Your shares count the rows, not the targets.",
    "A short row weighs as much as a long one, so each of its targets weighs more.",
    share=lambda targets, batches: len(targets) / sum(len(t) for _, t in batches),
)
_accumulate(
    "sum_over_targets",
    "You multiply each mean by its number of targets and never divide by all of them.",
    "That is the sum of the losses: the gradient grows with the batch, thousands of times too long"
    " in practice.",
    share=lambda targets, batches: float(counted(targets)),
)
_accumulate(
    "gradients_never_cleared",
    "The gradients of the last call are still there: `zero_grad()` is missing.",
    "Every step follows the sum of all gradients since the start.",
    clear=lambda model, n: False,
)
_accumulate(
    "only_the_last_is_left",
    "Only the last micro-batch is left in the gradients: you clear them before each one, or call"
    " `backward()` on the last loss alone.",
    "The work for all the others is thrown away.",
    clear=lambda model, n: True,
)
_accumulate(
    "returns_the_last_loss",
    "The gradients are right; you return the last micro-batch's loss.",
    "The log shows the noise of one micro-batch instead of the mean of the step.",
    returns=lambda losses, shares: losses[-1],
)
_accumulate(
    "returns_the_mean_of_means",
    "The gradients are right; you return the plain mean of the losses.",
    "Your log then shows a number that no optimizer step has followed.",
    returns=lambda losses, shares: torch.stack(losses).mean(),
)
_accumulate(
    "empty_micro_batch",
    "A micro-batch without any target that counts turns the result into NaN.",
    "Its mean is 0/0, and NaN times a share of 0 is still NaN. One batch of padding ends the run.",
    skips=False,
)
_accumulate(
    "nothing_to_learn_from",
    "With no target at all you return a number instead of raising a ValueError.",
    "A loader that masks everything by mistake then looks like a run that goes well.",
    refuses=False,
    returns=lambda losses, shares: sum(
        (loss * share for loss, share in zip(losses, shares, strict=True)), torch.zeros(())
    ),
)


@accumulate_gradients.misconception(
    did="You join the micro-batches and run them as one.",
    causes="The numbers are right and the point is lost: a batch that was cut because it does not"
    " fit into memory does not fit any better this way.",
    see="gradient-accumulation",
)
def one_big_batch(model, micro_batches):  # type: ignore[no-untyped-def]
    model.zero_grad()
    ids, targets = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    if not counted(targets):
        raise ValueError("no target counts")
    _, loss = model(ids, targets)
    loss.backward()
    return loss.detach()


# --- compute_optimal ----------------------------------------------------------------------------

compute_optimal = ASSIGNMENT.exercise(
    "compute_optimal",
    points=1,
    hints=(
        "Two equations, C = 6·N·D and D = r·N, with r tokens for each parameter. How many unknowns"
        " are left when the second is put into the first?",
        "C = 6·r·N². Solve for N, then D follows.",
        "N = √(C / (6r)), D = r·N, returned in that order.",
    ),
)


def expect_optimal(student: Handle, flops: float, *ratio: float) -> None:
    n = math.sqrt(flops / 6 / (ratio[0] if ratio else 20))
    right = (n, flops / (6 * n))
    given = f" with {ratio[0]:g} tokens per parameter" if ratio else ""
    what = f"parameters and tokens for {flops:.3g} FLOPs{given}"
    expect(student(flops, *ratio), what).close_to(right, rtol=1e-6)


@compute_optimal.case("spends the FLOPs on 20 tokens for each parameter")
def _(student: Handle, rng: Rng) -> None:
    for exponent in (15, 19, 24):
        expect_optimal(student, rng.integer(100, 999) * 10.0**exponent)


@compute_optimal.case("takes another number of tokens per parameter")
def _(student: Handle, rng: Rng) -> None:
    expect_optimal(student, rng.integer(100, 999) * 1e16, 3.0)
    expect_optimal(student, rng.integer(100, 999) * 1e16, 170)


def _optimal(
    name: str, did: str, causes: str, wrong: Callable[[float, float], tuple[float, float]]
) -> None:
    def optimal(flops: float, tokens_per_parameter: float = 20) -> tuple[float, float]:
        return wrong(flops, tokens_per_parameter)

    _mistake(compute_optimal, name, "compute-optimal", did, causes, optimal)


_optimal(
    "forgets_the_six",
    "You spend C = N · D; a token costs six FLOPs for each parameter.",
    "Two forward, four backward: your model and its text are each √6 times too large, and the run"
    " takes six times as long as was paid for.",
    lambda c, r: (math.sqrt(c / r), math.sqrt(c * r)),
)
_optimal(
    "forward_only",
    "You count two FLOPs per parameter and token, which is the forward pass alone.",
    "The backward pass costs twice as much again, so the run takes three times what was paid for.",
    lambda c, r: (math.sqrt(c / (2 * r)), math.sqrt(c * r / 2)),
)
_optimal(
    "swapped",
    "Your two numbers have changed places: parameters come first, and tokens are 20 times as many.",
    "The model would be twenty times too large and its text a twentieth of what it needs.",
    lambda c, r: (math.sqrt(c * r / 6), math.sqrt(c / (6 * r))),
)
_optimal(
    "no_root",
    "The root is missing: N enters twice, in the parameters and in the tokens.",
    "N = C / (6 · 20) would spend all FLOPs on a single token per parameter, and then the tokens"
    " come on top.",
    lambda c, r: (c / (6 * r), c / 6),
)
_optimal(
    "twenty_written_in",
    "Your ratio is the number 20, whatever `tokens_per_parameter` says.",
    "Who trains for cheap inference wants far more tokens per parameter and gets none of them.",
    lambda c, r: (math.sqrt(c / 120), math.sqrt(c / 120) * 20),
)
_optimal(
    "half_and_half",
    "You give both the same number: N = D = √(C / 6).",
    "That is one token per parameter, a model that could learn its text by heart and nothing else.",
    lambda c, r: (math.sqrt(c / 6), math.sqrt(c / 6)),
)
