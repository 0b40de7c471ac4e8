"""Verbs that teach a trained model a task: finetune, classify."""

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
@click.option("--learning-rate", type=float, help="Peak rate [the method's own tuned one].")
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
    config = c.ClassificationConfig(
        method=method,
        steps=steps,
        learning_rate=learning_rate or c.LEARNING_RATES[method],
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
