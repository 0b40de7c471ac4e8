"""What the training loop costs, and what carrying the state is worth.

    python benchmarks/training.py            # throughput against a bare loop over torch.nn.LSTM
    python benchmarks/training.py --windows  # tapes with carried state against random windows

The first pairs our `Trainer` (batches, schedule, clipping, bookkeeping) with the shortest loop that
trains the same network on ready-made batches: torch.nn.Embedding, torch.nn.LSTM, torch.nn.Linear,
torch.optim.AdamW. The two take turns on the same machine, so a ratio means something even where the
machine is shared. The second trains each model both ways, on the same seeds, rates and steps, and
judges both with the state carried through the held-out text, which is how a model is used.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch
from torch import nn

from rnn2gpt.checkpoint import MODELS
from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", action="store_true")
    parser.add_argument("--steps", type=int, help="[40 for throughput, 1000 for windows]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--d-model", type=int, default=128)
    options = parser.parse_args()
    if options.windows:
        print(json.dumps(windows(options.steps or 1000, options.seeds), indent=1))
    else:
        print(
            json.dumps(throughput(options.steps or 40, options.rounds, options.d_model), indent=1)
        )
