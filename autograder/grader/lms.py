"""How Canvas, Moodle and Gradescope name what they let one download, and who is meant.

- Canvas: `lovelaceada_12345_678901_rnn.ipynb`, with `_LATE_` after the name where it was late and
  `-1`, `-2`, … after the file's own name where it was handed in again
- Moodle: `Ada Lovelace_12345_assignsubmission_file_/rnn.ipynb`, or the same in one file name
- Gradescope: `submission_678901/rnn.ipynb`, and `submission_metadata.yml` beside the folders
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

_CANVAS = re.compile(
    r"(?P<name>[^_]+)_(?P<late>LATE_)?(?P<id>\d{2,})_(?P<file>\d{3,})_(?P<original>.+)"
)
_ATTEMPT = re.compile(r"-(\d{1,3})$")
_MOODLE = re.compile(
    r"(?P<name>.+)_(?P<id>\d+)_assignsubmission_(?:file|onlinetext)(?:_(?P<original>.*))?"
)
_GRADESCOPE = re.compile(r"submission_(?P<id>\d+)")
METADATA = "submission_metadata.yml"


@dataclass(frozen=True)
class Person:
    """A student as a system knows them."""

    student: str  # the name under which their work is graded
    facts: dict[str, str] = field(default_factory=dict)  # lms, and its own id, name, sid, email
    attempt: int = 0
    original: str = ""  # the file's name before the system changed it
    submitted: float | None = None  # seconds since 1970


def recognize(part: str, metadata: dict[str, list[Person]]) -> list[Person]:
    """The students meant by the first part of a path; none where no system named it."""
    if part in metadata:
        return metadata[part]
    if found := _MOODLE.fullmatch(part):
        facts = {"lms": "moodle", "id": found["id"], "name": found["name"]}
        student = f"{found['name']}-{found['id']}"
        return [Person(student, facts, original=found["original"] or "")]
    if found := _CANVAS.fullmatch(part):
        stem, dot, suffix = found["original"].rpartition(".")
        again = _ATTEMPT.search(stem)
        original = (stem[: again.start()] if again else stem) + dot + suffix
        facts = {"lms": "canvas", "id": found["id"], "name": found["name"]}
        facts |= {"late": "yes"} if found["late"] else {}
        student, attempt = f"{found['name']}-{found['id']}", int(again[1]) if again else 0
        return [Person(student, facts, attempt, original)]
    if found := _GRADESCOPE.fullmatch(part):
        return [Person(part, {"lms": "gradescope", "submission": found["id"]})]
    return []


class _Loader(yaml.SafeLoader):
    """Plain data, whatever class of Ruby's it is tagged with."""


def _untagged(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)  # type: ignore[arg-type]


_Loader.add_multi_constructor("!", _untagged)


def read_metadata(data: bytes) -> dict[str, list[Person]]:
    """Gradescope's folders and who handed in each; a group's work counts for every member."""
    try:
        table = yaml.load(data, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    people = {}
    for folder, about in table.items() if isinstance(table, dict) else ():
        if isinstance(about, dict) and _GRADESCOPE.fullmatch(str(folder)):
            people[str(folder)] = _submitters(str(folder), about)
    return people


def _submitters(folder: str, about: dict[str, Any]) -> list[Person]:
    known = {"lms": "gradescope", "submission": folder.removeprefix("submission_")}
    submitted, found = _seconds(about.get(":created_at")), []
    submitters = about.get(":submitters")
    for submitter in submitters if isinstance(submitters, list) else ():
        facts = submitter if isinstance(submitter, dict) else {}
        named = {key: str(facts.get(f":{key}") or "") for key in ("sid", "email", "name")}
        student = next(filter(None, named.values()), folder)
        found.append(Person(student, known | named, submitted=submitted))
    return found or [Person(folder, known, submitted=submitted)]


def _seconds(when: Any) -> float | None:
    """A time of YAML's, or its text, in seconds since 1970; UTC where no zone is given."""
    if isinstance(when, str):
        try:
            when = datetime.datetime.fromisoformat(when.strip().replace(" UTC", "+00:00"))
        except ValueError:
            return None
    if not isinstance(when, datetime.datetime):
        return None
    zone = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    return zone.timestamp()
