"""Independent right answers of chapter 17."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Names = dict[str, Tensor]

# --- parity -------------------------------------------------------------------------------------


def by_autograd(mine: Any, ours: Any, ids: Tensor, targets: Tensor) -> dict[str, float]:
    """Names compared as sets, gradients by `torch.autograd.grad`."""
    theirs = dict(ours.named_parameters())
    here = dict(mine.named_parameters())
    if here.keys() != theirs.keys() or any(here[n].shape != theirs[n].shape for n in here):
        raise ValueError("the two models have other parameters")
    with torch.no_grad():
        for name in here:
            here[name].copy_(theirs[name])
    results = []
    for model, named in ((mine, here), (ours, theirs)):
        model.eval()
        logits, loss = model(ids, targets)
        results.append([logits, loss, *torch.autograd.grad(loss, [named[n] for n in here])])
    gaps = []
    for one, other in zip(*results, strict=True):
        gap = float((one - other).detach().abs().max())
        gaps.append(gap if math.isfinite(gap) else math.inf)
    return {"logits": gaps[0], "loss": gaps[1], "gradient": max(gaps[2:])}


def by_backward(mine: Any, ours: Any, ids: Tensor, targets: Tensor) -> dict[str, Any]:
    """A strict load of the state, `.grad` cleared before and after, NaN kept as NaN."""
    state = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    try:
        mine.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    found: list[list[Tensor]] = []
    for model in (mine.eval(), ours.eval()):
        model.zero_grad()
        logits, loss = model(ids, targets)
        loss.backward()
        grads = [p.grad.clone() for _, p in sorted(model.named_parameters())]
        model.zero_grad()
        found.append([logits.detach(), loss.detach(), torch.cat([g.flatten() for g in grads])])
    worst = [torch.amax((a - b).abs()) for a, b in zip(*found, strict=True)]
    return {"gradient": worst[2], "logits": worst[0], "loss": worst[1]}


def by_flat_vectors(mine: Any, ours: Any, ids: Tensor, targets: Tensor) -> dict[str, float]:
    """All parameters as one vector, moved over in one piece."""
    pairs = list(zip(mine.named_parameters(), ours.named_parameters(), strict=False))
    if len(pairs) != len(list(mine.parameters())) or len(pairs) != len(list(ours.parameters())):
        raise ValueError("another number of parameters")
    for (name, a), (other, b) in pairs:
        if name != other or a.shape != b.shape:
            raise ValueError(f"{name} {tuple(a.shape)} and {other} {tuple(b.shape)}")
    with torch.no_grad():
        vector = nn.utils.parameters_to_vector(ours.parameters()).clone()
        for a, part in zip(
            mine.parameters(), vector.split([p.numel() for p in mine.parameters()]), strict=True
        ):
            a.copy_(part.view_as(a))

    def numbers(model: Any) -> tuple[Tensor, Tensor, Tensor]:
        logits, loss = model.train(False)(ids, targets)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        return logits.detach(), loss.detach(), nn.utils.parameters_to_vector(grads)

    gaps = [
        torch.linalg.vector_norm(a - b, math.inf)
        for a, b in zip(numbers(mine), numbers(ours), strict=True)
    ]
    return dict(zip(("logits", "loss", "gradient"), (gap.item() for gap in gaps), strict=True))


# --- from_gpt2 ----------------------------------------------------------------------------------


def by_renaming(described: dict[str, Any], state_dict: Names) -> tuple[dict[str, int], Names]:
    """From their names to ours."""
    if described.get("activation_function", "gelu_new") != "gelu_new":
        raise ValueError("another activation")
    names = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")
    ours = ("vocab_size", "block_size", "n_layers", "n_heads", "d_model")
    sizes = {mine: described[theirs] for mine, theirs in zip(ours, names, strict=True)}
    table = {
        "wte": "token_embedding", "wpe": "position_embedding", "ln_f": "norm", "ln_1": "norm_1",
        "ln_2": "norm_2", "attn.c_proj": "attention.W_o", "mlp.c_fc": "feed_forward.W_1",
        "mlp.c_proj": "feed_forward.W_2",
    }  # fmt: skip
    made: Names = {}
    head = None
    for name, tensor in state_dict.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        tensor = tensor.to(torch.float32)
        if name == "lm_head.weight":
            head = tensor
            continue
        *where, part, kind = name.removeprefix("transformer.").replace(".attn.", ".attn/").replace(
            "mlp.", "mlp/"
        ).split(".")  # fmt: skip
        part = part.replace("/", ".")
        start = f"blocks.{where[1]}." if where else ""
        tensor = tensor.T if ".c_" in part and tensor.ndim == 2 else tensor
        if part == "attn.c_attn":
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                made[f"{start}attention.W_{letter}.{kind}"] = third.clone()
        else:
            made[f"{start}{table.get(part, part)}.{kind}"] = tensor.clone()
    d, n = sizes["d_model"], sizes["n_layers"]
    wanted = _shapes(sizes["vocab_size"], sizes["block_size"], n, d)
    if {name: tuple(w.shape) for name, w in made.items()} != wanted:
        raise ValueError("the weights are not those of these sizes")
    if head is not None and not torch.equal(head, made["token_embedding.weight"]):
        raise ValueError("a head of its own")
    return sizes, made | {"head.weight": made["token_embedding.weight"]}


def _shapes(v: int, t: int, n: int, d: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (v, d),
        "position_embedding.weight": (t, d),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    for i in range(n):
        linear = {f"attention.W_{letter}": (d, d) for letter in "qkvo"}
        linear |= {"feed_forward.W_1": (4 * d, d), "feed_forward.W_2": (d, 4 * d)}
        for name, shape in linear.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
        for name in ("norm_1", "norm_2"):
            shapes[f"blocks.{i}.{name}.weight"] = shapes[f"blocks.{i}.{name}.bias"] = (d,)
    return shapes


def by_asking(described: dict[str, Any], state_dict: Names) -> tuple[dict[str, int], Names]:
    """From our names to theirs: each shape asks for its tensor."""
    if described.get("activation_function") not in (None, "gelu_new"):
        raise ValueError(described["activation_function"])
    v, t = described["vocab_size"], described["n_positions"]
    n, d = described["n_layer"], described["n_embd"]
    given = {
        (k[12:] if k.startswith("transformer.") else k): w
        for k, w in state_dict.items()
        if ".attn.bias" not in k and "masked_bias" not in k
    }
    weights: Names = {}
    used = {"lm_head.weight"}
    for name, shape in _shapes(v, t, n, d).items():
        theirs = name.replace("blocks", "h").replace("token_embedding", "wte")
        theirs = theirs.replace("position_embedding", "wpe").replace("norm_", "ln_")
        theirs = theirs.replace("attention.W_o", "attn.c_proj").replace("norm.", "ln_f.")
        theirs = theirs.replace("feed_forward.W_1", "mlp.c_fc")
        theirs = theirs.replace("feed_forward.W_2", "mlp.c_proj")
        third = next((i for i, letter in enumerate("qkv") if f"W_{letter}" in name), None)
        if third is not None:
            theirs = theirs.replace(f"attention.W_{'qkv'[third]}", "attn.c_attn")
        if theirs not in given:
            raise ValueError(f"{theirs} is missing")
        used.add(theirs)
        tensor = given[theirs].float()
        if third is not None:
            tensor = tensor[..., third * d : third * d + d]
        tensor = tensor.transpose(0, 1) if ".c_" in theirs and tensor.dim() == 2 else tensor
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{theirs} gives {tuple(tensor.shape)} for {name}")
        weights[name] = tensor.contiguous().clone()
    if given.keys() - used:
        raise ValueError(f"no place for {given.keys() - used}")
    if not torch.equal(given.get("lm_head.weight", given["wte.weight"]), given["wte.weight"]):
        raise ValueError("lm_head is not tied")
    weights["head.weight"] = weights["token_embedding.weight"]
    sizes = {"vocab_size": v, "block_size": t, "n_layers": n}
    return sizes | {"n_heads": described["n_head"], "d_model": d}, weights


def through_a_module(described: dict[str, Any], state_dict: Names) -> tuple[Any, Names]:
    """The weights go through modules of the right shapes, which refuse what does not fit."""
    if described.get("activation_function", "gelu_new") != "gelu_new":
        raise ValueError("activation")
    sizes, made = by_asking(described, {k: w.to(torch.float64) for k, w in state_dict.items()})
    table = nn.Embedding(sizes["vocab_size"], sizes["d_model"])
    table.load_state_dict({"weight": made["token_embedding.weight"]})
    made["head.weight"] = table.weight.detach()
    return sizes, made


# --- train_steps --------------------------------------------------------------------------------


def by_the_book(model: Any, batches: Any, learning_rate: float) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1)
    told: list[float] = []
    model.train()
    for ids, targets in batches:
        _, loss = model(ids, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        told.append(float(loss.detach()))
    model.eval()
    return told


def by_hand(model: Any, batches: Any, learning_rate: float) -> list[float]:
    """Adam's moments, the decay and the clipping written out."""
    parameters = list(model.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    losses = []
    model.train()
    for step, (ids, targets) in enumerate(batches, start=1):
        loss = model(ids, targets)[1]
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))  # type: ignore[arg-type]
        scale = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
                g = g * scale
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.001)
                p.mul_(1 - learning_rate * 0.1)
                root = (v / (1 - 0.999**step)).sqrt() + 1e-8
                p.sub_(learning_rate * m / (1 - 0.9**step) / root)
        losses.append(loss.item())
    model.train(False)
    return losses


def by_logits(model: Any, batches: Any, learning_rate: float) -> list[float]:
    """The loss computed from the logits; groups with settings of their own."""
    groups = [{"params": list(model.parameters()), "lr": learning_rate, "weight_decay": 0.1}]
    optimizer, losses = torch.optim.AdamW(groups, foreach=False), []
    for ids, targets in batches:
        model.train()
        logits = model(ids)[0]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
        optimizer.step()
    model.eval()
    return losses


# --- pack_entry ---------------------------------------------------------------------------------

FIELDS = ("vocab_size", "block_size", "n_layers", "n_heads", "d_model", "dropout", "bias")


def by_safetensors(model: Any) -> tuple[bytes, str]:
    weights = {n: p.detach().float().cpu().contiguous() for n, p in model.named_parameters()}
    if not all(torch.isfinite(w).all() for w in weights.values()):
        raise ValueError("weights that are not finite")
    return safetensors.torch.save(weights), json.dumps(vars(model.config))


def by_state(model: Any) -> tuple[bytes, str]:
    """From the state, the second name of the table left out; indented JSON, keys sorted."""
    weights = {}
    for name, tensor in model.state_dict().items():
        if name != "head.weight":
            weights[name] = tensor.to(dtype=torch.float32, copy=True)
            total = weights[name].sum().item()
            if math.isnan(total) or math.isinf(total):
                raise ValueError(name)
    sizes = {name: getattr(model.config, name) for name in FIELDS}
    return safetensors.torch.save(weights), json.dumps(sizes, indent=2, sort_keys=True)


def byte_by_byte(model: Any) -> tuple[bytes, str]:
    """The format written by hand: the length of the header, the header, the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, parameter in model.named_parameters():
        weight = parameter.detach().float().contiguous()
        if not weight.isfinite().all():
            raise ValueError(f"{name} is not finite")
        start = len(body)
        body += weight.flatten().numpy().tobytes()
        place = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [start, len(body)]}
        header[name] = place
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    sizes = json.dumps({name: getattr(model.config, name) for name in FIELDS})
    return struct.pack("<Q", len(head)) + head + bytes(body), sizes


ANSWERS = {
    "parity": [by_autograd, by_backward, by_flat_vectors],
    "from_gpt2": [by_renaming, by_asking, through_a_module],
    "train_steps": [by_the_book, by_hand, by_logits],
    "pack_entry": [by_safetensors, by_state, byte_by_byte],
}
