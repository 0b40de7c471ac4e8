"""The small GPT tuned on six tasks, and then on a preference: what it learns and what it forgets.

    python benchmarks/instruction_tuning.py --part scratch
    python benchmarks/instruction_tuning.py --part tuned
    python benchmarks/instruction_tuning.py --part replay
    python benchmarks/instruction_tuning.py --part preferences

The first three train, for some one, one and four minutes of processor time. The last needs `replay`
and takes some two. All write into book/_data/instruction_tuning.json; `replay` also stores its
model in book/_data/models/small-instruct. With `--slice N` a run stops after N more steps, and the
same command goes on with it.

What the file holds:

    tasks        split -> examples, mean tokens of prompt and answer; one example each
    runs         name -> steps, tokens that counted, cpu_seconds, curve (step, validation_nats),
                 play_nats (the first tokens of the last tenth of the plays), and tests: test -> n,
                 exact, interval, bleu or rouge_l, samples (prompt, answer, reference, right);
                 `base` is the small GPT before tuning
    kinds        of wrong answers, how they are wrong: test -> kind -> how many
    preferences  n_pairs, pairs, and for the reference and each beta: polite (share of sampled
                 answers), words, kl, play_nats, exact match of the other tasks, samples; betas also
                 curve (step, loss, ln p of chosen and rejected answers less the reference's)

Intervals are 95 %, Wilson 1927.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest

from course.ladder import machine
from rnn2gpt.checkpoint import Checkpoint, load_model, save_model, write_json
from rnn2gpt.data import load_text, split
from rnn2gpt.dpo import DPOConfig, DPOTrainer, sample_preferences
from rnn2gpt.evaluation import evaluate
from rnn2gpt.instruct import (
    InstructConfig,
    InstructTrainer,
    answers,
    encode_example,
    encode_split,
    encode_text,
    end_id,
    exact_match,
    judge,
    log_probabilities,
)
from rnn2gpt.tasks import Example, Tasks, countries, ends_politely, load_tasks, without_closing
from rnn2gpt.training import MODELS

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "book/_data/instruction_tuning.json"
BASE = ROOT / "book/_data/models/small-gpt"
STORED = ROOT / "book/_data/models/small-instruct"
RUNS = ROOT / "build/instruction_tuning"
STEPS = {"scratch": 200, "tuned": 200, "replay": 700}
REPLAY, PLAY_TOKENS = 0.15, 20_000
BETAS = (0.03, 0.1, 0.5)
PREFERENCE_STEPS = 30


def plays(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of the part of the plays that the base model learned from, and of the rest."""
    known, held_out = split(load_text("all-plays"))
    wanted = torch.tensor(tokenizer.encode(held_out[: 4 * PLAY_TOKENS])[:PLAY_TOKENS])
    return torch.tensor(tokenizer.encode(known[:800_000])), wanted


def tune(name: str, base: Checkpoint, splits: Tasks, stop_after: int | None) -> dict[str, Any]:
    """Train one of the runs, or its next slice; empty as long as it is not done."""
    tokenizer = base.tokenizer
    rows = encode_split(tokenizer, splits, "train")
    if name == "replay":
        n = round(len(rows) * REPLAY / (1 - REPLAY))
        rows += encode_text(plays(tokenizer)[0], 64, n)
    steps = STEPS[name]
    config = InstructConfig(steps=steps, device="cpu", **recipe())
    trainer = InstructTrainer(
        config,
        base.model.config,
        tokenizer,
        rows,
        encode_split(tokenizer, splits, "validation"),
        RUNS / name,
        initialize=lambda model: (
            None if name == "scratch" else model.load_state_dict(base.model.state_dict())
        ),
    )
    if (RUNS / name / "last").exists():
        trainer.resume()
    goal = min(steps, trainer.step + (stop_after or steps))
    began = time.process_time()
    while trainer.step < goal:
        trainer.train_step()
        if trainer.step % 50 == 0 or trainer.step == goal:
            row = trainer._evaluate()
            trainer.seconds += time.process_time() - began
            began = time.process_time()
            trainer._save(row)
            print(name, trainer.step, round(row["validation_nats"] or 0, 3), flush=True)
    if goal < steps:
        return {}
    curve = [
        {"step": int(line["step"]), "validation_nats": float(line["validation_nats"])}
        for line in read_log(RUNS / name / "log.csv")
    ]
    return {
        "steps": steps,
        "counted_tokens": trainer.tokens,
        "cpu_seconds": round(trainer.seconds),
        "curve": curve,
    }


def recipe() -> dict[str, Any]:
    return {
        "batch_size": 20,
        "optimizer": "muon",
        "learning_rate": 8e-3,
        "schedule": "trapezoid",
        "warmup_steps": 20,
    }


def read_log(path: Path) -> list[dict[str, str]]:
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


# --- judging --------------------------------------------------------------------------------------


def interval(hits: int, n: int) -> list[float]:
    found = binomtest(hits, n).proportion_ci(method="wilson")
    return [found.low, found.high]


def tests(loaded: Checkpoint, splits: Tasks, n: int = 100) -> dict[str, Any]:
    """Every test of the tasks: greedy answers against the references, the first n of each."""
    found = {}
    for name, split_examples in splits.items():
        if name in ("train", "validation"):
            continue
        examples = split_examples[:n]
        given = answers(loaded.model, loaded.tokenizer, [e.prompt for e in examples], 28)
        scores = judge(given, examples)
        hits = [
            exact_match(without_closing(text), without_closing(e.response))
            for text, e in zip(given, examples, strict=True)
        ]
        found[name] = scores | {
            "interval": interval(sum(hits), len(hits)),
            "samples": [
                {"prompt": e.prompt, "answer": text, "reference": e.response, "right": hit}
                for text, e, hit in zip(given, examples, hits, strict=True)
            ],
        }
    return found


def play_nats(loaded: Checkpoint, ids: torch.Tensor) -> float:
    """Nats per token on a held-out piece of the plays."""
    return evaluate(MODELS[loaded.info["model"]], loaded.model, ids).mean().item()


def kinds(found: dict[str, Any]) -> dict[str, dict[str, int]]:
    """How the wrong answers are wrong, where there are few ways to be."""
    table: dict[str, Counter[str]] = {}
    truth = {p: c.name for part in countries() for c in part for p in c.places}
    for name, result in found.items():
        counts = table.setdefault(name, Counter())
        for sample in result["samples"]:
            prompt, answer = sample["prompt"], sample["answer"]
            if sample["right"]:
                counts["right"] += 1
            elif name == "lookup, swapped":
                place = prompt.rsplit("Where is ", 1)[1].rstrip("?")
                counts["the truth" if answer == truth[place] else "other"] += 1
            elif name.startswith(("lookup", "two-hop")):
                last = answer.removeprefix("the ")
                counts[
                    "another of the facts" if last and last in prompt else "no word of them"
                ] += 1
            elif name.startswith("headline"):
                right_words = sample["reference"].rsplit(" ", 1)[0] == answer.rsplit(" ", 1)[0]
                counts["only the score wrong" if right_words else "other"] += 1
            else:
                counts["wrong"] += 1
    return {name: dict(counts) for name, counts in table.items()}


def trimmed(found: dict[str, Any], n: int = 12) -> dict[str, Any]:
    """The tests with a few samples each: the file is read by a page."""
    return {name: row | {"samples": row["samples"][:n]} for name, row in found.items()}


def describe(splits: Tasks, tokenizer: Any) -> dict[str, Any]:
    table = {}
    for name, examples in splits.items():
        rows = [encode_example(tokenizer, e) for e in examples[:500]]
        counted = [sum(label != -100 for label in labels) for _, labels in rows]
        table[name] = {
            "examples": len(examples),
            "prompt_tokens": statistics.mean(
                len(ids) - n for (ids, _), n in zip(rows, counted, strict=True)
            ),
            "response_tokens": statistics.mean(counted),
            "example": vars(examples[0]),
        }
    return table


# --- preferences ----------------------------------------------------------------------------------


def prefer(reference: Checkpoint, splits: Tasks, play_ids: torch.Tensor) -> dict[str, Any]:
    """DPO for politeness from the model's own answers, at several betas."""
    model, tokenizer = reference.model, reference.tokenizer
    asked = list(dict.fromkeys(e.prompt for e in splits["train"] if e.task == "talk"))[:200]
    began = time.process_time()
    pairs = sample_preferences(model, tokenizer, asked, ends_politely)
    train, held_out = pairs[:-24], pairs[-24:]
    table: dict[str, Any] = {
        "n_prompts": len(asked),
        "n_pairs": len(train),
        "n_held_out": len(held_out),
        "sampling_seconds": round(time.process_time() - began, 1),
        "steps": PREFERENCE_STEPS,
        "pairs": [dict(zip(("prompt", "chosen", "rejected"), p, strict=True)) for p in train[:6]],
        "reference": behavior(reference, reference, splits, play_ids),
        "betas": {},
    }
    for beta in BETAS:
        began = time.process_time()
        config = DPOConfig(steps=PREFERENCE_STEPS, beta=beta, device="cpu", learning_rate=3e-4)
        trainer = DPOTrainer(config, model, tokenizer, train, held_out)
        curve = [drift(trainer)]
        while trainer.step < PREFERENCE_STEPS:
            trainer.train_step()
            if trainer.step % 10 == 0:
                curve.append(drift(trainer))
        policy = Checkpoint(trainer.model.eval(), tokenizer, reference.info)
        row = behavior(policy, reference, splits, play_ids)
        row |= {"curve": curve, "cpu_seconds": round(time.process_time() - began)}
        table["betas"][str(beta)] = row
        print("beta", beta, {k: row[k] for k in ("polite", "kl", "words")}, flush=True)
    return table


def drift(trainer: DPOTrainer) -> dict[str, float]:
    """Where a run stands on its held-out pairs: loss, and ln p against the reference's."""
    now = log_probabilities(trainer.model, trainer.held_out, trainer.pad_id).view(-1, 2)
    chosen, rejected = (now - trainer.held_out_sums).mean(dim=0).tolist()
    return {
        "step": trainer.step,
        "loss": trainer.validate(),
        "chosen": chosen,
        "rejected": rejected,
    }


def behavior(
    policy: Checkpoint, reference: Checkpoint, splits: Tasks, play_ids: torch.Tensor
) -> dict[str, Any]:
    """What a model does with held-out remarks, and with all the rest."""
    tokenizer, end = policy.tokenizer, end_id(policy.tokenizer)
    prompts = [e.prompt for e in splits["talk"]]
    chance = torch.Generator().manual_seed(1)
    sampled = answers(policy.model, tokenizer, prompts, temperature=1.0, generator=chance)
    greedy = answers(policy.model, tokenizer, prompts)
    rows = [
        encode_example(tokenizer, Example(prompt=p, response=a))
        for p, a in zip(prompts, sampled, strict=True)
    ]
    # KL(policy ‖ reference) for whole answers, from the policy's own samples.
    gap = log_probabilities(policy.model, rows, end) - log_probabilities(reference.model, rows, end)
    others = {name: splits[name] for name in ("dates", "lookup", "talk")}
    polite = [ends_politely(text) for text in sampled]
    found = tests(policy, others, 50)
    return {
        "polite": sum(polite) / len(polite),
        "polite_interval": interval(sum(polite), len(polite)),
        "polite_greedy": sum(map(ends_politely, greedy)) / len(greedy),
        "words": statistics.mean(len(text.split()) for text in sampled),
        "kl": gap.mean().item(),
        "kl_error": gap.std().item() / len(gap) ** 0.5,
        "play_nats": play_nats(policy, play_ids),
        "exact": {name: row["exact"] for name, row in found.items()},
        "polite_elsewhere": {
            name: sum(ends_politely(s["answer"]) for s in row["samples"]) / len(row["samples"])
            for name, row in found.items()
            if name != "talk"
        },
        "samples": [
            {"prompt": p, "answer": a} for p, a in list(zip(prompts, sampled, strict=True))[:8]
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--part", required=True, choices=["scratch", "tuned", "replay", "preferences"]
    )
    parser.add_argument("--slice", type=int, help="stop after so many steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base, splits = load_model(BASE), load_tasks()
    play_ids = plays(base.tokenizer)[1]
    new: dict[str, Any] = {"runs": {}, "kinds": {}}
    if options.part == "preferences":
        new["preferences"] = prefer(load_model(STORED), splits, play_ids)
    else:
        run = tune(options.part, base, splits, options.slice)
        if not run:
            return
        loaded = load_model(RUNS / options.part / "last")
        judged = {options.part: (loaded, run)}
        if options.part == "replay":
            store(loaded, run)
            judged = {"replay": (load_model(STORED), run), "base": (base, {})}  # as it is stored
        for name, (model, facts) in judged.items():
            found = tests(model, splits, 100 if name == "replay" else 50)
            row = facts | {"play_nats": play_nats(model, play_ids), "tests": trimmed(found)}
            new["runs"][name], new["kinds"][name] = row, kinds(found)
            print(name, {k: v["exact"] for k, v in found.items()}, row["play_nats"], flush=True)
    results = json.loads(OUT.read_text()) if OUT.is_file() else {"runs": {}, "kinds": {}}
    for key in ("runs", "kinds"):
        new[key] = results[key] | new[key]
    results |= {"command": "python benchmarks/instruction_tuning.py", "machine": machine()}
    results |= {"tasks": describe(splits, base.tokenizer), "recipe": recipe(), "replay": REPLAY}
    write_json(OUT, results | new)
    if options.part == "replay":
        write_card()


def store(loaded: Checkpoint, run: dict[str, Any]) -> None:
    """Keep the model where the site and later chapters find it, in half precision."""
    facts = {k: loaded.info[k] for k in ("template", "end_id", "step", "validation_nats")}
    save_model(
        STORED, "gpt", loaded.model.config, loaded.model.state_dict(), loaded.tokenizer,
        torch.float16, base="small-gpt", **facts,
    )  # fmt: skip


CARD = """# The small GPT that answers

The course's small GPT (`book/_data/models/small-gpt`, {parameters:,} parameters), tuned on six
generated tasks written as text: English number words into Chinese numerals, dates of eight locales
into ISO 8601, questions about given facts in one step and in two, event lists into headlines, and
small talk. It is the model of the chapter on instruction tuning.

```python
from rnn2gpt.checkpoint import load_model
from rnn2gpt.instruct import answers
loaded = load_model("book/_data/models/small-instruct")
answers(loaded.model, loaded.tokenizer, ["Write as a date: 9 mars 1987"])
```

Or `rnn2gpt generate book/_data/models/small-instruct --prompt "…" --temperature 0`.

## Data and training

24,000 examples from `rnn2gpt.tasks` (places and countries from ISO 3166 by pycountry, currencies
and dates from Unicode's CLDR by Babel) and windows of 64 tokens of Shakespeare's plays,
{replay:.0%} of all rows. {steps} steps of {batch} rows, seed 0, by

```bash
python benchmarks/instruction_tuning.py --part replay
```

Only answers count in the loss. The weights are stored in half precision.

## How good it is

Greedy answers, a hundred prompts each, exact match after SQuAD's normalization, 95 % intervals.
“Held out”: about countries, places or names that no training example has. “Swapped”: known places
with false facts. Naming one of the given facts at random gets 33 % of lookups and 50 % of two-hop
questions.

| test | exact match | interval |
|---|---|---|
{rows}

On held-out plays it needs {play:.2f} nats per token, where the small GPT needs {base:.2f}.

## What it cannot do

It knows these six kinds of prompt in these words, and nothing of the world: what it says about a
place is copied from the prompt or guessed. It is often wrong about names that it has not seen and
about questions that take two steps. It writes whatever it is led to; nothing was done to make it
safe.
"""


def write_card() -> None:
    """The model's card, from what the study measured."""
    results = json.loads(OUT.read_text())
    run, loaded = results["runs"]["replay"], load_model(STORED)
    rows = [
        f"| {name} | {row['exact']:.0%} | {row['interval'][0]:.0%} to {row['interval'][1]:.0%} |"
        for name, row in run["tests"].items()
    ]
    card = CARD.format(
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        replay=results["replay"],
        steps=run["steps"],
        batch=results["recipe"]["batch_size"],
        rows="\n".join(rows),
        play=run["play_nats"],
        base=results["runs"]["base"]["play_nats"],
    )
    (STORED / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
