"""The verb that makes a student's own GPT: assemble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from course.cli.group import main

_COLORS = {"you": "green", "us": "yellow", "nobody": "red"}
_WORDS = {"you": "yours", "us": "ours", "nobody": "left out"}


@main.command()
@click.argument("notebooks", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", default="my_gpt", type=click.Path(path_type=Path), help="[my_gpt]")
@click.option("--steps", type=click.IntRange(min=1), help="Then train it so many steps.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option(
    "--pretrained", help="Then fill it with a GPT-2: a folder, a file, or a name to download."
)
@click.option("--prompt", default="KING RICHARD III:\n", help="What its first text begins with.")
@click.option("--characters", default=200, show_default=True, type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def assemble(
    notebooks: tuple[Path, ...],
    out: Path,
    steps: int | None,
    device: str,
    pretrained: str | None,
    prompt: str,
    characters: int,
    as_json: bool,
) -> None:
    """Make your own GPT, an importable package, out of the graded cells of your NOTEBOOKS.

    Parts that are missing or not right are taken from ours and marked so. The package is proved
    against ours; with --steps it is trained, writes, and leaves an entry for the leaderboard. Your
    code runs here as it is, without a sandbox: assemble nobody else's.
    """
    from course.assemble import AssembleError
    from course.assemble import assemble as make
    from rnn2gpt.checkpoint import CheckpointError
    from rnn2gpt.data import DataError

    try:
        made = make(notebooks, out, _release)
        if not as_json:
            _show(made)
        if made.agrees:
            _use(made, steps, device, pretrained, prompt, characters, quiet=as_json)
    except (AssembleError, CheckpointError, DataError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(made.to_json(), indent=1, ensure_ascii=False))
    if not made.agrees:
        raise click.exceptions.Exit(1)


def _release(task: Any) -> bytes | None:
    """Our own notebook of an assignment, where the course lies beside the package."""
    path = Path(__file__).parents[2] / "exercises" / task.name / f"{task.notebook}.ipynb"
    return path.read_bytes() if path.is_file() else None


def _use(
    made: Any,
    steps: int | None,
    device: str,
    pretrained: str | None,
    prompt: str,
    characters: int,
    quiet: bool,
) -> None:
    """What was asked for beyond the package: GPT-2's weights, training, a text."""
    import contextlib
    import sys

    from course import assemble as course

    with contextlib.redirect_stdout(sys.stderr if quiet else sys.stdout):
        if pretrained:
            model, tokenizer, apart = course.pretrained(made, pretrained)
            click.echo(f"{pretrained} in your GPT: logits differ from ours by at most {apart:.1e}.")
            click.echo(course.continued(made, model, tokenizer, prompt.strip(), characters // 4))
        if steps:
            course.train(made, steps, device)
            click.echo(course.sample_text(made, prompt, characters, device))


def _show(made: Any) -> None:
    """The table of parts, what proof found, and what lies where."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table("chapter", "part", "whose", "why not yours", box=SIMPLE_HEAD, pad_edge=False)
    for chapter in dict.fromkeys(part.chapter for part in made.parts):
        parts = [part for part in made.parts if part.chapter == chapter]
        if len({(part.by, part.reason) for part in parts}) == 1:  # one line says it all
            names = "all of it" if len(parts) > 1 else parts[0].name
            rows = [(names, parts[0])]
        else:
            rows = [(part.name, part) for part in parts]
        for number, (name, part) in enumerate(rows):
            reason = part.reason if len(part.reason) <= 110 else part.reason[:109] + "…"
            whose = Text(_WORDS[part.by], style=_COLORS[part.by])
            table.add_row("" if number else chapter, name, whose, Text(reason))
    console.print(table)
    for note in made.notes:
        click.echo(f"Note: {note}")
    count = sum(part.by == "you" for part in made.parts)
    click.echo(f"{count} of {len(made.parts)} parts are yours.")
    for name, value in made.parity.items():
        click.echo(f"  {name}: differs from ours by at most {value:.1e}")
    if made.agrees and count:
        click.echo(f"Your GPT computes what ours does, up to rounding. It lies in {made.folder}.")
    elif made.agrees:
        click.echo(f"None of it is yours yet: {made.folder} is our GPT. Solve a chapter first.")
    else:
        click.echo(
            "That is more than rounding, so it is not trained. A part that passes its checks alone"
            " may not fit the others: the table shows which are yours."
        )
