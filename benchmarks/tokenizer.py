"""What byte-pair encoding in Python costs, beside the same algorithm in Rust.

    python benchmarks/tokenizer.py     # writes book/_data/tokenizer_benchmark.json

Training: our `train_bpe` against the trainer of `tokenizers`, on all the plays, to one vocabulary
size. Encoding: our `BPETokenizer` with GPT-2's merges against tiktoken and `tokenizers` with the
same merges, on the nine plays; their ids are compared first. All take turns, each on one thread,
measured in processor seconds; every round starts with a new object, so that no chunk is remembered
from the last one. A ratio is the peer's speed over ours, one for each round.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["TIKTOKEN_CACHE_DIR"] = ""  # local files are read where they lie

import tiktoken
import tokenizers
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers import decoders, models, pre_tokenizers, trainers

from rnn2gpt.checkpoint import write_json
from rnn2gpt.data import load_text
from rnn2gpt.tokenizer import BPETokenizer, gpt2_folder, load_gpt2, train_bpe

OUT = Path("book/_data/tokenizer_benchmark.json")
COMMAND = "python benchmarks/tokenizer.py"
SPECIAL = {"<|endoftext|>": 50256}


def train_ours(text: str, vocab_size: int) -> int:
    return len(train_bpe(text, vocab_size))


def train_tokenizers(text: str, vocab_size: int) -> int:
    peer = tokenizers.Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    peer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    peer.train_from_iterator([text], trainer)
    return peer.get_vocab_size() - 256


def encoders() -> dict[str, Callable[[], Callable[[str], list[int]]]]:
    """How to make a new encoder with GPT-2's merges in each library."""
    folder = gpt2_folder()
    files = str(folder / "encoder.json"), str(folder / "vocab.bpe")
    ranks = data_gym_to_mergeable_bpe_ranks(files[1], files[0])
    ours = load_gpt2()

    def make_ours() -> Callable[[str], list[int]]:
        return BPETokenizer(ours.merges, ours.special_tokens, ours.byte_order).encode

    def make_tiktoken() -> Callable[[str], list[int]]:
        peer = tiktoken.Encoding(
            "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=SPECIAL
        )
        return peer.encode_ordinary

    def make_tokenizers() -> Callable[[str], list[int]]:
        peer = tokenizers.Tokenizer(models.BPE.from_file(*files))
        peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return lambda text: peer.encode(text).ids

    return {"ours": make_ours, "tiktoken": make_tiktoken, "tokenizers": make_tokenizers}


def seconds(function: Callable[..., Any], *args: Any) -> float:
    start = time.process_time()
    function(*args)
    return time.process_time() - start


def summary(measured: dict[str, list[float]], characters: int) -> dict[str, Any]:
    """Median seconds and speed of each, and each peer's speed over ours: median, least, most."""
    rows: dict[str, Any] = {}
    for name, values in measured.items():
        median = statistics.median(values)
        ratios = [ours / theirs for ours, theirs in zip(measured["ours"], values, strict=True)]
        rows[name] = {
            "seconds": median,
            "characters_per_second": characters / median,
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
        }
    return rows


def measure(rounds: int, vocab_size: int, training_text: str, text: str) -> dict[str, Any]:
    """Both comparisons. Raises `AssertionError` when the libraries do not do the same work."""
    trainers_of = {"ours": train_ours, "tokenizers": train_tokenizers}
    learned = {name: train(training_text, vocab_size) for name, train in trainers_of.items()}
    assert len(set(learned.values())) == 1, learned
    make = encoders()
    ids = {name: made()(text) for name, made in make.items()}
    assert ids["ours"] == ids["tiktoken"] == ids["tokenizers"], "the ids differ"
    training: dict[str, list[float]] = {name: [] for name in trainers_of}
    encoding: dict[str, list[float]] = {name: [] for name in make}
    for _ in range(rounds):
        for name, train in trainers_of.items():
            training[name].append(seconds(train, training_text, vocab_size))
        for name, made in make.items():
            encoding[name].append(seconds(made(), text))
    return {
        "command": COMMAND,
        "rounds": rounds,
        "merges": learned["ours"],
        "training_characters": len(training_text),
        "training": summary(training, len(training_text)),
        "encoding_characters": len(text),
        "encoding_tokens": len(ids["ours"]),
        "encoding": summary(encoding, len(text)),
        "versions": {name: version(name) for name in ("tiktoken", "tokenizers", "regex")}
        | {"python": platform.python_version()},
        "machine": f"one thread, {platform.machine()}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vocab-size", type=int, default=1280)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    result = measure(options.rounds, options.vocab_size, load_text("all-plays"), load_text())
    write_json(options.out, result)
    for part in ("training", "encoding"):
        for name, row in result[part].items():
            print(
                f"{part}: {name:<10} {row['seconds']:6.2f} s, {row['ratio']:.2f} times our speed "
                f"({row['ratio_least']:.2f} to {row['ratio_most']:.2f})"
            )
