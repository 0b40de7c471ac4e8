"""Where the gradebook is: a SQLite file beside the results, or a PostgreSQL database."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from autograder.grader.tools import put_tools_on_path

_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


class DatabaseError(Exception):
    """A gradebook that cannot be reached; the text says what to do, and holds no password."""


def gradebook_url(db: str | None, out: Path) -> str:
    """What SQLAlchemy calls the gradebook: `db`, or `gradebook.db` in `out`."""
    if db is None:
        return f"sqlite:///{out / 'gradebook.db'}"
    return _parsed(db).render_as_string(hide_password=False)


def shown(db: str | None, out: Path) -> str:
    """The gradebook's place as a person may read it."""
    return str(out / "gradebook.db") if db is None else str(_parsed(db))  # `str` hides a password


def reach(db: str) -> None:
    """Connect to the database, and make nbgrader's tables there if they are missing.

    Before anything is graded: who mistyped an address learns it now, not after an hour.
    """
    put_tools_on_path()
    from nbgrader.api import Gradebook

    try:
        Gradebook(gradebook_url(db, Path())).close()
    except SQLAlchemyError as error:
        raise DatabaseError(failed(db, error)) from None


def failed(db: str | None, error: SQLAlchemyError) -> str:
    """What a database says, in one line."""
    said = " ".join(str(getattr(error, "orig", None) or error).split())
    place = "gradebook.db" if db is None else str(_parsed(db))
    return f"The gradebook at {place} does not work: {said[:300]}"


def _parsed(db: str) -> URL:
    try:
        url = make_url(db)
    except ArgumentError:
        raise DatabaseError(f"--db {_form()}") from None
    if url.drivername not in _SCHEMES or not url.database:
        raise DatabaseError(f"--db {_form()}")
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise DatabaseError(
            f"--db needs the package psycopg: pip install 'rnn2gpt[postgres]' ({error})."
        ) from None
    return url.set(drivername="postgresql+psycopg")


def _form() -> str:
    return "takes postgresql://USER@HOST/DATABASE. Keep the password in ~/.pgpass or PGPASSWORD."
