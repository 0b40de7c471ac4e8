"""A GPT put together from parts: proving that two agree, filling one, training it (chapter 17).

Nothing here makes a model. Every function takes models, or a package of parts (`my_gpt`, which
`rnn2gpt assemble` writes, or this package's own parts, see `OURS`), so that the same lines run a
student's GPT and ours.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from rnn2gpt import distributed, gpt, optim
from rnn2gpt.checkpoint import MODELS
from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
from rnn2gpt.distributed import ALONE, Team
from rnn2gpt.entry import TEXT, held_out, write_entry
from rnn2gpt.evaluation import evaluate
from rnn2gpt.generation import sample
from rnn2gpt.rnn import clip_grad_norm_

# What `train_text` and `write` ask of a package of parts; a student's has the same names.
OURS = SimpleNamespace(
    GPT=gpt.GPT,
    GPTConfig=gpt.GPTConfig,
    load_gpt2_state_dict=gpt.load_gpt2_state_dict,
    get_batch=get_batch,
    AdamW=torch.optim.AdamW,
    parameter_groups=optim.parameter_groups,
    cosine_schedule=optim.cosine_schedule,
    clip_grad_norm_=clip_grad_norm_,
    sample=sample,
)
SIZES = {"block_size": 32, "n_layers": 2, "n_heads": 4, "d_model": 96}
RATE, BATCH, WARMUP, DECAY = 5e-3, 16, 20, 0.1


def parity(
    mine: nn.Module,
    ours: nn.Module,
    ids: Int64[Tensor, "B T"],
    targets: Int64[Tensor, "B T"],
) -> dict[str, float]:
    """How far two models are apart once `mine` holds a copy of the weights of `ours`.

    Returns the largest absolute differences of the `logits`, of the `loss` and of the `gradient` of
    any parameter, in evaluation mode. A number that is not finite, on either side, makes its
    difference infinite. Raises `ValueError` when the parameters differ in name or shape.
    """
    theirs, here = (dict(model.named_parameters()) for model in (ours, mine))
    _same_names(
        {n: tuple(p.shape) for n, p in here.items()}, {n: tuple(p.shape) for n, p in theirs.items()}
    )
    with torch.no_grad():
        for name, parameter in here.items():
            parameter.copy_(theirs[name])
    found: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
    for model in (mine, ours):
        logits, loss = model.eval()(ids, targets)
        named = dict(model.named_parameters())
        pulled = torch.autograd.grad(loss, list(named.values()))
        found.append((logits, loss, dict(zip(named, pulled, strict=True))))
    (logits, loss, gradients), (right, right_loss, right_gradients) = found
    return {
        "logits": _apart(logits, right),
        "loss": _apart(loss, right_loss),
        "gradient": max(_apart(gradients[name], right_gradients[name]) for name in theirs),
    }


def _same_names(here: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(here.keys() ^ theirs.keys()):
        raise ValueError(f"Only one of the two models has a parameter {name}.")
    for name, shape in theirs.items():
        if here[name] != shape:
            raise ValueError(
                f"{name} has the shape {here[name]} in one model, {shape} in the other."
            )


def _apart(one: Tensor, other: Tensor) -> float:
    most = (one.detach() - other.detach()).abs().max().item()
    return most if math.isfinite(most) else math.inf


def from_gpt2(
    described: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Our sizes and our weights from a Hugging Face `config.json` and its tensors.

    The weights are float32 copies under a `GPT`'s names, the tied head included. Raises
    `ValueError` when the activation is another, or a tensor is missing, left over, of another
    shape, or a head of its own.
    """
    activation = described.get("activation_function", "gelu_new")
    if activation != "gelu_new":
        raise ValueError(f"This model's activation is {activation}, not gelu_new.")
    sizes = {
        "vocab_size": described["vocab_size"],
        "block_size": described["n_positions"],
        "n_layers": described["n_layer"],
        "n_heads": described["n_head"],
        "d_model": described["n_embd"],
    }
    model = gpt.GPT(gpt.GPTConfig(**sizes))
    gpt.load_gpt2_state_dict(model, {name: w.float() for name, w in state_dict.items()})
    return sizes, model.state_dict()


def train_steps(
    model: nn.Module,
    batches: Iterable[tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]],
    learning_rate: float,
) -> list[float]:
    """One step of AdamW for each batch; the loss of each before its step.

    Weights decay by 0.1, gradients are clipped to a joint norm of 1. The model trains in training
    mode and is left in evaluation mode.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=DECAY)
    model.train()
    losses = [_step(model, optimizer, *batch) for batch in batches]
    model.eval()
    return losses


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, targets: Tensor
) -> float:
    """One update; the loss before it."""
    loss = model(ids, targets)[1]
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


# --- a package of parts at work -----------------------------------------------------------------


def train_text(
    model: Any,
    ids: Int64[Tensor, " N"],
    steps: int,
    parts: Any = OURS,
    *,
    rate: float = RATE,
    batch_size: int = BATCH,
    device: torch.device | str = "cpu",
    seed: int = 0,
    team: Team = ALONE,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train `model` on windows of `ids` with the optimizer, schedule and batches of `parts`.

    The batch of a step depends on the seed alone: with a team, each process draws it whole and
    takes its rows, so that two processes learn what one would. Returns the losses, one a step.
    """
    model = model.to(device).train()
    optimizer = parts.AdamW(parts.parameter_groups(model, DECAY), lr=rate, betas=(0.9, 0.99))
    shared = team.share(model, sharded=False)
    chance, losses = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = parts.cosine_schedule(
                step, rate, rate / 10, min(WARMUP, steps - 1), steps
            )
        batch = parts.get_batch(ids, model.config.block_size, batch_size, generator=chance)
        x, y = (team.rows(part).to(device) for part in batch)
        _, loss = shared(x, y)
        optimizer.zero_grad()
        loss.backward()
        parts.clip_grad_norm_(list(model.parameters()), 1.0)
        optimizer.step()
        losses.append(team.mean(loss.detach().reshape(1).cpu()).item())
        on_step(step, losses[-1])
    model.eval()
    return losses


def loss_on(model: Any, ids: Int64[Tensor, " N"]) -> float:
    """Nats per token of a model on `ids`, as the score of an entry is computed."""
    model.block_size = model.config.block_size  # a student's has it in its config alone
    return evaluate(MODELS["gpt"], model, ids).mean().item()


@torch.no_grad()
def write(
    model: Any,
    ids: Int64[Tensor, "1 T"],
    n_tokens: int,
    parts: Any = OURS,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Int64[Tensor, "1 T+n_tokens"]:
    """Go on after `ids` with the sampler of `parts`, the last window read again for every token.

    It asks of a model no more than `model(ids) -> logits, loss`: a student's GPT has no cache.
    """
    chance, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    ids = ids.to(device)
    for _ in range(n_tokens):
        logits, _ = model(ids[:, -model.config.block_size :])
        token = parts.sample(
            logits[:, -1], temperature=temperature, top_k=top_k, top_p=top_p, generator=chance
        )
        ids = torch.cat([ids, token.reshape(1, 1).to(device)], dim=1)
    return ids


def run(parts: Any, arguments: list[str] | None = None) -> dict[str, Any] | None:
    """`python -m my_gpt.train`, or the same under `torchrun`: train, score, keep an entry.

    Returns what was measured, in the process that leads a team.
    """
    ask = argparse.ArgumentParser(prog=f"{getattr(parts, '__name__', 'gpt')}.train")
    for name, default in {"steps": 400, "batch_size": BATCH, "seed": 0, **SIZES}.items():
        ask.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    ask.add_argument("--rate", type=float, default=RATE)
    ask.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    ask.add_argument("--text", type=Path, help="your own UTF-8 text; then no entry is written")
    ask.add_argument("--out", type=Path, default=Path("entry"), help="where the entry goes")
    told = ask.parse_args(arguments)
    text = load_text(TEXT, text_file=told.text)
    tokenizer = CharTokenizer(text)
    known, unseen = split(tokenizer.encode(text))
    with distributed.team() as team:
        if told.batch_size % team.size:
            ask.error(f"--batch-size {told.batch_size} cannot be shared by {team.size} processes")
        torch.manual_seed(told.seed)
        sizes = {name: getattr(told, name) for name in SIZES}
        model = parts.GPT(parts.GPTConfig(vocab_size=tokenizer.vocab_size, **sizes))
        start = time.perf_counter()
        losses = train_text(
            model, known, told.steps, parts, rate=told.rate, batch_size=told.batch_size,
            device=team.device(told.device), seed=told.seed, team=team,
            on_step=_told(team.leads, told.steps),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        if not team.leads:
            return None
        facts = measured(model, losses, seconds, held_out() if told.text is None else unseen[:8193])
        facts |= {"processes": team.size, "steps": told.steps, "batch_size": told.batch_size}
        facts |= {"learning_rate": told.rate, "text": told.text.name if told.text else TEXT}
        if told.text is None:
            write_entry(model, told.out)
            (told.out / "run.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            print(f"An entry for the leaderboard lies in {told.out}.")
        print(f"{facts['held_out_nats']:.3f} nats per character on held-out text.")
        return facts


def _told(leads: bool, steps: int) -> Callable[[int, float], None]:
    every = max(1, steps // 10)

    def tell(step: int, loss: float) -> None:
        if leads and (step + 1) % every == 0:
            print(f"step {step + 1:>6,} of {steps:,}: {loss:.3f} nats", flush=True)

    return tell


def measured(
    model: Any, losses: list[float], seconds: float, unseen: Int64[Tensor, " N"]
) -> dict[str, Any]:
    """What a run showed, as a model card tells it."""
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "seconds": round(seconds, 1),
        "first_nats": losses[0],
        "last_nats": sum(losses[-10:]) / len(losses[-10:]),
        "held_out_nats": loss_on(model, unseen),
    }


def fitted(part: Any) -> Callable[..., nn.Module]:
    """A student's `LayerNorm` or `TransformerBlock`, built as a GPT asks for it.

    Chapter 7's norm has a bias and no switch for it, and its block may keep its norms' biases.
    Chapter 9's model, which also comes without any, says `bias=True` or `bias=False`: then what the
    part still has of biases is fixed at 0, which is the same as none.
    """
    names = inspect.signature(part)

    def made(*args: Any, **kwargs: Any) -> nn.Module:
        if "bias" in names.parameters:
            bias = names.bind(*args, **kwargs).arguments.get("bias", True)
        else:
            bias = kwargs.pop("bias", True)
        module = part(*args, **kwargs)
        for inner in module.modules() if not bias else ():
            own = inner._parameters.get("bias")
            if own is not None:
                del inner.bias
                inner.register_buffer("bias", torch.zeros_like(own), persistent=False)
        return module

    return made
