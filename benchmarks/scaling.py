"""Loss against parameters and tokens: a small grid of GPTs, and Chinchilla's law fitted to it.

    nice -n 5 python benchmarks/scaling.py      # writes book/_data/scaling.json

Every cell of the grid is a run of its own: a fresh GPT of one size, trained on one number of
tokens with a schedule (warm-up, cosine) that ends when its tokens do. A loss read off half-way
through a longer run would still be at a high learning rate, and too high. The peak rate of each
size is the best of `RATES` at the second budget. What this saves costs honesty: larger budgets
prefer lower rates, the batch is the same for all, and there is one seed for each cell.

Text: the first nine tenths of all plays as characters, each read at most once; judged on fixed
windows of the last tenth, which are plays that no model has read. A run that is already in the file
is not repeated, so the study may be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
from rnn2gpt.gpt import GPT, GPTConfig, count_parameters, flops_per_token
from rnn2gpt.optim import cosine_schedule, parameter_groups
from rnn2gpt.scaling import fit_scaling_law

LAYERS, HEAD, WINDOW, ROWS = 2, 16, 64, 16
WIDTHS = (16, 32, 64)
BUDGETS = (62_500, 125_000, 250_000, 500_000)  # tokens
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
RESAMPLES = 200


def config_of(vocab_size: int, width: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=vocab_size,
        block_size=WINDOW,
        n_layers=LAYERS,
        n_heads=width // HEAD,
        d_model=width,
    )


def trained(
    train: Tensor, held_out: tuple[Tensor, Tensor], config: GPTConfig, n_tokens: int, rate: float
) -> dict[str, Any]:
    """One run: a fresh model, `n_tokens` read once, its held-out loss at the end."""
    torch.manual_seed(0)
    start = time.process_time()
    model, chance = GPT(config), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), betas=(0.9, 0.95))
    steps = n_tokens // (ROWS * WINDOW)
    # Windows that do not overlap, in random order: no token is read twice.
    starts = torch.randperm((len(train) - 1) // WINDOW, generator=chance)[: steps * ROWS] * WINDOW
    for step in range(steps):
        at = starts[step * ROWS : (step + 1) * ROWS, None] + torch.arange(WINDOW)  # (B, T)
        for group in optimizer.param_groups:
            group["lr"] = cosine_schedule(step, rate, rate / 10, steps // 10, steps)
        _, loss = model(train[at], train[at + 1])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        pieces = zip(held_out[0].split(64), held_out[1].split(64), strict=True)
        nats = torch.stack([model(x, y)[1] for x, y in pieces]).mean().item()
    blocks = sum(p.numel() for p in model.blocks.parameters())
    return {
        "d_model": config.d_model,
        "tokens": steps * ROWS * WINDOW,
        "parameters": count_parameters(config),
        "parameters_of_blocks": blocks,
        "flops": flops_per_token(config) * steps * ROWS * WINDOW,
        "learning_rate": rate,
        "steps": steps,
        "nats": round(nats, 4),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def fits(runs: list[dict[str, Any]], count: str, resamples: int) -> dict[str, Any]:
    """The law with `count` for N, and those of a bootstrap over the runs; None where none fits."""

    def fit(chosen: list[dict[str, Any]], **how: Any) -> dict[str, float] | None:
        columns = ([run[name] for run in chosen] for name in (count, "tokens", "nats"))
        try:
            return asdict(fit_scaling_law(*columns, **how))
        except ValueError:
            return None

    chance = torch.Generator().manual_seed(0)
    draws = torch.randint(len(runs), (resamples, len(runs)), generator=chance).tolist()
    coarse = torch.arange(1, 38, dtype=torch.float64) * 0.04
    resampled = [fit([runs[i] for i in drawn], exponents=coarse) for drawn in draws]
    return {"law": fit(runs), "resampled": resampled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--out", type=Path, default=Path("book/_data/scaling.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = load_text("all-plays")
    tokenizer = CharTokenizer(text)
    train, rest = split(tokenizer.encode(text))
    held_out = get_batch(rest, WINDOW, 1024, torch.Generator().manual_seed(0))
    result: dict[str, Any] = {
        "command": "python benchmarks/scaling.py",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "sizes": {"n_layers": LAYERS, "window": WINDOW, "rows": ROWS, "vocabulary": len(set(text))},
        "held_out_windows": len(held_out[0]),
        "rates": list(options.rates),
        "search": [],
        "runs": [],
    }
    if options.out.is_file():
        known = json.loads(options.out.read_text(encoding="utf-8"))
        result |= {name: known[name] for name in ("search", "runs")}

    def write() -> None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    def run(width: int, budget: int, rate: float, kept: list[dict[str, Any]]) -> dict[str, Any]:
        tokens = budget // (ROWS * WINDOW) * ROWS * WINDOW
        key = {"d_model": width, "tokens": tokens, "learning_rate": rate}
        for old in result["search"] + result["runs"]:
            if key.items() <= old.items():
                break
        else:
            old = trained(train, held_out, config_of(tokenizer.vocab_size, width), budget, rate)
            print(old, flush=True)
        if old not in kept:
            kept.append(old)
            write()
        return old

    trial = options.budgets[min(1, len(options.budgets) - 1)]
    best = {}
    for width in options.widths:
        tried = [run(width, trial, rate, result["search"]) for rate in options.rates]
        best[width] = min(tried, key=lambda one: one["nats"])["learning_rate"]
    result["runs"] = [  # with other rates to choose from, another may be the best
        one
        for one in result["runs"]
        if one["learning_rate"] == best.get(one["d_model"], one["learning_rate"])
    ]
    for budget in options.budgets:
        for width in options.widths:
            run(width, budget, best[width], result["runs"])
        if len(result["runs"]) > 5:  # as many as the law has numbers, and one
            result["fits"] = {
                name: fits(result["runs"], name, options.resamples)
                for name in ("parameters", "parameters_of_blocks")
            }
            write()


if __name__ == "__main__":
    main()
