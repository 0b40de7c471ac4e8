"""What the size of a vocabulary does to a model's loss, at equal training compute.

    python benchmarks/vocabulary.py   # writes book/_data/vocabulary.json; three minutes on a core

The nine plays are cut into characters, and into the tokens of byte-pair vocabularies with more and
more merges, all learned from the training part. On each, a Kneser–Ney model is counted (of the
order that does best on it) and an LSTM is trained: one width, one budget of FLOPs for all, so that
a larger vocabulary, whose head costs more, sees fewer tokens. Every rate in `RATES` is tried on
the first seed; the best one is run on all seeds. All are judged on the same held-out text.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnn2gpt.checkpoint import MODELS, write_json
from rnn2gpt.data import CharTokenizer, load_text, split
from rnn2gpt.metrics import bits_per_character
from rnn2gpt.ngram import KneserNey, KneserNeyConfig
from rnn2gpt.tokenizer import BPETokenizer, train_bpe
from rnn2gpt.training import Trainer, TrainingConfig, evaluate

OUT = Path("book/_data/vocabulary.json")
COMMAND = "python benchmarks/vocabulary.py"
MERGES = (0, 256, 1024, 4096)
RATES = (8e-3, 1.6e-2, 3.2e-2)
WIDTH = 128


def best_count(train: Tensor, held_out: Tensor, vocab_size: int) -> tuple[int, float]:
    """The order of the Kneser–Ney model that does best, and its nats per held-out token."""
    found: list[tuple[float, int]] = []
    for order in range(1, 9):
        if vocab_size**order >= 2**63:
            break
        model = KneserNey.fit(train, KneserNeyConfig(vocab_size=vocab_size, order=order))
        found.append((model.nll(held_out).mean().item(), order))
        if found[-1] > min(found):
            break  # longer grams only get rarer
    nats, order = min(found)
    return order, nats


def run_lstm(
    train: Tensor,
    held_out: Tensor,
    tokenizer: BPETokenizer | CharTokenizer,
    flops: float,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    """Train one LSTM on the budget, and judge it by a full sweep of the held-out text."""
    architecture = MODELS["lstm"]
    sizes = architecture.config(vocab_size=tokenizer.vocab_size, d_model=WIDTH)
    body = (
        8 * WIDTH * WIDTH + tokenizer.vocab_size * WIDTH
    )  # multiplications for one token, head included
    config = TrainingConfig(
        model="lstm",
        steps=round(flops / (6 * body * 32 * 64)),
        learning_rate=rate,
        evaluate_every=10**9,
        seed=seed,
        device="cpu",
    )
    trainer = Trainer(config, sizes, tokenizer, train, held_out[:1000])
    trainer.run()
    nats = evaluate(architecture, trainer.model, held_out).mean().item()
    return {"rate": rate, "seed": seed, "nats": nats, "tokens": trainer.tokens}


def measure(merges: Sequence[int], flops: float, rates: Sequence[float], seeds: int) -> list[Any]:
    """A row for characters, and one for each number of merges."""
    text = load_text()
    characters = CharTokenizer(text)
    cut = len(split(characters.encode(text))[0])
    train, held_out = text[:cut], text[cut:]
    learned = train_bpe(train, 256 + max(merges))
    rows = []
    for tokenizer in (characters, *(BPETokenizer(learned[:k]) for k in merges if k)):
        ids = [torch.as_tensor(tokenizer.encode(part)) for part in (train, held_out)]
        # The first token is given, not predicted.
        predicted = len(held_out) - len(tokenizer.decode(ids[1][:1].tolist()))
        n = len(ids[1]) - 1
        order, counted = best_count(*ids, tokenizer.vocab_size)
        tried = [run_lstm(*ids, tokenizer, flops, rate, seed=0) for rate in rates]
        best = min(tried, key=lambda run: run["nats"])
        runs = [best] + [
            run_lstm(*ids, tokenizer, flops, best["rate"], seed) for seed in range(1, seeds)
        ]
        nats = statistics.mean(run["nats"] for run in runs)
        rows.append(
            {
                "merges": len(getattr(tokenizer, "merges", [])),
                "vocab_size": tokenizer.vocab_size,
                "characters_per_token": predicted / n,
                "ngram": {
                    "order": order,
                    "nats_per_token": counted,
                    "bits_per_character": bits_per_character(counted, n, predicted),
                },
                "lstm": {
                    "nats_per_token": nats,
                    "bits_per_character": bits_per_character(nats, n, predicted),
                    "spread": (max(r["nats"] for r in runs) - min(r["nats"] for r in runs))
                    * n
                    / (predicted * math.log(2)),
                    "learning_rate": best["rate"],
                    "tokens": best["tokens"],
                    "characters": best["tokens"] * len(train) / len(ids[0]),
                    "runs": runs,
                    "tried": tried,
                },
            }
        )
        print(rows[-1]["vocab_size"], rows[-1]["ngram"], rows[-1]["lstm"], flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flops", type=float, default=2e11)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--merges", type=int, nargs="+", default=MERGES)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.merges, options.flops, options.rates, options.seeds)
    write_json(
        options.out,
        {
            "command": COMMAND,
            "text": "nine-plays",
            "d_model": WIDTH,
            "flops": options.flops,
            "seeds": options.seeds,
            "rows": rows,
        },
    )
