"""Checks of chapter 17: parity of two models, GPT-2's weights, a few steps, an entry."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from autograder.checks.gpt import SMALL, Sizes, checkpoint, refused, shapes_of
from autograder.engine.exercise import Assignment, Exercise, HandedIn, Rng
from autograder.engine.expect import expect, fail
from autograder.engine.handle import Handle
from autograder.engine.judge import MISSING, CaseResult, ExerciseResult
from autograder.engine.references import remembered
from rnn2gpt import entry as entries
from rnn2gpt import gpt as package

ASSIGNMENT = Assignment(
    name="17-capstone",
    notebook="capstone",
    page="17_capstone",
    sections={
        "parity": "Two models that should be one",
        "weights-from-outside": "Weights from outside",
        "a-few-steps": "A few steps",
        "the-entry": "The entry",
    },
    minutes=100,
    modules=(
        "data", "metrics", "ngram", "rnn", "lstm", "attention", "multi_head", "positions",
        "transformer", "tokenizer", "kv_cache", "gpt", "optim",
    ),
    files=entries.FILES,
)  # fmt: skip

Names = dict[str, Tensor]


def _mistake(
    exercise: Exercise, name: str, see: str, did: str, causes: str
) -> Callable[[Any], Any]:
    """Register an object of the class beneath: it is called as the function is that it spoils."""
    register = exercise.misconception(did=did, causes=causes, see=see, name=name)

    def made(cls: Any) -> Any:
        register(cls())
        return cls

    return made


def our_gpt(student: Handle, sizes: Sizes = SMALL, **changes: Any) -> Handle:
    """The package's GPT beside the student's code."""
    config = student.peer("rnn2gpt.gpt:GPTConfig", **(sizes | changes))
    return student.peer("rnn2gpt.gpt:GPT", config)


def gpt_here(sizes: Sizes, weights: Names, **changes: Any) -> package.GPT:
    """The same in this process, with the weights, in float64 and evaluation mode."""
    model = package.GPT(package.GPTConfig(**(sizes | changes))).double()
    model.load_state_dict(weights | {"head.weight": weights["token_embedding.weight"]})
    return model.eval()


def some_weights(rng: Rng, sizes: Sizes = SMALL, **changes: Any) -> Names:
    """Random weights of a GPT by the names of its parameters."""
    return rng.like(shapes_of(sizes | changes))


def fill(model: Handle, weights: Names) -> Handle:
    return model.load(weights | {"head.weight": weights["token_embedding.weight"]})


def batch(rng: Rng, t: int = 5) -> tuple[Tensor, Tensor]:
    """Ids and targets (2, t); one target does not count."""
    ids, targets = (rng.integers(0, SMALL["vocab_size"], 2, t) for _ in range(2))
    targets[0, 1] = -100
    return ids, targets


# --- parity -------------------------------------------------------------------------------------

parity = ASSIGNMENT.exercise(
    "parity",
    points=4,
    hints=(
        "Two models can only be compared when they hold the same weights. What else may differ"
        " between two runs of one model, and how do you switch it off?",
        "Compare the names and shapes of `named_parameters()`, copy under `torch.no_grad()`, run"
        " both in `eval()`, and ask `torch.autograd.grad` for the gradients: it leaves `.grad` as"
        " it is.",
        "For two tensors of equal shape, (a − b).abs().max() is one number. Over the parameters"
        " take the largest of these, and check `math.isfinite` before you compare numbers: NaN is"
        " neither smaller nor larger than anything.",
    ),
)
KEYS = ("gradient", "logits", "loss")


def _gradients(model: nn.Module, loss: Tensor) -> Names:
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@remembered
def right_parity(
    sizes: Sizes, changes: Sizes, weights: Names, ids: Tensor, targets: Tensor
) -> dict[str, float]:
    """The three differences between a GPT and one with other sizes that take the same weights."""
    one, other = gpt_here(sizes, weights, **changes), gpt_here(sizes, weights)
    (logits, loss), (right, right_loss) = one(ids, targets), other(ids, targets)
    pairs = zip(_gradients(one, loss).values(), _gradients(other, right_loss).values(), strict=True)
    return {
        "gradient": max((a - b).abs().max().item() for a, b in pairs),
        "logits": (logits - right).abs().max().item(),
        "loss": abs(loss.item() - right_loss.item()),
    }


def asked(student: Handle, mine: Handle, ours: Handle, *data: Tensor) -> dict[str, float]:
    """The student's three numbers, each forced to be one."""
    value = student(mine, ours, *data)
    expect(value, "what parity returns").holds(isinstance(value, dict), "expected a dict.")
    expect(sorted(value), "its keys").equals(list(KEYS))
    return {name: float(value[name]) for name in KEYS}


def two_models(student: Handle, rng: Rng, **changes: Any) -> tuple[Handle, Handle, Names]:
    """Mine, with `changes` and weights of its own; ours; and the weights of ours."""
    weights = some_weights(rng)
    mine = fill(our_gpt(student, **changes), some_weights(rng))
    return mine, fill(our_gpt(student), weights), weights


def expect_parity(have: Mapping[str, float], want: Mapping[str, float]) -> None:
    for name in KEYS:
        expect(have[name], f"the difference of the {name}").close_to(
            want[name], rtol=1e-6, atol=1e-9
        )


@parity.case("finds no difference between two models that are built alike")
def _(student: Handle, rng: Rng) -> None:
    mine, ours, _ = two_models(student, rng)
    for name, value in asked(student, mine, ours, *batch(rng)).items():
        expect(value, f"the difference of the {name}").close_to(0.0, atol=1e-9)


@parity.case("measures how far a model with another number of heads is off")
def _(student: Handle, rng: Rng) -> None:
    for heads in (1, 2):
        mine, ours, weights = two_models(student, rng, n_heads=heads)
        data = batch(rng)
        want = right_parity(SMALL, {"n_heads": heads}, weights, *data)
        expect_parity(asked(student, mine, ours, *data), want)


@parity.case("compares in evaluation mode, dropout or not")
def _(student: Handle, rng: Rng) -> None:
    weights = some_weights(rng)
    mine = fill(our_gpt(student, dropout=0.5), some_weights(rng)).train()
    ours = fill(our_gpt(student, dropout=0.5), weights).train()
    data = batch(rng)
    first, again = asked(student, mine, ours, *data), asked(student, mine, ours, *data)
    for name, value in first.items():
        if value > 1e-6:
            mistake = "in_training_mode" if value != again[name] else None
            fail(f"with dropout=0.5 the {name} of two equal models differ.", mistake)


@parity.case("counts the gradient of this batch alone, whatever was asked before")
def _(student: Handle, rng: Rng) -> None:
    mine, ours, weights = two_models(student, rng, n_heads=1)
    asked(student, mine, ours, *batch(rng))
    data = batch(rng)
    want = right_parity(SMALL, {"n_heads": 1}, weights, *data)
    expect_parity(asked(student, mine, ours, *data), want)


@parity.case("gives mine a copy, and leaves ours as it was")
def _(student: Handle, rng: Rng) -> None:
    mine, ours, weights = two_models(student, rng)
    asked(student, mine, ours, *batch(rng))
    kept, copied = ours.parameters(), mine.parameters()
    for name, want in weights.items():
        expect(kept.get(name), f"{name} of ours").close_to(want)
        expect(copied.get(name), f"{name} of mine").close_to(want)
    fill(mine, {name: 0 * w for name, w in weights.items()})
    if not bool(ours.parameters()["norm.weight"].any()):
        fail("a change of mine changes ours: they share their memory.", "shared_memory")


@parity.case("refuses parameters that differ in name or shape, with a ValueError")
def _(student: Handle, rng: Rng) -> None:
    data = batch(rng)
    ours = fill(our_gpt(student), some_weights(rng))
    for changes, what in (
        ({"bias": False}, "a model without biases"),
        ({"n_layers": 2}, "a model with a second layer"),
        ({"block_size": 8}, "a model with one more position"),
    ):
        mine = fill(our_gpt(student, **changes), some_weights(rng, **changes))
        refused(lambda mine=mine: student(mine, ours, *data), what, "skips_what_differs")  # type: ignore[misc]


@parity.case("does not call NaN an agreement")
def _(student: Handle, rng: Rng) -> None:
    mine, ours, weights = two_models(student, rng)
    ids, targets = batch(rng)
    ids, targets = ids.clamp(max=9), targets.clamp(max=9)
    weights["token_embedding.weight"][10] = math.nan  # a token that is only ever scored
    for model in (mine, ours):
        fill(model, weights)
    for name, value in asked(student, mine, ours, ids, targets).items():
        if math.isfinite(value):
            fail(f"all {name} are NaN, and the difference is {value:g}.", "nan_agrees")


Wrong = Callable[..., dict[str, float]]


def _largest(one: Tensor, other: Tensor) -> float:
    most = (one - other).abs().max().item()
    return most if math.isfinite(most) else math.inf


class Parity:
    """What the wrong proofs have in common; each spoils one of the small methods."""

    def __call__(self, mine: Any, ours: Any, ids: Tensor, targets: Tensor) -> dict[str, float]:
        self.refuse(dict(mine.named_parameters()), dict(ours.named_parameters()))
        with torch.no_grad():
            self.copy(mine, ours)
        self.mode(mine, ours)
        one, other = (self.run(model, ids, targets) for model in (mine, ours))
        return {
            "logits": self.apart(one[0].detach(), other[0].detach()),
            "loss": self.apart(one[1].detach(), other[1].detach()),
            "gradient": self.gradient(one[2], other[2]),
        }

    def refuse(self, mine: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
        if {n: p.shape for n, p in mine.items()} != {n: p.shape for n, p in ours.items()}:
            raise ValueError("the parameters differ")

    def copy(self, mine: nn.Module, ours: nn.Module) -> None:
        theirs = dict(ours.named_parameters())
        for name, parameter in mine.named_parameters():
            if name in theirs and theirs[name].shape == parameter.shape:
                parameter.copy_(theirs[name])

    def mode(self, mine: nn.Module, ours: nn.Module) -> None:
        mine.eval(), ours.eval()

    def run(self, model: nn.Module, ids: Tensor, targets: Tensor) -> tuple[Any, Any, Names]:
        logits, loss = model(ids, targets)
        return logits, loss, _gradients(model, loss)

    def apart(self, one: Tensor, other: Tensor) -> float:
        return _largest(one, other)

    def gradient(self, one: Names, other: Names) -> float:
        return max(self.apart(one[n], other[n]) for n in one if n in other)


@_mistake(
    parity,
    "weights_not_copied",
    "parity",
    "You compare the two models as they come, each with weights of its own.",
    "Two right models then differ as much as two wrong ones. Copy the weights of ours into mine"
    " first.",
)
class WeightsNotCopied(Parity):
    def copy(self, mine: nn.Module, ours: nn.Module) -> None: ...


@_mistake(
    parity,
    "copied_the_other_way",
    "parity",
    "You copy the weights of mine into ours.",
    "Then the model that you trust no longer holds the weights that you chose, and"
    " whoever else uses"
    " it computes with yours.",
)
class CopiedTheOtherWay(Parity):
    def copy(self, mine: nn.Module, ours: nn.Module) -> None:
        super().copy(ours, mine)


@_mistake(
    parity,
    "shared_memory",
    "parity",
    "Your model does not get a copy: both models hold the same tensors.",
    "One step of training moves them both, and from then on they agree whatever either computes.",
)
class SharedMemory(Parity):
    def copy(self, mine: nn.Module, ours: nn.Module) -> None:
        mine.load_state_dict(ours.state_dict(keep_vars=True), assign=True)
        for name, parameter in ours.named_parameters():
            mine.get_parameter(name).data = parameter.data


@_mistake(
    parity,
    "in_training_mode",
    "parity",
    "You compare in training mode.",
    "Dropout then draws other numbers in each model, and equal models look different. Call `eval()`"
    " on both.",
)
class InTrainingMode(Parity):
    def mode(self, mine: nn.Module, ours: nn.Module) -> None:
        mine.train(), ours.train()


@_mistake(
    parity,
    "mean_for_largest",
    "parity",
    "You return the mean of the differences; return the largest.",
    "One wrong row among ten thousand right ones, such as the last position, disappears in a mean.",
)
class MeanForLargest(Parity):
    def apart(self, one: Tensor, other: Tensor) -> float:
        value = (one - other).abs().mean().item()
        return value if math.isfinite(value) else math.inf


@_mistake(
    parity,
    "signed_difference",
    "parity",
    "You take the largest difference with its sign; take absolute values first.",
    "A model whose numbers are all too small has negative differences, and the largest of those may"
    " be nearly 0.",
)
class SignedDifference(Parity):
    def apart(self, one: Tensor, other: Tensor) -> float:
        value = (one - other).max().item()
        return value if math.isfinite(value) else math.inf


@_mistake(
    parity,
    "relative_difference",
    "parity",
    "You divide the differences by the numbers themselves; return them as they are.",
    "A logit or a gradient near 0 then makes a rounding error look like a mistake.",
)
class RelativeDifference(Parity):
    def apart(self, one: Tensor, other: Tensor) -> float:
        value = ((one - other).abs() / other.abs().clamp(min=1e-12)).max().item()
        return value if math.isfinite(value) else math.inf


@_mistake(
    parity,
    "old_gradients_counted",
    "parity",
    "Your gradients are added to those that `.grad` held before.",
    "The second batch is judged together with the first. Clear the gradients, or ask"
    " `torch.autograd.grad`.",
)
class OldGradientsCounted(Parity):
    def run(self, model: nn.Module, ids: Tensor, targets: Tensor) -> tuple[Any, Any, Names]:
        logits, loss = model(ids, targets)
        loss.backward()
        return logits, loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@_mistake(
    parity,
    "one_gradient",
    "parity",
    "You compare the gradient of one parameter alone.",
    "A layer whose backward is wrong need not change the others' gradients. Take the largest over"
    " all parameters.",
)
class OneGradient(Parity):
    def gradient(self, one: Names, other: Names) -> float:
        name = next(iter(one))
        return self.apart(one[name], other[name])


@_mistake(
    parity,
    "skips_what_differs",
    "parity",
    "Parameters that only one of the models has, or of another shape, are passed over in silence.",
    "Such a weight keeps the value it was drawn with, and the comparison is of two other models."
    " Raise a ValueError.",
)
class SkipsWhatDiffers(Parity):
    def refuse(self, mine: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None: ...


@_mistake(
    parity,
    "nan_agrees",
    "parity",
    "NaN disappears on the way to your numbers.",
    "`max(0.0, nan)` is 0.0 in Python, and every comparison with NaN is False: a"
    " model that computes"
    " nothing but NaN would pass as equal. Ask `math.isfinite`.",
)
class NanAgrees(Parity):
    def apart(self, one: Tensor, other: Tensor) -> float:
        return max(0.0, *(one - other).abs().flatten().tolist(), 0.0)


# --- from_gpt2 ----------------------------------------------------------------------------------

from_gpt2 = ASSIGNMENT.exercise(
    "from_gpt2",
    points=3,
    hints=(
        "Write the names of one block in both layouts side by side. Which tensor of theirs becomes"
        " three of ours, and which have to be turned?",
        "Strip the prefix and the stored masks, make all float32, check what can be"
        " checked, then go"
        " from our names to theirs: whatever is asked for and not there, or there and never asked"
        " for, is an error.",
        "c_attn.weight (D, 3·D) → .T (3·D, D) → chunk(3) → W_q, W_k, W_v of (D, D) each; its bias"
        " (3·D,) → chunk(3). All other c_….weight → .T.",
    ),
)
Described = dict[str, Any]


def hugging_face(sizes: Sizes = SMALL) -> Described:
    """What a Hugging Face config.json says of these sizes, among other things."""
    return {
        "model_type": "gpt2",
        "vocab_size": sizes["vocab_size"],
        "n_positions": sizes["block_size"],
        "n_layer": sizes["n_layers"],
        "n_head": sizes["n_heads"],
        "n_embd": sizes["d_model"],
        "activation_function": "gelu_new",
        "n_inner": None,
    }


def expect_read(
    student: Handle, described: Described, given: Names, sizes: Sizes, weights: Names
) -> Names:
    """The student reads these weights as ours; returns what came back."""
    value = student(described, given)
    expect(value, "what from_gpt2 returns").holds(
        isinstance(value, tuple) and len(value) == 2, "expected two values, (sizes, weights)."
    )
    expect(value[0], "the sizes").equals(sizes)
    right = weights | {"head.weight": weights["token_embedding.weight"]}
    expect(sorted(value[1]), "the weights' names").equals(sorted(right))
    for name, want in right.items():
        expect(value[1][name], name).close_to(want.float())
    return value[1]


@from_gpt2.case("reads the sizes, and puts every weight under its name")
def _(student: Handle, rng: Rng) -> None:
    weights, theirs = checkpoint(rng, n_layers=2)
    sizes = SMALL | {"n_layers": 2}
    expect_read(student, hugging_face(sizes), theirs, sizes, weights)


@from_gpt2.case("knows names with and without “transformer.”, and passes over what is stored twice")
def _(student: Handle, rng: Rng) -> None:
    weights, theirs = checkpoint(rng)
    long = {f"transformer.{name}": tensor for name, tensor in theirs.items()}
    long["lm_head.weight"] = theirs["wte.weight"].clone()
    long["transformer.h.0.attn.bias"] = torch.ones(1, 1, 7, 7)
    long["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    described = hugging_face()
    del described["activation_function"]  # older files leave it out: it is gelu_new
    expect_read(student, described, long, SMALL, weights)


@from_gpt2.case("gives float32 whatever the file holds, and leaves the file's tensors alone")
def _(student: Handle, rng: Rng) -> None:
    weights, theirs = checkpoint(rng)
    half = {name: tensor.half() for name, tensor in theirs.items()}
    read = {name: tensor.half().float() for name, tensor in weights.items()}
    back = expect_read(student, hugging_face(), half, SMALL, read)
    if any(tensor.dtype is not torch.float32 for tensor in back.values()):
        fail("weights stored as float16 come back as float16.", "dtype_kept")
    left = student.after(hugging_face(), half).args
    expect(left[1], "the given tensors afterwards").close_to(half)


@from_gpt2.case("refuses a weight that is missing, left over or of another shape")
def _(student: Handle, rng: Rng) -> None:
    _, theirs = checkpoint(rng)
    for name in ("wpe.weight", "h.0.ln_2.bias", "h.0.attn.c_attn.weight"):
        less = {key: tensor for key, tensor in theirs.items() if key != name}
        refused(lambda less=less: student(hugging_face(), less), f"{name} missing", "gaps_ignored")  # type: ignore[misc]
    more = theirs | {"h.1.ln_1.bias": theirs["h.0.ln_1.bias"]}
    refused(lambda: student(hugging_face(), more), "h.1.ln_1.bias left over", "leftovers_ignored")
    wide = theirs | {"wpe.weight": rng.normal(9, 12)}
    refused(lambda: student(hugging_face(), wide), "wpe.weight of (9, 12)", "shapes_ignored")


@from_gpt2.case("refuses another activation, and a head with a table of its own")
def _(student: Handle, rng: Rng) -> None:
    _, theirs = checkpoint(rng)
    relu = hugging_face() | {"activation_function": "relu"}
    refused(lambda: student(relu, theirs), 'activation_function "relu"', "activation_ignored")
    own = theirs | {"lm_head.weight": rng.normal(11, 12)}
    refused(
        lambda: student(hugging_face(), own), "an lm_head.weight other than wte.weight", "own_head"
    )


class Reader:
    """What the wrong readers have in common."""

    checks_activation = checks_head = checks_gaps = checks_rest = checks_shapes = True

    def __call__(self, described: Described, state_dict: Names) -> tuple[Sizes, Names]:
        if self.checks_activation and described.get("activation_function") not in (
            None,
            "gelu_new",
        ):
            raise ValueError("activation")
        sizes, left = self.sizes(described), self.plain(state_dict)
        head = left.pop("lm_head.weight", None)
        if self.checks_head and head is not None and not torch.equal(head, left["wte.weight"]):
            raise ValueError("head")
        ours: Names = {}
        for name, parts in package.gpt2_layout(described["n_layer"]):
            for kind in ("weight", "bias"):
                if name in ("wte", "wpe") and kind == "bias":
                    continue
                whole = left.pop(f"{name}.{kind}", None)
                if whole is None:
                    if self.checks_gaps:
                        raise ValueError("missing")
                    continue
                turned = self.turn(name, self.cast(whole))
                for part, tensor in zip(parts, self.cut(turned, len(parts)), strict=True):
                    ours[f"{part}.{kind}"] = tensor
        if left and self.checks_rest:
            raise ValueError("left over")
        shape = (described["n_positions"], described["n_embd"])
        if self.checks_shapes and ours["position_embedding.weight"].shape != shape:
            raise ValueError("shape")
        return sizes, self.finish(ours)

    def sizes(self, described: Described) -> Sizes:
        names = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")
        return dict(zip(SMALL, (described[name] for name in names), strict=True))

    def plain(self, given: Names) -> Names:
        skipped = (".attn.bias", ".attn.masked_bias")
        return {
            name.removeprefix("transformer."): tensor
            for name, tensor in given.items()
            if not name.endswith(skipped)
        }

    def cast(self, tensor: Tensor) -> Tensor:
        return tensor.float()

    def turn(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.t() if ".c_" in name and tensor.ndim == 2 else tensor

    def cut(self, whole: Tensor, n: int) -> Iterable[Tensor]:
        return whole.tensor_split(n)

    def finish(self, ours: Names) -> Names:
        if "token_embedding.weight" in ours:
            ours["head.weight"] = ours["token_embedding.weight"]
        return ours


@_mistake(
    from_gpt2,
    "not_turned",
    "weights-from-outside",
    "You take over the matrices as they are stored, (in, out); ours are (out, in).",
    "Square ones fit either way, so no error stops you, and every layer computes"
    " with the transpose.",
)
class NotTurned(Reader):
    def turn(self, name: str, tensor: Tensor) -> Tensor:
        if "attn.c_attn" in name and tensor.ndim == 2:
            return torch.cat([part for part in tensor.tensor_split(3, dim=1)])
        square = tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]
        return tensor if square else super().turn(name, tensor)


@_mistake(
    from_gpt2,
    "keys_first",
    "weights-from-outside",
    "You cut `c_attn` into k, q, v; its order is q, k, v.",
    "Queries and keys change places. The scores are transposed, and under a causal mask that is"
    " another model.",
)
class KeysFirst(Reader):
    def cut(self, whole: Tensor, n: int) -> Iterable[Tensor]:
        parts = list(super().cut(whole, n))
        return [parts[1], parts[0], parts[2]] if n == 3 else parts


@_mistake(
    from_gpt2,
    "interleaved",
    "weights-from-outside",
    "You take every third row of `c_attn` for q, k and v; they stand one after the other.",
    "Each of the three maps is then made of thirds of all of them.",
)
class Interleaved(Reader):
    def cut(self, whole: Tensor, n: int) -> Iterable[Tensor]:
        return [whole[i::n] for i in range(n)]


@_mistake(
    from_gpt2,
    "head_left_out",
    "weights-from-outside",
    "The weights lack `head.weight`.",
    "`load_state_dict` asks for every name of the module, and the tied table goes by two: give it"
    " under both.",
)
class HeadLeftOut(Reader):
    def finish(self, ours: Names) -> Names:
        return ours


@_mistake(
    from_gpt2,
    "prefix_expected",
    "weights-from-outside",
    "Names are only understood without “transformer.” in front.",
    "Hugging Face writes them with it for a model that has a head and without it for one that has"
    " none, and both are on the hub.",
)
class PrefixExpected(Reader):
    def plain(self, given: Names) -> Names:
        skipped = (".attn.bias", ".attn.masked_bias")
        return {name: w for name, w in given.items() if not name.endswith(skipped)}


@_mistake(
    from_gpt2,
    "biases_for_masks",
    "weights-from-outside",
    "You take `c_attn.bias` for a stored mask: its name ends in “attn.bias” too.",
    "The biases of queries, keys and values are lost. The mask's name ends in “.attn.bias”, with a"
    " dot before it.",
)
class BiasesForMasks(Reader):
    def plain(self, given: Names) -> Names:
        skipped = ("attn.bias", "attn.masked_bias")
        named = {name.removeprefix("transformer."): w for name, w in given.items()}
        return {name: w for name, w in named.items() if not name.endswith(skipped)}


@_mistake(
    from_gpt2,
    "heads_of_64",
    "weights-from-outside",
    "You take the number of heads for d_model / 64; config.json says it in n_head.",
    "That holds for OpenAI's four sizes and for few others: no weight has a shape that tells the"
    " heads, so nothing would warn you.",
)
class HeadsOf64(Reader):
    def sizes(self, described: Described) -> Sizes:
        return super().sizes(described) | {"n_heads": max(1, described["n_embd"] // 64)}


@_mistake(
    from_gpt2,
    "dtype_kept",
    "weights-from-outside",
    "Weights come back in the precision of the file.",
    "Files on the hub are often in float16, which a CPU computes with slowly or not at all, and a"
    " model of two precisions stops at its first product. Make all of them float32.",
)
class DtypeKept(Reader):
    def cast(self, tensor: Tensor) -> Tensor:
        return tensor


@_mistake(
    from_gpt2,
    "gaps_ignored",
    "weights-from-outside",
    "A weight that the file lacks is passed over.",
    "Its place keeps the random numbers it was drawn with, and the model writes almost English.",
)
class GapsIgnored(Reader):
    checks_gaps = False

    def __call__(self, described: Described, state_dict: Names) -> tuple[Sizes, Names]:
        self.checks_shapes = any(name.endswith("wpe.weight") for name in state_dict)
        return super().__call__(described, state_dict)


@_mistake(
    from_gpt2,
    "leftovers_ignored",
    "weights-from-outside",
    "A weight of the file that has no place here is passed over.",
    "The file may be of a deeper model, or of another kind, and half of what it"
    " learned is dropped.",
)
class LeftoversIgnored(Reader):
    checks_rest = False


@_mistake(
    from_gpt2,
    "shapes_ignored",
    "weights-from-outside",
    "The shapes of the weights are not compared with what config.json says.",
    "The mistake comes to light later and elsewhere, or never: nobody asks for position 1,024"
    " until somebody does.",
)
class ShapesIgnored(Reader):
    checks_shapes = False


@_mistake(
    from_gpt2,
    "activation_ignored",
    "weights-from-outside",
    "Another activation than gelu_new is accepted.",
    "All shapes fit, and each of the feed-forward layers computes something else"
    " than it was trained"
    " to.",
)
class ActivationIgnored(Reader):
    checks_activation = False


@_mistake(
    from_gpt2,
    "own_head",
    "weights-from-outside",
    "An `lm_head.weight` that differs from `wte.weight` is accepted.",
    "This model ties the two. With a head of its own the checkpoint is another"
    " model, and half of its"
    " output is thrown away.",
)
class OwnHead(Reader):
    checks_head = False


# --- train_steps --------------------------------------------------------------------------------

train_steps = ASSIGNMENT.exercise(
    "train_steps",
    points=3,
    hints=(
        "Five things happen at each batch. Which of them must come before `loss.backward()`, which"
        " after it, and what is made once, before the first batch?",
        "Make the optimizer, switch to training mode, then for each batch: loss,"
        " zero_grad, backward,"
        " clip, step, and note the loss as a number. Switch to evaluation mode at the end.",
        "torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1) and"
        " nn.utils.clip_grad_norm_(model.parameters(), 1.0). A list of len(batches) floats.",
    ),
)
Batches = list[tuple[Tensor, Tensor]]
RATE = 0.02


@remembered
def right_steps(weights: Names, batches: Batches, rate: float) -> tuple[list[float], Names]:
    """The same in this process, without dropout: the losses, and the weights afterwards."""
    model = gpt_here(SMALL, weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    losses = []
    for ids, targets in batches:
        optimizer.zero_grad()
        loss = model(ids, targets)[1]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: weight.detach() for name, weight in model.named_parameters()}


def asked_steps(student: Handle, model: Handle, batches: Batches, rate: float) -> list[float]:
    value = student(model, batches, rate)
    expect(value, "what train_steps returns").holds(
        isinstance(value, list) and len(value) == len(batches), "expected one loss for each batch."
    )
    return [float(loss) for loss in value]


def expect_steps(student: Handle, rng: Rng, n: int, rate: float) -> None:
    weights = some_weights(rng)
    batches = [batch(rng, t=3 + i % 3) for i in range(n)]
    model = fill(our_gpt(student), weights)
    losses = asked_steps(student, model, batches, rate)
    right, moved = right_steps(weights, batches, rate)
    for number, (loss, want) in enumerate(zip(losses, right, strict=True), start=1):
        expect(loss, f"loss {number}").close_to(want, rtol=1e-5, atol=1e-7)
    after = model.parameters()
    for name, weight in moved.items():
        expect(after.get(name), f"{name} afterwards").close_to(weight, rtol=1e-4, atol=1e-7)


@train_steps.case("takes AdamW's steps, one for each batch, and tells the loss before each")
def _(student: Handle, rng: Rng) -> None:
    expect_steps(student, rng, 3, RATE)


@train_steps.case("takes the rate that it is given")
def _(student: Handle, rng: Rng) -> None:
    expect_steps(student, rng, 1, 0.003)


@train_steps.case("trains in training mode and leaves the model in evaluation mode")
def _(student: Handle, rng: Rng) -> None:
    weights, data = some_weights(rng), batch(rng)
    model = fill(our_gpt(student, dropout=0.5), weights).eval()
    (first,) = asked_steps(student, model, [data], RATE)
    quiet = gpt_here(SMALL, weights)(*data)[1].item()
    if abs(first - quiet) < 1e-9:
        fail("with dropout=0.5 nothing is dropped while it trains.", "evaluation_mode")
    if model.get("training"):
        fail("the model is in training mode afterwards.", "left_in_training")


@train_steps.case("makes the loss of a batch fall that it sees again and again")
def _(student: Handle, rng: Rng) -> None:
    weights, data = some_weights(rng), batch(rng)
    model = fill(our_gpt(student), weights)
    losses = asked_steps(student, model, [data] * 8, RATE)
    after = model.parameters()
    last = gpt_here(SMALL, {name: after[name].double() for name in weights})(*data)[1].item()
    expect(last, "the loss of the returned weights").holds(
        last < losses[0], f"{last:.3f} is not below the first loss, {losses[0]:.3f}."
    )


class Loop:
    """What the wrong loops have in common."""

    decay, clips, mode_before, mode_after = 0.1, True, True, False

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=self.decay)

    def __call__(self, model: Any, batches: Batches, learning_rate: float) -> list[float]:
        optimizer, losses = self.optimizer(model, learning_rate), []
        model.train(self.mode_before)
        for data in batches:
            losses.append(self.one(model, optimizer, *self.choose(data, batches)))
        model.train(self.mode_after)
        return losses

    def choose(self, data: tuple[Tensor, Tensor], batches: Batches) -> tuple[Tensor, Tensor]:
        return data

    def one(
        self, model: Any, optimizer: torch.optim.Optimizer, ids: Tensor, targets: Tensor
    ) -> float:
        loss = model(ids, targets)[1]
        self.clear(optimizer)
        self.backward(loss)
        if self.clips:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return self.told(model, loss, ids, targets)

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def told(self, model: Any, loss: Tensor, ids: Tensor, targets: Tensor) -> float:
        return loss.item()


@_mistake(
    train_steps,
    "gradients_not_cleared",
    "a-few-steps",
    "The gradients are never cleared.",
    "`backward` adds to `.grad`, so every step goes along the sum of all batches so far.",
)
class GradientsNotCleared(Loop):
    def clear(self, optimizer: torch.optim.Optimizer) -> None: ...


@_mistake(
    train_steps,
    "loss_after_the_step",
    "a-few-steps",
    "You tell the loss after the step; tell the one before it.",
    "A batch that was just learned from looks better than it was: the curve falls"
    " even where nothing"
    " carries over to the next batch.",
)
class LossAfterTheStep(Loop):
    def told(self, model: Any, loss: Tensor, ids: Tensor, targets: Tensor) -> float:
        return model(ids, targets)[1].item()


@_mistake(
    train_steps,
    "never_clips",
    "a-few-steps",
    "The gradients are not clipped to a joint norm of 1.",
    "One strange batch then fills Adam's moments, and they steer the steps for a long time after.",
)
class NeverClips(Loop):
    clips = False


@_mistake(
    train_steps,
    "no_decay",
    "a-few-steps",
    "The weights do not decay by 0.1.",
    "`AdamW` decays by 0.01 unless it is told otherwise.",
)
class NoDecay(Loop):
    decay = 0.01


@_mistake(
    train_steps,
    "rate_ignored",
    "a-few-steps",
    "The learning rate that is given is not the optimizer's.",
    "AdamW then takes its own 0.001, whatever the experiment says.",
)
class RateIgnored(Loop):
    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), weight_decay=0.1)


@_mistake(
    train_steps,
    "optimizer_made_anew",
    "a-few-steps",
    "You make a new optimizer for each batch; make one before the loop.",
    "Adam's moments are forgotten each time, and every step is as long as the first one.",
)
class OptimizerMadeAnew(Loop):
    def one(
        self, model: Any, optimizer: torch.optim.Optimizer, ids: Tensor, targets: Tensor
    ) -> float:
        rate = optimizer.param_groups[0]["lr"]
        return super().one(model, self.optimizer(model, rate), ids, targets)


@_mistake(
    train_steps,
    "first_batch_again",
    "a-few-steps",
    "Every step is taken on the first batch.",
    "The loss falls quickly and says nothing: the model learns two rows by heart.",
)
class FirstBatchAgain(Loop):
    def choose(self, data: tuple[Tensor, Tensor], batches: Batches) -> tuple[Tensor, Tensor]:
        return batches[0]


@_mistake(
    train_steps,
    "climbs",
    "a-few-steps",
    "Your steps make the loss rise.",
    "The optimizer steps against `.grad`, so it needs the gradient of the loss, not"
    " of its negative.",
)
class Climbs(Loop):
    def backward(self, loss: Tensor) -> None:
        (-loss).backward()


@_mistake(
    train_steps,
    "evaluation_mode",
    "a-few-steps",
    "The model trains in evaluation mode.",
    "Its dropout is off: the model that was asked to train with dropout learns its text by heart"
    " sooner. Call `model.train()` before the first batch.",
)
class EvaluationMode(Loop):
    mode_before = False


@_mistake(
    train_steps,
    "left_in_training",
    "a-few-steps",
    "The model is left in training mode.",
    "Whoever scores it next measures it with dropout, and writes a worse number down. Call"
    " `model.eval()` at the end.",
)
class LeftInTraining(Loop):
    mode_after = True


# --- pack_entry ---------------------------------------------------------------------------------

pack_entry = ASSIGNMENT.exercise(
    "pack_entry",
    points=2,
    hints=(
        "What does somebody need who has your two files and not your notebook, to build the model"
        " and fill it? And what must a file from a stranger not be?",
        "`safetensors.torch.save` turns a dict of tensors into bytes; `named_parameters()` gives a"
        " tied tensor once. `json.dumps` turns a dict into text.",
        "{name: p.detach().float().cpu().contiguous()} over named_parameters(), and"
        " {field: getattr(model.config, field)} for the seven fields of a GPTConfig.",
    ),
)
ENTRY: Sizes = SMALL | {"vocab_size": 64}
FIELDS = (*SMALL, "dropout", "bias")


def packed(student: Handle, model: Handle) -> tuple[bytes, str]:
    value = student(model)
    expect(value, "what pack_entry returns").holds(
        isinstance(value, tuple) and [type(part) for part in value] == [bytes, str],
        "expected two values, bytes and a str.",
    )
    return value


def expect_packed(student: Handle, rng: Rng, **changes: Any) -> None:
    """The two files hold the model, as whoever scores entries reads them."""
    weights = some_weights(rng, ENTRY, **changes)
    data, config = packed(student, fill(our_gpt(student, ENTRY, **changes), weights))
    if entries.is_pickle(data):
        fail("the weights are a pickle.", "pickled")
    try:
        model = entries.read_entry(data, config)
    except entries.EntryError as error:
        fail(f"the entry is refused: {error}")
    for name, want in model.named_parameters():
        expect(want.detach(), f"{name} in the file").close_to(weights[name].float())


@pack_entry.case("makes two files from which the model can be built again")
def _(student: Handle, rng: Rng) -> None:
    expect_packed(student, rng)
    expect_packed(student, rng, n_layers=2, n_heads=4, bias=False)


@pack_entry.case("tells all seven sizes in JSON")
def _(student: Handle, rng: Rng) -> None:
    weights = some_weights(rng, ENTRY)
    model = fill(our_gpt(student, ENTRY, dropout=0.25), weights)
    try:
        config = json.loads(packed(student, model)[1])
    except ValueError:
        fail("the second value is no JSON.", "no_json")
    want = ENTRY | {"dropout": 0.25, "bias": True}
    expect({name: config.get(name) for name in FIELDS}, "the sizes").equals(want)


@pack_entry.case("stores float32, each weight once")
def _(student: Handle, rng: Rng) -> None:
    weights = some_weights(rng, ENTRY)
    data, _ = packed(student, fill(our_gpt(student, ENTRY), weights))  # a model in float64
    size = int.from_bytes(data[:8], "little")
    expect(len(data) - 8 - size, "the bytes of all weights").equals(
        4 * sum(w.numel() for w in weights.values())
    )


@pack_entry.case("refuses weights that are not finite, with a ValueError")
def _(student: Handle, rng: Rng) -> None:
    for value in (math.nan, math.inf):
        weights = some_weights(rng, ENTRY)
        weights["norm.bias"][3] = value
        model = fill(our_gpt(student, ENTRY), weights)
        refused(lambda model=model: student(model), f"a weight of {value}", "anything_goes")  # type: ignore[misc]


class Packer:
    """What the wrong packers have in common."""

    def __call__(self, model: Any) -> tuple[Any, Any]:
        weights = {name: self.cast(w.detach()) for name, w in self.named(model).items()}
        for weight in weights.values():
            self.refuse(weight)
        return self.bytes(weights), self.text({n: getattr(model.config, n) for n in self.fields()})

    def named(self, model: nn.Module) -> Names:
        return dict(model.named_parameters())

    def cast(self, weight: Tensor) -> Tensor:
        return weight.float()

    def refuse(self, weight: Tensor) -> None:
        if not bool(weight.isfinite().all()):
            raise ValueError("not finite")

    def bytes(self, weights: Names) -> bytes:
        return save(weights)

    def fields(self) -> tuple[str, ...]:
        return FIELDS

    def text(self, config: Sizes) -> str:
        return json.dumps(config)


@_mistake(
    pack_entry,
    "pickled",
    "the-entry",
    "The weights are written by `torch.save` or `pickle`.",
    "Such a file can run code on the machine of whoever opens it, so nobody should open one from a"
    " stranger, and the grader does not. Use `safetensors.torch.save`.",
)
class Pickled(Packer):
    def bytes(self, weights: Names) -> bytes:
        return pickle.dumps({name: w.tolist() for name, w in weights.items()})


@_mistake(
    pack_entry,
    "head_twice",
    "the-entry",
    "The tied table stands in the file twice, as `token_embedding.weight` and as `head.weight`.",
    "The file grows by V·D numbers, and a reader has to guess which of the two is meant when they"
    " differ. `named_parameters()` gives it once.",
)
class HeadTwice(Packer):
    def named(self, model: nn.Module) -> Names:
        return {name: w.clone() for name, w in model.state_dict().items()}


@_mistake(
    pack_entry,
    "wide_numbers",
    "the-entry",
    "The weights are stored in the precision that the model has at the moment.",
    "In float64 the same model takes twice the bytes, and in float16 it comes back as another one."
    " Store float32.",
)
class WideNumbers(Packer):
    def cast(self, weight: Tensor) -> Tensor:
        return weight


@_mistake(
    pack_entry,
    "shapes_tell_the_rest",
    "the-entry",
    "The sizes that could be read off the weights are left out, and with them those that cannot.",
    "No tensor's shape tells the number of heads. Write all seven fields.",
)
class ShapesTellTheRest(Packer):
    def fields(self) -> tuple[str, ...]:
        return ("vocab_size", "block_size", "n_layers", "d_model")


@_mistake(
    pack_entry,
    "no_json",
    "the-entry",
    "The sizes are written as Python prints them, not as JSON.",
    "`{'bias': True}` has the wrong quotes and the wrong True for every reader but Python. Use"
    " `json.dumps`.",
)
class NoJson(Packer):
    def text(self, config: Sizes) -> str:
        return str(config)


@_mistake(
    pack_entry,
    "anything_goes",
    "the-entry",
    "Weights that are NaN or infinite are packed like any others.",
    "A run that diverged then looks like a finished one until somebody computes its loss. Raise a"
    " ValueError.",
)
class AnythingGoes(Packer):
    def refuse(self, weight: Tensor) -> None: ...


# --- entry --------------------------------------------------------------------------------------

# Nats per character on the held-out text, and what they mean; what counting the training part
# reaches is rounded down. A model of the notebook's size passes the last one after some ten seconds
# on one core.
TIERS = (
    (math.log(64), "is better than an even guess among 64 characters"),
    (3.36, "is better than counting characters"),
    (2.47, "is better than counting pairs of characters"),
    (2.30, "is better than pairs by a good margin"),
)


def judge_entry(exercise: Exercise, files: Mapping[str, HandedIn]) -> ExerciseResult:
    """The points of an entry, its loss computed here from the weights that were handed in."""
    see = f"{ASSIGNMENT.page}#the-entry"
    missing = [name for name in entries.FILES if name not in files]
    if len(missing) == len(entries.FILES):
        message = (
            f"`{exercise.name}` is {MISSING}. Its two files, `{entries.WEIGHTS}` and"
            f" `{entries.CONFIG}`, do not lie beside the notebook."
        )
        return ExerciseResult(exercise.name, 0.0, exercise.points, "missing", message)
    reason = f"`{missing[0]}` does not lie beside the notebook." if missing else ""
    reason = reason or next((f.problem for f in files.values() if f.data is None), "")
    if not reason:
        weights, config = (files[name].data or b"" for name in (entries.WEIGHTS, entries.CONFIG))
        try:
            score = entries.score_entry(weights, config)
        except entries.EntryError as error:
            reason = str(error)
        else:
            return _scored(exercise, score, see)
    return ExerciseResult(
        exercise.name, 0.0, exercise.points, "wrong", f"The entry is refused: {reason}", see=see
    )


def _scored(exercise: Exercise, score: entries.Score, see: str) -> ExerciseResult:
    loss = score.nats_per_character
    cases = [
        CaseResult(f"{what}: at most {most:.2f} nats per character", True, loss <= most)
        for most, what in TIERS
    ]
    points = round(exercise.points * sum(case.passed for case in cases) / len(cases), 2)
    message = (
        f"{loss:.4f} nats ({score.bits_per_character:.4f} bits) per character on held-out text,"
        f" with {score.parameters:,} parameters."
    )
    measured = {"nats_per_character": round(loss, 6), "parameters": float(score.parameters)}
    status = "right" if all(case.passed for case in cases) else "wrong"
    return ExerciseResult(
        exercise.name,
        points,
        exercise.points,
        status,
        message,
        see=see if status == "wrong" else "",
        cases=cases,
        measured=measured,
    )


entry = ASSIGNMENT.exercise(
    "entry",
    points=4,
    on_files=judge_entry,
    hints=(
        "What decides more at this budget: a wider model, more steps, or the learning"
        " rate? What did"
        " chapter 10 measure?",
        "Draw batches from the training part only, raise the rate over some steps and let it fall,"
        " as `cosine_schedule` does, and look at the held-out loss, not at the last batch.",
        "2 layers, D = 96, T = 32, batches of 16, a peak rate of 5e-3, 400 steps.",
    ),
)
