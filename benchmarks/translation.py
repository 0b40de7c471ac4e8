"""Train the stored translation models by the course's command, and measure what they can do.

    python benchmarks/translation.py                  # all; writes book/_data/translation.json
    python benchmarks/translation.py numbers-seq2seq  # one part, put into the file

Parts: the models stored in `book/_data/models/` (`RUNS`), `attention` (additive, general and dot on
the numbers, equal steps) and `label-smoothing` (0 and 0.1 on gettext, equal steps). A stored model
is the run's best by validation loss, in float16, and it is the stored one that is judged. What the
file holds:

    data             task -> sizes of the splits, levels, vocabularies, longest source and target
    models           name -> task, model, parameters, sizes, training, bytes, best_step, command,
                     seconds, cpu_seconds, curve, scores, by_source_length, by_target_length, wrong
    attention        form -> parameters, steps, cpu_seconds, curve, scores
    label_smoothing  amount -> command, steps, cpu_seconds, curve, scores
    gettext          translation_memory, examples

`curve` is [{step, train_nats, validation_nats}]; `scores` is split -> way of decoding -> n, exact,
exact_interval (95 %, Wilson 1927), bleu, chrf (0 to 100). `wrong` has the first five wrong outputs
of the test split in its own random order. `translation_memory` answers with the target of the
training source that shares the most character trigrams (Jaccard), as translators' tools do: it is
the bar for a model. `examples` are 12 test pairs at even ranks of the greedy output's own chrF,
best first.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sacrebleu.metrics import CHRF

from course.ladder import machine
from rnn2gpt.checkpoint import MODELS, Checkpoint, load_model, save_model
from rnn2gpt.seq2seq import Seq2SeqConfig
from rnn2gpt.translation import TASKS, Pair, PairTokenizer, load_pairs
from rnn2gpt.translator import (
    TranslationConfig,
    TranslationTrainer,
    bleu,
    chrf,
    exact_match,
    translate,
)

MODELS_FOLDER, RESULT = Path("book/_data/models"), Path("book/_data/translation.json")
RUNS = {
    "numbers-seq2seq": "--task numbers --model seq2seq --steps 800",
    "numbers-seq2seq-plain": "--task numbers --model seq2seq-plain --steps 800",
    "numbers-transformer": "--task numbers --model transformer --steps 800",
    "dates-seq2seq": "--task dates --model seq2seq --steps 800",
    "dates-seq2seq-plain": "--task dates --model seq2seq-plain --steps 800",
    "dates-transformer": "--task dates --model transformer --steps 800",
    "gettext-transformer": (
        "--task gettext --model transformer --d-model 56 --steps 1500 --label-smoothing 0.1"
    ),
}
SMOOTHING_STEPS, ATTENTION_STEPS = 500, 300
BEAM_SIZE, LENGTH_PENALTY = 4, 1.0


def train(options: str, out: Path) -> dict[str, Any]:
    """Run `rnn2gpt train` with these options, and say what it took."""
    command = f"rnn2gpt train {options} --seed 0 --device cpu"
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    words = command.removeprefix("rnn2gpt").split()
    subprocess.run(
        [sys.executable, "-m", "course.cli", *words, "--out", str(out), "--json"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "command": command,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(cpu, 1),
        "curve": curve(out),
    }


def curve(out: Path) -> list[dict[str, float]]:
    """The run's log, as far as a page plots it."""
    with (out / "log.csv").open(newline="") as file:
        return [
            {"step": int(row["step"])}
            | {name: round(float(row[name]), 5) for name in ("train_nats", "validation_nats")}
            for row in csv.DictReader(file)
        ]


def wilson(hits: int, n: int) -> list[float]:
    """A 95 % interval for a share (Wilson 1927), which is sound near 0 and 1 too."""
    z, p = 1.959964, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [round((middle + sign * half) / (1 + z * z / n), 5) for sign in (-1, 1)]


def score(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    exact = exact_match(outputs, references)
    return {
        "n": len(outputs),
        "exact": round(exact, 5),
        "exact_interval": wilson(round(exact * len(outputs)), len(outputs)),
        "bleu": round(bleu(outputs, references), 2),
        "chrf": round(chrf(outputs, references), 2),
    }


def answers(loaded: Checkpoint, pairs: Sequence[Pair], beam_size: int = 1) -> list[str]:
    sources = [source for source, _ in pairs]
    return translate(
        loaded.model, loaded.tokenizer, sources, beam_size, length_penalty=LENGTH_PENALTY
    )


def by_length(rows: Iterable[tuple[int, bool]]) -> list[dict[str, float]]:
    hits = defaultdict(list)
    for length, right in rows:
        hits[length].append(right)
    return [
        {"length": length, "n": len(h), "exact": round(sum(h) / len(h), 5)}
        for length, h in sorted(hits.items())
    ]


def judge(loaded: Checkpoint, task: str) -> dict[str, Any]:
    """Scores of each held-out split, and exact matches by length over all of them."""
    splits = load_pairs(task)
    split_source, split_target = loaded.tokenizer.source.split, loaded.tokenizer.target.split
    scores, rows = {}, []
    for split in ("test", "longer") if "longer" in splits else ("test",):
        pairs = splits[split]
        references = [target for _, target in pairs]
        outputs = answers(loaded, pairs)
        scores[split] = {"greedy": score(outputs, references)}
        if task == "gettext":
            beam = score(answers(loaded, pairs, BEAM_SIZE), references)
            scores[split]["beam"] = beam | {
                "beam_size": BEAM_SIZE,
                "length_penalty": LENGTH_PENALTY,
            }
        rows += list(zip(pairs, outputs, strict=True))
    wrong = [(pair, output) for pair, output in rows[: len(splits["test"])] if output != pair[1]]
    return {
        "scores": scores,
        "by_source_length": by_length((len(split_source(s)), o == t) for (s, t), o in rows),
        "by_target_length": by_length((len(split_target(t)), o == t) for (_, t), o in rows),
        "wrong": [{"source": s, "reference": t, "output": o} for (s, t), o in wrong[:5]],
    }


def stored_model(name: str, out: Path) -> dict[str, Any]:
    """Train one of `RUNS`, store its best weights in float16, and judge what was stored."""
    facts = train(RUNS[name], out)
    best, folder = load_model(out), MODELS_FOLDER / name
    info = best.info
    save_model(
        folder,
        info["model"],
        MODELS[info["model"]].config(**info["config"]),
        best.model.state_dict(),
        best.tokenizer,
        dtype=torch.float16,
        command=facts["command"],
        pairs=info["pairs"],
        seed=0,
        step=info["step"],
        tokens=info["tokens"],
        cpu_seconds=facts["cpu_seconds"],
        validation_nats=info["validation_nats"],
    )
    stored = load_model(folder)
    settings = json.loads((out / "last" / "training.json").read_text(encoding="utf-8"))["config"]
    return {
        "task": info["pairs"],
        "model": info["model"],
        "parameters": sum(p.numel() for p in stored.model.parameters()),
        "sizes": info["config"],
        "training": settings,
        "bytes": (folder / "model.safetensors").stat().st_size,
        "best_step": info["step"],
        **facts,
        **judge(stored, info["pairs"]),
    }


def attention_forms(out: Path) -> dict[str, Any]:
    """Additive, general and dot scores: the same network, seed and steps, on the numbers."""
    splits = load_pairs("numbers")
    tokenizer, result = PairTokenizer.of("numbers", splits), {}
    for form in ("additive", "general", "dot"):
        config = TranslationConfig(
            model="seq2seq",
            steps=ATTENTION_STEPS,
            evaluate_every=25,
            learning_rate=MODELS["seq2seq"].learning_rate,
            device="cpu",
        )
        sizes = Seq2SeqConfig(
            source_vocab=len(tokenizer.source), target_vocab=len(tokenizer.target), attention=form
        )
        trainer = TranslationTrainer(config, sizes, tokenizer, splits, out / form)
        began = time.process_time()
        trainer.run()
        cpu = time.process_time() - began
        loaded = Checkpoint(trainer.model.eval(), tokenizer, {})
        references = [target for _, target in splits["test"]]
        result[form] = {
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "steps": ATTENTION_STEPS,
            "cpu_seconds": round(cpu, 1),
            "curve": curve(out / form),
            "scores": {"test": {"greedy": score(answers(loaded, splits["test"]), references)}},
        }
    return result


def label_smoothing(out: Path) -> dict[str, Any]:
    """The same Transformer with hard and with smoothed targets; judged at its last step."""
    pairs, result = load_pairs("gettext")["test"], {}
    for amount in ("0.0", "0.1"):
        options = f"--task gettext --model transformer --steps {SMOOTHING_STEPS}"
        facts = train(f"{options} --label-smoothing {amount}", out / amount)
        outputs = answers(load_model(out / amount / "last"), pairs)
        scores = {"test": {"greedy": score(outputs, [target for _, target in pairs])}}
        result[amount] = {"steps": SMOOTHING_STEPS, **facts, "scores": scores}
    return result


def gettext_examples() -> dict[str, Any]:
    """What the stored model says, beside the nearest text that it was trained on."""
    loaded, splits = load_model(MODELS_FOLDER / "gettext-transformer"), load_pairs("gettext")
    pairs = splits["test"]
    references = [target for _, target in pairs]
    memory = [(trigrams(source), target) for source, target in splits["train"]]
    nearest = [
        max(memory, key=lambda row: len(asked & row[0]) / len(asked | row[0]))[1]
        for asked in (trigrams(source) for source, _ in pairs)
    ]
    greedy = answers(loaded, pairs)
    own = [CHRF().sentence_score(o, [r]).score for o, r in zip(greedy, references, strict=True)]
    order = sorted(range(len(pairs)), key=lambda i: -own[i])
    picked = [order[round(k * (len(order) - 1) / 11)] for k in range(12)]
    beam = answers(loaded, [pairs[i] for i in picked], BEAM_SIZE)
    return {
        "translation_memory": score(nearest, references),
        "examples": [
            {
                "source": pairs[i][0],
                "reference": pairs[i][1],
                "greedy": greedy[i],
                "beam": own_beam,
                "nearest": nearest[i],
                "chrf": round(own[i], 1),
            }
            for i, own_beam in zip(picked, beam, strict=True)
        ],
    }


def trigrams(text: str) -> set[str]:
    padded = f"  {text.lower()} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}


def data_facts(task: str) -> dict[str, Any]:
    splits = load_pairs(task)
    tokenizer = PairTokenizer.of(task, splits)
    pairs = [pair for split in splits.values() for pair in split]
    return {
        "sizes": {split: len(rows) for split, rows in splits.items()},
        "source_level": tokenizer.source.level,
        "target_level": tokenizer.target.level,
        "source_vocabulary": len(tokenizer.source),
        "target_vocabulary": len(tokenizer.target),
        "longest_source": max(len(tokenizer.source.split(source)) for source, _ in pairs),
        "longest_target": max(len(tokenizer.target.split(target)) for _, target in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    extras: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
        "attention": ("attention", attention_forms),
        "label-smoothing": ("label_smoothing", label_smoothing),
    }
    parts = [*RUNS, *extras]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}")
    chosen = parser.parse_args().parts or parts
    if unknown := set(chosen) - set(parts):
        parser.error(f"no part is named {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    packages = ("torch", "babel", "num2words", "sacrebleu")
    result["command"] = "python benchmarks/translation.py"
    result["versions"] = {"python": sys.version.split()[0]} | {p: version(p) for p in packages}
    result["machine"] = machine() | {"threads": 1}
    result["data"] = {task: data_facts(task) for task in TASKS}
    for part in chosen:
        with tempfile.TemporaryDirectory() as folder:
            if part in RUNS:
                result.setdefault("models", {})[part] = stored_model(part, Path(folder) / "run")
            else:
                key, measure = extras[part]
                result[key] = measure(Path(folder))
        if part == "gettext-transformer":
            result["gettext"] = gettext_examples()
        RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(part, json.dumps(result.get("models", {}).get(part, {}).get("scores", "done")))


if __name__ == "__main__":
    main()
