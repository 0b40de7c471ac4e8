"""`rnn2gpt`, the one console command. Each verb is a thin call into the room that does the work.

Imports stand inside the verbs, so that `rnn2gpt --help` answers at once and a student's bundle,
which lacks the instructor's rooms, still offers the verbs it can serve.
"""

from __future__ import annotations

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rnn2gpt")
def main() -> None:
    """From RNN to GPT: build the site, release and grade the exercises, train the models."""


@main.command()
@click.option("--all", "fresh", is_flag=True, help="Read every page again.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def build(fresh: bool, as_json: bool) -> None:
    """Build the site into book/_build/html; does nothing when nothing changed."""
    from course.build import BuildError, build_site, repository_root

    try:
        report = build_site(repository_root(), fresh=fresh)
    except BuildError as error:
        raise click.ClickException(str(error)) from None
    click.echo(report.to_json() if as_json else report.to_text())


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


if __name__ == "__main__":
    main()
