"""Checks of chapter 07: norms, the feed-forward layer, blocks, the Transformer, smoothed labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autograder.engine.exercise import Assignment, Exercise, Rng
from autograder.engine.expect import expect, fail, pulled_by_autograd
from autograder.engine.guards import guard
from autograder.engine.handle import Handle, Pullback
from autograder.engine.references import remembered
from rnn2gpt.attention import causal_mask
from rnn2gpt.multi_head import MultiHeadAttention
from rnn2gpt.positions import sinusoidal_positions
from rnn2gpt.transformer import FeedForward as RightFeedForward

ASSIGNMENT = Assignment(
    name="07-transformer",
    notebook="transformer",
    page="07_transformer",
    sections={
        "layer-norm": "LayerNorm",
        "rms-norm": "RMSNorm",
        "feed-forward": "The feed-forward layer",
        "the-block": "The block",
        "norm-placement": "Before or after",
        "the-decoder": "The decoder reads twice",
        "encoder-decoder": "Encoder and decoder",
        "label-smoothing": "Label smoothing",
    },
    minutes=110,
    modules=("data", "metrics", "ngram", "rnn", "lstm", "attention", "multi_head", "positions"),
)

NORMS = (
    "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm1d", "BatchNorm1d", "layer_norm", "rms_norm",
    "group_norm", "instance_norm", "batch_norm", "native_layer_norm", "native_group_norm",
)  # fmt: skip
BLOCKS = (
    "TransformerEncoderLayer", "TransformerDecoderLayer", "TransformerEncoder",
    "TransformerDecoder", "Transformer", "MultiheadAttention", "multi_head_attention_forward",
)  # fmt: skip


def loaded(
    module: Handle,
    rng: Rng,
    shapes: dict[str, tuple[int, ...]],
    optional: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Put random weights into the student's module; first its names and shapes are checked."""
    have = module.shapes()
    shapes = {name: shape for name, shape in shapes.items() if name in have or name not in optional}
    expect(sorted(have), "the parameters' names").equals(sorted(shapes))
    for name, shape in shapes.items():
        expect(have[name], f"the shape of {name}").equals(shape)
    weights = rng.like(shapes)
    module.load(weights)
    return weights


# --- LayerNorm ----------------------------------------------------------------------------------

LayerNorm = ASSIGNMENT.exercise(
    "LayerNorm",
    points=2,
    forbidden=NORMS,
    hints=(
        "x has shape (B, T, D). Over how many numbers is one mean taken?",
        "Take the mean and the variance over the last dimension alone and keep that dimension, so"
        " that both broadcast against x. The variance divides by D, not by D − 1.",
        "weight ⊙ (x − μ) / √(σ² + ε) + bias, with μ and σ² of shape (..., 1).",
    ),
)


def expect_norm(
    student: Handle,
    rng: Rng,
    x: Tensor,
    reference: Callable[..., Tensor],
    names: tuple[str, ...],
    eps: float | None = None,
) -> None:
    """The student's norm, with random weights, agrees with PyTorch's on x."""
    d_model = x.shape[-1]
    module = student.hold(d_model) if eps is None else student.hold(d_model, eps=eps)
    weights = loaded(module, rng, {name: (d_model,) for name in names})
    more = [weights[name] for name in names]
    right = reference(x, (d_model,), *more, *([] if eps is None else [eps]))
    expect(module(x), "the normalized x").close_to(right)


def expect_layer_norm(student: Handle, rng: Rng, x: Tensor, eps: float | None = None) -> None:
    expect_norm(student, rng, x, F.layer_norm, ("weight", "bias"), eps)


def expect_norm_gradients(
    student: Handle, rng: Rng, reference: Callable[..., Tensor], names: tuple[str, ...]
) -> None:
    """Gradients of x and of the norm's weights agree with autograd's through PyTorch's norm."""
    module = student.hold(5)
    weights = loaded(module, rng, {name: (5,) for name in names})
    x, cotangent = rng.normal(3, 2, 5), rng.normal(3, 2, 5)
    pulled: Pullback = module.vjp(x, cotangent=cotangent, wrt=(0,))
    more = [weights[name] for name in names]
    right = pulled_by_autograd(lambda x, *w: reference(x, (5,), *w), (x, *more), cotangent)
    expect(pulled.inputs[0], "the gradient of x").close_to(right[0], rtol=1e-5)
    for name, want in zip(names, right[1:], strict=True):
        expect(pulled.parameters[name], f"the gradient of {name}").close_to(want)


@LayerNorm.case("normalizes every position over its own features")
def _(student: Handle, rng: Rng) -> None:
    expect_layer_norm(student, rng, 3 * rng.strided(3, 5, 7) + 2)


@LayerNorm.case("starts with weight 1 and bias 0")
def _(student: Handle, rng: Rng) -> None:
    have = student.hold(7).parameters()
    expect(sorted(have), "the parameters' names").equals(["bias", "weight"])
    expect(have["weight"], "weight").close_to(torch.ones(7))
    expect(have["bias"], "bias").close_to(torch.zeros(7))


@LayerNorm.case("adds eps to the variance, beneath the root")
def _(student: Handle, rng: Rng) -> None:
    expect_layer_norm(student, rng, rng.normal(2, 3, 5), eps=0.7)


@LayerNorm.case("turns a constant position into the bias")
def _(student: Handle, rng: Rng) -> None:
    expect_layer_norm(student, rng, torch.full((2, 3, 5), 1.7, dtype=torch.float64))


@LayerNorm.case("works on one vector, on rows, and on heads")
def _(student: Handle, rng: Rng) -> None:
    for shape in ((5,), (3, 5), (2, 3, 7, 5)):
        expect_layer_norm(student, rng, rng.normal(*shape))


@LayerNorm.case("keeps its precision far from zero")
def _(student: Handle, rng: Rng) -> None:
    expect_layer_norm(student, rng, rng.normal(2, 3, 11) + 3e5)


@LayerNorm.case("sends the right gradients to x, weight and bias")
def _(student: Handle, rng: Rng) -> None:
    expect_norm_gradients(student, rng, F.layer_norm, ("weight", "bias"))


guard(LayerNorm, lambda rng, dtype: (rng.normal(2, 3, 5, dtype=dtype),), build=(5,))


def standardized(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """Mean 0 and variance 1 over the given dimensions."""
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


class Norm(nn.Module):
    """What the wrong norms below have in common; each spoils one of the small methods."""

    default_eps = 1e-5
    with_bias = True

    def __init__(self, d_model: int, eps: float | None = None) -> None:
        super().__init__()
        self.eps = self.default_eps if eps is None else eps
        self.weight = nn.Parameter(torch.ones(d_model))
        if self.with_bias:
            self.bias = nn.Parameter(torch.zeros(d_model))

    def normalize(self, x: Tensor) -> Tensor:
        return standardized(x, (-1,), self.eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.weight * self.normalize(x)
        return x + self.bias if self.with_bias else x


def _norm_mistake(
    exercise: Exercise, name: str, did: str, causes: str, base: type[Norm] = Norm
) -> Callable[[Callable[[Any, Tensor], Tensor]], Any]:
    """Register a norm whose `normalize` is the decorated function."""
    see = "layer-norm" if exercise is LayerNorm else "rms-norm"

    def register(normalize: Callable[[Any, Tensor], Tensor]) -> Any:
        wrong = type(name, (base,), {"normalize": normalize})
        return exercise.misconception(did=did, causes=causes, see=see, name=name)(wrong)

    return register


@_norm_mistake(
    LayerNorm,
    "unbiased_variance",
    "Your variance divides by D − 1; LayerNorm's divides by D.",
    "`torch.var` and `torch.std` divide by D − 1 unless told `correction=0`. The narrower the"
    " model, the farther its numbers are from PyTorch's, so copied weights give another model.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + self.eps).sqrt()


@_norm_mistake(
    LayerNorm,
    "eps_outside",
    "You add eps to the standard deviation; it belongs beneath the root, to the variance.",
    "Where a position hardly varies, √σ² + ε and √(σ² + ε) differ by orders of magnitude, and the"
    " root's gradient is infinite where the variance is 0.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    std = x.var(-1, correction=0, keepdim=True).sqrt()
    return (x - x.mean(-1, keepdim=True)) / (std + self.eps)


@_norm_mistake(
    LayerNorm,
    "std_and_eps",
    "You divide by `x.std(…) + eps`: the variance divides by D − 1, and eps stands outside the"
    " root.",
    "This is a norm of its own. Weights copied from PyTorch's LayerNorm give other numbers in it,"
    " above all where a position hardly varies.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps)


@_norm_mistake(
    LayerNorm,
    "eps_left_out",
    "eps never enters the root.",
    "A position whose features are all equal is then divided by 0 and becomes NaN.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / x.var(-1, correction=0, keepdim=True).sqrt()


@_norm_mistake(
    LayerNorm,
    "eps_fixed",
    "Your eps is 1e-5 whatever `eps` says.",
    "A checkpoint that was trained with another eps gives other numbers here.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    return standardized(x, (-1,), 1e-5)


@_norm_mistake(
    LayerNorm,
    "over_time_too",
    "Your mean and variance run over all positions of a row and all features together.",
    "One long or loud position then changes all the others, and a causal model sees its future"
    " through the mean.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    return standardized(x, tuple(range(min(1, x.ndim - 1), x.ndim)), self.eps)


@_norm_mistake(
    LayerNorm,
    "over_time",
    "You normalize each feature over time instead of each position over its features.",
    "What is read later then changes what came before: a causal model sees its future.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    return standardized(x, (max(x.ndim - 2, 0),), self.eps)


@_norm_mistake(
    LayerNorm,
    "over_the_batch",
    "You normalize over the batch, as BatchNorm does.",
    "A text's numbers then depend on which other texts stand in the batch.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    return standardized(x, (0,), self.eps)


@_norm_mistake(
    LayerNorm,
    "mean_not_subtracted",
    "The mean is not subtracted: this is RMSNorm.",
    "A shift that all features share stays in, and the weights of a trained LayerNorm do not fit.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()


@_norm_mistake(
    LayerNorm,
    "no_root",
    "You divide by the variance; the root is missing.",
    "A position twice as loud comes out half as loud, instead of the same.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / (x.var(-1, correction=0, keepdim=True) + self.eps)


@_norm_mistake(
    LayerNorm,
    "variance_cancels",
    "Your variance is mean(x²) − mean(x)².",
    "On paper that is the same. In floating point two large numbers cancel, and where the features"
    " lie far from 0 the variance is noise, or negative.",
)
def _(self: Norm, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / (x.pow(2).mean(-1, keepdim=True) - mean**2 + self.eps).sqrt()


@LayerNorm.misconception(
    did="`weight` and `bias` are there, but your forward leaves them out.",
    causes="The model cannot make a feature louder or shift it, and training leaves both as they"
    " were.",
    see="layer-norm",
    name="affine_left_out",
)
class AffineLeftOut(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x)


@LayerNorm.misconception(
    did="`weight` and `bias` are plain tensors, not parameters.",
    causes="The optimizer never sees them, `.to(device)` leaves them behind, and no checkpoint can"
    " fill them.",
    see="layer-norm",
    name="not_parameters",
)
class NotParameters(Norm):
    def __init__(self, d_model: int, eps: float | None = None) -> None:
        super().__init__(d_model, eps)
        weight, bias = self.weight.detach(), self.bias.detach()
        del self.weight, self.bias
        self.weight, self.bias = weight, bias  # type: ignore[assignment]


@LayerNorm.misconception(
    did="Your `weight` starts random; it starts at 1.",
    causes="A fresh layer then distorts every feature by another factor, and some are lost before"
    " training begins.",
    see="layer-norm",
    name="random_weight",
)
class RandomWeight(Norm):
    def __init__(self, d_model: int, eps: float | None = None) -> None:
        super().__init__(d_model, eps)
        nn.init.normal_(self.weight)


# --- RMSNorm ------------------------------------------------------------------------------------

RMSNorm = ASSIGNMENT.exercise(
    "RMSNorm",
    points=1,
    forbidden=NORMS,
    hints=(
        "Which of LayerNorm's two statistics is left out?",
        "Square, take the mean over the last dimension, add eps, take the root.",
        "weight ⊙ x / √(mean(x²) + ε), and no bias.",
    ),
)


def expect_rms_norm(student: Handle, rng: Rng, x: Tensor, eps: float = 1e-6) -> None:
    def reference(x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, shape, weight, eps)

    expect_norm(student, rng, x, reference, ("weight",), eps)


@RMSNorm.case("divides every position by the root of its mean square")
def _(student: Handle, rng: Rng) -> None:
    expect_rms_norm(student, rng, 3 * rng.strided(3, 5, 7) + 2)


@RMSNorm.case("has one parameter, weight, which starts at 1")
def _(student: Handle, rng: Rng) -> None:
    have = student.hold(7).parameters()
    expect(sorted(have), "the parameters' names").equals(["weight"])
    expect(have["weight"], "weight").close_to(torch.ones(7))


@RMSNorm.case("adds eps beneath the root, 1e-6 unless told otherwise")
def _(student: Handle, rng: Rng) -> None:
    expect_rms_norm(student, rng, rng.normal(2, 3, 5), eps=0.7)
    faint, module = 1e-3 * rng.normal(2, 3, 5), student.hold(5)
    weight = loaded(module, rng, {"weight": (5,)})["weight"]
    expect(module(faint), "a faint x, normalized").close_to(F.rms_norm(faint, (5,), weight, 1e-6))


@RMSNorm.case("leaves a position of zeros at zero")
def _(student: Handle, rng: Rng) -> None:
    expect_rms_norm(student, rng, torch.zeros(2, 3, 5, dtype=torch.float64))


@RMSNorm.case("works on one vector, on rows, and on heads")
def _(student: Handle, rng: Rng) -> None:
    for shape in ((5,), (3, 5), (2, 3, 7, 5)):
        expect_rms_norm(student, rng, rng.normal(*shape))


@RMSNorm.case("sends the right gradients to x and weight")
def _(student: Handle, rng: Rng) -> None:
    def reference(x: Tensor, shape: tuple[int, ...], weight: Tensor) -> Tensor:
        return F.rms_norm(x, shape, weight, 1e-6)

    expect_norm_gradients(student, rng, reference, ("weight",))


guard(RMSNorm, lambda rng, dtype: (rng.normal(2, 3, 5, dtype=dtype),), build=(5,))


class RootMeanSquare(Norm):
    """The right norm, for the wrong ones to spoil."""

    default_eps = 1e-6
    with_bias = False

    def normalize(self, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()


@_norm_mistake(
    RMSNorm,
    "mean_subtracted",
    "You subtract the mean first: this is LayerNorm without its bias.",
    "RMSNorm's point is to do without the mean. A shift shared by all features is lost here, and"
    " weights of a trained RMSNorm do not fit.",
    RootMeanSquare,
)
def _(self: Norm, x: Tensor) -> Tensor:
    return standardized(x, (-1,), self.eps)


@_norm_mistake(
    RMSNorm,
    "no_root",
    "You divide by the mean square; the root is missing.",
    "A position twice as loud comes out half as loud, instead of the same.",
    RootMeanSquare,
)
def _(self: Norm, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + self.eps)


@_norm_mistake(
    RMSNorm,
    "sum_of_squares",
    "You divide by the root of the sum of squares; it is the mean that counts.",
    "Every position then has length 1 instead of √D, so each entry shrinks as the model gets"
    " wider.",
    RootMeanSquare,
)
def _(self: Norm, x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(-1, keepdim=True) + self.eps).sqrt()


@_norm_mistake(
    RMSNorm,
    "eps_outside",
    "You add eps to the root; it belongs beneath it, to the mean square.",
    "Where a position is nearly zero the two differ by orders of magnitude.",
    RootMeanSquare,
)
def _(self: Norm, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)


@_norm_mistake(
    RMSNorm,
    "over_time_too",
    "Your mean square runs over all positions of a row and all features together.",
    "One loud position then makes all others quiet, and a causal model sees its future.",
    RootMeanSquare,
)
def _(self: Norm, x: Tensor) -> Tensor:
    square = x.pow(2).mean(tuple(range(1 if x.ndim > 1 else 0, x.ndim)), keepdim=True)
    return x / (square + self.eps).sqrt()


@RMSNorm.misconception(
    did="Your weight is used as 1 + weight.",
    causes="Gemma stores its weights like that, starting from 0. Here they start at 1, so a fresh"
    " layer doubles everything.",
    see="rms-norm",
    name="one_plus_weight",
)
class OnePlusWeight(RootMeanSquare):
    def forward(self, x: Tensor) -> Tensor:
        return (1 + self.weight) * self.normalize(x)


@RMSNorm.misconception(
    did="Your eps is LayerNorm's 1e-5 unless told otherwise; RMSNorm's is 1e-6 here.",
    causes="A faint position comes out fainter than in the model whose weights you load.",
    see="rms-norm",
    name="layer_norms_eps",
)
class LayerNormsEps(RootMeanSquare):
    default_eps = 1e-5


@RMSNorm.misconception(
    did="You have given RMSNorm a bias.",
    causes="RMSNorm has none: a checkpoint has no number to fill it with.",
    see="rms-norm",
    name="has_a_bias",
)
class HasABias(RootMeanSquare):
    with_bias = True


# --- FeedForward --------------------------------------------------------------------------------

FeedForward = ASSIGNMENT.exercise(
    "FeedForward",
    points=1,
    forbidden=BLOCKS,
    hints=(
        "How wide is x between the two linear maps, and how wide afterwards?",
        "W_1, then the activation, then dropout, then W_2, and nothing after it.",
        'W_2(dropout(activation(W_1(x)))); `F.gelu` takes `approximate="tanh"`.',
    ),
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + ((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)).tanh()),
}  # fmt: skip


def feed_forward_shapes(d_model: int, d_ff: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"W_1.weight": (d_ff, d_model)}
    shapes["W_2.weight"] = (d_model, d_ff)
    return shapes | ({"W_1.bias": (d_ff,), "W_2.bias": (d_model,)} if bias else {})


def right_feed_forward(x: Tensor, weights: dict[str, Tensor], activation: str) -> Tensor:
    """The closed form, from the weights by name."""
    hidden = F.linear(x, weights["W_1.weight"], weights.get("W_1.bias"))
    hidden = ACTIVATIONS[activation](hidden)
    return F.linear(hidden, weights["W_2.weight"], weights.get("W_2.bias"))


def expect_feed_forward(student: Handle, rng: Rng, activation: str, bias: bool = True) -> None:
    module = student.hold(5, 11, activation, 0.0, bias)
    weights = loaded(module, rng, feed_forward_shapes(5, 11, bias))
    x = 2 * rng.strided(2, 3, 5)
    right = right_feed_forward(x, weights, activation)
    expect(module(x), "the result").close_to(right)


@FeedForward.case("is W_2 · relu(W_1 · x) unless told otherwise")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(5, 11)
    weights = loaded(module, rng, feed_forward_shapes(5, 11))
    x = 2 * rng.strided(2, 3, 5)
    expect(module(x), "the result").close_to(right_feed_forward(x, weights, "relu"))


@FeedForward.case("“gelu” is the exact one, with the error function")
def _(student: Handle, rng: Rng) -> None:
    expect_feed_forward(student, rng, "gelu")


@FeedForward.case("“gelu_tanh” is GPT-2's approximation")
def _(student: Handle, rng: Rng) -> None:
    expect_feed_forward(student, rng, "gelu_tanh")


@FeedForward.case("has two weights and nothing else with bias=False")
def _(student: Handle, rng: Rng) -> None:
    expect_feed_forward(student, rng, "relu", bias=False)


@FeedForward.case("drops hidden values after the activation, in training alone")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(13, 13, "gelu", 0.5, False)
    eye = torch.eye(13, dtype=torch.float64)
    x, mix = rng.normal(5, 7, 13), rng.normal(13, 13)
    full = ACTIVATIONS["gelu"](x)
    module.load({"W_1.weight": eye, "W_2.weight": mix})
    kept = module.eval()(x)
    if not torch.equal(kept, module(x)):
        fail("two runs in evaluation mode differ.", "dropout_in_evaluation")
    expect(kept, "the result in evaluation mode").close_to(full @ mix.mT)
    mixed = module.train()(x)
    module.load({"W_1.weight": eye, "W_2.weight": eye})
    hidden = module(x)
    if torch.allclose(hidden, full):
        fail("with dropout=0.5, training and evaluation give the same result.", "no_dropout")
    # With both maps the identity, each entry is dropped (0) or kept and doubled.
    whole = torch.isclose(hidden, 2 * full) | (hidden.abs() < 1e-12)
    before = torch.isclose(hidden, ACTIVATIONS["gelu"](2 * x)) | (hidden.abs() < 1e-12)
    if before.all() and not whole.all():
        fail("what is dropped or doubled is the activation's input.", "dropout_before_activation")
    expect(hidden, "the result in training").holds(
        bool(whole.all()), "entries are neither dropped nor doubled values of gelu(x)."
    )
    if (mixed == 0).double().mean() > 0.2:
        fail("in training, many entries of the result itself are zero.", "dropout_at_the_end")


@FeedForward.case("sends the right gradients to x and the weights")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(3, 7, "gelu")
    weights = loaded(module, rng, feed_forward_shapes(3, 7))
    x, cotangent = rng.normal(2, 5, 3), rng.normal(2, 5, 3)
    pulled: Pullback = module.vjp(x, cotangent=cotangent, wrt=(0,))
    names = list(weights)

    def right(x: Tensor, *values: Tensor) -> Tensor:
        return right_feed_forward(x, dict(zip(names, values, strict=True)), "gelu")

    found = pulled_by_autograd(right, (x, *weights.values()), cotangent)
    expect(pulled.inputs[0], "the gradient of x").close_to(found[0])
    for name, want in zip(names, found[1:], strict=True):
        expect(pulled.parameters[name], f"the gradient of {name}").close_to(want)


guard(FeedForward, lambda rng, dtype: (rng.normal(2, 3, 5, dtype=dtype),), build=(5, 7))


class WrongFeedForward(RightFeedForward):
    """The package's layer with its activation's name kept; each mistake spoils one thing."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(d_model, d_ff, activation, dropout, bias)
        self.named = activation


def _feed_forward_mistake(
    name: str, did: str, causes: str, forward: Callable[[Any, Tensor], Tensor]
) -> None:
    wrong = type(name, (WrongFeedForward,), {"forward": forward})
    FeedForward.misconception(did=did, causes=causes, see="feed-forward", name=name)(wrong)


_feed_forward_mistake(
    "activation_at_the_end_too",
    "The activation also follows W_2.",
    "With relu the layer can then only add to the stream, never take away.",
    lambda self, x: self.activation(self.W_2(self.dropout(self.activation(self.W_1(x))))),
)
_feed_forward_mistake(
    "no_activation",
    "There is no activation between the two maps.",
    "Two linear maps in a row are one linear map: the d_ff hidden features buy nothing.",
    lambda self, x: self.W_2(self.dropout(self.W_1(x))),
)
_feed_forward_mistake(
    "activation_only_at_the_end",
    "Your activation follows W_2 instead of W_1.",
    "The two maps then collapse into one, and with relu the layer can never take away.",
    lambda self, x: self.activation(self.W_2(self.dropout(self.W_1(x)))),
)
_feed_forward_mistake(
    "always_relu",
    "Your activation is relu, whatever `activation` says.",
    "Weights that were trained with gelu give another model here.",
    lambda self, x: self.W_2(self.dropout(self.W_1(x).relu())),
)
_feed_forward_mistake(
    "gelu_approximated",
    "Your “gelu” is the tanh approximation.",
    "It is off by up to 5·10⁻⁴ for each hidden value: too little to see in a loss, enough to make"
    " copied weights give other logits.",
    lambda self, x: self.W_2(
        self.dropout(ACTIVATIONS["gelu_tanh" if self.named == "gelu" else self.named](self.W_1(x)))
    ),
)
_feed_forward_mistake(
    "gelu_tanh_exact",
    "Your “gelu_tanh” is the exact GELU.",
    "GPT-2 was trained with the approximation; its weights then give slightly other logits.",
    lambda self, x: self.W_2(
        self.dropout(ACTIVATIONS["gelu" if self.named == "gelu_tanh" else self.named](self.W_1(x)))
    ),
)
_feed_forward_mistake(
    "residual_inside",
    "You add x to the result.",
    "The residual belongs to the block: here it would be added twice.",
    lambda self, x: x + self.W_2(self.dropout(self.activation(self.W_1(x)))),
)
_feed_forward_mistake(
    "dropout_before_activation",
    "Your dropout stands before the activation.",
    "With relu that is the same. A gelu is not: of a doubled input it makes more than the double.",
    lambda self, x: self.W_2(self.activation(self.dropout(self.W_1(x)))),
)
_feed_forward_mistake(
    "dropout_at_the_end",
    "Your dropout follows W_2; it follows the activation.",
    "The block drops the layer's output itself, so it is dropped twice and the hidden values not"
    " at all.",
    lambda self, x: self.dropout(self.W_2(self.activation(self.W_1(x)))),
)
_feed_forward_mistake(
    "no_dropout",
    "`dropout` is accepted and never used.",
    "Training and evaluation are the same, and a large model on little text learns it by heart.",
    lambda self, x: self.W_2(self.activation(self.W_1(x))),
)
_feed_forward_mistake(
    "dropout_in_evaluation",
    "Your dropout stays on in evaluation mode.",
    "The same sentence is translated differently every time, and worse on average. `F.dropout`"
    " needs `training=self.training`.",
    lambda self, x: self.W_2(F.dropout(self.activation(self.W_1(x)), self.dropout.p)),
)


@FeedForward.misconception(
    did="Your linear maps have biases also with bias=False.",
    causes="Such a model has no place for them in its checkpoint, so loading it fails.",
    see="feed-forward",
    name="bias_always",
)
class BiasAlways(WrongFeedForward):
    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(d_model, d_ff, activation, dropout, True)


# --- TransformerBlock ---------------------------------------------------------------------------

TransformerBlock = ASSIGNMENT.exercise(
    "TransformerBlock",
    points=3,
    forbidden=BLOCKS,
    needs=("LayerNorm", "FeedForward"),
    hints=(
        "Where does the stream go that no norm and no layer touches? Draw it as one straight line.",
        "Each half of the block is one sum: x and what one layer makes of it. Decide for each half"
        " whether the norm is taken of the layer's input or of the sum.",
        "norm_first: x = x + drop(layer(norm(x))). Otherwise: x = norm(x + drop(layer(x))). The"
        " attention gets the same array three times, and returns output and weights.",
    ),
)

ENCODER_LAYERS = ("attention",)
DECODER_LAYERS = ("self_attention", "cross_attention")
# Ours -> PyTorch's names, for everything but the attentions' packed projections.
PLAIN = {
    "feed_forward.W_1": "linear1",
    "feed_forward.W_2": "linear2",
    "norm_1": "norm1",
    "norm_2": "norm2",
    "norm_3": "norm3",
}
PACKED = {
    "attention": "self_attn",
    "self_attention": "self_attn",
    "cross_attention": "multihead_attn",
}


def block_shapes(
    d_model: int, d_ff: int, attentions: tuple[str, ...], bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """The parameters of a block with the named attentions, by our names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in attentions:
        for part in ("W_q", "W_k", "W_v", "W_o"):
            shapes[f"{name}.{part}.weight"] = (d_model, d_model)
            shapes |= {f"{name}.{part}.bias": (d_model,)} if bias else {}
    for name, shape in feed_forward_shapes(d_model, d_ff, bias).items():
        shapes[f"feed_forward.{name}"] = shape
    for k in range(1, len(attentions) + 2):
        shapes |= {f"norm_{k}.weight": (d_model,), f"norm_{k}.bias": (d_model,)}
    return shapes


def norm_biases(shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The norms' biases, which a block without biases may keep or drop."""
    return tuple(name for name in shapes if name.startswith("norm_") and name.endswith(".bias"))


def packed(weights: dict[str, Tensor], name: str, kind: str, d_model: int) -> Tensor:
    """W_q, W_k and W_v of one attention on top of each other, as PyTorch keeps them."""
    zeros = torch.zeros(d_model, dtype=torch.float64)
    parts = [weights.get(f"{name}.{part}.{kind}", zeros) for part in ("W_q", "W_k", "W_v")]
    return torch.cat(parts)


def twin_of(
    weights: dict[str, Tensor],
    n_heads: int,
    norm_first: bool,
    activation: str = "relu",
    decoder: bool = False,
) -> nn.Module:
    """PyTorch's own layer with the same weights; missing biases are 0. It stays in training mode,
    without dropout, because in evaluation PyTorch may take another path."""
    d_ff, d_model = weights["feed_forward.W_1.weight"].shape
    layer = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    twin = layer(
        d_model, n_heads, d_ff, 0.0, ACTIVATIONS[activation],
        batch_first=True, norm_first=norm_first, dtype=torch.float64,
    )  # fmt: skip
    state: dict[str, Tensor] = {}
    for name in DECODER_LAYERS if decoder else ENCODER_LAYERS:
        theirs = PACKED[name]
        for kind in ("weight", "bias"):
            state[f"{theirs}.in_proj_{kind}"] = packed(weights, name, kind, d_model)
            out = weights.get(f"{name}.W_o.{kind}", torch.zeros(d_model, dtype=torch.float64))
            state[f"{theirs}.out_proj.{kind}"] = out
    for ours, theirs in PLAIN.items():
        if f"{ours}.weight" in weights:
            weight = weights[f"{ours}.weight"]
            state[f"{theirs}.weight"] = weight
            bias = weights.get(f"{ours}.bias", torch.zeros(len(weight), dtype=torch.float64))
            state[f"{theirs}.bias"] = bias
    twin.load_state_dict(state)
    return twin


def hidden_from(mask: Tensor | None, x: Tensor, keys: Tensor, n_heads: int) -> Tensor | None:
    """Our mask in PyTorch's form: (B·H, T, S), True where one may not attend."""
    if mask is None:
        return None
    full = mask.expand(len(x), n_heads, x.shape[1], keys.shape[1])
    return ~full.reshape(-1, x.shape[1], keys.shape[1])  # (B, H, T, S) → (B·H, T, S)


@remembered
def right_block(
    weights: dict[str, Tensor],
    n_heads: int,
    norm_first: bool,
    x: Tensor,
    mask: Tensor | None = None,
    activation: str = "relu",
) -> Tensor:
    twin = twin_of(weights, n_heads, norm_first, activation)
    return twin(x, src_mask=hidden_from(mask, x, x, n_heads))


def random_padding(rng: Rng, batch: int, s: int) -> Tensor:
    """(B, 1, 1, S): rows of unequal real lengths, at least one position each, one row full."""
    lengths = torch.cat([rng.integers(1, s, batch - 1), torch.tensor([s])])
    return (torch.arange(s) < lengths[:, None])[:, None, None]


@TransformerBlock.case("with norm_first it agrees with PyTorch's nn.TransformerEncoderLayer")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(6, 2, 11)
    weights = loaded(module, rng, block_shapes(6, 11, ENCODER_LAYERS))
    x = rng.strided(3, 5, 6)
    expect(module(x), "the block's output").close_to(right_block(weights, 2, True, x))


@TransformerBlock.case("with norm_first=False it agrees with the layer of the 2017 paper")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(6, 3, 11, norm_first=False)
    weights = loaded(module, rng, block_shapes(6, 11, ENCODER_LAYERS))
    x = rng.strided(2, 5, 6)
    expect(module(x), "the block's output").close_to(right_block(weights, 3, False, x))


@TransformerBlock.case("hands the mask to its attention: causal, padding, or one for each head")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(6, 2, 7)
    weights = loaded(module, rng, block_shapes(6, 7, ENCODER_LAYERS))
    x = rng.normal(3, 5, 6)
    of_heads = (rng.uniform(3, 2, 5, 5) < 0.6) | torch.eye(5, dtype=torch.bool)
    for mask in (causal_mask(5), random_padding(rng, 3, 5), of_heads):
        right = right_block(weights, 2, True, x, mask)
        expect(module(x, mask), f"the output under a mask of {tuple(mask.shape)}").close_to(right)


@TransformerBlock.case("passes on `activation` and `bias`")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(4, 2, 7, 0.0, False, "gelu", False)
    shapes = block_shapes(4, 7, ENCODER_LAYERS, bias=False)
    weights = loaded(module, rng, shapes, optional=norm_biases(shapes))
    x = rng.normal(2, 3, 4)
    right = right_block(weights, 2, False, x, activation="gelu")
    expect(module(x), "the block's output").close_to(right)


@TransformerBlock.case("works on one token of one row, with one head")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(3, 1, 3)
    weights = loaded(module, rng, block_shapes(3, 3, ENCODER_LAYERS))
    x = rng.normal(1, 1, 3)
    expect(module(x), "the block's output").close_to(right_block(weights, 1, True, x))


def silenced(weights: dict[str, Tensor], keep: str) -> dict[str, Tensor]:
    """The weights with every layer but `keep` adding nothing to the stream."""
    ends = (".W_o.weight", ".W_o.bias", ".W_2.weight", ".W_2.bias")
    return {
        name: torch.zeros_like(w) if name.endswith(ends) and not name.startswith(keep) else w
        for name, w in weights.items()
    }


def expect_dropout(student: Handle, rng: Rng, layers: tuple[str, ...], *inputs: Tensor) -> None:
    """A pre-norm block drops half of what each layer adds, in training alone, and no more."""
    module = student.hold(6, 2, 11, dropout=0.5)
    weights = loaded(module, rng, block_shapes(6, 11, layers))
    x = inputs[0]
    module.eval()
    if not torch.equal(module(*inputs), module(*inputs)):
        fail("two runs in evaluation mode differ.", "dropout_in_evaluation")
    module.load(silenced(weights, "nothing"))
    expect(module(*inputs), "the output where no layer adds anything").close_to(x)
    for layer in (*layers, "feed_forward"):
        module.load(silenced(weights, layer))
        output = module.train()(*inputs)
        if (output == 0).double().mean() > 0.2:
            fail("in training, entries of the stream itself are dropped.", "residual_dropped")
        share = (output == x).double().mean()
        if share < 0.2:
            fail(
                f"in training with dropout=0.5, the {layer} layer's output is added with"
                f" {100 * share:.0f} % of its entries dropped.",
                None if share else "no_dropout",
            )
        expect(share.item(), f"the share that is dropped of what {layer} adds").holds(
            share < 0.8, f"expected about half, got {share:.2f}."
        )


@TransformerBlock.case("drops part of what each layer adds, in training alone")
def _(student: Handle, rng: Rng) -> None:
    expect_dropout(student, rng, ENCODER_LAYERS, rng.normal(5, 7, 6))


@remembered
def right_block_gradients(
    weights: dict[str, Tensor], decoder: bool, inputs: tuple[Tensor, ...], cotangent: Tensor
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Gradients of the inputs, and of the weights of PyTorch's layer by its names."""
    twin = twin_of(weights, 2, True, "gelu", decoder)
    leaves = [leaf.detach().requires_grad_() for leaf in inputs]
    names, parameters = zip(*twin.named_parameters(), strict=True)
    found = torch.autograd.grad(twin(*leaves), [*leaves, *parameters], cotangent)
    return found[: len(leaves)], dict(zip(names, found[len(leaves) :], strict=True))


def expect_block_gradients(
    student: Handle, rng: Rng, layers: tuple[str, ...], *inputs: Tensor
) -> None:
    """Gradients of the inputs and of every weight agree with those of PyTorch's layer."""
    module = student.hold(4, 2, 7, activation="gelu")
    weights = loaded(module, rng, block_shapes(4, 7, layers))
    cotangent = rng.normal(*inputs[0].shape)
    pulled: Pullback = module.vjp(*inputs, cotangent=cotangent, wrt=tuple(range(len(inputs))))
    decoder = layers is DECODER_LAYERS
    of_inputs, theirs = right_block_gradients(weights, decoder, inputs, cotangent)
    for name, have, want in zip(("x", "memory"), pulled.inputs, of_inputs):  # noqa: B905
        expect(have, f"the gradient of {name}").close_to(want, rtol=1e-5, atol=1e-8)
    for ours, of_twin in PLAIN.items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in weights:
                have, want = pulled.parameters[f"{ours}.{kind}"], theirs[f"{of_twin}.{kind}"]
                expect(have, f"the gradient of {ours}.{kind}").close_to(want, 1e-5, 1e-8)
    for ours, of_twin in PACKED.items():
        if f"{ours}.W_q.weight" in weights:
            parts = [pulled.parameters[f"{ours}.{part}.weight"] for part in ("W_q", "W_k", "W_v")]
            thirds = theirs[f"{of_twin}.in_proj_weight"].chunk(3)
            for part, have, want in zip("qkv", parts, thirds, strict=True):
                expect(have, f"the gradient of {ours}.W_{part}.weight").close_to(want, 1e-5, 1e-8)


@TransformerBlock.case("sends the right gradients to x and every weight")
def _(student: Handle, rng: Rng) -> None:
    expect_block_gradients(student, rng, ENCODER_LAYERS, rng.normal(2, 5, 4))


guard(
    TransformerBlock,
    lambda rng, dtype: (rng.normal(2, 5, 6, dtype=dtype), causal_mask(5)),
    build=(6, 2, 7),
)


class Block(nn.Module):
    """What the wrong blocks below have in common; each spoils one of the small methods."""

    decoder = False

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm_first, self.p = norm_first, dropout
        for name in DECODER_LAYERS if self.decoder else ENCODER_LAYERS:
            setattr(self, name, MultiHeadAttention(d_model, n_heads, bias))
        self.feed_forward = RightFeedForward(d_model, d_ff, activation, dropout, bias)
        for k in range(1, 4 if self.decoder else 3):
            setattr(self, f"norm_{k}", nn.LayerNorm(d_model, bias=bias))

    def norm(self, number: int, x: Tensor) -> Tensor:
        return getattr(self, f"norm_{number}")(x)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """One half of the block: the stream after the layer with norm `number`."""
        if self.norm_first:
            return x + self.drop(layer(self.norm(number, x)))
        return self.norm(number, x + self.drop(layer(x)))

    def attend(self, y: Tensor, mask: Tensor | None) -> Tensor:
        return self.attention(y, y, y, mask)[0]  # type: ignore[operator]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.add(x, 1, lambda y: self.attend(y, mask))
        return self.add(x, 2, self.feed_forward)


def _mistake(
    exercise: Exercise, name: str, did: str, causes: str, see: str = "the-block"
) -> Callable[[Any], Any]:
    return exercise.misconception(did=did, causes=causes, see=see, name=name)


@_mistake(
    TransformerBlock,
    "no_attention_residual",
    "The residual around the attention is missing: x itself is not added.",
    "The block forgets what stood at a position and keeps only what was read elsewhere; in a deep"
    " stack no gradient reaches the bottom.",
)
class NoAttentionResidual(Block):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if number == 2:
            return super().add(x, number, layer)
        y = self.drop(layer(self.norm(1, x) if self.norm_first else x))
        return y if self.norm_first else self.norm(1, y)


@_mistake(
    TransformerBlock,
    "no_feed_forward_residual",
    "The residual around the feed-forward layer is missing: x itself is not added.",
    "Whatever the attention has just gathered survives only as far as the feed-forward layer"
    " happens to copy it.",
)
class NoFeedForwardResidual(Block):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if number == 1:
            return super().add(x, number, layer)
        y = self.drop(layer(self.norm(2, x) if self.norm_first else x))
        return y if self.norm_first else self.norm(2, y)


@_mistake(
    TransformerBlock,
    "no_residuals",
    "Both residuals are missing: neither half of the block adds x.",
    "Each layer starts from what the last one left, and a stack of a dozen such blocks does not"
    " train.",
)
class NoResiduals(Block):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        y = self.drop(layer(self.norm(number, x) if self.norm_first else x))
        return y if self.norm_first else self.norm(number, y)


@_mistake(
    TransformerBlock,
    "norm_on_the_residual_path",
    "With norm_first you overwrite x by its norm, so the norm sits on the residual path: what is"
    " added to is norm(x), not x.",
    "The straight path through the stack is then normalized at every block, which is what pre-norm"
    " is there to avoid.",
    "norm-placement",
)
class NormOnTheResidualPath(Block):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if not self.norm_first:
            return super().add(x, number, layer)
        x = self.norm(number, x)
        return x + self.drop(layer(x))


@_mistake(
    TransformerBlock,
    "norm_of_what_is_added",
    "You normalize what a layer adds, x + norm(layer(x)); the norm belongs to the layer's input"
    " or to the sum.",
    "Every layer then adds with the same loudness, however little it has to say, and the layer"
    " itself reads a stream that grows with the depth.",
    "norm-placement",
)
class NormOfWhatIsAdded(Block):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        return x + self.drop(self.norm(number, layer(x)))


@_mistake(
    TransformerBlock,
    "shared_norm",
    "norm_1 is used twice; norm_2 is there and never called.",
    "The attention and the feed-forward layer want different scales, and one set of weights must"
    " serve both.",
)
class SharedNorm(Block):
    def norm(self, number: int, x: Tensor) -> Tensor:
        return super().norm(1, x)


@_mistake(
    TransformerBlock,
    "swapped_norms",
    "norm_2 stands at the attention and norm_1 at the feed-forward layer.",
    "It trains as well as the right order, but copied weights give another model.",
)
class SwappedNorms(Block):
    def norm(self, number: int, x: Tensor) -> Tensor:
        return super().norm(3 - number, x)


@_mistake(
    TransformerBlock,
    "norm_first_turned_around",
    "norm_first=True gives post-norm and norm_first=False gives pre-norm: the two are mixed up.",
    "A deep model that you believe to be pre-norm then needs the warm-up that post-norm needs, or"
    " does not train at all.",
    "norm-placement",
)
class NormFirstTurnedAround(Block):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return self.norm(number, x + self.drop(layer(x)))
        return x + self.drop(layer(self.norm(number, x)))


class AlwaysOneWay(Block):
    first = True

    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.first:
            return x + self.drop(layer(self.norm(number, x)))
        return self.norm(number, x + self.drop(layer(x)))


@_mistake(
    TransformerBlock,
    "always_pre_norm",
    "Your block is pre-norm also with norm_first=False.",
    "The model of the 2017 paper, and BERT's, cannot be built with it.",
    "norm-placement",
)
class AlwaysPreNorm(AlwaysOneWay):
    pass


@_mistake(
    TransformerBlock,
    "always_post_norm",
    "Your block is post-norm also with norm_first=True.",
    "Every block then rescales the stream, the gradient at the bottom with it, and a deep stack"
    " needs a careful warm-up.",
    "norm-placement",
)
class AlwaysPostNorm(AlwaysOneWay):
    first = False


@_mistake(
    TransformerBlock,
    "only_the_query_normalized",
    "With norm_first only the attention's query is normalized; key and value are the raw x.",
    "The raw stream grows with the depth, so the deeper the block, the more the scores are set by"
    " how loud a position is.",
)
class OnlyTheQueryNormalized(Block):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        raw = x
        keys = raw if self.norm_first else None

        def attend(y: Tensor) -> Tensor:
            key = y if keys is None else keys
            return self.attention(y, key, key, mask)[0]  # type: ignore[operator]

        return self.add(self.add(x, 1, attend), 2, self.feed_forward)


@_mistake(
    TransformerBlock,
    "parallel_layers",
    "Attention and feed-forward layer both read the block's input, and both are added at once.",
    "GPT-J does this to save time. Here the feed-forward layer reads what the attention has"
    " already added.",
)
class ParallelLayers(Block):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.norm_first:
            return super().forward(x, mask)
        attended = self.drop(self.attend(self.norm(1, x), mask))
        return x + attended + self.drop(self.feed_forward(self.norm(2, x)))


@_mistake(
    TransformerBlock,
    "mask_lost",
    "`mask` is accepted and never reaches the attention.",
    "A language model built of such blocks reads the answer it is asked to predict: its training"
    " loss goes to nearly 0, and it writes nonsense.",
)
class MaskLost(Block):
    def attend(self, y: Tensor, mask: Tensor | None) -> Tensor:
        return super().attend(y, None)


@_mistake(
    TransformerBlock,
    "residual_dropped",
    "Your dropout falls on the sum, x included; it belongs to what the layer adds.",
    "In training each block deletes part of the stream for good, and a stack of them leaves nothing"
    " of the input.",
)
class ResidualDropped(Block):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return self.drop(x + layer(self.norm(number, x)))
        return self.norm(number, self.drop(x + layer(x)))


NO_DROPOUT = (
    "no_dropout",
    "What a layer adds is not dropped in training.",
    "Section 5.4 of the 2017 paper drops part of every layer's output before it is added; without"
    " that a large model on few sentences learns them by heart.",
)
DROPOUT_IN_EVALUATION = (
    "dropout_in_evaluation",
    "Your dropout stays on in evaluation mode.",
    "The same sentence is translated differently every time, and worse on average. `F.dropout`"
    " needs `training=self.training`.",
)


@_mistake(TransformerBlock, *NO_DROPOUT)
class NoDropout(Block):
    def drop(self, x: Tensor) -> Tensor:
        return x


@_mistake(TransformerBlock, *DROPOUT_IN_EVALUATION)
class DropoutInEvaluation(Block):
    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


@_mistake(
    TransformerBlock,
    "activation_not_passed_on",
    "`activation` does not reach the feed-forward layer: it stays relu.",
    "Weights that were trained with gelu give another model here.",
)
class ActivationNotPassedOn(Block):
    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__(d_model, n_heads, d_ff, dropout, norm_first, "relu", bias)


@_mistake(
    TransformerBlock,
    "bias_not_passed_on",
    "`bias` does not reach the attention and the feed-forward layer.",
    "A model without biases then has thousands of them, for which no checkpoint has numbers.",
)
class BiasNotPassedOn(Block):
    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__(d_model, n_heads, d_ff, dropout, norm_first, activation, True)


# --- DecoderBlock -------------------------------------------------------------------------------

DecoderBlock = ASSIGNMENT.exercise(
    "DecoderBlock",
    points=3,
    forbidden=BLOCKS,
    needs=("LayerNorm", "FeedForward"),
    hints=(
        "Three layers take turns. For each: who asks, and who is read?",
        "The block you have, with one more sum in the middle. There the target asks (query) and the"
        " encoder's memory is read (key and value); each attention has its own mask.",
        "x (B, T, D) → self_attention(y, y, y, self_mask) → cross_attention(y, memory, memory,"
        " memory_mask) → feed_forward(y); norms 1, 2, 3 in this order, never on memory.",
    ),
)


@remembered
def right_decoder_block(
    weights: dict[str, Tensor],
    n_heads: int,
    norm_first: bool,
    inputs: tuple[Any, ...],
    activation: str = "relu",
) -> Tensor:
    twin = twin_of(weights, n_heads, norm_first, activation, decoder=True)
    x, memory, self_mask, memory_mask = (*inputs, None, None)[:4]
    return twin(
        x,
        memory,
        tgt_mask=hidden_from(self_mask, x, x, n_heads),
        memory_mask=hidden_from(memory_mask, x, memory, n_heads),
    )


@DecoderBlock.case("with norm_first it agrees with PyTorch's nn.TransformerDecoderLayer")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(6, 2, 11)
    weights = loaded(module, rng, block_shapes(6, 11, DECODER_LAYERS))
    inputs = rng.strided(3, 5, 6), rng.strided(3, 7, 6)
    right = right_decoder_block(weights, 2, True, inputs)
    expect(module(*inputs), "the block's output").close_to(right)


@DecoderBlock.case("with norm_first=False it agrees with the layer of the 2017 paper")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(6, 3, 11, norm_first=False)
    weights = loaded(module, rng, block_shapes(6, 11, DECODER_LAYERS))
    inputs = rng.normal(2, 5, 6), rng.normal(2, 5, 6)
    right = right_decoder_block(weights, 3, False, inputs)
    expect(module(*inputs), "the block's output").close_to(right)


@DecoderBlock.case("a change in the target's future changes nothing before it")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(6, 2, 7)
    weights = loaded(module, rng, block_shapes(6, 7, DECODER_LAYERS))
    x, memory, mask = rng.normal(3, 5, 6), rng.normal(3, 7, 6), causal_mask(5)
    right = right_decoder_block(weights, 2, True, (x, memory, mask))
    expect(module(x, memory, mask), "the output under a causal mask").close_to(right)
    other = torch.cat([x[:, :3], rng.normal(3, 2, 6)], dim=1)
    before = module(other, memory, mask)[:, :3]
    expect(before, "the first three outputs after the rest was changed").close_to(right[:, :3])


@DecoderBlock.case("no target position reads the source's padding")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(6, 2, 7)
    weights = loaded(module, rng, block_shapes(6, 7, DECODER_LAYERS))
    x, memory, mask = rng.normal(3, 5, 6), rng.normal(3, 5, 6), random_padding(rng, 3, 5)
    inputs = x, memory, causal_mask(5), mask
    right = right_decoder_block(weights, 2, True, inputs)
    expect(module(*inputs), "the output under both masks").close_to(right)
    noise = torch.where(mask[:, 0, 0, :, None], memory, rng.normal(3, 5, 6))
    again = module(x, noise, causal_mask(5), mask)
    expect(again, "the output after the padding's memory was changed").close_to(right)


@DecoderBlock.case("passes on `activation` and `bias`")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(4, 2, 7, 0.0, False, "gelu", False)
    shapes = block_shapes(4, 7, DECODER_LAYERS, bias=False)
    weights = loaded(module, rng, shapes, optional=norm_biases(shapes))
    inputs = rng.normal(2, 3, 4), rng.normal(2, 5, 4)
    right = right_decoder_block(weights, 2, False, inputs, "gelu")
    expect(module(*inputs), "the block's output").close_to(right)


@DecoderBlock.case("works on one target token and one source token")
def _(student: Handle, rng: Rng) -> None:
    module = student.hold(3, 1, 3)
    weights = loaded(module, rng, block_shapes(3, 3, DECODER_LAYERS))
    inputs = rng.normal(1, 1, 3), rng.normal(1, 1, 3)
    right = right_decoder_block(weights, 1, True, inputs)
    expect(module(*inputs), "the block's output").close_to(right)


@DecoderBlock.case("drops part of what each layer adds, in training alone")
def _(student: Handle, rng: Rng) -> None:
    expect_dropout(student, rng, DECODER_LAYERS, rng.normal(5, 7, 6), rng.normal(5, 3, 6))


@DecoderBlock.case("sends the right gradients to x, to memory and every weight")
def _(student: Handle, rng: Rng) -> None:
    expect_block_gradients(student, rng, DECODER_LAYERS, rng.normal(2, 5, 4), rng.normal(2, 3, 4))


guard(
    DecoderBlock,
    lambda rng, dtype: (
        rng.normal(2, 5, 6, dtype=dtype),
        rng.normal(2, 3, 6, dtype=dtype),
        causal_mask(5),
        random_padding(rng, 2, 3),
    ),
    build=(6, 2, 7),
)


class Decoder(Block):
    """What the wrong decoder blocks have in common; each spoils one of the small methods."""

    decoder = True

    def attend(self, y: Tensor, mask: Tensor | None) -> Tensor:
        return self.self_attention(y, y, y, mask)[0]  # type: ignore[operator]

    def read(self, y: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return self.cross_attention(y, memory, memory, mask)[0]  # type: ignore[operator]

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor,
        self_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        x = self.add(x, 1, lambda y: self.attend(y, self_mask))
        x = self.add(x, 2, lambda y: self.read(y, memory, memory_mask))
        return self.add(x, 3, self.feed_forward)


@_mistake(
    DecoderBlock,
    "reads_itself",
    "Your cross-attention takes its keys and values from the target itself; memory is never read.",
    "The decoder then writes fluent sentences that have nothing to do with the source.",
    "the-decoder",
)
class ReadsItself(Decoder):
    def read(self, y: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return super().read(y, y, None)


@_mistake(
    DecoderBlock,
    "values_from_itself",
    "Your cross-attention takes its keys from memory and its values from the target.",
    "The weights point into the source, but what they mix is the target.",
    "the-decoder",
)
class ValuesFromItself(Decoder):
    def read(self, y: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return self.cross_attention(y, memory, y, mask)[0]  # type: ignore[operator]


@_mistake(
    DecoderBlock,
    "query_and_memory_swapped",
    "In your cross-attention memory asks and the target is read.",
    "One row comes out for each source position, which is the wrong length, and padding asks too.",
    "the-decoder",
)
class QueryAndMemorySwapped(Decoder):
    def read(self, y: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return self.cross_attention(memory, y, y)[0]  # type: ignore[operator]


@_mistake(
    DecoderBlock,
    "source_mask_lost",
    "`memory_mask` never reaches the cross-attention.",
    "A short sentence is then read together with its padding, so its translation depends on how"
    " long the other sentences of the batch are.",
    "the-decoder",
)
class SourceMaskLost(Decoder):
    def read(self, y: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return super().read(y, memory, None)


@_mistake(
    DecoderBlock,
    "causal_mask_lost",
    "`self_mask` never reaches the self-attention.",
    "In training the decoder reads the word it is asked to predict; in translation that word is not"
    " there yet, and it writes nonsense.",
    "the-decoder",
)
class CausalMaskLost(Decoder):
    def attend(self, y: Tensor, mask: Tensor | None) -> Tensor:
        return super().attend(y, None)


@_mistake(
    DecoderBlock,
    "masks_swapped",
    "Your two masks have changed places.",
    "The source's padding mask hides target words, and the causal mask hides the end of the source"
    " from the target's beginning.",
    "the-decoder",
)
class MasksSwapped(Decoder):
    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor,
        self_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        return super().forward(x, memory, memory_mask, self_mask)


@_mistake(
    DecoderBlock,
    "causal_mask_for_both",
    "Both of your attentions get `self_mask`.",
    "The first target words then read only the first source words, and where the two lengths"
    " differ the shapes do not fit.",
    "the-decoder",
)
class CausalMaskForBoth(Decoder):
    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor,
        self_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        return super().forward(x, memory, self_mask, self_mask)


@_mistake(
    DecoderBlock,
    "memory_normalized",
    "norm_2 is applied to memory as well.",
    "Memory has its own norm at the end of the encoder; PyTorch's layer, and every checkpoint,"
    " reads it as it comes.",
    "the-decoder",
)
class MemoryNormalized(Decoder):
    def read(self, y: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return super().read(y, self.norm(2, memory), mask)


@_mistake(
    DecoderBlock,
    "memory_normalized_before",
    "With norm_first, norm_2 is applied to memory as well as to x.",
    "norm_2 belongs to the stream that asks. Memory left the encoder through a norm of its own, and"
    " normalized twice it is not what any checkpoint was trained on.",
    "the-decoder",
)
class MemoryNormalizedBefore(Decoder):
    def read(self, y: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return super().read(y, self.norm(2, memory) if self.norm_first else memory, mask)


@_mistake(
    DecoderBlock,
    "cross_before_self",
    "Your cross-attention stands before the self-attention.",
    "Each position then looks into the source before it knows which words were already written.",
    "the-decoder",
)
class CrossBeforeSelf(Decoder):
    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor,
        self_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        x = self.add(x, 2, lambda y: self.read(y, memory, memory_mask))
        x = self.add(x, 1, lambda y: self.attend(y, self_mask))
        return self.add(x, 3, self.feed_forward)


@_mistake(
    DecoderBlock,
    "one_attention_for_both",
    "self_attention does both jobs; cross_attention is there and never called.",
    "One set of weights must then say both what to look for in the source and what among the"
    " target's own words.",
    "the-decoder",
)
class OneAttentionForBoth(Decoder):
    def read(self, y: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return self.self_attention(y, memory, memory, mask)[0]  # type: ignore[operator]


@_mistake(
    DecoderBlock,
    "no_cross_residual",
    "The residual around the cross-attention is missing: x itself is not added.",
    "What the target's own words have told is lost at every block.",
)
class NoCrossResidual(Decoder):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if number != 2:
            return super().add(x, number, layer)
        y = self.drop(layer(self.norm(2, x) if self.norm_first else x))
        return y if self.norm_first else self.norm(2, y)


@_mistake(
    DecoderBlock,
    "cross_missing",
    "There is no cross-attention in your forward.",
    "The decoder never sees the source: it is a language model of the target.",
    "the-decoder",
)
class CrossMissing(Decoder):
    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor,
        self_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        x = self.add(x, 1, lambda y: self.attend(y, self_mask))
        return self.add(x, 3, self.feed_forward)


@_mistake(
    DecoderBlock,
    "norms_two_and_three_swapped",
    "norm_3 stands at the cross-attention and norm_2 at the feed-forward layer.",
    "It trains as well as the right order, but copied weights give another model.",
)
class NormsTwoAndThreeSwapped(Decoder):
    def norm(self, number: int, x: Tensor) -> Tensor:
        return super().norm({1: 1, 2: 3, 3: 2}[number], x)


@_mistake(
    DecoderBlock,
    "norm_first_turned_around",
    "norm_first=True gives post-norm and norm_first=False gives pre-norm: the two are mixed up.",
    "A deep model that you believe to be pre-norm then needs the warm-up that post-norm needs, or"
    " does not train at all.",
    "norm-placement",
)
class DecoderTurnedAround(Decoder):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return self.norm(number, x + self.drop(layer(x)))
        return x + self.drop(layer(self.norm(number, x)))


@_mistake(
    DecoderBlock,
    "norm_on_the_residual_path",
    "With norm_first you overwrite x by its norm, so the norm sits on the residual path: what is"
    " added to is norm(x), not x.",
    "The straight path through the stack is then normalized at every block, which is what pre-norm"
    " is there to avoid.",
    "norm-placement",
)
class DecoderNormOnThePath(Decoder):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if not self.norm_first:
            return super().add(x, number, layer)
        x = self.norm(number, x)
        return x + self.drop(layer(x))


@_mistake(DecoderBlock, *NO_DROPOUT)
class DecoderWithoutDropout(Decoder):
    def drop(self, x: Tensor) -> Tensor:
        return x


@_mistake(DecoderBlock, *DROPOUT_IN_EVALUATION)
class DecoderDropoutInEvaluation(Decoder):
    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


@_mistake(
    DecoderBlock,
    "residual_dropped",
    "Your dropout falls on the sum, x included; it belongs to what the layer adds.",
    "In training each block deletes part of the stream for good, and a stack of them leaves nothing"
    " of the input.",
)
class DecoderResidualDropped(Decoder):
    def add(self, x: Tensor, number: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return self.drop(x + layer(self.norm(number, x)))
        return self.norm(number, self.drop(x + layer(x)))


# --- Transformer --------------------------------------------------------------------------------

Transformer = ASSIGNMENT.exercise(
    "Transformer",
    points=4,
    forbidden=BLOCKS,
    needs=("LayerNorm", "FeedForward", "TransformerBlock", "DecoderBlock"),
    hints=(
        "Which three masks does the whole model need, and which of them can be read off the ids?",
        "encode: embed, add positions, run the encoder's blocks under the source's padding mask."
        " decode: embed, add positions, run the decoder's blocks under a causal mask, each reading"
        " memory under the same padding mask, then one linear map to the target's vocabulary.",
        "memory_mask = (source != pad_id)[:, None, None], (B, 1, 1, S); causal_mask(T, device=…),"
        " (T, T); `nn.ModuleList` for blocks; `register_buffer` for `sinusoidal_positions`;"
        " forward(source, target_in) = decode(target_in, *encode(source)).",
    ),
)

SOURCE_VOCAB, TARGET_VOCAB, MAX_LEN = 11, 13, 9


def transformer(
    student: Handle, rng: Rng, pad_id: int = 0, n_layers: int = 1, dropout: float = 0.0
) -> Handle:
    """The student's model with random weights, whatever their names, in evaluation mode."""
    sizes = SOURCE_VOCAB, TARGET_VOCAB, 8, 2, 11, n_layers, MAX_LEN, pad_id, dropout
    module = student.hold(*sizes)
    return module.load(rng.like(module.shapes())).eval()


def sentences(
    rng: Rng, batch: int = 3, s: int = 5, t: int = 7, pad_id: int = 0
) -> tuple[Tensor, Tensor]:
    """Source (B, S) and target (B, T), neither with padding, no id twice in a row of the source."""
    real = torch.tensor([i for i in range(SOURCE_VOCAB) if i != pad_id])
    source = torch.stack([real[rng.permutation(len(real))[:s]] for _ in range(batch)])
    target = rng.integers(0, TARGET_VOCAB - 1, batch, t)
    return source, target + (target >= pad_id).long()


def padded(ids: Tensor, n: int, pad_id: int) -> Tensor:
    return torch.cat([ids, ids.new_full((len(ids), n), pad_id)], dim=1)


def alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-7, atol=1e-9)


@Transformer.case("gives finite logits of shape (B, T, target_vocab)")
def _(student: Handle, rng: Rng) -> None:
    logits = transformer(student, rng, n_layers=2)(*sentences(rng))
    expect(logits, "the logits").has_shape(3, 7, TARGET_VOCAB)
    expect(logits, "the logits").holds(bool(logits.isfinite().all()), "some are NaN or infinite.")
    sums = logits.sum(-1)
    if bool((logits >= 0).all()) and alike(sums, torch.ones_like(sums)):
        fail("each row is positive and sums to 1.", "returns_probabilities")


@Transformer.case("decode(target_in, *encode(source)) is forward(source, target_in)")
def _(student: Handle, rng: Rng) -> None:
    module, (source, target) = transformer(student, rng, n_layers=2), sentences(rng)
    memory, memory_mask = module.method("encode")(source)
    expect(memory, "memory").has_shape(3, 5, 8)
    decoded = module.method("decode")(target, memory, memory_mask)
    expect(decoded, "decode after encode").close_to(module(source, target))


@Transformer.case("a change in the target's future changes nothing before it")
def _(student: Handle, rng: Rng) -> None:
    module, (source, target) = transformer(student, rng), sentences(rng)
    logits = module(source, target)
    other = target.clone()
    other[:, 4:] = other[:, 4:] % (TARGET_VOCAB - 1) + 1
    changed = module(source, other)
    other = target.clone()
    other[:, 0] = other[:, 0] % (TARGET_VOCAB - 1) + 1
    reads_back = not alike(module(source, other)[:, 6], logits[:, 6])
    if not alike(changed[:, :4], logits[:, :4]):
        fail(
            "the logits at position 0 to 3 move when tokens from 4 on are changed.",
            "no_causal" if reads_back else "causal_mask_flipped",
        )
    expect(logits, "the logits").holds(reads_back, "at position 6 they ignore token 0.")
    if alike(changed[:, 4], logits[:, 4]):
        fail("the logits at position 4 do not move when token 4 is changed.")


@Transformer.case("padding behind a source changes nothing")
def _(student: Handle, rng: Rng) -> None:
    module, (source, target) = transformer(student, rng), sentences(rng)
    logits = module(source, target)
    longer = padded(source, 3, 0)
    if alike(module(longer, target), logits):
        return
    memory = module.method("encode")(source)[0]
    with_padding = module.method("encode")(longer)[0]
    if not with_padding.isfinite().all():
        fail("with padding behind the source, memory holds NaN.", "padded_queries_masked")
    if not alike(with_padding[:, :5], memory):
        fail("with padding behind the source, memory changes.", "encoder_reads_padding")
    fail("with padding behind the source, the logits change.", "decoder_reads_padding")


@Transformer.case("padding behind a target changes nothing, and leaves no NaN")
def _(student: Handle, rng: Rng) -> None:
    module, (source, target) = transformer(student, rng), sentences(rng)
    logits = module(source, target)
    longer = module(source, padded(target, 2, 0))
    if not longer.isfinite().all():
        fail("with padding behind the target, logits are NaN.", "padded_queries_masked")
    expect(longer[:, :7], "the logits with padding behind the target").close_to(logits)


@Transformer.case("pad_id may be any id, and id 0 a word like any other")
def _(student: Handle, rng: Rng) -> None:
    module, (source, target) = transformer(student, rng, pad_id=5), sentences(rng, pad_id=5)
    logits = module(source, target)
    if alike(module(padded(source, 2, 0), target), logits):
        fail("with pad_id=5, two words with id 0 behind the source change nothing.", "pad_id_fixed")
    expect(module(padded(source, 2, 5), target), "the logits with padding").close_to(logits)


@Transformer.case("a sentence alone is the same sentence in a batch of longer ones")
def _(student: Handle, rng: Rng) -> None:
    module, (source, target) = transformer(student, rng), sentences(rng)
    source[0, 2:], source[1, 4:] = 0, 0
    logits = module(source, target)
    for row, length in enumerate((2, 4, 5)):
        alone = module(source[row : row + 1, :length], target[row : row + 1])
        expect(logits[row : row + 1], f"row {row} of the batch").close_to(alone)


@Transformer.case("the order of the source matters")
def _(student: Handle, rng: Rng) -> None:
    module, (source, _) = transformer(student, rng), sentences(rng)
    order = torch.tensor([3, 0, 4, 1, 2])
    memory, shuffled = (module.method("encode")(ids)[0] for ids in (source, source[:, order]))
    if alike(shuffled, memory[:, order]):
        fail("a shuffled source gives the same memory, shuffled.", "no_source_positions")


@Transformer.case("the order of the target matters")
def _(student: Handle, rng: Rng) -> None:
    module, (source, _) = transformer(student, rng), sentences(rng)
    target = torch.tensor([[1, 2, 3, 4, 5]])
    swapped = torch.tensor([[3, 1, 4, 2, 5]])
    logits, other = (module(source[:1], ids)[:, -1] for ids in (target, swapped))
    if alike(logits, other):
        fail("one layer cannot tell in which order it wrote the words.", "no_target_positions")


@Transformer.case("every source word reaches every logit, also from the right")
def _(student: Handle, rng: Rng) -> None:
    module, (source, target) = transformer(student, rng), sentences(rng)
    other = source.clone()
    other[:, -1] = other[:, -1] % (SOURCE_VOCAB - 1) + 1
    if alike(module(source, target), module(other, target)):
        fail("the logits do not move when the last source word is changed.", "source_ignored")
    memory, changed = (module.method("encode")(ids)[0] for ids in (source, other))
    if alike(memory[:, 0], changed[:, 0]):
        fail("the first word's memory does not depend on the last word.", "causal_encoder")


@Transformer.case("has n_layers blocks of its own on each side")
def _(student: Handle, rng: Rng) -> None:
    counts = []
    for n_layers in (1, 2, 3):
        shapes = student.hold(SOURCE_VOCAB, TARGET_VOCAB, 8, 2, 11, n_layers, MAX_LEN, 0).shapes()
        counts.append(sum(math.prod(shape) for shape in shapes.values()))
    pair = 4 * 64 + 8 * 64 + 4 * 88  # the matrices of one encoder and one decoder block
    if counts[1] - counts[0] < pair:
        name = "blocks_shared" if counts[0] >= pair else "plain_list"
        fail(
            f"one layer more adds {counts[1] - counts[0]} weights; an encoder block and a decoder"
            f" block have at least {pair}.",
            name if counts[0] == counts[1] else None,
        )
    expect(counts[2] - counts[1], "what a third layer adds").equals(counts[1] - counts[0])


@Transformer.case("drops values in training alone")
def _(student: Handle, rng: Rng) -> None:
    module, inputs = transformer(student, rng, dropout=0.5), sentences(rng)
    evaluated = module(*inputs)
    if not torch.equal(evaluated, module(*inputs)):
        fail("two runs in evaluation mode give different logits.", "dropout_in_evaluation")
    if alike(module.train()(*inputs), evaluated):
        fail("with dropout=0.5, training and evaluation give the same logits.", "no_dropout")


@Transformer.case("works on one word, and on max_len words on both sides")
def _(student: Handle, rng: Rng) -> None:
    module = transformer(student, rng)
    for length in (1, MAX_LEN):
        logits = module(*sentences(rng, 2, length, length))
        expect(logits, f"the logits of {length} words").has_shape(2, length, TARGET_VOCAB)


@Transformer.case("its gradients are those of its logits, through the decoder and the encoder")
def _(student: Handle, rng: Rng) -> None:
    module, (source, target) = transformer(student, rng), sentences(rng)
    weights, cotangent = module.parameters(), rng.normal(3, 7, TARGET_VOCAB)
    direction = {name: rng.normal(*w.shape) for name, w in weights.items()}
    pulled: Pullback = module.vjp(source, target, cotangent=cotangent)
    gradients = pulled.parameters
    slope = sum((direction[n] * g).sum() for n, g in gradients.items() if g is not None)
    step, ends = 1e-6, []
    for sign in (1, -1):
        module.load({name: w + sign * step * direction[name] for name, w in weights.items()})
        ends.append((module(source, target) * cotangent).sum())
    measured = (ends[0] - ends[1]) / (2 * step)
    if torch.isclose(torch.as_tensor(slope), measured, rtol=1e-4, atol=1e-5):
        return
    cut = [name for name, g in gradients.items() if g is None or not bool(g.any())]
    fail(
        f"moving all weights a little moves the logits by {measured:.4g}, their gradients say"
        f" {slope:.4g}; no gradient reaches {', '.join(cut[:3]) or 'some part'}.",
        "memory_detached" if len(cut) >= 8 else None,
    )


guard(
    Transformer,
    lambda rng, dtype: sentences(rng),
    build=(SOURCE_VOCAB, TARGET_VOCAB, 8, 2, 11, 1, MAX_LEN, 0),
)


class Model(nn.Module):
    """What the wrong models below have in common; each spoils one of the small methods."""

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        n_layers: int,
        max_len: int,
        pad_id: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pad_id, self.p = pad_id, dropout
        self.source_embedding = nn.Embedding(source_vocab, d_model)
        self.target_embedding = nn.Embedding(target_vocab, d_model)
        self.table: Tensor
        self.register_buffer("table", sinusoidal_positions(max_len, d_model))
        self.encoder = self.stack(Block, n_layers, d_model, n_heads, d_ff, dropout)
        self.decoder = self.stack(Decoder, n_layers, d_model, n_heads, d_ff, dropout)
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, target_vocab)

    def stack(self, block: Callable[..., Block], n_layers: int, *sizes: Any) -> Any:
        return nn.ModuleList(block(*sizes) for _ in range(n_layers))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def source_positions(self, s: int) -> Any:
        return self.table[:s]

    def target_positions(self, t: int) -> Any:
        return self.table[:t]

    def real(self, ids: Tensor) -> Tensor:
        """(B, 1, 1, S), True where a word stands."""
        return (ids != self.pad_id)[:, None, None]

    def encoder_mask(self, source: Tensor) -> Tensor | None:
        return self.real(source)

    def decoder_mask(self, target_in: Tensor) -> Tensor | None:
        return causal_mask(target_in.shape[1], device=target_in.device)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        x = self.drop(self.source_embedding(source) + self.source_positions(source.shape[1]))
        for block in self.encoder:
            x = block(x, self.encoder_mask(source))
        return self.encoder_norm(x), self.real(source)

    def decode(self, target_in: Tensor, memory: Tensor, memory_mask: Any) -> Tensor:
        x = self.drop(self.target_embedding(target_in) + self.target_positions(target_in.shape[1]))
        for block in self.decoder:
            x = block(x, memory, self.decoder_mask(target_in), memory_mask)
        return self.head(self.decoder_norm(x))

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        return self.decode(target_in, *self.encode(source))


@_mistake(
    Transformer,
    "no_causal",
    "Your decoder has no causal mask.",
    "In training it reads the word it is asked to predict, so the loss goes to nearly 0; in"
    " translation that word is not there yet, and it writes nonsense.",
    "encoder-decoder",
)
class NoCausal(Model):
    def decoder_mask(self, target_in: Tensor) -> Tensor | None:
        return None


@_mistake(
    Transformer,
    "causal_mask_flipped",
    "Your causal mask is turned around: a position reads itself and what comes after it.",
    "The decoder is trained on the future and, when it translates, has none.",
    "encoder-decoder",
)
class CausalMaskFlipped(Model):
    def decoder_mask(self, target_in: Tensor) -> Tensor | None:
        return causal_mask(target_in.shape[1]).T.to(target_in.device)


@_mistake(
    Transformer,
    "encoder_reads_padding",
    "Your encoder has no padding mask.",
    "A word's memory then depends on how many empty places follow the sentence, that is, on the"
    " other sentences of the batch.",
    "encoder-decoder",
)
class EncoderReadsPadding(Model):
    def encoder_mask(self, source: Tensor) -> Tensor | None:
        return None


@_mistake(
    Transformer,
    "decoder_reads_padding",
    "Your decoder reads the source's padding: the mask does not reach its cross-attention.",
    "A short sentence in a batch of long ones is translated from mostly empty places.",
    "encoder-decoder",
)
class DecoderReadsPadding(Model):
    def decode(self, target_in: Tensor, memory: Tensor, memory_mask: Any) -> Tensor:
        return super().decode(target_in, memory, None)


@_mistake(
    Transformer,
    "padded_queries_masked",
    "Your padding mask hides whole rows: a padded position, asking, may read nothing.",
    "The softmax of an empty row is NaN, and one NaN in the loss ends the training. Hide padding as"
    " a key, in the last dimension alone.",
    "encoder-decoder",
)
class PaddedQueriesMasked(Model):
    def encoder_mask(self, source: Tensor) -> Tensor | None:
        real = source != self.pad_id  # (B, S)
        return (real[:, :, None] & real[:, None])[:, None]  # (B, 1, S, S)

    def decoder_mask(self, target_in: Tensor) -> Tensor | None:
        real = (target_in != self.pad_id)[:, None, :, None]  # (B, 1, T, 1)
        return real & causal_mask(target_in.shape[1], device=target_in.device)


@_mistake(
    Transformer,
    "pad_id_fixed",
    "Your masks take id 0 for padding, whatever `pad_id` says.",
    "Where another id is the padding, the model reads empty places, and a real word with id 0 is"
    " invisible to it.",
    "encoder-decoder",
)
class PadIdFixed(Model):
    def real(self, ids: Tensor) -> Tensor:
        return (ids != 0)[:, None, None]


@_mistake(
    Transformer,
    "no_source_positions",
    "No positions are added to the source's embeddings.",
    "Attention does not see order: “man bites dog” and “dog bites man” get the same translation.",
    "encoder-decoder",
)
class NoSourcePositions(Model):
    def source_positions(self, s: int) -> Any:
        return 0.0


@_mistake(
    Transformer,
    "no_target_positions",
    "No positions are added to the target's embeddings.",
    "The decoder hardly knows which word it wrote last, and cannot count how many it has written.",
    "encoder-decoder",
)
class NoTargetPositions(Model):
    def target_positions(self, t: int) -> Any:
        return 0.0


@_mistake(
    Transformer,
    "causal_encoder",
    "Your encoder has a causal mask.",
    "The source is all there from the beginning; a word's meaning may hang on what follows it, and"
    " now cannot.",
    "encoder-decoder",
)
class CausalEncoder(Model):
    def encoder_mask(self, source: Tensor) -> Tensor | None:
        return self.real(source) & causal_mask(source.shape[1], device=source.device)


@_mistake(
    Transformer,
    "source_ignored",
    "Your decoder never reads memory.",
    "It becomes a language model of the target and writes the same sentence for every source.",
    "encoder-decoder",
)
class SourceIgnored(Model):
    def decode(self, target_in: Tensor, memory: Tensor, memory_mask: Any) -> Tensor:
        return super().decode(target_in, torch.zeros_like(memory), memory_mask)


@_mistake(
    Transformer,
    "memory_detached",
    "Memory is detached before the decoder reads it.",
    "No gradient reaches the encoder: it stays as random as it began.",
    "encoder-decoder",
)
class MemoryDetached(Model):
    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        memory, mask = super().encode(source)
        return memory.detach(), mask


@_mistake(
    Transformer,
    "blocks_shared",
    "One block is used n_layers times: `[block] * n` repeats the same object.",
    "All layers share their weights, so a deeper model has no more parameters than a shallow one.",
    "encoder-decoder",
)
class BlocksShared(Model):
    def stack(self, block: Callable[..., Block], n_layers: int, *sizes: Any) -> Any:
        return nn.ModuleList([block(*sizes)] * n_layers)


@_mistake(
    Transformer,
    "plain_list",
    "Your blocks stand in a plain Python list.",
    "PyTorch does not look into lists: the optimizer never trains the blocks, `.to(device)` leaves"
    " them behind, and no checkpoint holds them. Use `nn.ModuleList`.",
    "encoder-decoder",
)
class PlainList(Model):
    def stack(self, block: Callable[..., Block], n_layers: int, *sizes: Any) -> Any:
        return [block(*sizes).double() for _ in range(n_layers)]


@_mistake(
    Transformer,
    "returns_probabilities",
    "Your model ends in a softmax; it must return logits.",
    "The loss takes the softmax itself. Of numbers between 0 and 1 a second softmax is almost"
    " uniform, so the loss stays near ln V however well the model knows.",
    "encoder-decoder",
)
class ReturnsProbabilities(Model):
    def decode(self, target_in: Tensor, memory: Tensor, memory_mask: Any) -> Tensor:
        return super().decode(target_in, memory, memory_mask).softmax(-1)


@_mistake(
    Transformer,
    "no_dropout",
    "`dropout` is accepted and never used.",
    "Training and evaluation are the same, and on a few thousand sentences the model learns them by"
    " heart.",
    "encoder-decoder",
)
class ModelWithoutDropout(Model):
    def __init__(self, *sizes: int, dropout: float = 0.0) -> None:
        super().__init__(*sizes[:8])


@_mistake(
    Transformer,
    "dropout_in_evaluation",
    "Your dropout stays on in evaluation mode.",
    "The same sentence is translated differently every time, and worse on average.",
    "encoder-decoder",
)
class ModelDropoutInEvaluation(Model):
    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


# --- label_smoothed_cross_entropy ---------------------------------------------------------------

label_smoothed_cross_entropy = ASSIGNMENT.exercise(
    "label_smoothed_cross_entropy",
    points=2,
    forbidden=(
        "cross_entropy",
        "cross_entropy_loss",
        "CrossEntropyLoss",
        "kl_div",
        "KLDivLoss",
        "nll_loss",
        "NLLLoss",
    ),
    hints=(
        "What does the loss of one target become when 1 − ε of it is the usual one, and ε is spread"
        " evenly over all V classes?",
        "From log_softmax you need two numbers a position: the target's entry and the mean over all"
        " V. Then leave out the padding, and divide by how many are left.",
        "−(1 − ε) · log p[target] − (ε / V) · Σ log p; `gather` needs valid indices, so clamp a"
        " negative pad_id away first.",
    ),
)


def smoothing_inputs(
    rng: Rng, dtype: torch.dtype = torch.float64, pad_id: int = 0, scale: float = 2.0
) -> tuple[Tensor, Tensor, float, int]:
    """logits (3, 5, 7), targets with rows of unequal real length, smoothing, pad_id."""
    logits = scale * rng.strided(3, 5, 7, dtype=dtype)
    targets = rng.integers(0, 7, 3, 5)
    targets = torch.where(targets == pad_id, (targets + 1) % 7, targets)
    targets[0, 2:], targets[1, 4:] = pad_id, pad_id
    return logits, targets, 0.3, pad_id


def right_smoothing(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=pad_id, label_smoothing=smoothing
    )


@label_smoothed_cross_entropy.case("agrees with PyTorch's label_smoothing, padding left out")
def _(student: Handle, rng: Rng) -> None:
    args = smoothing_inputs(rng)
    expect(student(*args), "the loss").close_to(right_smoothing(*args))


@label_smoothed_cross_entropy.case("pad_id may be any class, or −100")
def _(student: Handle, rng: Rng) -> None:
    for pad_id in (4, -100):
        args = smoothing_inputs(rng, pad_id=pad_id)
        expect(student(*args), f"the loss with pad_id={pad_id}").close_to(right_smoothing(*args))


@label_smoothed_cross_entropy.case("without smoothing it is the cross-entropy")
def _(student: Handle, rng: Rng) -> None:
    logits, targets, _, pad_id = smoothing_inputs(rng)
    right = right_smoothing(logits, targets, 0.0, pad_id)
    expect(student(logits, targets, 0.0, pad_id), "the loss").close_to(right)


@label_smoothed_cross_entropy.case("with smoothing 1 the targets no longer matter")
def _(student: Handle, rng: Rng) -> None:
    logits, targets, _, pad_id = smoothing_inputs(rng)
    right = right_smoothing(logits, targets, 1.0, pad_id)
    expect(student(logits, targets, 1.0, pad_id), "the loss").close_to(right)


@label_smoothed_cross_entropy.case("stays finite on logits in the thousands")
def _(student: Handle, rng: Rng) -> None:
    args = smoothing_inputs(rng, scale=3000.0)
    expect(student(*args), "the loss").close_to(right_smoothing(*args))


@label_smoothed_cross_entropy.case("works on one target of one row")
def _(student: Handle, rng: Rng) -> None:
    args = rng.normal(1, 1, 2), torch.tensor([[1]]), 0.1, 0
    expect(student(*args), "the loss").close_to(right_smoothing(*args))


@label_smoothed_cross_entropy.case("sends the right gradient to the logits, none at padding")
def _(student: Handle, rng: Rng) -> None:
    args = smoothing_inputs(rng)
    cotangent = torch.tensor(1.0, dtype=torch.float64)
    pulled: Pullback = student.vjp(*args, cotangent=cotangent, wrt=(0,))
    right = pulled_by_autograd(lambda x: right_smoothing(x, *args[1:]), args[:1], cotangent)
    expect(pulled.inputs[0], "the gradient of the logits").close_to(right[0])


guard(label_smoothed_cross_entropy, lambda rng, dtype: smoothing_inputs(rng, dtype))


def _smoothing_mistake(
    name: str,
    did: str,
    causes: str,
    *,
    q: Callable[[Tensor, float, int], Tensor] | None = None,
    reduce: Callable[[Tensor, Tensor], Tensor] | None = None,
    log_p: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(-1),
    loss: Callable[[Tensor, Tensor], Tensor] = lambda q, log_p: -(q * log_p).sum(-1),
) -> None:
    """A smoothed loss with one thing wrong: the target distribution q, the mean, the softmax."""

    def right_q(one_hot: Tensor, smoothing: float, pad_id: int) -> Tensor:
        return (1 - smoothing) * one_hot + smoothing / one_hot.shape[-1]

    def right_mean(losses: Tensor, real: Tensor) -> Tensor:
        return (losses * real).sum() / real.sum()

    def wrong(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
        real = targets != pad_id
        one_hot = F.one_hot(targets.clamp(min=0), logits.shape[-1]).to(logits.dtype)
        losses = loss((q or right_q)(one_hot, smoothing, pad_id), log_p(logits))  # (B, T)
        return (reduce or right_mean)(losses, real.to(logits.dtype))

    label_smoothed_cross_entropy.misconception(
        did=did, causes=causes, see="label-smoothing", name=name
    )(wrong)


_smoothing_mistake(
    "padding_counted",
    "Padding targets are counted.",
    "The model is trained to predict padding, and the loss of a batch depends on its longest"
    " sentence.",
    reduce=lambda losses, real: losses.mean(),
)
_smoothing_mistake(
    "divided_by_all_positions",
    "You leave padding out of the sum but divide by all positions.",
    "The more padding in a batch, the smaller its loss and its gradient.",
    reduce=lambda losses, real: (losses * real).mean(),
)
_smoothing_mistake(
    "mean_of_row_means",
    "You take the mean of each row first, then the mean of the rows.",
    "A word of a short sentence then counts more than a word of a long one.",
    reduce=lambda losses, real: ((losses * real).sum(1) / real.sum(1)).mean(),
)
_smoothing_mistake(
    "summed",
    "You return the sum over the targets; the mean is asked for.",
    "The step that the optimizer takes then grows with the length of the sentences.",
    reduce=lambda losses, real: (losses * real).sum(),
)
_smoothing_mistake(
    "spread_over_the_others",
    "You give the target 1 − ε and each of the other classes ε/(V − 1).",
    "Here ε/V goes to all V classes, the target too, as in PyTorch: its share is 1 − ε + ε/V. With"
    " yours a loss cannot be compared with anyone else's.",
    q=lambda one_hot, e, pad: (1 - e) * one_hot + e / (one_hot.shape[-1] - 1) * (1 - one_hot),
)
_smoothing_mistake(
    "target_not_smoothed_up",
    "You give the target 1 − ε and each of the others ε/V: the shares sum to 1 − ε/V.",
    "They are no distribution, so the loss is too small, and the more so the fewer classes there"
    " are.",
    q=lambda one_hot, e, pad: (1 - e) * one_hot + e / one_hot.shape[-1] * (1 - one_hot),
)
_smoothing_mistake(
    "not_divided_by_the_classes",
    "You give every class ε; it should be ε/V.",
    "The shares sum to 1 − ε + V·ε, so with a thousand classes the loss is mostly a demand to know"
    " nothing.",
    q=lambda one_hot, e, pad: (1 - e) * one_hot + e,
)
_smoothing_mistake(
    "padding_class_left_out",
    "You spread ε over all classes but the target and the padding, ε/(V − 2) each.",
    "A well-known tutorial does so. PyTorch and the rest of this book give ε/V to all V classes.",
    q=lambda one_hot, e, pad: (
        ((1 - e) * one_hot + e / (one_hot.shape[-1] - 2) * (1 - one_hot))
        * (torch.arange(one_hot.shape[-1]) != pad).to(one_hot)
    ),
)
_smoothing_mistake(
    "smoothing_turned_around",
    "The target gets ε and the uniform part 1 − ε.",
    "With ε = 0.1 nine tenths of the loss ask the model to know nothing.",
    q=lambda one_hot, e, pad: e * one_hot + (1 - e) / one_hot.shape[-1],
)
_smoothing_mistake(
    "smoothing_ignored",
    "`smoothing` has no effect: this is the plain cross-entropy.",
    "The model is still pushed to be certain, which is what smoothing is there to prevent.",
    q=lambda one_hot, e, pad: one_hot,
)
_smoothing_mistake(
    "divergence",
    "You return the Kullback–Leibler divergence from the smoothed targets, not the cross-entropy.",
    "The gradient is the same, but the loss is smaller by the entropy of the targets, so it cannot"
    " be compared with PyTorch's.",
    loss=lambda q, log_p: (torch.xlogy(q, q) - q * log_p).sum(-1),
)
_smoothing_mistake(
    "log_of_softmax",
    "You take the logarithm of a softmax.",
    "A probability that underflows to 0 has the logarithm −∞, and the smoothed loss, which reads"
    " every class, is then infinite. `log_softmax` stays finite.",
    log_p=lambda logits: logits.softmax(-1).log(),
)
_smoothing_mistake(
    "log_of_p_plus_eps",
    "You take log(softmax + a small number).",
    "That caps the loss of a confident mistake: at logits in the thousands it is far too small.",
    log_p=lambda logits: (logits.softmax(-1) + 1e-9).log(),
)
_smoothing_mistake(
    "softmax_over_positions",
    "Your softmax runs over the positions, not over the classes.",
    "The words of a sentence then compete for each class, and the future leaks into the loss.",
    log_p=lambda logits: logits.log_softmax(1),
)


@label_smoothed_cross_entropy.misconception(
    did="`gather` is called with pad_id as an index.",
    causes="With pad_id=−100 there is no such class, and the loss stops with an error. Put any"
    " valid class there first; padding is left out of the mean anyway.",
    see="label-smoothing",
    name="gathers_padding",
)
def gathers_padding(logits: Tensor, targets: Tensor, smoothing: float, pad_id: int) -> Tensor:
    log_p, real = logits.log_softmax(-1), (targets != pad_id).to(logits.dtype)
    own = log_p.gather(-1, targets[..., None]).squeeze(-1)  # (B, T)
    losses = -(1 - smoothing) * own - smoothing * log_p.mean(-1)
    return (losses * real).sum() / real.sum()
