"""Where the norm stands: pre-norm and post-norm stacks, fresh and trained, deep and shallow.

    python benchmarks/norm_placement.py      # writes book/_data/norm_placement.json

Two stacks of `TransformerBlock` that differ in `norm_first` alone learn to predict the plays'
characters. Measured on fresh stacks: the gradient's norm at every block and the size of the stream
behind every block. Then every depth is trained at every learning rate, from the first step at full
rate or after a linear warm-up, with Adam as in Vaswani et al. 2017 (section 5.3) and without
clipping, which would hide what is to be seen. Weights start as in Xiong et al. 2020: Xavier's
uniform initialization.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rnn2gpt.attention import causal_mask
from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
from rnn2gpt.positions import sinusoidal_positions
from rnn2gpt.transformer import LayerNorm, TransformerBlock

WIDTH, HEADS, WINDOW, ROWS = 32, 4, 32, 16
DEPTHS, RATES, WARMUPS = (3, 12), (1e-3, 3e-3), (0, 100)
FRESH_DEPTHS, FRESH_SEEDS = (2, 4, 8, 12, 16, 24), 5


class Stack(nn.Module):
    """A causal language model: embeddings and positions, blocks, a norm if pre-norm, a head."""

    def __init__(self, vocab_size: int, depth: int, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, WIDTH)
        self.blocks = nn.ModuleList(
            TransformerBlock(WIDTH, HEADS, 4 * WIDTH, norm_first=norm_first) for _ in range(depth)
        )
        self.norm = LayerNorm(WIDTH) if norm_first else nn.Identity()
        self.head = nn.Linear(WIDTH, vocab_size)
        self.positions: Tensor
        self.register_buffer("positions", sinusoidal_positions(WINDOW, WIDTH))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, T, V), and the stream (B, T, D) behind every block."""
        x = math.sqrt(WIDTH) * self.embedding(ids) + self.positions[: ids.shape[1]]
        mask, stream = causal_mask(ids.shape[1], device=ids.device), []
        for block in self.blocks:
            x = block(x, mask)
            stream.append(x)
        return self.head(self.norm(x)), stream


def loss_of(model: Stack, x: Tensor, y: Tensor) -> Tensor:
    logits, _ = model(x)
    return cross_entropy(logits.flatten(0, 1), y.flatten())


def fresh(ids: Tensor, vocab_size: int, norm_first: bool, depth: int, seeds: int) -> dict[str, Any]:
    """Per block, the mean over seeds: the gradient's norm of W_2 and the stream's RMS behind it."""
    gradients, sizes = torch.zeros(depth), torch.zeros(depth)
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = Stack(vocab_size, depth, norm_first)
        x, y = get_batch(ids, WINDOW, ROWS, torch.Generator().manual_seed(seed))
        logits, stream = model(x)
        cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
        for k, block in enumerate(model.blocks):
            gradient = block.get_parameter("feed_forward.W_2.weight").grad
            assert gradient is not None
            gradients[k] += gradient.norm() / seeds
            sizes[k] += stream[k].detach().pow(2).mean().sqrt() / seeds
    return {
        "depth": depth,
        "gradient": [float(f"{v:.4g}") for v in gradients.tolist()],
        "stream_rms": [float(f"{v:.4g}") for v in sizes.tolist()],
    }


def trained(
    train: Tensor,
    held_out: tuple[Tensor, Tensor],
    vocab_size: int,
    *,
    norm_first: bool,
    depth: int,
    learning_rate: float,
    warmup: int,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """One run: the training loss every tenth step, averaged over ten, and the held-out loss."""
    torch.manual_seed(seed)
    start = time.process_time()
    model = Stack(vocab_size, depth, norm_first)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9)
    chance, losses = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        rate = learning_rate * min(1.0, (step + 1) / (warmup + 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, *get_batch(train, WINDOW, ROWS, chance))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        nats = loss_of(model.eval(), *held_out).item()
    tens = [sum(losses[k : k + 10]) / len(losses[k : k + 10]) for k in range(0, steps, 10)]
    return {
        "norm_first": norm_first, "depth": depth, "learning_rate": learning_rate,
        "warmup": warmup, "seed": seed, "held_out_nats": round(nats, 4),
        "curve": [round(loss, 3) for loss in tens],
        "cpu_seconds": round(time.process_time() - start, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--fresh-depths", type=int, nargs="+", default=FRESH_DEPTHS)
    parser.add_argument("--out", type=Path, default=Path("book/_data/norm_placement.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = load_text()
    tokenizer = CharTokenizer(text)
    train, rest = split(tokenizer.encode(text))
    held_out = get_batch(rest, WINDOW, 256, torch.Generator().manual_seed(0))
    counts = torch.bincount(train, minlength=tokenizer.vocab_size) + 1.0
    unigram = cross_entropy(counts.log().expand(held_out[1].numel(), -1), held_out[1].flatten())
    result: dict[str, Any] = {
        "command": "python benchmarks/norm_placement.py",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "sizes": {"d_model": WIDTH, "heads": HEADS, "window": WINDOW, "rows": ROWS},
        "steps": options.steps,
        "uniform_nats": round(math.log(tokenizer.vocab_size), 4),
        "unigram_nats": round(unigram.item(), 4),
        "fresh": {
            name: [
                fresh(train, tokenizer.vocab_size, first, depth, FRESH_SEEDS)
                for depth in options.fresh_depths
            ]
            for name, first in (("pre", True), ("post", False))
        },
        "runs": [],
    }
    for seed in range(options.seeds):
        for depth in options.depths:
            for rate in options.rates:
                for warmup in WARMUPS:
                    for norm_first in (True, False):
                        run = trained(
                            train, held_out, tokenizer.vocab_size, norm_first=norm_first,
                            depth=depth, learning_rate=rate, warmup=warmup, steps=options.steps,
                            seed=seed,
                        )  # fmt: skip
                        result["runs"].append(run)
                        print({k: v for k, v in run.items() if k != "curve"}, flush=True)
                        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
