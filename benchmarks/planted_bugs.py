"""What each planted bug costs in training, and what the loss shows of it.

    python benchmarks/planted_bugs.py      # writes book/_data/planted_bugs.json, about two minutes

A small character GPT runs through code that can hold any one of chapter 16's bugs. For each bug
models are trained with it, from the same three starts and on the same batches. Two numbers come of
each, in nats per character of held-out text: what the buggy program itself reports as its loss, and
what it really bets when it writes, that is, the loss at the last place of a window, where no later
character is there to be seen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
from rnn2gpt.gpt import GPT, GPTConfig
from rnn2gpt.training import cosine_schedule

WINDOW, ROWS, HEADS, RATE = 64, 16, 4, 4e-3
BUGS = (
    "", "multiplied", "stray_axis", "scaled_by_length", "softmax_over_queries", "sees_the_future",
    "outer_activation", "relu_inside", "norm_on_the_stream", "residual_missing", "no_head",
    "softmax_twice",
)  # fmt: skip


def attention(q: Tensor, k: Tensor, v: Tensor, bug: str) -> Tensor:
    """Causal attention (…, T, d), or what a bug makes of it."""
    t, d = q.shape[-2:]
    scores = q @ k.mT / math.sqrt(t if bug == "scaled_by_length" else d)
    if bug != "sees_the_future":
        scores = scores + torch.full((t, t), -math.inf).triu(1)
    return scores.softmax(-2 if bug == "softmax_over_queries" else -1) @ v


def scores_of(model: GPT, ids: Tensor, bug: str) -> Tensor:
    """What the program takes for logits: (B, T, V), or (B, T, D) where the head is missing."""
    tokens, positions = model.token_embedding(ids), model.position_embedding.weight[: ids.shape[1]]
    if bug == "stray_axis":  # row b of the batch gets position b, as far as there are any
        positions = model.position_embedding.weight[torch.arange(len(ids)) % WINDOW, None]
    x = tokens * positions if bug == "multiplied" else tokens + positions
    b, t, d = x.shape
    for block in model.blocks:
        y = block.norm_1(x)
        x = y if bug == "norm_on_the_stream" else x
        layer = block.attention
        q, k, v = (
            W(y).view(b, t, HEADS, -1).transpose(1, 2) for W in (layer.W_q, layer.W_k, layer.W_v)
        )
        x = x + layer.W_o(attention(q, k, v, bug).transpose(1, 2).reshape(b, t, d))
        feed, y = block.feed_forward, block.norm_2(x)
        y = feed.W_1(y)
        y = y.relu() if bug == "relu_inside" else functional.gelu(y, approximate="tanh")
        if bug == "outer_activation":
            y = (y @ feed.W_2.weight.T).relu() + feed.W_2.bias
        else:
            y = feed.W_2(y)
        x = y if bug == "residual_missing" else x + y
    x = model.norm(x)
    scores = x if bug == "no_head" else model.head(x)
    return scores.softmax(-1) if bug == "softmax_twice" else scores


def reported(model: GPT, x: Tensor, y: Tensor, bug: str) -> Tensor:
    """The loss as the program computes it."""
    return functional.cross_entropy(scores_of(model, x, bug).flatten(0, 1), y.flatten())


@torch.no_grad()
def honest(model: GPT, x: Tensor, y: Tensor, bug: str) -> float:
    """−ln p of the character behind each window, one window at a time as when it writes.

    A model that was fed through two softmaxes is asked for the probabilities of its first one.
    """
    at_once = "" if bug == "softmax_twice" else bug
    if bug == "stray_axis":  # a text alone is row 0
        last = torch.cat([scores_of(model, row[None], bug)[:, -1] for row in x])
    else:
        last = scores_of(model, x, at_once)[:, -1]
    return functional.cross_entropy(last, y[:, -1]).item()


def train(train_ids: Tensor, vocab_size: int, bug: str, seed: int, steps: int) -> GPT:
    torch.manual_seed(seed)
    config = GPTConfig(
        vocab_size=vocab_size, block_size=WINDOW, n_layers=2, n_heads=HEADS, d_model=72
    )
    model, chance = GPT(config), torch.Generator().manual_seed(seed)
    if bug == "multiplied":  # N(0, 0.02) times N(0, 0.02) would be no fair start
        torch.nn.init.normal_(model.position_embedding.weight, mean=1.0, std=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = cosine_schedule(step, RATE, 0.0, 30, steps)
        loss = reported(model, *get_batch(train_ids, WINDOW, ROWS, chance), bug)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bugs", nargs="+", default=BUGS, choices=BUGS)
    parser.add_argument("--out", type=Path, default=Path("book/_data/planted_bugs.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = load_text()
    tokenizer = CharTokenizer(text)
    train_ids, rest = split(tokenizer.encode(text))
    x, y = get_batch(rest, WINDOW, 256, torch.Generator().manual_seed(0))
    for seed in options.seeds:
        for bug in options.bugs:
            start = time.process_time()
            model = train(train_ids, tokenizer.vocab_size, bug, seed, options.steps)
            stored = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {}
            runs = {(run["bug"], run["seed"]): run for run in stored.get("runs", [])}
            with torch.no_grad():
                runs[bug, seed] = {
                    "bug": bug,
                    "seed": seed,
                    "reported": round(reported(model, x, y, bug).item(), 4),
                    "honest": round(honest(model, x, y, bug), 4),
                    "cpu_seconds": round(time.process_time() - start, 1),
                }
            print(runs[bug, seed], flush=True)
            result: dict[str, Any] = {
                "command": "python benchmarks/planted_bugs.py",
                "versions": {"torch": torch.__version__, "python": platform.python_version()},
                "machine": f"{platform.machine()}, {os.cpu_count()} processors, one thread",
                "steps": options.steps,
                "held_out_windows": len(x),
                "uniform": round(math.log(tokenizer.vocab_size), 4),
                "runs": sorted(runs.values(), key=lambda r: (BUGS.index(r["bug"]), r["seed"])),
            }
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
