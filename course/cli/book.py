"""Verbs that make the course: build, serve, release, kill-table, ladder, and the tour of all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from course.cli.grading import grade
from course.cli.group import main
from course.cli.models import LANGUAGE_MODELS, data


@main.command()
@click.option("--all", "fresh", is_flag=True, help="Read every page again.")
@click.option("--pdf", is_flag=True, help="Print it too, into book/_build/pdf/book.pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def build(fresh: bool, pdf: bool, as_json: bool) -> None:
    """Build the site into book/_build/html; does nothing when nothing changed."""
    from course.browser import BrowserMissing
    from course.build import BuildError, build_site, print_book, repository_root

    try:
        report = build_site(repository_root(), fresh=fresh)
        printed = print_book(repository_root()) if pdf else None
    except (BrowserMissing, BuildError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(report.to_json() if as_json else report.to_text())
    if printed:
        click.echo(f"Printed into {printed}", err=as_json)


@main.command()
@click.option("--port", default=8000, show_default=True, help="0 takes any free port.")
@click.option("--open", "open_browser", is_flag=True, help="Open the site in a browser.")
def serve(port: int, open_browser: bool) -> None:
    """Serve the built site on this machine alone, until Ctrl+C."""
    from course.build import BuildError, repository_root, serve_site

    try:
        serve_site(repository_root(), port=port, open_browser=open_browser)
    except BuildError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--check", "only_check", is_flag=True, help="Fail if exercises/ is out of date.")
@click.option("--bundle", is_flag=True, help="Also pack what a class is given into dist/.")
@click.option("--fresh/--if-changed", default=True, help="Redo it even if no source changed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def release(only_check: bool, bundle: bool, fresh: bool, as_json: bool) -> None:
    """Regenerate the students' notebooks in exercises/ from solutions/."""
    from course.build import repository_root
    from course.bundle import write_bundle
    from course.release import ReleaseError
    from course.release import release as release_all

    root = repository_root()
    try:
        released = release_all(root, fresh)
    except ReleaseError as error:
        raise click.ClickException(str(error)) from None
    rows = [{**vars(one), "path": str(one.path.relative_to(root))} for one in released]
    packed = write_bundle(root) if bundle else None
    if as_json:
        click.echo(json.dumps({"notebooks": rows, "bundle": packed and str(packed)}, indent=1))
    else:
        for row in rows:
            state = "changed" if row["changed"] else "unchanged"
            click.echo(f"{row['path']}: {row['points']:g} points, {state}")
        if packed:
            click.echo(f"Bundle for students: {packed}")
    if only_check and any(one.changed for one in released):
        raise click.ClickException("exercises/ was out of date; commit what changed just now.")


@main.command("kill-table")
@click.option("--chapter", "chapters", multiple=True, help="Only this one: 02-rnn.  [all]")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def kill_table(chapters: tuple[str, ...], as_json: bool) -> None:
    """Judge every known wrong and right answer; fails when a check lets a wrong one pass."""
    from course.build import repository_root
    from course.elsewhere import UnknownAssignment, assignment_called
    from course.kill_table import as_table, kill_table, write_table

    root = repository_root()
    try:
        chosen = tuple(assignment_called(name).notebook for name in chapters)
    except UnknownAssignment as error:
        raise click.ClickException(str(error)) from None
    rows = kill_table(root, *([chosen] if chosen else []))
    path = write_table(root, rows)
    if as_json:
        click.echo(path.read_text(encoding="utf-8"), nl=False)
    else:
        as_table(rows)
    if not all(row.ok for row in rows):
        raise click.exceptions.Exit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
def proof(as_json: bool) -> None:
    """Check the site in a browser, page by page and explorer by explorer: some five minutes."""
    from course.browser import BrowserMissing
    from course.build import BuildError, repository_root
    from course.proof import STORED, faults, prove

    try:
        result = prove(repository_root(), lambda page: click.echo(page, err=True))
    except (BrowserMissing, BuildError) as error:
        raise click.ClickException(str(error)) from None
    wrong = faults(result)
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        click.echo("\n".join(wrong) or "Nothing found.")
        click.echo(
            f"{len(result['pages'])} pages, {len(result['explorers'])} explorers. "
            f"Written to {STORED}."
        )
    if wrong:
        raise click.exceptions.Exit(1)


@main.command()
@click.option("--quick", is_flag=True, help="A hundredth of the budget: shows that it all works.")
@click.option(
    "--models", default=",".join(LANGUAGE_MODELS), show_default=True, help="Which to measure."
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 10))
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--data-curve/--no-data-curve", default=True, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="[book/_data/ladder.json]")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
def ladder(
    quick: bool,
    models: str,
    seeds: int,
    jobs: int,
    data_curve: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure every model on one text and budget: over an hour on two free cores (--jobs 2)."""
    from course.ladder import FLOPS, NETWORKS, Plan, climb, table
    from rnn2gpt.data import DataError

    chosen = tuple(models.split(","))
    if unknown := [name for name in chosen if name not in ("ngram", *NETWORKS)]:
        known = ", ".join(("ngram", *NETWORKS))
        raise click.ClickException(f"No such model: {', '.join(unknown)}. Choose from {known}.")
    path = out or Path("results/ladder-quick.json" if quick else "book/_data/ladder.json")
    plan = Plan(
        models=chosen,
        seeds=1 if quick else seeds,
        flops=FLOPS / 100 if quick else FLOPS,
        data_curve=data_curve and not quick,
        jobs=jobs,
        export=None if quick else path.parent / "models",
    )
    try:
        result = climb(plan, path)
    except DataError as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(result, indent=1) if as_json else table(result))
    click.echo(f"Written to {path}", err=True)


@main.command()
@click.pass_context
def tour(context: click.Context) -> None:
    """Do the main job once, as `python run.py` does, then say what to open."""
    from course.build import repository_root

    steps: tuple[tuple[str, click.Command, dict[str, Any]], ...] = (
        ("The texts", data, {}),
        ("The exercises, from solutions/", release, {"fresh": False}),
        ("The site", build, {}),
        ("A sample class, graded", grade, {"sample": True}),
    )
    for title, verb, options in steps:
        click.secho(f"\n{title}", bold=True)
        context.invoke(verb, **options)
    root = repository_root()
    click.secho("\nWhat to open", bold=True)
    click.echo(f"Read:   {root / 'book' / '_build' / 'html' / 'index.html'}, or: rnn2gpt serve")
    click.echo(f"Write:  jupyter lab {root / 'exercises'}")
    click.echo(f"Grade:  {root / 'build' / 'sample-class' / 'feedback'} holds the class's pages")
    click.echo("Train:  rnn2gpt train --model lstm --minutes 2; rnn2gpt generate runs/lstm")
    click.echo(f"The commands are in {Path(sys.executable).parent}.")
