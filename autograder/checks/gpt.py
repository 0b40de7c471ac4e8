"""Checks of chapter 09: a GPT, its size and cost in closed form, GPT-2's weights in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autograder.engine.exercise import Assignment, Exercise, Rng
from autograder.engine.expect import expect, fail
from autograder.engine.guards import guard
from autograder.engine.handle import Handle, Pullback, StudentError
from rnn2gpt import gpt as package
from rnn2gpt.attention import causal_mask
from rnn2gpt.positions import sinusoidal_positions
from rnn2gpt.transformer import LayerNorm, TransformerBlock

ASSIGNMENT = Assignment(
    name="09-gpt",
    notebook="gpt",
    page="09_gpt",
    sections={
        "decoder-only": "What is left of the Transformer",
        "the-forward-pass": "The model in code",
        "tied-embeddings": "One table at both ends",
        "initialization": "How the weights start",
        "counting-parameters": "Counting parameters",
        "counting-flops": "Counting operations",
        "gpt2-weights": "GPT-2's weights in our model",
    },
    minutes=95,
    modules=(
        "data", "metrics", "ngram", "rnn", "lstm", "attention", "multi_head", "positions",
        "transformer", "tokenizer",
    ),
)  # fmt: skip

Sizes = dict[str, Any]
SMALL: Sizes = {"vocab_size": 11, "block_size": 7, "n_layers": 1, "n_heads": 3, "d_model": 12}
TWO: Sizes = SMALL | {"n_layers": 2}
GPT2S: dict[int, Sizes] = {  # by the number of their parameters
    count: dict(zip(SMALL, (50257, 1024, n_layers, n_heads, d_model), strict=True))
    for count, n_layers, n_heads, d_model in (
        (124_439_808, 12, 12, 768),
        (354_823_168, 24, 16, 1024),
        (774_030_080, 36, 20, 1280),
        (1_557_611_200, 48, 25, 1600),
    )
}
GPT3: Sizes = dict(zip(SMALL, (50257, 2048, 96, 96, 12288), strict=True))
# Its token table alone would fill four petabytes: building it fails at once, on any machine.
ABSURD: Sizes = dict(zip(SMALL, (10**9, 4096, 3, 2, 10**6), strict=True))


def config(student: Handle, sizes: Sizes = SMALL, **changes: Any) -> Handle:
    """The sizes as an object beside the student's code, with the attributes of a `GPTConfig`."""
    return student.peer("autograder.child.stand_ins:GPTConfig", **(sizes | changes))


def shapes_of(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every parameter of a GPT, by the names the chapter asks for; the tied table stands once."""
    d, bias = sizes["d_model"], sizes.get("bias", True)

    def part(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})

    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (sizes["vocab_size"], d),
        "position_embedding.weight": (sizes["block_size"], d),
    }
    for i in range(sizes["n_layers"]):
        block = f"blocks.{i}"
        for name in ("W_q", "W_k", "W_v", "W_o"):
            shapes |= part(f"{block}.attention.{name}", d, d)
        shapes |= part(f"{block}.feed_forward.W_1", 4 * d, d)
        shapes |= part(f"{block}.feed_forward.W_2", d, 4 * d)
        shapes |= part(f"{block}.norm_1", d) | part(f"{block}.norm_2", d)
    return shapes | part("norm", d)


def counted(sizes: Sizes) -> int:
    """The parameters, tensor by tensor."""
    return sum(math.prod(shape) for shape in shapes_of(sizes).values())


def refused(ask: Callable[[], Any], call: str, mistake: str | None = None) -> None:
    """The call must raise a ValueError."""
    try:
        ask()
    except StudentError as error:
        if "ValueError" in error.kinds:
            return
        fail(f"{call} stopped with {error.kind}; it must raise a ValueError.", mistake)
    fail(f"{call} must raise a ValueError.", mistake)


def _mistake(
    exercise: Exercise, name: str, see: str, did: str, causes: str
) -> Callable[[Any], Any]:
    return exercise.misconception(did=did, causes=causes, see=see, name=name)


# --- GPTConfig ----------------------------------------------------------------------------------

GPTConfig = ASSIGNMENT.exercise(
    "GPTConfig",
    points=1,
    hints=(
        "Multi-head attention cuts the width into equal parts. For which two of the seven fields"
        " can that fail?",
        "In `__post_init__` the fields are attributes of `self`. Raise a ValueError that names both"
        " numbers; otherwise do nothing.",
        "n_heads divides d_model where d_model % n_heads is 0.",
    ),
)


@GPTConfig.case("keeps the seven values that it is given, each under its name")
def _(student: Handle, rng: Rng) -> None:
    heads = rng.integer(2, 5)
    sizes = SMALL | {"vocab_size": rng.integer(20, 99), "n_heads": heads, "d_model": 7 * heads}
    made = student.hold(**sizes, dropout=0.25, bias=False)
    for name, value in (sizes | {"dropout": 0.25, "bias": False}).items():
        expect(made.get(name), f"config.{name}").equals(value)


@GPTConfig.case("has dropout 0.0 and biases unless told otherwise")
def _(student: Handle, rng: Rng) -> None:
    made = student.hold(**SMALL)
    expect(made.get("dropout"), "config.dropout").close_to(0.0)
    expect(made.get("bias"), "config.bias").equals(True)


@GPTConfig.case("refuses heads that do not divide the width, with a ValueError")
def _(student: Handle, rng: Rng) -> None:
    refused(
        lambda: student.hold(**(SMALL | {"n_heads": 5})), "d_model=12 with n_heads=5", "not_refused"
    )
    student.hold(**(SMALL | {"n_heads": 12}))


@GPTConfig.case("is equal to another one with the same values")
def _(student: Handle, rng: Rng) -> None:
    one, same, other = (student.hold(**(SMALL | {"n_layers": n})) for n in (2, 2, 3))
    equal = [bool(one.method("__eq__")(two)) for two in (same, other)]
    expect(equal, "config == the same values, config == three layers").equals([True, False])


class WrongConfig:
    """What the wrong configurations have in common: fields, defaults, a test, comparison."""

    defaults: Mapping[str, Any] = {"dropout": 0.0, "bias": True}

    def __init__(self, **sizes: Any) -> None:
        for name, value in (dict(self.defaults) | sizes).items():
            setattr(self, name, value)
        self.test()

    def test(self) -> None:
        if self.d_model % self.n_heads:  # type: ignore[attr-defined]
            raise ValueError("heads")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


@_mistake(
    GPTConfig,
    "not_refused",
    "decoder-only",
    "A width that the heads do not divide is accepted, or refused with another error.",
    "The model then fails later, inside a reshape, where nobody sees that the sizes were wrong."
    " Raise a ValueError in `__post_init__`.",
)
class NotRefused(WrongConfig):
    def test(self) -> None: ...


@_mistake(
    GPTConfig,
    "heads_turned_around",
    "decoder-only",
    "You test `n_heads % d_model`; it must be `d_model % n_heads`.",
    "A number of heads smaller than the width is its own remainder, so nearly every model is"
    " refused.",
)
class HeadsTurnedAround(WrongConfig):
    def test(self) -> None:
        if self.n_heads % self.d_model:  # type: ignore[attr-defined]
            raise ValueError("heads")


@_mistake(
    GPTConfig,
    "no_bias_by_default",
    "decoder-only",
    "`bias` is False unless told otherwise; its default is True.",
    "GPT-2's layers have biases: a model made from its sizes alone would have no place for them.",
)
class NoBiasByDefault(WrongConfig):
    defaults = {"dropout": 0.0, "bias": False}  # noqa: RUF012


@_mistake(
    GPTConfig,
    "dropout_by_default",
    "decoder-only",
    "`dropout` is 0.1 unless told otherwise; its default is 0.0.",
    "GPT-2 trained with 0.1, but who does not ask for dropout does not expect a random loss.",
)
class DropoutByDefault(WrongConfig):
    defaults = {"dropout": 0.1, "bias": True}  # noqa: RUF012


@_mistake(
    GPTConfig,
    "compared_by_identity",
    "decoder-only",
    "Two configurations with equal values are not equal: the class is no dataclass.",
    "Whether a checkpoint fits a model is asked with ==, and the answer would always be no."
    " `@dataclass` writes `__eq__` for you.",
)
class ComparedByIdentity(WrongConfig):
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


# --- GPT ----------------------------------------------------------------------------------------

GPT = ASSIGNMENT.exercise(
    "GPT",
    points=5,
    hints=(
        "Follow one row of ids upward. Which two tables is it looked up in, what runs n_layers"
        " times, and which two things stand between the last block and the logits?",
        "In the constructor: two embeddings, a ModuleList of blocks, a norm, a head without bias"
        " whose weight *is* the token table; then go through `named_parameters()` and draw each"
        " one anew. In forward: x = token + position, the blocks under a causal mask, norm, head.",
        "`TransformerBlock(d_model, n_heads, 4 * d_model, dropout, norm_first=True,"
        ' activation="gelu_tanh", bias=…)`. Std 0.02/√(2·n_layers) for names that end in'
        ' "W_o.weight" or "W_2.weight", 0.02 for the other matrices and tables.',
    ),
)

TABLES = ("token_embedding.weight", "head.weight")  # two names of one tensor


def model_of(student: Handle, sizes: Sizes = SMALL) -> Handle:
    """The student's model of these sizes."""
    return student.hold(config(student, sizes))


def loaded(
    student: Handle, rng: Rng, sizes: Sizes = SMALL, loud: float = 1.0, **more: Any
) -> tuple[Handle, dict[str, Tensor]]:
    """The student's model with random weights, in evaluation mode; its names are checked first.

    `loud` multiplies the token table, and with it the logits.
    """
    module, shapes = model_of(student, sizes | more), shapes_of(sizes | more)
    have = module.shapes()
    if not any(name in have for name in TABLES):
        fail("the model has no token_embedding.")
    expect(sorted(have.keys() - set(TABLES)), "the parameters' names").equals(
        sorted(shapes.keys() - set(TABLES))
    )
    for name in have:
        expect(have[name], f"the shape of {name}").equals(shapes.get(name, shapes[TABLES[0]]))
    weights = rng.like(shapes)
    weights[TABLES[0]] *= loud
    module.load(weights | {"head.weight": weights[TABLES[0]]}).eval()
    return module, weights


def right_logits(w: Mapping[str, Tensor], ids: Tensor, n_heads: int) -> Tensor:
    """GPT-2's forward pass in PyTorch's functions. `w` holds the weights by the chapter's names."""
    d = w["norm.weight"].shape

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, d, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def attend(block: str, y: Tensor) -> Tensor:
        q, k, v = (
            linear(f"{block}.attention.{name}", y).unflatten(-1, (n_heads, -1)).transpose(1, 2)
            for name in ("W_q", "W_k", "W_v")
        )  # (B, T, D) → (B, H, T, D/H)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return linear(f"{block}.attention.W_o", read.transpose(1, 2).flatten(2))

    def feed(block: str, y: Tensor) -> Tensor:
        hidden = F.gelu(linear(f"{block}.feed_forward.W_1", y), approximate="tanh")
        return linear(f"{block}.feed_forward.W_2", hidden)

    x = F.embedding(ids, w[TABLES[0]]) + w["position_embedding.weight"][: ids.shape[1]]
    for block in [name.removesuffix(".norm_1.weight") for name in w if ".norm_1.weight" in name]:
        x = x + attend(block, norm(f"{block}.norm_1", x))
        x = x + feed(block, norm(f"{block}.norm_2", x))
    return norm("norm", x) @ w[TABLES[0]].T


def some_ids(rng: Rng, t: int, batch: int = 2, sizes: Sizes = SMALL) -> Tensor:
    return rng.integers(0, sizes["vocab_size"], batch, t)


def expect_logits(
    student: Handle, rng: Rng, t: int, batch: int = 2, sizes: Sizes = SMALL, **more: Any
) -> None:
    """The student's model gives the logits of the reference for random weights and ids."""
    module, weights = loaded(student, rng, sizes, **more)
    ids = some_ids(rng, t, batch, sizes)
    value = module(ids)
    expect(value, "what forward returns").holds(
        isinstance(value, tuple) and len(value) == 2, "expected two values, (logits, loss)."
    )
    expect(value[0], "the logits").close_to(right_logits(weights, ids, sizes["n_heads"]))


@GPT.case("computes GPT-2's logits from any weights")
def _(student: Handle, rng: Rng) -> None:
    expect_logits(student, rng, 5, sizes=TWO)


@GPT.case("returns the mean loss over targets other than −100, and None without targets")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, loud=1000)  # huge logits
    ids, targets = some_ids(rng, 7), some_ids(rng, 7)
    targets[0, 2:5] = -100
    right = right_logits(weights, ids, 3)
    loss = F.cross_entropy(right.flatten(0, 1), targets.flatten())
    expect(module(ids, targets), "logits, loss").close_to((right, loss))
    _, nothing = module(ids)
    expect(nothing, "the loss without targets").holds(nothing is None, "expected None.")


@GPT.case("with bias=False, no layer and no norm has a bias")
def _(student: Handle, rng: Rng) -> None:
    expect_logits(student, rng, 3, bias=False)


@GPT.case("has one table for the embedding and the head")
def _(student: Handle, rng: Rng) -> None:
    have = model_of(student).shapes()
    if all(name in have for name in TABLES):
        fail("token_embedding.weight and head.weight are two parameters.", "untied_head")


def measured(weights: Mapping[str, Tensor], *ends: str) -> float:
    """The root mean square over all parameters whose names end so."""
    chosen = [w.flatten().double() for name, w in weights.items() if name.endswith(ends)]
    return torch.cat(chosen).square().mean().sqrt().item()


@GPT.case("starts as GPT-2 does: N(0, 0.02), and less where a block writes into the stream")
def _(student: Handle, rng: Rng) -> None:
    # 1,536 numbers or more in each group: one standard deviation of the estimate is 2 %.
    sizes = SMALL | {"vocab_size": 67, "block_size": 64, "n_layers": 3, "d_model": 24}
    weights = model_of(student, sizes).parameters()
    for kind, want, mistake in (("weight", 1.0, "random_norms"), ("bias", 0.0, "random_biases")):
        flat = {n: w for n, w in weights.items() if w.ndim == 1 and n.endswith(kind)}
        off = [n for n, w in flat.items() if not bool((w == want).all())]
        if off:
            fail(f"{off[0]} does not start at {want:g}.", None if kind == "weight" else mistake)
    table = measured(weights, *TABLES)
    if table > 0.5:
        fail(f"the token table starts with a size of {table:.2f} instead of 0.02.", "unit_tables")
    groups = {
        "the token table": TABLES,
        "the position table": ("position_embedding.weight",),
        "W_q, W_k and W_v": ("W_q.weight", "W_k.weight", "W_v.weight"),
        "W_1": ("W_1.weight",),
        "W_o": ("W_o.weight",),
        "W_2": ("W_2.weight",),
    }
    sizes_found = {group: measured(weights, *ends) for group, ends in groups.items()}
    for group, got in sizes_found.items():
        want = 0.02 / math.sqrt(6) if group in ("W_o", "W_2") else 0.02
        if abs(got / want - 1) > 0.12:
            fail(
                f"{group} starts with a root mean square of {got:.4f}; for 3 layers it should be"
                f" {want:.4f}.",
                _start_mistake(group, sizes_found),
            )


def _start_mistake(group: str, sizes: Mapping[str, float]) -> str | None:
    """What the starting sizes give away."""
    if group not in ("W_o", "W_2"):
        return "pytorchs_start" if sizes["W_1"] > 0.05 else None
    factors = {
        "residual_unscaled": 1.0,
        "forgets_the_2": 1 / math.sqrt(3),
        "no_root_in_the_scale": 1 / 6,
    }
    for name, factor in factors.items():
        if all(abs(sizes[part] / (0.02 * factor) - 1) < 0.12 for part in ("W_o", "W_2")):
            return name
    return "only_attention_scaled" if abs(sizes["W_2"] / 0.02 - 1) < 0.12 else None


@GPT.case("takes block_size tokens, and refuses one more with a ValueError")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    ids = some_ids(rng, 7, 1)
    try:
        logits, _ = module(ids)
    except StudentError as error:
        if error.kind == "IndexError":
            fail("the last of block_size positions has no row.", "positions_from_1")
        raise
    expect(logits, "the logits").close_to(right_logits(weights, ids, 3))
    refused(lambda: module(some_ids(rng, 8, 1)), "8 tokens with block_size=7", "not_refused")


@GPT.case("drops part of the embeddings and of what the blocks add, in training alone")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng, dropout=0.5)
    ids = some_ids(rng, 7)
    quiet, again = module(ids)[0], module(ids)[0]
    if not torch.equal(quiet, again):
        fail("two runs in evaluation mode give other logits.", "dropout_in_evaluation")
    expect(quiet, "the logits in evaluation mode").close_to(right_logits(weights, ids, 3))
    module.train()
    writes = ("W_o.weight", "W_o.bias", "W_2.weight", "W_2.bias")
    silent = {n: torch.zeros_like(w) if n.endswith(writes) else w for n, w in weights.items()}
    module.load(silent | {"head.weight": weights[TABLES[0]]})
    if torch.allclose(module(ids)[0], right_logits(silent, ids, 3)):
        fail("in training with dropout=0.5 the embeddings arrive whole.", "embeddings_not_dropped")
    same = torch.full_like(ids, 3)  # one token everywhere, and positions that cancel it
    zero = weights | {"position_embedding.weight": -weights[TABLES[0]][3].expand(7, -1).clone()}
    module.load(zero | {"head.weight": weights[TABLES[0]]})
    if torch.allclose(module(same)[0], right_logits(zero, same, 3)):
        fail("in training with dropout=0.5 the blocks drop nothing.", "dropout_not_passed_on")


@GPT.case("sends the right gradient to every weight")
def _(student: Handle, rng: Rng) -> None:
    module, weights = loaded(student, rng)
    ids, targets = some_ids(rng, 5), some_ids(rng, 5)
    cotangents = rng.normal(2, 5, 11), rng.normal()  # of the logits and of the loss
    pulled: Pullback = module.vjp(ids, targets, cotangent=cotangents)
    leaves = {name: w.requires_grad_() for name, w in weights.items()}
    right = right_logits(leaves, ids, 3)
    loss = F.cross_entropy(right.flatten(0, 1), targets.flatten())
    found = torch.autograd.grad([right, loss], list(leaves.values()), cotangents)
    for name, want in zip(leaves, found, strict=True):
        have = pulled.parameters.get(name, pulled.parameters.get("head.weight"))
        expect(have, f"the gradient of {name}").close_to(want, rtol=1e-5, atol=1e-8)


guard(
    GPT,
    lambda rng, dtype: (some_ids(rng, 5), some_ids(rng, 5)),
    build=lambda student: (config(student),),
    gradient=False,  # the case above compares every gradient
)


class Model(nn.Module):
    """What the wrong models below have in common; each spoils one of the small methods."""

    activation, norm_first = "gelu_tanh", True

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.block_size, config.d_model)
        self.blocks = self.stack()
        self.norm = LayerNorm(config.d_model, bias=config.bias)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.tie()
        self.start()

    def block(self) -> nn.Module:
        c = self.config
        return TransformerBlock(
            c.d_model, c.n_heads, 4 * c.d_model, c.dropout,
            self.norm_first, self.activation, c.bias,
        )  # fmt: skip

    def stack(self) -> Any:
        return nn.ModuleList(self.block() for _ in range(self.config.n_layers))

    def tie(self) -> None:
        self.head.weight = self.token_embedding.weight

    def factor(self) -> float:
        """By how much the matrices that write into the stream start smaller."""
        return (2 * self.config.n_layers) ** -0.5

    def start(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                small = self.factor() if name.endswith(("W_o.weight", "W_2.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * small)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)

    def embed(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids)

    def positions(self, ids: Tensor) -> Any:
        self.refuse(ids)
        return self.position_embedding(torch.arange(ids.shape[1], device=ids.device))

    def refuse(self, ids: Tensor) -> None:
        if ids.shape[1] > self.config.block_size:
            raise ValueError("too long")

    def mask(self, ids: Tensor) -> Tensor | None:
        return causal_mask(ids.shape[1], device=ids.device)

    def finish(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def answer(self, logits: Tensor, targets: Tensor | None) -> Any:
        return logits, None if targets is None else self.loss(logits, targets)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Any:
        x = self.drop(self.embed(ids) + self.positions(ids))
        for block in self.blocks:
            x = block(x, self.mask(ids))
        return self.answer(self.finish(x), targets)


@_mistake(
    GPT,
    "untied_head",
    "tied-embeddings",
    "The head has a weight of its own; it must be the token embedding's table itself.",
    "GPT-2's smallest model would hold 39 million weights twice, and its checkpoint has nothing to"
    " put into the second copy.",
)
class UntiedHead(Model):
    def tie(self) -> None: ...


@_mistake(
    GPT,
    "head_with_bias",
    "tied-embeddings",
    "Your head has a bias.",
    "`nn.Linear` has one unless told `bias=False`. GPT-2's head is the token table and nothing"
    " else, so its checkpoint leaves V of your numbers as they were drawn.",
)
class HeadWithBias(Model):
    def tie(self) -> None:
        self.head = nn.Linear(self.config.d_model, self.config.vocab_size)
        super().tie()


@_mistake(
    GPT,
    "exact_gelu",
    "decoder-only",
    'Your blocks use the exact GELU; GPT-2 uses the tanh form, `activation="gelu_tanh"`.',
    "The two differ by less than a thousandth, layer after layer: a loaded GPT-2 writes nearly the"
    " same text and never the same logits.",
)
class ExactGelu(Model):
    activation = "gelu"


@_mistake(
    GPT,
    "relu",
    "decoder-only",
    "Your blocks use relu, which is what `TransformerBlock` takes unless told otherwise.",
    'GPT-2 was trained with the tanh form of GELU, `activation="gelu_tanh"`: with its weights, your'
    " model cuts off every hidden number below zero.",
)
class Relu(Model):
    activation = "relu"


@_mistake(
    GPT,
    "post_norm",
    "decoder-only",
    "Your blocks normalize behind the sums; since GPT-2 the norm stands before each layer.",
    "The residual stream is then rescaled 2·n_layers times, and deep stacks train only with a slow"
    " warm-up.",
)
class PostNorm(Model):
    norm_first = False


@_mistake(
    GPT,
    "final_norm_unused",
    "decoder-only",
    "The norm behind the last block is there, but your forward leaves it out.",
    "The stream has grown with every block, so the logits are too large and the first loss is far"
    " above ln V.",
)
class FinalNormUnused(Model):
    def finish(self, x: Tensor) -> Tensor:
        return self.head(x)


@_mistake(
    GPT,
    "final_norm_missing",
    "decoder-only",
    "There is no norm behind the last block.",
    "In a pre-norm stack nothing else brings the stream back into range: the logits grow with the"
    " depth, and GPT-2's `ln_f` has no place to go.",
)
class FinalNormMissing(Model):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.norm = nn.Identity()  # type: ignore[assignment]


@_mistake(
    GPT,
    "unit_tables",
    "initialization",
    "Your embeddings start as N(0, 1), as `nn.Embedding` draws them; GPT-2's start as N(0, 0.02).",
    "The same table scores the tokens, so the first logits are some √D in size and the first loss"
    " is many times ln V.",
)
class UnitTables(Model):
    def start(self) -> None:
        super().start()
        for table in (self.token_embedding, self.position_embedding):
            nn.init.normal_(table.weight)


@_mistake(
    GPT,
    "pytorchs_start",
    "initialization",
    "Your matrices start as `nn.Linear` draws them; GPT-2's start as N(0, 0.02).",
    "PyTorch's start is made for one layer alone, and depends on its width: the stream grows with"
    " every block, and no published learning rate fits.",
)
class PytorchsStart(Model):
    def start(self) -> None:
        for table in (self.token_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)


@_mistake(
    GPT,
    "random_biases",
    "initialization",
    "Your biases start random; they start at 0.",
    "A bias is the same for every token: before the model has learned anything, it favors some"
    " features, and so some tokens, over others.",
)
class RandomBiases(Model):
    def start(self) -> None:
        super().start()
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.02)


@_mistake(
    GPT,
    "residual_unscaled",
    "initialization",
    "The matrices that write into the stream, W_o and W_2, start as large as the others.",
    "The stream is the sum of 2·n_layers writes, so its variance grows with the depth. Start these"
    " two at 0.02/√(2·n_layers).",
)
class ResidualUnscaled(Model):
    def factor(self) -> float:
        return 1.0


@_mistake(
    GPT,
    "forgets_the_2",
    "initialization",
    "You divide the start of W_o and W_2 by √n_layers; divide by √(2·n_layers).",
    "Each block writes twice, once from the attention and once from the feed-forward layer.",
)
class ForgetsThe2(Model):
    def factor(self) -> float:
        return self.config.n_layers**-0.5


@_mistake(
    GPT,
    "no_root_in_the_scale",
    "initialization",
    "You divide the start of W_o and W_2 by 2·n_layers; divide by its root.",
    "It is the variances of the writes that add up, not their sizes. Yours leave almost no trace in"
    " the stream, the less the deeper the model is.",
)
class NoRootInTheScale(Model):
    def factor(self) -> float:
        return 1 / (2 * self.config.n_layers)


@_mistake(
    GPT,
    "only_attention_scaled",
    "initialization",
    "You scale down W_o and leave W_2 as it is.",
    "The feed-forward layer writes into the stream as well, and half of the growth with depth"
    " stays.",
)
class OnlyAttentionScaled(Model):
    def start(self) -> None:
        super().start()
        for name, parameter in self.named_parameters():
            if name.endswith("W_2.weight"):
                nn.init.normal_(parameter, std=0.02)


@_mistake(
    GPT,
    "positions_from_1",
    "the-forward-pass",
    "Your positions start at 1; the first token has position 0.",
    "Row 0 of the table is never used, every token reads its neighbor's row, and a text of"
    " block_size tokens asks for a row that is not there.",
)
class PositionsFrom1(Model):
    def positions(self, ids: Tensor) -> Any:
        self.refuse(ids)
        return self.position_embedding(torch.arange(1, ids.shape[1] + 1, device=ids.device))


@_mistake(
    GPT,
    "no_positions",
    "the-forward-pass",
    "The position embedding is never added.",
    "Then order shows only through what the mask hides: the model sees the set of the tokens before"
    " it, hardly their order.",
)
class NoPositions(Model):
    def positions(self, ids: Tensor) -> Any:
        self.refuse(ids)
        return 0.0


@_mistake(
    GPT,
    "sinusoids_added",
    "the-forward-pass",
    "Sinusoids are added to the embeddings; GPT-2 learns its positions.",
    "The table of positions stays as it was drawn, and a loaded GPT-2 does not know where its"
    " tokens stand.",
)
class SinusoidsAdded(Model):
    def positions(self, ids: Tensor) -> Any:
        self.refuse(ids)
        waves = sinusoidal_positions(ids.shape[1], self.config.d_model)  # (T, D)
        return waves.to(self.token_embedding.weight)


@_mistake(
    GPT,
    "embeddings_scaled",
    "the-forward-pass",
    "You multiply the embeddings by √D, as the Transformer of 2017 does.",
    "GPT adds token and position as they are: scaled up, the tokens drown the positions.",
)
class EmbeddingsScaled(Model):
    def embed(self, ids: Tensor) -> Tensor:
        return self.config.d_model**0.5 * self.token_embedding(ids)


@_mistake(
    GPT,
    "no_causal_mask",
    "the-forward-pass",
    "Your blocks get no causal mask.",
    "Every token reads the one that it should predict: the training loss goes to 0, and the model"
    " cannot write.",
)
class NoCausalMask(Model):
    def mask(self, ids: Tensor) -> Tensor | None:
        return None


@_mistake(
    GPT,
    "mask_turned_around",
    "the-forward-pass",
    "Your mask is turned around: in this course True means “may attend”.",
    "Each token reads the tokens after it, and the last one none at all, which is NaN.",
)
class MaskTurnedAround(Model):
    def mask(self, ids: Tensor) -> Tensor | None:
        return ~causal_mask(ids.shape[1], device=ids.device)


@_mistake(
    GPT,
    "not_refused",
    "the-forward-pass",
    "More than block_size tokens are not refused with a ValueError.",
    "The lookup then stops with an IndexError on the CPU; on a GPU a whole process dies, with a"
    " message that names neither the text nor the table.",
)
class NotRefusedByModel(Model):
    def refuse(self, ids: Tensor) -> None: ...


@_mistake(
    GPT,
    "shifts_the_targets",
    "the-forward-pass",
    "Your loss compares the logits at t with the target at t + 1.",
    "The targets that come in are shifted already, so the model learns to predict two tokens ahead"
    " and writes every other one.",
)
class ShiftsTheTargets(Model):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().loss(logits[:, :-1], targets[:, 1:])


@_mistake(
    GPT,
    "last_logits_alone",
    "the-forward-pass",
    "Without targets you return the last position's logits alone; return those of all T.",
    "That is enough to write with, but who scores a text, or looks inside the model, needs every"
    " position.",
)
class LastLogitsAlone(Model):
    def answer(self, logits: Tensor, targets: Tensor | None) -> Any:
        logits, loss = super().answer(logits, targets)
        return (logits[:, -1:] if targets is None else logits), loss


@_mistake(
    GPT,
    "logits_without_a_pair",
    "the-forward-pass",
    "Without targets you return the logits alone; return the pair (logits, None).",
    "Code that writes `logits, loss = model(ids)` would cut your batch in two.",
)
class LogitsWithoutAPair(Model):
    def answer(self, logits: Tensor, targets: Tensor | None) -> Any:
        return logits if targets is None else super().answer(logits, targets)


@_mistake(
    GPT,
    "summed_loss",
    "the-forward-pass",
    "Your loss is the sum over the tokens; return the mean.",
    "It grows with the batch and the context, and the learning rate must shrink with both.",
)
class SummedLoss(Model):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


@_mistake(
    GPT,
    "ignores_minus_1",
    "the-forward-pass",
    "Your loss ignores targets of −1; in this course the ignored target is −100.",
    "−100 is PyTorch's own mark. Yours looks for a class of that number and stops, or counts it.",
)
class IgnoresMinus1(Model):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


@_mistake(
    GPT,
    "divides_by_all_targets",
    "the-forward-pass",
    "You divide the loss by the number of all targets; those of −100 must not count.",
    "A batch with much padding then has a small loss and a small gradient, however wrong it is.",
)
class DividesByAllTargets(Model):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        flat = logits.flatten(0, 1), targets.flatten()
        return F.cross_entropy(*flat, reduction="sum") / targets.numel()


@_mistake(
    GPT,
    "softmax_before_the_loss",
    "the-forward-pass",
    "You apply a softmax to the logits and then cross-entropy, which takes one itself.",
    "A softmax of probabilities is nearly uniform: the loss stays near ln V and the gradients are"
    " tiny.",
)
class SoftmaxBeforeTheLoss(Model):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().loss(logits.softmax(-1), targets)


@_mistake(
    GPT,
    "log_of_a_softmax",
    "the-forward-pass",
    "Your loss takes the logarithm of a softmax.",
    "Where the right token's probability underflows to 0, the loss is infinite and every gradient"
    " NaN. `log_softmax` and `cross_entropy` do not go through the probability.",
)
class LogOfASoftmax(Model):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        real = targets != -100
        p = logits[real].softmax(-1).gather(-1, targets[real][:, None])
        return -p.log().mean()


@_mistake(
    GPT,
    "embeddings_not_dropped",
    "the-forward-pass",
    "Dropout is missing behind the sum of the embeddings.",
    "GPT-2 drops there as well as in its blocks; without it the first block never learns to do"
    " without a feature.",
)
class EmbeddingsNotDropped(Model):
    def drop(self, x: Tensor) -> Tensor:
        return x


@_mistake(
    GPT,
    "dropout_not_passed_on",
    "the-forward-pass",
    "`config.dropout` does not reach the blocks.",
    "The setting then does next to nothing, and whoever raises it against overfitting wonders why.",
)
class DropoutNotPassedOn(Model):
    def block(self) -> nn.Module:
        c = self.config
        return TransformerBlock(
            c.d_model, c.n_heads, 4 * c.d_model, activation="gelu_tanh", bias=c.bias
        )


@_mistake(
    GPT,
    "dropout_in_evaluation",
    "the-forward-pass",
    "Dropout acts in evaluation mode, too: `F.dropout` needs `training=self.training`.",
    "The same prompt gives other logits every time, and every measured loss is too high.",
)
class DropoutInEvaluation(Model):
    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout)


@_mistake(
    GPT,
    "bias_not_passed_on",
    "decoder-only",
    "With bias=False the blocks still have their biases: the setting does not reach them.",
    "The model is not the one that was counted and whose checkpoint is to be loaded.",
)
class BiasNotPassedOn(Model):
    def block(self) -> nn.Module:
        c = self.config
        return TransformerBlock(
            c.d_model, c.n_heads, 4 * c.d_model, c.dropout, activation="gelu_tanh"
        )


@_mistake(
    GPT,
    "final_norm_keeps_its_bias",
    "decoder-only",
    "With bias=False the final norm still has its bias.",
    "`bias=False` drops every bias, the norms' too; one that stays is a weight that no checkpoint"
    " of such a model holds.",
)
class FinalNormKeepsItsBias(Model):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.norm = LayerNorm(config.d_model)


@_mistake(
    GPT,
    "blocks_shared",
    "decoder-only",
    "All your layers are one block, used n_layers times: `[block] * n` holds one block n times.",
    "The model has the depth and not the weights; call the constructor once for each layer.",
)
class BlocksShared(Model):
    def stack(self) -> Any:
        return nn.ModuleList([self.block()] * self.config.n_layers)


@_mistake(
    GPT,
    "plain_list",
    "decoder-only",
    "Your blocks stand in a plain list; use `nn.ModuleList`.",
    "PyTorch does not see modules in a list: the optimizer never trains them, and `.to(device)`"
    " leaves them behind.",
)
class PlainList(Model):
    def stack(self) -> Any:
        return [self.block() for _ in range(self.config.n_layers)]


@_mistake(
    GPT,
    "feed_forward_not_wider",
    "decoder-only",
    "Your feed-forward layers are as wide as the model; in a GPT they are 4·d_model wide.",
    "They hold two thirds of a block's weights, and yours a third of that; GPT-2's do not fit.",
)
class FeedForwardNotWider(Model):
    def block(self) -> nn.Module:
        c = self.config
        return TransformerBlock(
            c.d_model, c.n_heads, c.d_model, c.dropout, activation="gelu_tanh", bias=c.bias
        )


@_mistake(
    GPT,
    "heads_not_passed_on",
    "decoder-only",
    "Your blocks have one head, whatever `n_heads` says.",
    "All shapes fit, so nothing fails; each layer reads one place at a time, and a loaded GPT-2"
    " writes nonsense.",
)
class HeadsNotPassedOn(Model):
    def block(self) -> nn.Module:
        c = self.config
        return TransformerBlock(
            c.d_model, 1, 4 * c.d_model, c.dropout, activation="gelu_tanh", bias=c.bias
        )


# --- count_parameters ---------------------------------------------------------------------------

count_parameters = ASSIGNMENT.exercise(
    "count_parameters",
    points=2,
    hints=(
        "How many numbers does one block hold, if a linear map from m to n has m·n weights and n"
        " biases, and a norm D and D? And what stands outside of the blocks?",
        "Sum three parts: the two tables, n_layers times a block, the final norm. The head is the"
        " token table, which is counted once. `bias` is True or False, that is 1 or 0.",
        "A block with biases: 4·(D² + D) for the attention, 8·D² + 5·D for the feed-forward layer,"
        " 4·D for its two norms.",
    ),
)


def expect_count(student: Handle, sizes: Sizes, right: int, name: str = "the count") -> None:
    expect(student(config(student, sizes)), name).equals(right)


def random_sizes(rng: Rng, **more: Any) -> Sizes:
    heads = rng.integer(2, 6)
    return {
        "vocab_size": rng.integer(50, 99),
        "block_size": rng.integer(9, 40),
        "n_layers": rng.integer(2, 7),
        "n_heads": heads,
        "d_model": heads * rng.integer(3, 9),
    } | more


@count_parameters.case("counts a small model, tensor by tensor")
def _(student: Handle, rng: Rng) -> None:
    for sizes in (SMALL, random_sizes(rng), random_sizes(rng, n_layers=1)):
        expect_count(student, sizes, counted(sizes), f"the parameters of {sizes}")


@count_parameters.case("with bias=False, counts no bias, not even a norm's")
def _(student: Handle, rng: Rng) -> None:
    sizes = random_sizes(rng, bias=False)
    expect_count(student, sizes, counted(sizes), f"the parameters of {sizes}")


@count_parameters.case("gives GPT-2's four sizes to the last weight")
def _(student: Handle, rng: Rng) -> None:
    for count, sizes in GPT2S.items():
        name = f"GPT-2 with {sizes['n_layers']} layers of width {sizes['d_model']}"
        expect_count(student, sizes, count, name)


@count_parameters.case("counts a model that no machine can hold")
def _(student: Handle, rng: Rng) -> None:
    expect_count(student, ABSURD, counted(ABSURD), "a model of 1,000 trillion weights")


def count_of(c: Any, **changes: Any) -> int:
    """The right count of a configuration, with some of its sizes changed."""
    sizes = {name: getattr(c, name) for name in (*SMALL, "bias")}
    return counted(sizes | changes)


def per_layer(c: Any) -> int:
    return count_of(c, n_layers=2) - count_of(c, n_layers=1)


@_mistake(
    count_parameters,
    "counts_the_head_again",
    "counting-parameters",
    "You count the tied table twice, as the embedding and as the head.",
    "It is one tensor under two names: GPT-2's smallest model would gain 39 million weights that no"
    " file holds.",
)
def counts_the_head_again(c: Any) -> int:
    return count_of(c) + c.vocab_size * c.d_model


@_mistake(
    count_parameters,
    "forgets_the_biases",
    "counting-parameters",
    "You leave the biases out, of the linear maps or of all layers.",
    "They are few, but a count that is off by one is no count: it is how you find a layer that you"
    " forgot.",
)
def forgets_the_biases(c: Any) -> int:
    return count_of(c, bias=False)


@_mistake(
    count_parameters,
    "forgets_the_norms_biases",
    "counting-parameters",
    "You count a norm as D numbers; with biases it has 2·D.",
    "Each of the 2·n_layers + 1 norms has a weight and a bias.",
)
def forgets_the_norms_biases(c: Any) -> int:
    return count_of(c) - int(c.bias) * (2 * c.n_layers + 1) * c.d_model


@_mistake(
    count_parameters,
    "forgets_the_norms",
    "counting-parameters",
    "You leave the norms out.",
    "Each block has two, and one stands behind the last block.",
)
def forgets_the_norms(c: Any) -> int:
    return count_of(c) - (1 + int(c.bias)) * (2 * c.n_layers + 1) * c.d_model


@_mistake(
    count_parameters,
    "forgets_the_final_norm",
    "counting-parameters",
    "You leave out the norm behind the last block.",
    "It belongs to no block, and GPT-2's file holds it under the name ln_f.",
)
def forgets_the_final_norm(c: Any) -> int:
    return count_of(c) - (1 + int(c.bias)) * c.d_model


@_mistake(
    count_parameters,
    "forgets_the_positions",
    "counting-parameters",
    "You leave the table of positions out.",
    "It has block_size rows of width D, learned like all others. Only the count of operations"
    " leaves it out.",
)
def forgets_the_positions(c: Any) -> int:
    return count_of(c) - c.block_size * c.d_model


@_mistake(
    count_parameters,
    "forgets_the_tables",
    "counting-parameters",
    "You count the blocks alone, without the tables of tokens and positions.",
    "In GPT-2's smallest model they hold a third of all weights.",
)
def forgets_the_tables(c: Any) -> int:
    return count_of(c) - (c.vocab_size + c.block_size) * c.d_model


@_mistake(
    count_parameters,
    "forgets_the_output_projection",
    "counting-parameters",
    "You count three matrices for an attention; there are four.",
    "W_q, W_k and W_v make what the heads work on, and W_o mixes what they have read.",
)
def forgets_the_output_projection(c: Any) -> int:
    return count_of(c) - c.n_layers * (c.d_model**2 + int(c.bias) * c.d_model)


@_mistake(
    count_parameters,
    "times_the_heads",
    "counting-parameters",
    "You count the attention's matrices once for each head.",
    "The heads share the width D: n_heads matrices of D × D/n_heads are one of D × D.",
)
def times_the_heads(c: Any) -> int:
    one = 4 * (c.d_model**2 + int(c.bias) * c.d_model)
    return count_of(c) + (c.n_heads - 1) * c.n_layers * one


@_mistake(
    count_parameters,
    "one_layer",
    "counting-parameters",
    "You count one block, however many layers there are.",
    "Each layer has weights of its own.",
)
def one_layer(c: Any) -> int:
    return count_of(c, n_layers=1)


@_mistake(
    count_parameters,
    "biases_always",
    "counting-parameters",
    "You count biases with bias=False, too.",
    "Such a model has none, in no layer and in no norm.",
)
def biases_always(c: Any) -> int:
    return count_of(c, bias=True)


@_mistake(
    count_parameters,
    "twelve_d_squared",
    "counting-parameters",
    "You return 12·n_layers·D² and the tables: the rule of thumb, without biases and norms.",
    "It is close for wide models and shows no mistake in a small one. The question is the exact"
    " number.",
)
def twelve_d_squared(c: Any) -> int:
    return 12 * c.n_layers * c.d_model**2 + (c.vocab_size + c.block_size) * c.d_model


@_mistake(
    count_parameters,
    "no_integer",
    "counting-parameters",
    "Your count is a float; return an int.",
    "A float of 64 bits is exact to 9·10¹⁵ only, and prints as 124439808.0.",
)
def no_integer(c: Any) -> float:
    return float(count_of(c))


@_mistake(
    count_parameters,
    "builds_the_model",
    "counting-parameters",
    "You build the model and count its tensors.",
    "GPT-3 would take 700 GB for an answer that is a sum of products of five numbers.",
)
def builds_the_model(c: Any) -> int:
    sizes = {name: getattr(c, name) for name in (*SMALL, "bias")}
    return sum(torch.empty(shape).numel() for shape in shapes_of(sizes).values())


# --- flops_per_token ----------------------------------------------------------------------------

flops_per_token = ASSIGNMENT.exercise(
    "flops_per_token",
    points=2,
    needs=("count_parameters",),
    hints=(
        "Which of the parameters are looked up and never multiplied? And what does attention"
        " multiply that is no parameter?",
        "Take your count, subtract the table of positions, and multiply by 6. Then add what the"
        " scores and the mixing of values cost at full context.",
        "6·N + 12·n_layers·d_model·block_size, an int.",
    ),
)


def right_flops(sizes: Sizes) -> int:
    """Two products for each weight and for each pair of positions, three times: once forward and
    twice as much backward; a product is a multiplication and an addition."""
    rows = sizes["block_size"] * sizes["d_model"]
    looked_at = 2 * sizes["n_layers"] * rows  # numbers of keys and values that one query meets
    return 3 * 2 * (counted(sizes) - rows + looked_at)


def expect_flops(student: Handle, sizes: Sizes, name: str = "the FLOPs") -> None:
    expect(student(config(student, sizes)), name).equals(right_flops(sizes))


@flops_per_token.case("is 6·N + 12·n_layers·d_model·block_size, N without positions")
def _(student: Handle, rng: Rng) -> None:
    for sizes in (SMALL, random_sizes(rng), random_sizes(rng, bias=False)):
        expect_flops(student, sizes, f"the FLOPs of {sizes}")


@flops_per_token.case("grows with the context through the attention alone")
def _(student: Handle, rng: Rng) -> None:
    sizes, more = random_sizes(rng), rng.integer(3, 50)
    longer = sizes | {"block_size": sizes["block_size"] + more}
    grown = student(config(student, longer)) - student(config(student, sizes))
    right = 12 * sizes["n_layers"] * sizes["d_model"] * more
    expect(grown, f"what {more} more positions cost").equals(right)


@flops_per_token.case("gives GPT-2's and GPT-3's")
def _(student: Handle, rng: Rng) -> None:
    for sizes in (*GPT2S.values(), GPT3):
        name = f"the FLOPs of {sizes['n_layers']} layers of width {sizes['d_model']}"
        expect_flops(student, sizes, name)


def weights_of(c: Any) -> int:
    """N: the parameters without the table of positions."""
    return count_of(c) - c.block_size * c.d_model


def attention_of(c: Any) -> int:
    return 12 * c.n_layers * c.d_model * c.block_size


@_mistake(
    flops_per_token,
    "positions_counted",
    "counting-flops",
    "Your N holds the table of positions.",
    "A row of it is looked up and added, D additions a token; no weight of it is multiplied.",
)
def positions_counted(c: Any) -> int:
    return 6 * count_of(c) + attention_of(c)


@_mistake(
    flops_per_token,
    "tokens_left_out",
    "counting-flops",
    "Your N leaves out the token table.",
    "As an embedding it is looked up, but it is also the head, and there every row of it is"
    " multiplied for every token.",
)
def tokens_left_out(c: Any) -> int:
    return 6 * (weights_of(c) - c.vocab_size * c.d_model) + attention_of(c)


@_mistake(
    flops_per_token,
    "head_counted_again",
    "counting-flops",
    "Your N holds the token table twice.",
    "It is multiplied once, as the head; the embedding only looks rows up.",
)
def head_counted_again(c: Any) -> int:
    return 6 * (weights_of(c) + c.vocab_size * c.d_model) + attention_of(c)


@_mistake(
    flops_per_token,
    "attention_left_out",
    "counting-flops",
    "You return 6·N: the products between positions are missing.",
    "Queries times keys and weights times values involve no parameter, and at a long context they"
    " are most of the work.",
)
def attention_left_out(c: Any) -> int:
    return 6 * weights_of(c)


@_mistake(
    flops_per_token,
    "forward_alone",
    "counting-flops",
    "You count the forward pass alone, 2·N.",
    "Training goes back as well, and the way back is two products for each one forward: one for the"
    " input's gradient and one for the weight's.",
)
def forward_alone(c: Any) -> int:
    return 2 * weights_of(c) + attention_of(c) // 3


@_mistake(
    flops_per_token,
    "multiplications_alone",
    "counting-flops",
    "You count multiplications, 3·N: a product of matrices adds as often as it multiplies.",
    "A processor's FLOP/s count both, so half of the utilization that you compute would be lost.",
)
def multiplications_alone(c: Any) -> int:
    return 3 * weights_of(c) + attention_of(c) // 2


@_mistake(
    flops_per_token,
    "halved_by_the_mask",
    "counting-flops",
    "You halve the attention's part, because the mask hides half of the scores.",
    "The formula counts the whole square, as PaLM's does; what an implementation skips is its gain."
    " With two conventions no two utilizations compare.",
)
def halved_by_the_mask(c: Any) -> int:
    return 6 * weights_of(c) + attention_of(c) // 2


@_mistake(
    flops_per_token,
    "attention_of_the_whole_text",
    "counting-flops",
    "Your attention term has block_size squared: that is the work for a whole text.",
    "One token's query meets block_size keys. The square comes from the block_size tokens of a"
    " text.",
)
def attention_of_the_whole_text(c: Any) -> int:
    return 6 * weights_of(c) + attention_of(c) * c.block_size


@_mistake(
    flops_per_token,
    "attention_times_heads",
    "counting-flops",
    "You multiply the attention term by n_heads as well as by d_model.",
    "PaLM's 12·L·H·Q·T has Q for the width of one head, and H·Q is d_model already.",
)
def attention_times_heads(c: Any) -> int:
    return 6 * weights_of(c) + attention_of(c) * c.n_heads


@_mistake(
    flops_per_token,
    "of_a_whole_text",
    "counting-flops",
    "You return the FLOPs of a whole text; divide by block_size.",
    "The cost of a run is this number times the tokens it reads, so it must be for one token.",
)
def of_a_whole_text(c: Any) -> int:
    return (6 * weights_of(c) + attention_of(c)) * c.block_size


@_mistake(
    flops_per_token,
    "flops_no_integer",
    "counting-flops",
    "Your count is a float; return an int.",
    "All of its factors are whole numbers; a float loses the last digits and prints as 1e+12.",
)
def flops_no_integer(c: Any) -> float:
    return float(6 * weights_of(c) + attention_of(c))


# --- load_gpt2_state_dict -----------------------------------------------------------------------

load_gpt2_state_dict = ASSIGNMENT.exercise(
    "load_gpt2_state_dict",
    points=4,
    hints=(
        "`model.state_dict()` has a name and a shape for each weight you must fill. Which name of"
        " GPT-2's belongs to each, and where do the shapes differ?",
        "Build a dictionary with our names: rename, transpose the matrices of c_attn, c_proj and"
        " c_fc, cut c_attn in three. Then let `model.load_state_dict` copy: it is strict about"
        " names and shapes, and raises a RuntimeError that you turn into a ValueError.",
        "c_attn.weight is (D, 3·D): columns 0 to D make q, the next D make k, the last D make v."
        " Transposed, each is a (D, D) of ours. c_attn.bias is (3·D,).",
    ),
)

Checkpoint = dict[str, Tensor]


def checkpoint(rng: Rng, **changes: Any) -> tuple[dict[str, Tensor], Checkpoint]:
    """Random weights by our names, and the same in GPT-2's layout, as its own file names them."""
    sizes = SMALL | changes
    weights, theirs = rng.like(shapes_of(sizes)), {}
    for name, parts in package.gpt2_layout(sizes["n_layers"]):
        for kind in ("weight", "bias"):
            if f"{parts[0]}.{kind}" in weights:
                whole = torch.cat([weights[f"{part}.{kind}"] for part in parts])
                theirs[f"{name}.{kind}"] = turned(name, whole)
    return weights, theirs


def turned(name: str, tensor: Tensor) -> Tensor:
    """The matrix of a linear map in the other layout; other tensors as they are."""
    return tensor.t() if ".c_" in name else tensor


def empty_model(student: Handle, sizes: Sizes = SMALL) -> Handle:
    """Our GPT's parameters beside the student's code, as they were drawn."""
    return student.peer("autograder.child.stand_ins:GPTWeights", config(student, sizes))


def expect_loaded(
    student: Handle, weights: Mapping[str, Tensor], given: Checkpoint, sizes: Sizes = SMALL
) -> None:
    """After the call, our model holds these weights under its own names, and nothing else."""
    model = empty_model(student, sizes)
    student(model, given)
    if all(name in model.shapes() for name in TABLES):
        fail("the head and the embedding are two parameters afterwards.", "unties_the_head")
    have = model.method("state_dict")()
    for name, want in weights.items():
        expect(have.get(name), name).close_to(want)


def runs(student: Handle, *args: Any) -> bool:
    """Whether the student's object gets through this call."""
    try:
        student(*args)
    except StudentError:
        return False
    return True


@load_gpt2_state_dict.case("puts every weight of a GPT-2 in its place")
def _(student: Handle, rng: Rng) -> None:
    weights, theirs = checkpoint(rng, n_layers=2)
    try:
        expect_loaded(student, weights, theirs, TWO)
    except StudentError as error:
        # The shapes in an error of PyTorch's: D = 12, 3·D = 36, 4·D = 48.
        if "size" in error.message and "48" in error.message:
            fail("c_fc.weight is (12, 48), and W_1.weight (48, 12).", "not_transposed")
        if "size" in error.message and "36" in error.message:
            fail("c_attn.weight is (12, 36): q, k and v are 12 columns each.", "cut_across")
        raise


@load_gpt2_state_dict.case("takes Hugging Face's names, with `transformer.`, masks and lm_head")
def _(student: Handle, rng: Rng) -> None:
    weights, theirs = checkpoint(rng)
    prefixed = {f"transformer.{name}": w for name, w in theirs.items()}
    triangle = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]  # (1, 1, T, T)
    masks = {"transformer.h.0.attn.bias": triangle}
    masks["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    head = {"lm_head.weight": theirs["wte.weight"]}
    try:
        expect_loaded(student, weights, prefixed | masks | head)
    except StudentError:
        if not runs(student, empty_model(student), theirs):
            raise
        for name, given in (
            ("keeps_the_prefix", prefixed),
            ("takes_masks_for_weights", prefixed | masks),
            ("lm_head_not_known", prefixed | head),
        ):
            if not runs(student, empty_model(student), given):
                fail("a checkpoint as Hugging Face stores it is refused.", name)
        raise


def expect_refused(student: Handle, given: Checkpoint, what: str) -> None:
    refused(lambda: student(empty_model(student), given), what)


@load_gpt2_state_dict.case("refuses weights of which one is missing, with a ValueError")
def _(student: Handle, rng: Rng) -> None:
    for gone in ("h.0.mlp.c_fc.bias", "wpe.weight"):
        _, theirs = checkpoint(rng)
        del theirs[gone]
        expect_refused(student, theirs, f"a checkpoint without {gone}")


@load_gpt2_state_dict.case("refuses weights that have no place here, with a ValueError")
def _(student: Handle, rng: Rng) -> None:
    _, theirs = checkpoint(rng, n_layers=2)
    expect_refused(student, theirs, "a checkpoint of 2 layers for 1")


@load_gpt2_state_dict.case("refuses weights of another shape, with a ValueError")
def _(student: Handle, rng: Rng) -> None:
    _, theirs = checkpoint(rng, block_size=5)
    expect_refused(student, theirs, "a checkpoint with 5 positions for 7")
    _, theirs = checkpoint(rng)
    theirs["ln_f.weight"] = theirs["ln_f.weight"][:1]
    expect_refused(student, theirs, "an ln_f.weight of one number")


@load_gpt2_state_dict.case("leaves the checkpoint as it was", guard=True)
def _(student: Handle, rng: Rng) -> None:
    _, theirs = checkpoint(rng)
    given = student.keep({name: w.clone() for name, w in theirs.items()})
    student(empty_model(student), given)
    left = given.method("copy")()
    if left.keys() != theirs.keys() or any(not left[n].equal(w) for n, w in theirs.items()):
        fail("after the call, the checkpoint is not what it was.", "changes_the_checkpoint")


HUGGING_FACES = (".attn.bias", ".attn.masked_bias", "lm_head.weight")  # in a file, and no weights


def strictly(model: Any, ours: dict[str, Tensor], strict: bool = True) -> None:
    try:
        model.load_state_dict(ours, strict)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _loading(
    *,
    prefix: str = "transformer.",
    dropped: tuple[str, ...] = HUGGING_FACES,
    turn: Callable[[str, Tensor], Tensor] = turned,
    cut: Callable[[Tensor], Any] = lambda w: w.chunk(3),
    place: Callable[[Any, dict[str, Tensor]], None] = strictly,
    renamed: Callable[[str], str] = lambda name: name,
) -> Callable[[Any, Mapping[str, Tensor]], None]:
    """A loader with one thing wrong: names, transposing, the cut of c_attn, or the copying."""

    def wrong(model: Any, state_dict: Mapping[str, Tensor]) -> None:
        weights = {name: w for name, w in state_dict.items() if not name.endswith(dropped)}
        left = {name.removeprefix(prefix): w for name, w in weights.items()}
        ours: dict[str, Tensor] = {}
        for theirs, parts in package.gpt2_layout(len(model.blocks)):
            for kind in ("weight", "bias"):
                if f"{theirs}.{kind}" in left:
                    whole = turn(theirs, left.pop(f"{theirs}.{kind}"))
                    pieces = cut(whole) if len(parts) == 3 else (whole,)
                    for part, piece in zip(parts, pieces, strict=True):
                        ours[f"{renamed(part)}.{kind}"] = piece
        if TABLES[0] in ours:
            ours["head.weight"] = ours[TABLES[0]]
        place(model, ours | left)

    return wrong


def _loads(name: str, did: str, causes: str, wrong: Callable[..., None]) -> None:
    _mistake(load_gpt2_state_dict, name, "gpt2-weights", did, causes)(wrong)


def _by_head(w: Tensor) -> list[Tensor]:
    """q, k and v as three parts of each head's rows, as GPT-NeoX lays them out."""
    heads = w.unflatten(0, (SMALL["n_heads"], 3, -1))  # (3·D, …) → (H, 3, D/H, …)
    return [heads[:, part].flatten(0, 1) for part in range(3)]


def _thirds(*order: int) -> Callable[[Tensor], list[Tensor]]:
    return lambda w: [w.chunk(3)[part] for part in order]


def _unties(model: Any, ours: dict[str, Tensor]) -> None:
    strictly(model, ours)
    model.head.weight = nn.Parameter(ours["head.weight"].clone())


def _one_by_one(put: Callable[[Tensor, Tensor], Any]) -> Callable[[Any, dict[str, Tensor]], None]:
    """Names compared, and each tensor written by `put`."""

    def place(model: Any, ours: dict[str, Tensor]) -> None:
        known = model.state_dict()
        if known.keys() != ours.keys():
            raise ValueError("names")
        try:
            for name, w in ours.items():
                put(known[name], w)
        except RuntimeError as error:
            raise ValueError("shapes") from error

    return place


_loads(
    "not_transposed",
    "Your matrices keep GPT-2's form, (in, out); `nn.Linear` has (out, in).",
    "Those that are not square do not fit. The square ones fit and compute with their transpose,"
    " which no error tells you.",
    _loading(turn=lambda name, w: w, cut=lambda w: w.chunk(3, dim=-1)),
)
_loads(
    "square_ones_not_transposed",
    "You transpose a matrix where its shape does not fit; the square ones fit as they are.",
    "W_q, W_k, W_v and W_o then stand transposed in your model: nothing fails, and what it writes"
    " is noise.",
    _loading(
        turn=lambda name, w: w.t() if ".mlp.c_" in name else w,
        cut=lambda w: w.chunk(3, dim=-1),
    ),
)
_loads(
    "cut_across",
    "You cut c_attn into q, k and v along the wrong axis.",
    "The first third of the outputs is q; along the inputs, each part would hold a third of all"
    " three.",
    _loading(cut=lambda w: w.chunk(3, dim=-1)),
)
for _name, _order, _said in (
    ("order_k_q_v", (1, 0, 2), "k, q, v"),
    ("order_v_k_q", (2, 1, 0), "v, k, q"),
    ("order_q_v_k", (0, 2, 1), "q, v, k"),
):
    _loads(
        _name,
        f"You take the thirds of c_attn for {_said}; they are q, k, v.",
        "All shapes fit, and the heads look with one part for what stands in another: the logits"
        " are noise.",
        _loading(cut=_thirds(*_order)),
    )
_loads(
    "cut_by_heads",
    "You cut c_attn head by head; GPT-2 has all of q first, then all of k, then all of v.",
    "Other models interleave them by heads (GPT-NeoX does), and the shapes are the same: every head"
    " gets parts of all three.",
    _loading(cut=_by_head),
)
_loads(
    "every_third_row",
    "You give q, k and v every third output of c_attn; each is one block of D.",
    "The shapes fit, and all three are mixed through each other.",
    _loading(cut=lambda w: [w[part::3] for part in range(3)]),
)


def _norms_swapped(name: str) -> str:
    stem, dot, last = name.rpartition(".")
    return stem + dot + {"norm_1": "norm_2", "norm_2": "norm_1"}.get(last, last)


_loads(
    "norms_swapped",
    "You swap ln_1 and ln_2: ln_1 stands before the attention, ln_2 before the feed-forward layer.",
    "Both have D numbers, so nothing fails, and each layer reads the stream on the other's scale.",
    _loading(renamed=_norms_swapped),
)
_loads(
    "skips_missing",
    "A weight that the checkpoint lacks is passed over in silence.",
    "The model keeps what it was drawn with there: it runs, and writes noise. Refuse with a"
    " ValueError.",
    _loading(place=lambda model, ours: strictly(model, model.state_dict() | ours)),
)
_loads(
    "skips_unknown",
    "A weight that has no place in the model is passed over in silence.",
    "A checkpoint of 24 layers then fits a model of 12, which runs on half a network. Refuse with a"
    " ValueError.",
    _loading(
        place=lambda model, ours: strictly(
            model, {name: w for name, w in ours.items() if name in model.state_dict()}
        )
    ),
)
_loads(
    "strict_is_false",
    "Weights that are missing and weights without a place are both passed over in silence.",
    "That is what `strict=False` does: one misspelled name, and a layer stays as it was drawn.",
    _loading(place=lambda model, ours: strictly(model, ours, strict=False)),
)
_loads(
    "broadcasts",
    "A weight of another shape is spread over the parameter by `copy_`, instead of refused.",
    "A checkpoint of another size loads without a word wherever broadcasting can stretch it.",
    _loading(place=_one_by_one(Tensor.copy_)),
)
_loads(
    "fills_in_part",
    "You copy as many rows as the checkpoint has and leave the rest.",
    "The other positions, or tokens, keep the numbers they were drawn with. Refuse another shape"
    " with a ValueError.",
    _loading(place=_one_by_one(lambda parameter, w: parameter[: len(w)].copy_(w))),
)
_loads(
    "unties_the_head",
    "You give the head a tensor of its own; it must stay the token table.",
    "From here on the two are trained apart, and the model has grown by V·D weights.",
    _loading(place=_unties),
)
_loads(
    "keeps_the_prefix",
    "Names that begin with `transformer.` are not recognized.",
    "Hugging Face stores GPT-2 under both kinds of names, depending on the class that saved it.",
    _loading(prefix="gpt2."),
)
_loads(
    "takes_masks_for_weights",
    "You take attn.bias and attn.masked_bias for weights; they are stored causal masks.",
    "GPT-2's own file holds them, so your loader refuses it.",
    _loading(dropped=("lm_head.weight",)),
)
_loads(
    "lm_head_not_known",
    "You refuse lm_head.weight, which is the token table once more.",
    "Some files hold it and some do not: the two are one tensor.",
    _loading(dropped=(".attn.bias", ".attn.masked_bias")),
)


@_mistake(
    load_gpt2_state_dict,
    "changes_the_checkpoint",
    "gpt2-weights",
    "You remove entries from the dictionary that was passed in.",
    "Whoever loads the same checkpoint into a second model finds it empty. Work on a copy.",
)
def changes_the_checkpoint(model: Any, state_dict: dict[str, Tensor]) -> None:
    _loading()(model, dict(state_dict))
    state_dict.clear()
