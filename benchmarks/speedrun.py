"""What each modern change buys a small GPT when all get the same processor time.

    python benchmarks/speedrun.py                # the nine plays, into book/_data/speedrun.json
    python benchmarks/speedrun.py --text FILE    # your own text, into the same file
    python benchmarks/speedrun.py --quick        # a few steps, to see that it all works

The first rung is nanoGPT's recipe for a CPU. Each further rung changes one thing and keeps what the
rungs before it changed. All get the processor time T that the recipe's 2,000 steps take: before
anything is trained, every rung's step is timed in turns with the recipe's, and the ratio says how
many steps a rung may take. From then on a run is a function of its seed. T is time of one thread
(`time.process_time`), since the machine may be shared; building a model, timing and judging do not
count. The loss is the mean over the whole held-out text: every character is predicted once, with
half a window or more before it (`rnn2gpt.training.evaluate`); `context` is the window.

Rates and sizes were chosen beforehand, by short runs on the original text that were judged on the
last tenth of its training part: nothing was chosen on the text that judges here. The longer runs
were not searched: a run of 6 T was judged so, and the rest of their choices are guesses.

Finished runs are kept in a folder, so a command that was broken off goes on, and the file is
written after every run: first everyone's first seed, then everyone's second. It holds

- `command`, `versions`, `machine`;
- `attention`: for each `context` and each `precision` that the processor has, milliseconds (`ms`)
  of a forward and a backward pass, by how the attention is computed;
- `texts`: for each text, by name,
  - `text`: its SHA-256, characters, vocabulary and split;
  - `T`: processor seconds of the recipe's run, the mean over seeds;
  - `rungs`, in order: `name`, `change` (a sentence), `set` (what it sets in `Recipe`), `budget`
    (1, in units of T), `recipe` (all of it), `parameters`, `ms_per_step`, `steps`, `tokens`,
    `context`, `cpu_seconds` and `nats` (means over seeds), `bits_per_character`, `seed_interval`
    (Student's 95 %, null for one seed), `runs` (`seed`, `nats`, `cpu_seconds` of each) and `gain`
    (nats less than the rung before; the first has none);
  - `longer`: the same entries for larger budgets, one seed each;
  - `counting`: a Kneser–Ney model of the same text (`order`, `nats`, `cpu_seconds`), and `mixed`:
    by rung, the losses of the average of its probabilities and the counts', half and half. That is
    another model, not a better recipe, and stands apart;
  - `bars`, on the original text alone: `target` nats within `budget`, what the network alone
    reached (`nats`, `in_T`, `met`), and `mixed_nats`, with counting.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as fused

from course.ladder import machine, seed_interval
from rnn2gpt.attention import causal_mask, scaled_dot_product_attention
from rnn2gpt.checkpoint import MODELS, write_json
from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
from rnn2gpt.devices import PRECISIONS, autocast, has_bfloat16, pick_precision
from rnn2gpt.metrics import bits_per_character
from rnn2gpt.modern import ModernGPT, ModernGPTConfig
from rnn2gpt.ngram import KneserNey, KneserNeyConfig
from rnn2gpt.optim import Muon, muon_groups
from rnn2gpt.rnn import clip_grad_norm_
from rnn2gpt.training import evaluate, seed_everything

OUT = Path("book/_data/speedrun.json")
COMMAND = "python benchmarks/speedrun.py"
STEPS = 2000  # the recipe's
ROUNDS = 15  # of timing
ORDER = 6  # of the Kneser–Ney model
CPU = torch.device("cpu")
ORIGINAL = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
BARS = ((1.0, 1.50), (2.5, 1.4697), (12.0, 1.42))  # times T, nats; 1.4697 is nanoGPT's on a GPU


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and how to train it. The defaults are nanoGPT's recipe for a CPU (Karpathy 2022)."""

    n_layers: int = 4
    n_heads: int = 4
    d_model: int = 128
    block_size: int = 64
    batch_size: int = 12
    dropout: float = 0.0
    rotary: bool = False
    rms_norm: bool = False
    qk_norm: bool = False
    relu_squared: bool = False
    mixing: bool = False
    zero_init: bool = False
    tied: bool = True
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    final_rate: float = 0.1  # of the peak, at the end
    warmup: float = 0.05  # of the steps
    beta2: float = 0.99
    weight_decay: float = 0.1
    precision: str = "float32"  # of matrix products

    def build(self, vocab_size: int) -> ModernGPT:
        """The model; with all switches off it is the course's GPT."""
        sizes = {f.name: getattr(self, f.name) for f in fields(self) if f.name in _MODEL}
        return ModernGPT(ModernGPTConfig(vocab_size=vocab_size, **sizes))

    def rate(self, done: float) -> float:
        """The learning rate when a share `done` of the steps is behind."""
        if done < self.warmup:
            return self.learning_rate * done / self.warmup
        left = (1 - done) / (1 - self.warmup)
        if self.schedule == "cosine":
            left = 0.5 * (1 - math.cos(math.pi * left))
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * left)


_MODEL = {f.name for f in fields(ModernGPTConfig)}


@dataclass(frozen=True)
class Rung:
    """What is changed in the recipe of the rung before, and for how many T the run may go on."""

    name: str
    change: str
    set: dict[str, Any] = field(default_factory=dict, hash=False)
    budget: float = 1.0


RUNGS: tuple[Rung, ...] = (
    Rung("recipe", "nanoGPT's recipe for a CPU."),
    Rung("schedule", "A higher rate that falls to nothing on a straight line.",
         {"learning_rate": 4e-3, "schedule": "linear", "final_rate": 0.0}),
    Rung("rotary", "Queries and keys turn with their position; no table of positions.",
         {"rotary": True}),
    Rung("rms-norm", "Root mean square norms without weights.", {"rms_norm": True}),
    Rung("qk-norm", "Queries and keys are normalized.", {"qk_norm": True}),
    Rung("relu-squared", "The square of ReLU in place of GELU.", {"relu_squared": True}),
    Rung("zero-init", "What writes into the stream starts at zero; the head is a table of its own.",
         {"zero_init": True, "tied": False}),
    Rung("mixing", "Attention reads each position with a share of the one before.",
         {"mixing": True}),
    Rung("muon", "Muon for the matrices.", {"optimizer": "muon", "learning_rate": 8e-3}),
    Rung("batch", "Batches of twice as many windows.", {"batch_size": 24}),
    Rung("bfloat16", "Products in bfloat16, where the processor has them.",
         {"precision": "bfloat16"}),
    Rung("context", "Windows twice as long, half as many.",
         {"block_size": 128, "batch_size": 12}),
)  # fmt: skip
if not has_bfloat16(CPU):  # imitated, it would only cost time
    RUNGS = tuple(rung for rung in RUNGS if rung.name != "bfloat16")
LONGER = (
    Rung("2.5 T", "More time: a quarter wider, more windows, a little dropout.",
         {"d_model": 160, "n_heads": 5, "batch_size": 16, "dropout": 0.05}, 2.5),
    Rung("12 T", "Half as wide again, two layers more, wider heads, windows of 256, dropout.",
         {"d_model": 192, "n_heads": 3, "n_layers": 6, "block_size": 256, "batch_size": 16,
          "learning_rate": 6e-3, "dropout": 0.15}, 12.0),
)  # fmt: skip


class Run:
    """One model in training: each `step` is a random batch and an update."""

    def __init__(self, recipe: Recipe, train: Tensor, vocab_size: int, steps: int, seed: int):
        seed_everything(seed)
        self.recipe, self.train, self.steps, self.done = recipe, train, steps, 0
        self.model = recipe.build(vocab_size)
        groups = muon_groups(self.model, recipe.weight_decay)
        if recipe.optimizer == "adamw":
            groups = [group | {"muon": False} for group in groups]
        self.optimizer = Muon(groups, betas=(0.9, recipe.beta2), fused=True)
        self.chance = torch.Generator().manual_seed(seed)
        self.autocast = autocast(CPU, pick_precision(recipe.precision, CPU))

    def step(self) -> None:
        """One batch, one update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate((self.done + 1) / self.steps)
        size = self.recipe.block_size, self.recipe.batch_size
        batch = get_batch(self.train, *size, self.chance)
        with self.autocast():
            loss = self.model(*batch)[1]
        self.optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1


@dataclass(frozen=True)
class Text:
    """A text cut in two, and what becomes of it."""

    train: Tensor
    held_out: Tensor
    vocab_size: int
    facts: dict[str, Any]

    @classmethod
    def of(cls, text: str) -> Text:
        tokenizer = CharTokenizer(text)
        train, held_out = split(tokenizer.encode(text))
        facts = {
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "characters": len(text),
            "vocabulary": tokenizer.vocab_size,
            "train_characters": len(train),
            "held_out_characters": len(held_out),
        }
        return cls(train, held_out, tokenizer.vocab_size, facts)


def milliseconds(recipes: Sequence[Recipe], text: Text, rounds: int) -> list[float]:
    """Processor time of a training step of each, in turns; the median over `rounds` turns."""
    runs = [Run(recipe, text.train, text.vocab_size, 10**6, seed=0) for recipe in recipes]
    seen: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + 1):
        for run, times in zip(runs, seen, strict=True):
            began = time.process_time()
            for _ in range(3):
                run.step()
            if turn:  # the first turn warms up
                times.append((time.process_time() - began) * 1000 / 3)
    return [statistics.median(times) for times in seen]


def train(recipe: Recipe, text: Text, steps: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """−ln p of every held-out character but the first after `steps` updates, and the facts."""
    run = Run(recipe, text.train, text.vocab_size, steps, seed)
    began = time.process_time()
    for _ in range(steps):
        run.step()
    seconds = time.process_time() - began
    nll = evaluate(MODELS["modern-gpt"], run.model, text.held_out)
    return nll, {"seed": seed, "nats": nll.mean().item(), "cpu_seconds": round(seconds, 1)}


class Bench:
    """One text's measurements, kept in a folder, so that a command that is broken off goes on."""

    def __init__(self, text: Text, cache: Path) -> None:
        self.text, self.cache = text, cache
        cache.mkdir(parents=True, exist_ok=True)

    def _path(self, *what: Any) -> Path:
        facts = [self.text.facts["sha256"], torch.__version__, platform.processor(), *what]
        return self.cache / hashlib.sha256(repr(facts).encode()).hexdigest()[:24]

    def pace(self, recipe: Recipe, rounds: int) -> tuple[float, float]:
        """Milliseconds of a step of the first recipe and of this one, timed in turns."""
        path = self._path("pace", recipe, rounds).with_suffix(".json")
        if not path.is_file():
            path.write_text(json.dumps(milliseconds((Recipe(), recipe), self.text, rounds)))
        first, own = json.loads(path.read_text())
        return first, own

    def run(self, recipe: Recipe, steps: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
        """`train`."""
        path = self._path("run", recipe, steps, seed).with_suffix(".pt")
        if not path.is_file():
            torch.save(train(recipe, self.text, steps, seed), path)
        return torch.load(path)


def recipes(plan: Sequence[Rung]) -> dict[Rung, Recipe]:
    """Each rung's recipe: what it sets, and what the rungs of one T before it did."""
    found, best = {}, Recipe()
    for rung in plan:
        found[rung] = replace(best, **rung.set)
        best = found[rung] if rung.budget == 1 else best
    return found


def climb(
    bench: Bench, plan: dict[Rung, Recipe], seeds: int, steps: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """One text's part of the JSON, again after every run, everyone's first seed first."""
    paces = {rung: bench.pace(recipe, rounds) for rung, recipe in plan.items()}
    allowed = {
        rung: max(1, round(rung.budget * steps * first / own))
        for rung, (first, own) in paces.items()
    }
    allowed[next(iter(plan))] = steps
    counted, counting = count(bench.text)
    runs: dict[Rung, list[Any]] = {}
    for seed in range(seeds):
        for rung, recipe in plan.items():
            if seed and rung.budget != 1:
                continue
            runs.setdefault(rung, []).append(bench.run(recipe, allowed[rung], seed))
            print(f"{rung.name:<16} seed {seed}: {runs[rung][-1][1]}", flush=True)
            done = [
                entry(rung, plan[rung], bench.text, paces[rung][1], allowed[rung], several)
                for rung, several in runs.items()
            ]
            for one, previous in zip(done[1:], done, strict=False):
                one["gain"] = round(previous["nats"] - one["nats"], 5)
            yield {
                "text": bench.text.facts,
                "T": done[0]["cpu_seconds"],
                "rungs": [one for one in done if one["budget"] == 1],
                "longer": [one for one in done if one["budget"] != 1],
                "counting": counting
                | {
                    "mixed": {
                        rung.name: losses([mixed(nll, counted) for nll, _ in several])
                        for rung, several in runs.items()
                    }
                },
            }


def entry(
    rung: Rung, recipe: Recipe, text: Text, pace: float, steps: int, runs: list[Any]
) -> dict[str, Any]:
    """What the JSON says about a rung."""
    facts = [one for _, one in runs]
    return {
        **asdict(rung),
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in recipe.build(text.vocab_size).parameters()),
        "ms_per_step": round(pace, 2),
        "steps": steps,
        "tokens": steps * recipe.batch_size * recipe.block_size,
        "context": recipe.block_size,
        "cpu_seconds": round(statistics.mean(one["cpu_seconds"] for one in facts), 1),
        **losses([nll for nll, _ in runs]),
        "runs": [one | {"nats": round(one["nats"], 5)} for one in facts],
    }


def losses(nll: Sequence[Tensor]) -> dict[str, Any]:
    """Mean loss over seeds, its interval, and the same in bits."""
    each = [one.mean().item() for one in nll]
    nats, n, interval = statistics.mean(each), len(nll[0]), seed_interval(each)
    return {
        "nats": round(nats, 5),
        "bits_per_character": round(bits_per_character(nats, n, n), 5),
        "seed_interval": None if interval is None else [round(end, 5) for end in interval],
    }


def count(text: Text) -> tuple[Tensor, dict[str, Any]]:
    """−ln p of every held-out character by a Kneser–Ney model, and what the JSON says of it."""
    began = time.process_time()
    counted = KneserNey.fit(text.train, KneserNeyConfig(vocab_size=text.vocab_size, order=ORDER))
    nll = counted.nll(text.held_out)
    seconds = round(time.process_time() - began, 1)
    return nll, {"order": ORDER, "nats": round(nll.mean().item(), 5), "cpu_seconds": seconds}


def mixed(one: Tensor, other: Tensor) -> Tensor:
    """−ln of two models' probabilities averaged, from −ln of each."""
    return math.log(2) - torch.logaddexp(-one, -other)


def bars(part: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached on the original text, and what was."""
    reached = {run["budget"]: run for run in (*part["rungs"], *part["longer"])}  # the last of each
    return [
        {
            "budget": budget,
            "target": target,
            "nats": run["nats"],
            "in_T": round(run["cpu_seconds"] / part["T"], 2),
            "met": run["nats"] <= target,
            "mixed_nats": part["counting"]["mixed"][run["name"]]["nats"],
        }
        for budget, target in BARS
        if (run := reached.get(budget))
    ]


def attention(contexts: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Forward and backward of causal attention three ways: 4 heads of 32, 4,096 tokens."""
    precisions = ("float32", "bfloat16") if has_bfloat16(CPU) else ("float32",)
    rows = []
    for t, precision in itertools.product(contexts, precisions):
        sizes, dtype = (4096 // t, 4, t, 32), PRECISIONS[precision]
        qkv = [torch.randn(sizes, dtype=dtype, requires_grad=True) for _ in range(3)]
        mask = causal_mask(t)
        ways: dict[str, Callable[..., Tensor]] = {
            "explicit": lambda q, k, v, mask=mask: scaled_dot_product_attention(q, k, v, mask)[0],
            "fused with a mask": lambda q, k, v, mask=mask: fused(q, k, v, mask),
            "fused, causal": lambda q, k, v: fused(q, k, v, is_causal=True),
        }
        seen: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way, attend in ways.items():
                began = time.process_time()
                torch.autograd.grad(attend(*qkv).sum(), qkv)
                if turn:
                    seen[way].append(1000 * (time.process_time() - began))
        ms = {way: round(statistics.median(times), 2) for way, times in seen.items()}
        rows.append({"context": t, "precision": precision, "ms": ms})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, help="a file of your own [the nine plays]")
    parser.add_argument("--only", nargs="+", help="rungs to measure, by name [all]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("rnn2gpt")))
    parser.add_argument(
        "--quick", action="store_true", help="a few steps, to see that it all works"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, rounds = (3, 1) if options.quick else (STEPS, ROUNDS)
    name = options.text.stem if options.text else "nine-plays"
    text = Text.of(load_text(text_file=options.text))
    wanted = {RUNGS[0].name, *(options.only or (rung.name for rung in (*RUNGS, *LONGER)))}
    plan = {rung: r for rung, r in recipes((*RUNGS, *LONGER)).items() if rung.name in wanted}
    facts = {
        "command": COMMAND,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": machine() | {"threads": 1},
        "attention": attention((64, 256, 1024), rounds),
    }
    bench = Bench(text, options.cache / "speedrun")
    for part in climb(bench, plan, options.seeds, steps, rounds):
        if part["text"]["sha256"] == ORIGINAL:
            part["bars"] = bars(part)
        # Read anew each time: another command may be at work on another text.
        texts = json.loads(options.out.read_text())["texts"] if options.out.is_file() else {}
        write_json(options.out, facts | {"texts": texts | {name: part}})


if __name__ == "__main__":
    main()
