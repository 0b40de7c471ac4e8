"""Verbs that judge answers: grade, check, threats, gradescope, classroom, doctor."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from course.cli.group import main


@main.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--sample", is_flag=True, help="Grade the bundled sample class instead of PATH.")
@click.option("--assignment", help="Which exercise it is, where names do not tell: 02-rnn.")
@click.option("--out", type=click.Path(path_type=Path), help="Where results go.  [the course]")
@click.option("--seed-file", type=click.Path(path_type=Path), help="The class's secret.  [.seed]")
@click.option("--json", "as_json", is_flag=True, help="Print results.json instead of a table.")
@click.option("--trust", is_flag=True, help="Run without a sandbox where there is none.")
@click.option(
    "--sandbox",
    type=click.Choice(["bubblewrap-root", "bubblewrap", "docker", "podman"]),
    help="What holds student code.  [the best that works]",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes.  [one a core]")
@click.option("--no-cache", is_flag=True, help="Grade again what was graded before.")
@click.option("--student", "students", multiple=True, help="Grade only this one again.")
@click.option("--exercise", "exercises", multiple=True, help="Grade only this exercise again.")
@click.option("--deadlines", type=click.Path(path_type=Path), help="TOML: due dates, penalties.")
@click.option("--roster", type=click.Path(path_type=Path), help="An LMS's list to fill in.")
@click.option("--site", help="The built book's address, for links in feedback.")
@click.option("--scheduler", help="A Dask scheduler whose workers grade: tcp://host:8786.")
@click.option("--db", help="The gradebook's PostgreSQL database: postgresql://user@host/name.")
def grade(
    path: Path | None,
    sample: bool,
    assignment: str | None,
    out: Path | None,
    seed_file: Path | None,
    as_json: bool,
    trust: bool,
    sandbox: str | None,
    jobs: int | None,
    no_cache: bool,
    students: tuple[str, ...],
    exercises: tuple[str, ...],
    deadlines: Path | None,
    roster: Path | None,
    site: str | None,
    scheduler: str | None,
    db: str | None,
) -> None:
    """Grade a notebook, a folder or zip of them, an LMS's download, or nbgrader's submitted/ tree.

    Writes results.json, results.csv, report.html, gradebook.db, autograded/ and feedback/ to --out.
    """
    from autograder.grader.pool import context

    if scheduler is None:
        context()  # its server loads what workers need while this process still does
    from autograder.grader.batch import default_jobs
    from autograder.grader.export import as_json as rows_as_json
    from autograder.grader.grade import GradingError, Plan
    from autograder.grader.grade import grade as grade_all
    from autograder.grader.seed import read_seed
    from course.build import repository_root
    from course.sample_class import grade_sample

    if (path is None) == (not sample):
        raise click.UsageError("Give the PATH of what was handed in, or --sample.")
    root = repository_root()
    with _grading_progress() as progress:
        try:
            if sample:
                rows, out = grade_sample(root, progress), root / "build" / "sample-class"
            else:
                assert path is not None
                seed_file, out = seed_file or root / ".seed", out or root
                if not seed_file.exists():
                    click.echo(f"Made the class's secret seed: {seed_file} (keep it)", err=True)
                plan = Plan(
                    exercises=root / "exercises",
                    out=out,
                    secret=read_seed(seed_file),
                    assignment=assignment,
                    trust=trust,
                    sandbox=sandbox,
                    jobs=jobs or default_jobs(),
                    cache=None if no_cache else root / "build" / "grading",
                    students=frozenset(students),
                    only=frozenset(exercises),
                    deadlines=deadlines,
                    roster=roster,
                    site=site,
                    scheduler=scheduler,
                    db=db,
                    notice=functools.partial(click.echo, err=True),
                )
                rows = grade_all(path, plan, progress)
        except GradingError as error:
            raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(rows_as_json(rows))
    else:
        _show_rows(rows, out, db)


@contextlib.contextmanager
def _grading_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on the error stream, so that `--json` stays clean."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("Grading", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show_rows(rows: list[dict[str, Any]], out: Path, db: str | None) -> None:
    from rich.console import Console

    from autograder.grader.database import shown
    from autograder.grader.export import show

    show(rows, Console())
    levels = ", ".join(sorted({row["isolation"] for row in rows}))
    click.echo(f"Isolation: {levels}. Results: {out / 'results.json'} and results.csv.")
    click.echo(f"Feedback: {out / 'feedback'}. Gradebook: {shown(db, out)}.")
    click.echo(f"Class report: {out / 'report.html'}.")


@main.command()
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--assignment", help="Which exercise it is, where names do not tell: 02-rnn.")
@click.option("--submit-ready", is_flag=True, help="Say what would be wrong with the file.")
@click.option(
    "--classroom",
    type=click.Path(path_type=Path),
    help="Also append the points to FILE, for GitHub Classroom's reporter.",
    metavar="FILE",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(
    notebook: Path,
    assignment: str | None,
    submit_ready: bool,
    classroom: Path | None,
    as_json: bool,
) -> None:
    """Check your own notebook on the visible cases, with the notebook's own sentences."""
    from autograder.grader import check as checking
    from autograder.grader.check import CheckError, as_text, check_notebook
    from autograder.grader.classroom import as_step_output

    if submit_ready:
        ready = checking.submit_ready(notebook, assignment)
        click.echo(json.dumps(vars(ready)) if as_json else checking.readiness_as_text(ready))
        raise click.exceptions.Exit(1 if ready.problems else 0)
    try:
        result = check_notebook(notebook, assignment)
    except CheckError as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(result, indent=1, ensure_ascii=False) if as_json else as_text(result))
    if classroom is not None:
        with classroom.open("a", encoding="utf-8") as file:
            file.write(as_step_output(result))


@main.command()
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes.  [one a core]")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def threats(jobs: int | None, as_json: bool) -> None:
    """Hand hostile and broken submissions to the grader and store what became of each."""
    from autograder.grader.batch import default_jobs
    from autograder.grader.grade import GradingError
    from course.build import repository_root
    from course.threats import as_text, survey, write_table

    root = repository_root()
    with _grading_progress() as progress:
        try:
            result = survey(root, jobs or default_jobs(), progress)
        except GradingError as error:
            raise click.ClickException(str(error)) from None
    write_table(root, result)
    click.echo(json.dumps(result, indent=1) if as_json else as_text(result))
    near = result["neighbors"]
    if near["right"] < near["of"] or not all(row["ok"] for row in result["threats"]):
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("assignment")
@click.option("--out", type=click.Path(path_type=Path), help="The zip.  [dist/gradescope-….zip]")
@click.option("--seed-file", type=click.Path(path_type=Path), help="The class's secret.  [.seed]")
@click.option("--site", help="The built book's address, for links in feedback.")
def gradescope(assignment: str, out: Path | None, seed_file: Path | None, site: str | None) -> None:
    """Write the zip that makes Gradescope grade ASSIGNMENT (02-rnn) with our checks."""
    from autograder.grader.seed import read_seed
    from course.build import repository_root
    from course.elsewhere import UnknownAssignment, assignment_called, write_gradescope

    root = repository_root()
    try:
        task = assignment_called(assignment)
    except UnknownAssignment as error:
        raise click.ClickException(str(error)) from None
    out = out or root / "dist" / f"gradescope-{task.name}.zip"
    click.echo(write_gradescope(root, task, read_seed(seed_file or root / ".seed"), site, out))


@main.command()
@click.argument("assignment")
@click.option("--out", type=click.Path(path_type=Path), default=".", help="The repository.  [.]")
def classroom(assignment: str, out: Path) -> None:
    """Write the workflow by which GitHub Classroom checks ASSIGNMENT (02-rnn) after a push."""
    from course.build import repository_root
    from course.elsewhere import UnknownAssignment, assignment_called, write_workflow

    try:
        click.echo(write_workflow(repository_root(), assignment_called(assignment), out))
    except UnknownAssignment as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine's sandbox can do, by trying it, and how to get more."""
    from autograder.grader.doctor import as_text, examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        click.echo(as_text(findings))
    if not findings[0].ok:
        raise click.exceptions.Exit(1)
