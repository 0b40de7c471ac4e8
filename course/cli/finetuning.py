"""Verbs that teach a trained model a task: finetune, classify, instruct."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from course.cli.group import main

# Named here, not read from the package: `rnn2gpt --help` must not wait for torch.
SENTIMENT = ["sentiment", "sentiment-zh"]
METHODS = ["head", "last-block", "all", "lora"]
SMALL_GPT = "the course's small GPT"


@main.command()
@click.option("--task", type=click.Choice(SENTIMENT), help="The course's labeled texts.")
@click.option(
    "--labeled",
    "data_file",
    type=click.Path(path_type=Path),
    help="Your own: label, tab, text on each line of a UTF-8 file.",
)
@click.option(
    "--method",
    default="all",
    show_default=True,
    type=click.Choice(METHODS),
    help="Which weights are trained, the new head among them.",
)
@click.option(
    "--pretrained",
    help=f"A GPT's folder, or GPT-2's weights: folder, file or name to download [{SMALL_GPT}].",
)
@click.option("--from-scratch", is_flag=True, help="Its sizes and vocabulary, but random weights.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run [runs/TASK].")
@click.option("--labels", type=click.IntRange(min=2), help="Train on so many labeled texts [all].")
@click.option("--epochs", default=3.0, show_default=True, help="Times that each text is read.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="End after these.")
@click.option("--rank", default=8, show_default=True, type=click.IntRange(min=1), help="Of lora.")
@click.option(
    "--alpha", default=16.0, show_default=True, help="Of lora; the detour's scale × rank."
)
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--block-size", default=128, show_default=True, type=click.IntRange(min=1),
    help="Tokens after which a text is cut.",
)  # fmt: skip
@click.option(
    "--optimizer", type=click.Choice(["adamw", "muon"]), help="[the method's and the start's own]"
)
@click.option("--learning-rate", type=float, help="Peak rate [the optimizer's own].")
@click.option(
    "--dropout", default=0.1, show_default=True, type=click.FloatRange(0, 1, max_open=True)
)
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def finetune(
    task: str | None, data_file: Path | None, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Teach a trained GPT to label texts: --task, or --labeled with your own.

    The model of the run's lowest validation loss is kept, and judged on the test texts. Ctrl-C
    keeps what was learned; --resume goes on from there.
    """
    from rnn2gpt.checkpoint import CheckpointError
    from rnn2gpt.data import DataError
    from rnn2gpt.devices import OutOfMemory

    if bool(task) == bool(data_file):
        raise click.UsageError("Give either --task, or --labeled with a file of your own.")
    name = task or (data_file.stem if data_file else "")
    out = out or Path("runs") / name
    try:
        if not options["resume"] and any((out / part).exists() for part in ("best", "last")):
            raise CheckpointError(
                f"{out} holds a model already. Add --resume to go on with that run, or choose "
                f"another folder with --out."
            )
        result = _finetune(out, task, data_file, name, **options)
    except (CheckpointError, DataError, OutOfMemory, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"Cannot write to {out}: {error}") from None
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    low, high = result["interval"]
    click.echo(
        f"{result['accuracy']:.1%} of {result['test']:,} test texts right (95 %: {low:.1%} to "
        f"{high:.1%}); the commonest label alone: {result['majority']:.1%}"
    )
    click.echo(
        f"Trained {result['trained_parameters']:,} of {result['parameters']:,} weights on "
        f"{result['train']:,} texts in {result['seconds']:.0f} s."
    )
    if result["interrupted"]:
        click.echo(f"Stopped at step {result['step']:,}. Go on with the same command and --resume.")
    click.echo(f'Kept in {out}. Try: rnn2gpt classify {out} "…"')


def _finetune(
    out: Path,
    task: str | None,
    data_file: Path | None,
    name: str,
    *,
    method: str,
    pretrained: str | None,
    from_scratch: bool,
    labels: int | None,
    epochs: float,
    rank: int,
    alpha: float,
    dropout: float,
    resume: bool,
    optimizer: str | None,
    learning_rate: float | None,
    **options: Any,
) -> dict[str, Any]:
    from dataclasses import replace

    from rnn2gpt import classifier as c
    from rnn2gpt.checkpoint import load_model
    from rnn2gpt.finetune import trained_parameters
    from rnn2gpt.sentiment import load_examples, majority

    if from_scratch and method != "all":
        raise ValueError(f"--from-scratch leaves nothing to build on: no --method {method}.")
    start = c.load_start(pretrained or _small_gpt())
    texts = load_examples(task or "", data_file=data_file)
    if labels is not None and labels > len(texts.train):
        raise ValueError(f"--labels {labels}: there are only {len(texts.train):,} to train on.")
    texts = replace(texts, train=texts.train[:labels])
    batches = max(1, len(texts.train) // options["batch_size"])
    steps = max(1, round(epochs * batches))
    usual, rate = c.usual_optimizer(method, start, from_scratch)
    if optimizer not in (None, usual) and learning_rate is None:
        raise ValueError(f"--optimizer {optimizer} here needs a --learning-rate of its own.")
    config = c.ClassificationConfig(
        method=method,
        steps=steps,
        optimizer=optimizer or usual,
        learning_rate=learning_rate or rate,
        warmup_steps=steps // 10,
        evaluate_every=max(1, min(batches, steps) // 2),
        **options,
    )
    sizes = c.classifier_config(start.model.config, texts.labels, method, rank, alpha, dropout)
    max_tokens = min(config.block_size, sizes.block_size)
    trainer = c.ClassificationTrainer(
        config,
        sizes,
        start.tokenizer,
        texts,
        out,
        start=None if from_scratch else start.model,
        task=name,
        method=method,
        max_tokens=max_tokens,
        pretrained=None if from_scratch else str(pretrained or "small-gpt"),
    )
    if resume:
        trainer.resume()
    result = trainer.run(progress=True).to_json()
    best = load_model(out)
    best.model.to(trainer.device)
    rows, right = zip(*c.encode(best.tokenizer, texts.test, max_tokens), strict=True)
    accuracy = c.accuracy(c.predict(best.model, rows), right)
    commonest = majority(texts.train)
    del result["bits_per_character"], result["mfu"]
    return result | {
        "task": name,
        "method": method,
        "accuracy": accuracy,
        "interval": c.wilson(accuracy, len(right)),
        "majority": sum(label == commonest for label in right) / len(right),
        "train": len(texts.train),
        "test": len(right),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "trained_parameters": trained_parameters(trainer.model),
        "learning_rate": config.learning_rate,
    }


def _small_gpt() -> str:
    from rnn2gpt.checkpoint import CheckpointError

    folder = Path(__file__).resolve().parents[2] / "book" / "_data" / "models" / "small-gpt"
    if not folder.is_dir():
        raise CheckpointError(
            f"{SMALL_GPT.capitalize()} is not installed here: name a model with --pretrained, a "
            f"folder of `rnn2gpt train --model gpt --tokenizer bpe`, or gpt2 to download GPT-2."
        )
    return str(folder)


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--json", "as_json", is_flag=True, help="Print texts and probabilities as JSON.")
def classify(checkpoint: Path, texts: tuple[str, ...], device: str, as_json: bool) -> None:
    """Label TEXTS with the model in the folder CHECKPOINT, or each line of the input."""
    from rnn2gpt.checkpoint import CheckpointError, load_model
    from rnn2gpt.classifier import classify as run
    from rnn2gpt.devices import pick_device

    given = list(texts) or [line.strip() for line in sys.stdin if line.strip()]
    if not given:
        raise click.ClickException("There is nothing to label: give a text, or lines of input.")
    try:
        loaded = load_model(checkpoint)
        where = pick_device(device)
        if hasattr(loaded.model, "to"):
            loaded.model.to(where)
        answers = run(loaded, given)
    except (CheckpointError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        rows = [{"text": t, "labels": a} for t, a in zip(given, answers, strict=True)]
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for text, answer in zip(given, answers, strict=True):
        label, p = next(iter(answer.items()))
        click.echo(f"{label} ({p:.0%})  {text}")


@main.command()
@click.option(
    "--pretrained",
    help=f"A GPT's folder, or GPT-2's weights: folder, file or name to download [{SMALL_GPT}].",
)
@click.option(
    "--data",
    "data_file",
    type=click.Path(path_type=Path),
    help='Your own examples in place of the course\'s six tasks: on each line {"prompt": …,'
    ' "response": …}.',
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/instruct"))
@click.option("--steps", type=click.IntRange(min=1), help="Budget in optimizer steps [1000].")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Budget in minutes.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Examples in a step [20].")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True))
@click.option("--optimizer", type=click.Choice(["adamw", "muon"]), help="[adamw]")
@click.option(
    "--replay",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of rows that are windows of the plays, against forgetting.",
)
@click.option("--dpo", is_flag=True, help="Then go on with preferences, in OUT/dpo.")
@click.option(
    "--preferences",
    "pairs_file",
    type=click.Path(path_type=Path),
    help='With --dpo: your own, on each line {"prompt": …, "chosen": …, "rejected": …}'
    " [the model's own answers, polite ones preferred].",
)
@click.option("--beta", type=click.FloatRange(min=0, min_open=True), help="With --dpo [0.1].")
@click.option("--dpo-steps", type=click.IntRange(min=1), help="With --dpo [60].")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def instruct(out: Path, as_json: bool, dpo: bool, **options: Any) -> None:
    """Teach a GPT to answer, in so many steps of examples; with --dpo, then also to prefer.

    Only the answers count in the loss. What is kept in OUT answers with `rnn2gpt generate OUT`.
    """
    from rnn2gpt.checkpoint import CheckpointError
    from rnn2gpt.data import DataError
    from rnn2gpt.devices import OutOfMemory

    for name in ("pairs_file", "beta", "dpo_steps"):
        if options[name] is not None and not dpo:
            flag = {"pairs_file": "preferences"}.get(name, name.replace("_", "-"))
            raise click.ClickException(f"--{flag} goes with --dpo.")
    try:
        if any((out / name).exists() for name in ("config.json", "best", "last")):
            raise CheckpointError(f"{out} holds a model already: choose another folder with --out.")
        given = {name: value for name, value in options.items() if value is not None}
        result = _instruct(out, dpo, **given)
    except (CheckpointError, DataError, OutOfMemory, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"Cannot write to {out}: {error}") from None
    if as_json:
        click.echo(json.dumps(result, indent=1, ensure_ascii=False))
        return
    for name, row in result["tests"].items():
        other = {"bleu": "BLEU", "rouge_l": "ROUGE-L"}
        more = "".join(f", {label} {row[key]:.1f}" for key, label in other.items() if key in row)
        click.echo(f"{name:<20}{row['exact']:>5.0%} of {row['n']} exact{more}")
    if "dpo" in result:
        told = result["dpo"]
        click.echo(
            f"Preferences: loss {told['validation_nats']:.3f} on {told['held_out']} held-out pairs "
            f"(ln 2 = 0.693 at the start), from {told['pairs']} pairs"
        )
    folder = result["folder"]
    click.echo(f'Kept in {folder}. Try: rnn2gpt generate {folder} --prompt "…" --temperature 0')


def _instruct(
    out: Path,
    dpo: bool,
    *,
    pretrained: str | None = None,
    data_file: Path | None = None,
    pairs_file: Path | None = None,
    replay: float = 0.0,
    beta: float = 0.1,
    dpo_steps: int = 60,
    **options: Any,
) -> dict[str, Any]:
    import torch

    from rnn2gpt.checkpoint import load_model
    from rnn2gpt.classifier import load_start
    from rnn2gpt.data import load_text, split
    from rnn2gpt.dpo import read_preferences
    from rnn2gpt.instruct import (
        InstructConfig,
        InstructTrainer,
        answers,
        encode_split,
        encode_text,
        judge,
    )
    from rnn2gpt.tasks import load_tasks

    source = pretrained or _small_gpt()
    base = load_start(source)
    name, tokenizer = base.info["model"], base.tokenizer
    preferences = read_preferences(pairs_file) if pairs_file else None
    splits = load_tasks(data_file=data_file)
    rows, held_out = (encode_split(tokenizer, splits, part) for part in ("train", "validation"))
    if replay:
        text = torch.tensor(tokenizer.encode(split(load_text("all-plays"))[0][:800_000]))
        windows = round(len(rows) * replay / (1 - replay))
        rows += encode_text(text, min(64, base.model.block_size), windows)
    if not options.keys() & {"steps", "minutes"}:
        options["steps"] = 1000
    if "rnn2gpt" not in base.info:  # GPT-2 was trained for long: a small rate
        options.setdefault("learning_rate", 1e-4)
    trainer = InstructTrainer(
        InstructConfig(model=name, **options),
        base.model.config,
        tokenizer,
        rows,
        held_out,
        out,
        initialize=lambda model: model.load_state_dict(base.model.state_dict()),
        data="tasks" if data_file is None else data_file.name,
        pretrained=pretrained or "small-gpt",
    )
    result: dict[str, Any] = trainer.run(progress=True).to_json() | {"folder": str(out)}
    tuned = load_model(out)
    model = tuned.model.to(trainer.device)
    result["tests"] = {
        name: judge(answers(model, tokenizer, [e.prompt for e in examples]), examples)
        for name, examples in splits.items()
        if name not in ("train", "validation")
    }
    if dpo:
        asked = [e.prompt for e in splits["train"] if e.task in ("talk", "own")]
        device = {key: options[key] for key in ("seed", "device")}
        told = _prefer(
            tuned, out / "dpo", asked, preferences, model=name, beta=beta, steps=dpo_steps, **device
        )
        result |= {"dpo": told, "folder": str(out / "dpo")}
    return result


def _prefer(
    tuned: Any, out: Path, asked: list[str], preferences: Any, **options: Any
) -> dict[str, Any]:
    """Preferences, the user's own or the model's own answers judged, learned in a folder."""
    from rnn2gpt.dpo import DPOConfig, DPOTrainer, sample_preferences
    from rnn2gpt.tasks import ends_politely

    pairs = preferences
    if pairs is None:
        unique = list(dict.fromkeys(asked))[:400]
        pairs = sample_preferences(tuned.model, tuned.tokenizer, unique, ends_politely)
    if len(pairs) < 10:
        raise ValueError(
            f"There are {len(pairs)} pairs of a preferred and another answer: too few to learn"
            " from. Give some with --preferences FILE, or tune for longer first."
        )
    held_out = max(1, len(pairs) // 10)
    train, rest = pairs[:-held_out], pairs[-held_out:]
    trainer = DPOTrainer(DPOConfig(**options), tuned.model, tuned.tokenizer, train, rest, out)
    result = trainer.run(progress=True).to_json()
    return result | {"pairs": len(train), "held_out": len(rest)}
