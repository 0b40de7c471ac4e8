"""The ladder: every model on the same text, split and budget, measured and written down.

Counting comes first (Kneser–Ney n-grams of rising order). Then each network trains at **matched
parameters** (the width that comes nearest to `PARAMETERS`) and **matched training FLOPs** (as many
steps as spend `FLOPS`), with several seeds, and is judged as it stands at its last step. The
learning rate of each is searched in the same way: the same first rates, the whole budget, one seed,
and a validation text cut from the training part, so that nothing is chosen on the text that judges.
(A search at a quarter of the budget is four times as fast and favors rates that are too high.)

The data curve asks how the rungs move with more text: growing first parts of `all-plays`, judged
on its last tenth, which are plays that no model has read. There the networks also get a larger
budget: four times the parameters on about as many tokens, so four times the FLOPs.

Everything lands in `book/_data/ladder.json`, by name; what is there under the same protocol is not
measured again (delete an entry, or the file, to have it measured anew). To add a rung, add the
model to `rnn2gpt.checkpoint.MODELS` and to `NETWORKS`.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from rnn2gpt import __version__
from rnn2gpt.attention import CharAttention
from rnn2gpt.checkpoint import MODELS, save_model
from rnn2gpt.data import CORPORA, CharTokenizer, load_text, split
from rnn2gpt.gpt import GPT, GPTConfig
from rnn2gpt.metrics import bits_per_character
from rnn2gpt.modern import ModernGPT
from rnn2gpt.ngram import KneserNey, KneserNeyConfig
from rnn2gpt.seq2seq import CharLSTMAttention
from rnn2gpt.training import Trainer, TrainingConfig, evaluate

NETWORKS = {
    "rnn": "RNN",
    "lstm": "LSTM",
    "lstm-attention": "LSTM with attention",
    "self-attention": "self-attention",
    "gpt": "GPT",
    "modern-gpt": "tuned GPT",
}
DEPTH = {"n_layers": 4, "n_heads": 3, "block_size": 64}  # of the two GPTs; their width is matched
# How a rung trains where it is not as the others do.
TUNED: dict[str, dict[str, Any]] = {"modern-gpt": {"optimizer": "muon"}}
PARAMETERS = 148_500  # an LSTM of width 128
FLOPS = 4e12  # about 2,300 steps of 32 × 64 characters at this size
RATES = (4e-3, 8e-3, 1.6e-2)  # and beyond, while the best is at an end
ORDERS = tuple(range(1, 9))
SEEDS = 3
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training part of all-plays
NETWORK_FRACTIONS = (1 / 4, 1.0)  # a quarter is about as long as nine-plays
LARGER = 4
BLOCK = 1000  # characters whose losses are averaged: the unit that the bootstrap draws

# Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom.
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to count or train, and the text to do it on. It runs in a process of its own."""

    model: str
    text: str = "nine-plays"
    fraction: float = 1.0  # of the training part, from its start
    tuning: bool = False  # judge on a tenth of the training part, not on the held-out text
    order: int = 0
    parameters: int = PARAMETERS
    flops: float = FLOPS
    learning_rate: float = 0.0
    seed: int = 0
    export: str = ""  # folder that receives the trained model

    def run(self) -> dict[str, Any]:
        """Measure: `nll` of every held-out character, and what the run was."""
        torch.set_num_threads(1)
        tokenizer = CharTokenizer(load_text(self.text))
        train, held_out = split(tokenizer.encode(load_text(self.text)))
        if self.tuning:
            train, held_out = split(train)
        train = train[: round(self.fraction * len(train))]
        wall, cpu = time.perf_counter(), time.process_time()
        measure = self._count if self.model == "ngram" else self._train
        nll, facts = measure(tokenizer, train, held_out)
        facts["seconds"] = round(time.perf_counter() - wall, 2)
        facts["cpu_seconds"] = round(time.process_time() - cpu, 2)
        return {"nll": nll, "train_characters": len(train), **facts}

    def _count(
        self, tokenizer: CharTokenizer, train: torch.Tensor, held_out: torch.Tensor
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        config = KneserNeyConfig(vocab_size=tokenizer.vocab_size, order=self.order)
        model = KneserNey.fit(train, config)
        counts = sum(len(t) for k, t in model.state_dict().items() if k.endswith(".counts"))
        facts = {"order": self.order, "parameters": counts, "flops": None, "tokens": len(train)}
        return model.nll(held_out).numpy(), facts

    def _train(
        self, tokenizer: CharTokenizer, train: torch.Tensor, held_out: torch.Tensor
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        architecture = MODELS[self.model]
        sizes = matched_config(self.model, tokenizer.vocab_size, self.parameters)
        per_token = flops_per_token(architecture.build(sizes))
        settings = TrainingConfig(
            model=self.model,
            steps=1,
            learning_rate=self.learning_rate,
            seed=self.seed,
            device="cpu",
            **TUNED.get(self.model, {}),
        )
        tokens = settings.batch_size * settings.block_size
        steps = max(1, round(self.flops / (per_token * tokens)))
        settings = replace(
            settings,
            steps=steps,
            min_learning_rate=self.learning_rate / 20,
            evaluate_every=500,
        )
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(settings, sizes, tokenizer, train, held_out, folder)
            result = trainer.run()
            with (Path(folder) / "log.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
        nll = evaluate(architecture, trainer.model, held_out).numpy()
        facts = {
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "config": asdict(sizes),
            "training": asdict(settings),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "flops": per_token * tokens * steps,
            "tokens": result.tokens,
            "tokens_per_second": round(result.tokens_per_second),
            "curve": [[int(r["tokens"]), round(float(r["validation_nats"]), 4)] for r in rows],
        }
        if self.export:
            self._export(trainer, held_out)
        return nll, facts

    def _export(self, trainer: Trainer, held_out: torch.Tensor) -> None:
        """Keep the model in half precision, with the loss that it has after the rounding."""
        weights = {name: w.half().float() for name, w in trainer.model.state_dict().items()}
        trainer.model.load_state_dict(weights)
        nats = evaluate(MODELS[self.model], trainer.model, held_out).mean().item()
        save_model(
            Path(self.export),
            self.model,
            trainer.model_config,
            weights,
            trainer.tokenizer,
            torch.float16,
            command="rnn2gpt ladder",
            text=self.text,
            seed=self.seed,
            step=trainer.step,
            tokens=trainer.tokens,
            validation_nats=nats,
        )


def matched_config(model: str, vocab_size: int, parameters: int) -> Any:
    """The model's sizes at the width whose number of parameters comes nearest to `parameters`.

    Heads need a width that they divide, and rotation an even part of it for each.
    """
    architecture = MODELS[model]
    sizes = DEPTH if issubclass(architecture.config, GPTConfig) else {}
    unit = 2 * sizes["n_heads"] if sizes else 1

    def config(units: int) -> Any:
        return architecture.config(vocab_size=vocab_size, d_model=unit * units, **sizes)

    def count(units: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in architecture.build(config(units)).parameters())

    low, high = 1, 2
    while count(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return config(min((low, high), key=lambda units: abs(count(units) - parameters)))


def flops_per_token(model: nn.Module) -> int:
    """Training FLOPs for one token: 6 for each weight that multiplies, and attention's own.

    Two forward and four backward (Kaplan et al. 2020, section 2.1). An embedding is looked up, not
    multiplied, and does not count, unless it is the head too. A query is multiplied with the keys
    of a whole window and the weights with its values: 12 · layers · window · width (Chowdhery et
    al. 2022, appendix B).
    """
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    if isinstance(model, GPT | ModernGPT):
        looked_up.discard(id(model.head.weight))
    multiplied = 6 * sum(p.numel() for p in model.parameters() if id(p) not in looked_up)
    if isinstance(model, CharLSTMAttention):
        return multiplied + 12 * model.window * model.head.in_features
    if isinstance(model, CharAttention):
        return multiplied + 12 * len(model.layers) * model.block_size * model.head.in_features
    if isinstance(model, GPT | ModernGPT):
        return multiplied + 12 * len(model.blocks) * model.block_size * model.head.in_features
    return multiplied


# --- putting measurements together ----------------------------------------------------------------


def summarize(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One rung from its runs (one per seed): mean loss, and how sure of it one can be.

    `seed_interval` is Student's 95 % interval of the mean over seeds. `text_interval` is a 95 %
    bootstrap over blocks of the held-out text, with the seeds averaged: how the number would move
    on another text of the same kind. `block_nats` are those blocks' means, to compare in pairs.
    """
    nll = np.mean([run["nll"] for run in runs], axis=0)  # (N,)
    nats, n = float(nll.mean()), len(nll)
    blocks = nll[: n // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=1)  # (N,) → (blocks, BLOCK)
    each = [float(run["nll"].mean()) for run in runs]
    shared = {k: v for k, v in runs[0].items() if k not in {"nll", "seed", "curve", *_PER_RUN}}
    return {
        **shared,
        "nats": round(nats, 5),
        "bits_per_character": round(bits_per_character(nats, n, n), 5),
        "seed_interval": _rounded(seed_interval(each)),
        "text_interval": _rounded(text_interval(blocks)),
        "seconds": round(mean(run["seconds"] for run in runs), 2),
        "cpu_seconds": round(mean(run["cpu_seconds"] for run in runs), 2),
        "block_nats": [round(float(b), 4) for b in blocks],
        "runs": [
            {"nats": round(one, 5)} | {k: run[k] for k in ("seed", *_PER_RUN, "curve") if k in run}
            for one, run in zip(each, runs, strict=True)
        ],
    }


_PER_RUN = ("seconds", "cpu_seconds", "tokens_per_second")


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean, or None for a single run."""
    if not 1 < len(values) <= len(_STUDENT_T) + 1:
        return None
    half = _STUDENT_T[len(values) - 2] * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def text_interval(blocks: NDArray[np.float64], resamples: int = 2000) -> tuple[float, float] | None:
    """Percentile bootstrap of the mean over blocks (Efron & Tibshirani 1993, chapter 13)."""
    if len(blocks) < 2:
        return None
    chance = np.random.default_rng(0)
    means = blocks[chance.integers(len(blocks), size=(resamples, len(blocks)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _rounded(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [round(end, 5) for end in interval]


# --- climbing -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of the ladder to climb."""

    models: tuple[str, ...] = ("ngram", *NETWORKS)
    seeds: int = SEEDS
    parameters: int = PARAMETERS
    flops: float = FLOPS
    rates: tuple[float, ...] = RATES
    orders: tuple[int, ...] = ORDERS
    data_curve: bool = True
    jobs: int = 1
    export: Path | None = None


def climb(plan: Plan, path: Path, progress: bool = True) -> dict[str, Any]:
    """Measure what the plan names and `path` does not hold yet; returns the file's content.

    The file is written after every measurement, so a run that is broken off goes on where it was.
    A file made under another protocol (text, parameters, FLOPs, seeds) is started afresh.
    """
    ladder = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = _text("nine-plays")
    protocol = {
        "parameters": plan.parameters,
        "flops": plan.flops,
        "seeds": plan.seeds,
        "block_characters": BLOCK,
        "interval": 0.95,
    }
    if (ladder.get("text"), ladder.get("protocol")) != (text, protocol):
        ladder = {"text": text, "protocol": protocol}
    ladder |= {
        "command": "rnn2gpt ladder",
        "versions": {
            "rnn2gpt": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "machine": machine() | {"threads_per_run": 1, "runs_at_a_time": plan.jobs},
    }
    with ProcessPoolExecutor(plan.jobs, get_context("spawn")) as pool:
        for _ in _parts(plan, ladder, pool, progress):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_json(ladder), encoding="utf-8")
    return ladder


def _parts(
    plan: Plan, ladder: dict[str, Any], pool: ProcessPoolExecutor, progress: bool
) -> Iterator[None]:
    """Fill the ladder part by part; yields whenever there is something new to write."""

    def measure(part: str, jobs: dict[str, list[Job]], title: str) -> Iterator[None]:
        entries = ladder.setdefault(part, {})
        missing = {
            name: several
            for name, several in jobs.items()
            if name not in entries
            or entries[name].get("learning_rate", 0.0) != several[0].learning_rate
        }
        for name, runs in _run(pool, missing, title, progress):
            entries[name] = {"model": jobs[name][0].model} | summarize(runs)
            yield
        for name in jobs:  # in the ladder's order, not in the order of finishing
            entries[name] = entries.pop(name)
        yield

    networks = [model for model in plan.models if model in NETWORKS]
    base = Job(model="", parameters=plan.parameters, flops=plan.flops)
    if "ngram" in plan.models:
        counted = replace(base, model="ngram")
        jobs = {f"kneser-ney-{n}": [replace(counted, order=n)] for n in plan.orders}
        yield from measure("rungs", jobs, "n-grams")

    search = ladder.setdefault("search", {})
    tuning = replace(base, tuning=True)
    while tries := {
        f"{model}@{rate:g}": [replace(tuning, model=model, learning_rate=rate)]
        for model in networks
        for rate in rates_to_try(search.get(model, {}), plan.rates)
    }:
        for name, (run,) in _run(pool, tries, "learning rates", progress):
            model, rate = name.split("@")
            search.setdefault(model, {})[rate] = round(float(run["nll"].mean()), 5)
            yield
    trained = {
        model: replace(base, model=model, learning_rate=best_rate(search[model]))
        for model in networks
    }
    jobs = {model: list(_seeds(job, plan)) for model, job in trained.items()}
    yield from measure("rungs", jobs, "networks")

    if plan.data_curve:
        ladder["held_out"] = _text("all-plays")
        if "ngram" in plan.models:
            jobs = {
                f"kneser-ney-{n}@{fraction:g}": [
                    replace(counted, text="all-plays", order=n, fraction=fraction)
                ]
                for fraction in FRACTIONS
                for n in plan.orders
            }
            yield from measure("data_curve", jobs, "n-grams by size of text")
        for factor, name, fractions in ((1, "", NETWORK_FRACTIONS), (LARGER, "-larger", (1.0,))):
            jobs = {
                f"{model}{name}@{fraction:g}": [
                    replace(
                        job,
                        text="all-plays",
                        fraction=fraction,
                        parameters=factor * plan.parameters,
                        flops=factor * plan.flops,
                    )
                ]
                for model, job in trained.items()
                for fraction in fractions
            }
            yield from measure("data_curve", jobs, f"networks{name} by size of text")


def rates_to_try(found: dict[str, float], first: Sequence[float]) -> list[float]:
    """Learning rates still to measure: the first ones, then half or twice a best one at the end.

    >>> rates_to_try({"0.001": 2.0, "0.002": 1.9, "0.004": 1.8}, [0.001, 0.002, 0.004])
    [0.008]
    """
    if missing := [rate for rate in first if f"{rate:g}" not in found]:
        return missing
    rates, best = sorted(map(float, found)), best_rate(found)
    if len(rates) > 2 and best in (rates[0], rates[-1]):
        return [best / 2 if best == rates[0] else best * 2]
    return []


def best_rate(found: dict[str, float]) -> float:
    """The learning rate with the lowest loss."""
    return float(min(found, key=lambda rate: found[rate]))


def _seeds(job: Job, plan: Plan) -> Iterator[Job]:
    """The job once for each seed; the first one's model is kept for the pages."""
    export = str(plan.export / job.model) if plan.export else ""
    for seed in range(plan.seeds):
        yield replace(job, seed=seed, export=export if seed == 0 else "")


def _run(
    pool: ProcessPoolExecutor, jobs: dict[str, list[Job]], title: str, progress: bool
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run all jobs, everyone's first seed first; yields each name's runs when it has them all."""
    todo = [(name, i) for name, several in jobs.items() for i in range(len(several))]
    todo.sort(key=lambda item: item[1])
    futures = {pool.submit(jobs[name][i].run): (name, i) for name, i in todo}
    done: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in jobs}
    bar = tqdm(as_completed(futures), title, len(futures), unit="run", disable=not progress)
    for future in bar:
        name, i = futures[future]
        done[name][i] = future.result()
        if len(done[name]) == len(jobs[name]):
            yield name, [runs for _, runs in sorted(done[name].items())]


def _json(ladder: dict[str, Any]) -> str:
    """Indented, with a list of numbers on one line."""
    text = json.dumps(ladder, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def _text(name: str) -> dict[str, Any]:
    corpus = CORPORA[name]
    held_out = round(0.1 * corpus.characters)
    return {
        "name": name,
        "sha256": corpus.sha256,
        "characters": corpus.characters,
        "vocabulary": corpus.vocabulary,
        "train_characters": corpus.characters - held_out,
        "held_out_characters": held_out,
    }


def machine() -> dict[str, Any]:
    """What measured: the processor and its cores, nothing that names the machine."""
    processor = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {
        "processor": processor or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }


def table(ladder: dict[str, Any]) -> str:
    """The rungs as text, best last."""
    lines = [f"{'rung':<16}{'parameters':>12}{'FLOPs':>10}{'s':>8}{'nats':>9}{'bits/char':>11}"]
    for name, rung in sorted(ladder["rungs"].items(), key=lambda item: -item[1]["nats"]):
        flops = "–" if rung["flops"] is None else f"{rung['flops']:.1e}"
        lines.append(
            f"{name:<16}{rung['parameters']:>12,}{flops:>10}{rung['seconds']:>8.1f}"
            f"{rung['nats']:>9.4f}{rung['bits_per_character']:>11.4f}"
        )
    return "\n".join(lines)
