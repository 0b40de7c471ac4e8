"""What training costs: our GPT against others, the loop against none, tapes against windows.

    python benchmarks/training.py --gpt      # our GPT against transformers and llms-from-scratch
    python benchmarks/training.py            # throughput against a bare loop over torch.nn.LSTM
    python benchmarks/training.py --windows  # tapes with carried state against random windows

The first trains GPTs of one configuration: ours by `Trainer`, which also draws its batches, and
`transformers`' GPT2LMHeadModel and both of `llms-from-scratch`'s models by the shortest loop, on
ready-made batches, with the same fused AdamW and clipping: all in float32 and then, where the
device has it, all under autocast in bfloat16. They take turns, step by step, in one process; a
ratio is that of two neighbors in time, and its spread is that of the turns. `--device cuda`
measures the same on a GPU. It writes `book/_data/training_benchmark.json`.

The second pairs our `Trainer` (batches, schedule, clipping, bookkeeping) with the shortest loop
that trains the same network on ready-made batches: torch.nn.Embedding, torch.nn.LSTM,
torch.nn.Linear, torch.optim.AdamW. The two take turns on the same machine, so a ratio means
something even where the machine is shared. The third trains each model both ways, on the same
seeds, rates and steps, and judges both with the state carried through the held-out text, which is
how a model is used.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from attention import peak_bytes, seconds
from torch import Tensor, nn

from course.ladder import machine
from rnn2gpt.checkpoint import MODELS
from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
from rnn2gpt.devices import PRECISIONS, autocast, has_bfloat16
from rnn2gpt.gpt import GPTConfig, count_parameters, flops_per_token
from rnn2gpt.lstm import CharLSTMConfig
from rnn2gpt.training import Trainer, TrainingConfig, tapes

CONFIG = TrainingConfig(model="lstm", steps=1, learning_rate=3e-3, device="cpu")
TOKENIZER = CharTokenizer(load_text())
TRAIN, VALIDATION = split(TOKENIZER.encode(load_text()))


def trainer(config: TrainingConfig, width: int) -> Trainer:
    sizes = MODELS[config.model].config(vocab_size=TOKENIZER.vocab_size, d_model=width)
    return Trainer(config, sizes, TOKENIZER, TRAIN, VALIDATION)


class BareLSTM:
    """The peer: the same network and optimizer, and nothing else."""

    def __init__(self, sizes: CharLSTMConfig) -> None:
        d = sizes.d_model
        self.embedding = nn.Embedding(sizes.vocab_size, d)
        self.lstm = nn.LSTM(d, d, batch_first=True)
        self.head = nn.Linear(d, sizes.vocab_size)
        layers = (self.embedding, self.lstm, self.head)
        self.parameters = [p for layer in layers for p in layer.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, CONFIG.learning_rate)
        self.state: tuple[torch.Tensor, ...] | None = None

    def train(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for x, y in batches:
            states, (h, c) = self.lstm(self.embedding(x), self.state)
            self.state = (h.detach(), c.detach())
            loss = nn.functional.cross_entropy(self.head(states).flatten(0, 1), y.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, CONFIG.max_norm)
            self.optimizer.step()


def throughput(steps: int, rounds: int, width: int) -> dict[str, float]:
    """Median seconds per step of both loops over `rounds` turns, and the median of the ratios."""
    ours = trainer(replace(CONFIG, steps=10**9), width)
    bare = BareLSTM(ours.model_config)
    size = (CONFIG.block_size, CONFIG.batch_size)
    ours_seconds, bare_seconds = [], []
    for turn in range(rounds + 1):
        batches = [tapes(TRAIN, turn * steps + step, *size) for step in range(steps)]
        started = time.perf_counter()
        bare.train(batches)
        between = time.perf_counter()
        for _ in range(steps):
            ours.train_step()
        ended = time.perf_counter()
        if turn > 0:  # the first turn warms up
            bare_seconds.append((between - started) / steps)
            ours_seconds.append((ended - between) / steps)
    pairs = zip(ours_seconds, bare_seconds, strict=True)
    tokens = CONFIG.batch_size * CONFIG.block_size
    return {
        "d_model": width,
        "ours_ms_per_step": 1000 * statistics.median(ours_seconds),
        "torch_ms_per_step": 1000 * statistics.median(bare_seconds),
        "ours_tokens_per_second": tokens / statistics.median(ours_seconds),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


class WindowTrainer(Trainer):
    """Random windows, each read from an empty state."""

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.state = None
        chance = torch.Generator().manual_seed(self.config.seed * 2**32 + self.step)
        return get_batch(TRAIN, self.config.block_size, self.config.batch_size, chance)


def windows(steps: int, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Held-out nats of each model, both ways, for each seed."""
    losses: dict[str, dict[str, list[float]]] = {}
    for model, width, rate in (("rnn", 242, 2e-3), ("lstm", 128, 4e-3)):
        sizes = MODELS[model].config(vocab_size=TOKENIZER.vocab_size, d_model=width)
        for kind in (Trainer, WindowTrainer):
            for seed in range(seeds):
                config = replace(CONFIG, model=model, steps=steps, learning_rate=rate, seed=seed)
                config = replace(config, evaluate_every=steps)
                nats = kind(config, sizes, TOKENIZER, TRAIN, VALIDATION).run().validation_nats
                name = "tapes" if kind is Trainer else "windows"
                losses.setdefault(model, {}).setdefault(name, []).append(nats or float("nan"))
    return losses


# --- other people's GPTs --------------------------------------------------------------------------

OUT = Path("book/_data/training_benchmark.json")
PEERS = Path("build/peers")  # ignored by git
SIZES = {  # the small model's with more turns, since they are short, and ten times the parameters
    "small": (
        GPTConfig(vocab_size=1024, block_size=128, n_layers=4, n_heads=4, d_model=128),
        16,
        4,
    ),
    "larger": (
        GPTConfig(vocab_size=1024, block_size=256, n_layers=6, n_heads=6, d_model=384),
        8,
        1,
    ),
}


class Peer:
    """A model of another library in the shortest loop that trains it."""

    def __init__(
        self, model: nn.Module, logits: Callable[[Any], Tensor], device: str, precision: str
    ) -> None:
        self.model, self.logits = model.to(device).train(), logits
        self.autocast = autocast(torch.device(device), PRECISIONS[precision])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 3e-4, fused=True)

    def step(self, x: Tensor, y: Tensor) -> None:
        with self.autocast():
            logits = self.logits(self.model(x))  # (B, T, V)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def peers(config: GPTConfig, *where: str) -> dict[str, Peer]:
    """GPTs of the same sizes from other libraries, without dropout; on a device, in a precision."""
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.block_size,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_embd=config.d_model,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
    )
    found = {"transformers": Peer(GPT2LMHeadModel(theirs), lambda out: out.logits, *where)}
    sizes = {
        "vocab_size": config.vocab_size,
        "context_length": config.block_size,
        "emb_dim": config.d_model,
        "n_heads": config.n_heads,
        "n_layers": config.n_layers,
        "drop_rate": 0.0,
        "qkv_bias": True,
    }
    book = raschka()
    for name, kind in (("", book.GPTModel), (" (fast)", book.GPTModelFast)):
        found[f"llms-from-scratch{name}"] = Peer(kind(sizes), lambda logits: logits, *where)
    return found


def raschka() -> Any:
    """The GPTs of `llms-from-scratch`, installed once, without the many packages it asks for."""
    if not (PEERS / "llms_from_scratch").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, "--target", str(PEERS), "llms-from-scratch==1.0.19"], check=True)
    sys.path.insert(0, str(PEERS))
    return importlib.import_module("llms_from_scratch.ch04")


def compare(
    config: GPTConfig, batch_size: int, rounds: int, device: str, precision: str
) -> dict[str, Any]:
    """Tokens per second and peak memory of each, and ours over theirs, turn by turn."""
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (100_000,))
    settings = replace(
        CONFIG, model="gpt", steps=10**9, batch_size=batch_size, block_size=config.block_size
    )
    settings = replace(settings, device=device, precision=precision, compile=False)
    ours = Trainer(settings, config, TOKENIZER, ids, VALIDATION)
    batches = [get_batch(ids, config.block_size, batch_size, device=device) for _ in range(4)]
    endless = cycle(batches)

    def turn(peer: Peer) -> None:
        peer.step(*next(endless))

    steps: dict[str, Callable[[], None]] = {"rnn2gpt": ours.train_step}
    steps |= {name: partial(turn, peer) for name, peer in peers(config, device, precision).items()}
    turns = [
        {name: seconds(step, device) for name, step in steps.items()} for _ in range(rounds + 2)
    ][2:]  # the first two warm up
    tokens, result = batch_size * config.block_size, {}
    for name, step in steps.items():
        ratios = sorted(turn[name] / turn["rnn2gpt"] for turn in turns)
        median = statistics.median(turn[name] for turn in turns)
        result[name] = {
            "tokens_per_second": round(tokens / median),
            "peak_bytes_of_a_step": peak_bytes(step, device),
            "ours_over_this": round(statistics.median(ratios), 3),
            "middle_half": [round(r, 3) for r in statistics.quantiles(ratios, n=4)[::2]],
        }
    return {
        "config": vars(config),
        "precision": precision,
        "batch_size": batch_size,
        "parameters": count_parameters(config),
        "flops_per_step": flops_per_token(config) * tokens,
        "rounds": rounds,
        "models": result,
    }


def gpts(rounds: int, device: str) -> dict[str, Any]:
    """Both sizes in each precision, with what measured them. On a CPU one thread's time."""
    import transformers

    precisions = ["float32"] + ["bfloat16"] * has_bfloat16(torch.device(device))
    torch.set_num_threads(1)
    return {
        "command": "python benchmarks/training.py --gpt",
        "machine": machine() | {"threads": 1},
        "device": device,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "llms-from-scratch": "1.0.19",
        },
        "sizes": {
            f"{name}, {precision}": compare(config, batch_size, times * rounds, device, precision)
            for precision in precisions
            for name, (config, batch_size, times) in SIZES.items()
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpt", action="store_true")
    parser.add_argument("--windows", action="store_true")
    parser.add_argument("--device", default="cpu", help="For --gpt.")
    parser.add_argument("--steps", type=int, help="[40 for throughput, 1000 for windows]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--d-model", type=int, default=128)
    options = parser.parse_args()
    if options.gpt:
        measured = gpts(options.rounds, options.device)
        OUT.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(measured["sizes"], indent=1))
    elif options.windows:
        print(json.dumps(windows(options.steps or 1000, options.seeds), indent=1))
    else:
        print(
            json.dumps(throughput(options.steps or 40, options.rounds, options.d_model), indent=1)
        )
