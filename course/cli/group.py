"""The command that the verbs hang on."""

from __future__ import annotations

from typing import Any

import click


class _Verbs(click.Group):
    """Says in a sentence when a verb needs a part of the course that is not installed."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"This verb needs {error.name}, which is not installed here. A student's bundle"
                " holds check, train, generate, translate and data; for the rest take a checkout of"
                " the course and run `python run.py`."
            ) from None


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rnn2gpt")
def main() -> None:
    """From RNN to GPT: build the site, release and grade the exercises, train the models."""
