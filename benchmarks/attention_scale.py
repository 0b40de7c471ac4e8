"""What dividing by √d_k is worth in training: the same model with three scales.

    python benchmarks/attention_scale.py    # writes book/_data/attention_scale.json

Trains the ladder's self-attention model (two layers, one head of the model's width) on the nine
plays with its scores left as they are, divided by √d_k, and divided by d_k. Each scale gets the
same seeds, the same windows and the same learning rates to choose from; stored are the held-out
nats per character of every run.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from course.ladder import machine
from rnn2gpt.attention import CharAttention
from rnn2gpt.data import CharTokenizer, get_batch, load_text, split

OUT = Path("book/_data/attention_scale.json")
WINDOW, BATCH, LAYERS = 32, 32, 2
SCALES = {"not divided": math.sqrt, "√d_k": lambda width: 1.0, "d_k": lambda width: width**-0.5}
"""What the queries are multiplied by, on top of the division by √d_k that the layer does."""


def trained_nats(width: int, scale: str, rate: float, seed: int, steps: int) -> float:
    """Nats per character on 64 held-out windows after training."""
    torch.manual_seed(seed)
    text = load_text()
    tokenizer = CharTokenizer(text)
    train, held_out = split(tokenizer.encode(text))
    model = CharAttention(tokenizer.vocab_size, width, LAYERS, WINDOW)
    factor = SCALES[scale](width)
    for layer in model.layers:
        layer.W_q.register_forward_hook(lambda module, inputs, output: factor * output)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    chance = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, y = get_batch(train, WINDOW, BATCH, chance)
        loss = cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    x, y = get_batch(held_out, WINDOW, 256, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return cross_entropy(model(x)[0].flatten(0, 1), y.flatten()).item()


def study(widths: list[int], rates: list[float], seeds: int, steps: int) -> dict[str, Any]:
    """nats[width][scale][rate] = one number a seed."""
    return {
        str(width): {
            scale: {
                f"{rate:g}": [
                    round(trained_nats(width, scale, rate, seed, steps), 4) for seed in range(seeds)
                ]
                for rate in rates
            }
            for scale in SCALES
        }
        for width in widths
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 8e-3])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stored = {
        "command": "python benchmarks/attention_scale.py",
        "machine": machine(),
        "torch": torch.__version__,
        "steps": options.steps,
        "window": WINDOW,
        "batch": BATCH,
        "nats": study(options.widths, options.rates, options.seeds, options.steps),
    }
    options.out.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"wrote {options.out}")
