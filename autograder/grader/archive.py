"""The files of a folder or a zip archive, listed without following or unpacking anything.

Nothing is ever written to disk, so no path in an archive can lead out of it. Links, pipes,
encrypted members and bombs become entries that cannot be read and say why.
"""

from __future__ import annotations

import functools
import io
import os
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autograder.grader.repair import MAX_BYTES

MAX_ENTRIES = 50_000  # of everything that was given
MAX_MEMBERS = 20_000  # of one archive
MAX_DEPTH = 10  # of folders
MAX_NESTING = 2  # of archives in archives
MAX_RATIO = 200  # of a member's size to what it takes up, above a megabyte
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


@dataclass(frozen=True)
class Entry:
    """A file, or an empty folder, or what may not be opened."""

    parts: tuple[str, ...]  # the path within what was given
    time: float = 0.0  # seconds since 1970, of the last change
    load: Callable[[int], bytes] | None = None  # no more than so many bytes; None for a folder
    problem: str = ""  # why it cannot be read

    @property
    def name(self) -> str:
        return self.parts[-1]

    def read(self, most: int = MAX_BYTES) -> bytes:
        """The bytes, one more than `most` at most; raises `OSError` with a sentence."""
        if self.problem or self.load is None:
            raise OSError(0, self.problem or "This is a folder.")
        return self.load(most + 1)  # one too many is refused with a reason


def entries_of(path: Path) -> list[Entry]:
    """All that lies under a folder or in an archive, archives opened where they are met."""
    found = list[Entry]()
    if path.is_dir():
        raw: Iterator[Entry] = _walk(path, ())
    elif path.suffix.lower() == ".zip" and stat.S_ISREG(path.lstat().st_mode):
        raw = _members(path, (), path.name)
    else:
        raw = iter([_file(path, (path.name,))])
    for entry in raw:
        found += _opened(entry, 1)
        if len(found) >= MAX_ENTRIES:
            break
    return found[:MAX_ENTRIES]


def _opened(entry: Entry, nesting: int) -> Iterator[Entry]:
    """An entry, or what is in it where it is an archive."""
    if entry.problem or entry.load is None or not entry.name.lower().endswith(".zip"):
        yield entry
        return
    if nesting > MAX_NESTING:
        problem = f"{entry.name} is an archive within archives; it was not opened."
        yield Entry(entry.parts, entry.time, problem=problem)
        return
    try:
        data = entry.read()
    except OSError as error:
        yield Entry(entry.parts, entry.time, problem=str(error.strerror))
        return
    yield Entry(entry.parts, entry.time)  # so that an empty archive leaves a trace
    if len(data) > MAX_BYTES:
        problem = f"{entry.name} is larger than {MAX_BYTES >> 20} MB; it was not opened."
        yield Entry(entry.parts, entry.time, problem=problem)
        return
    for inner in _members(io.BytesIO(data), entry.parts, entry.name):
        yield from _opened(inner, nesting + 1)


def _walk(folder: Path, parts: tuple[str, ...]) -> Iterator[Entry]:
    with os.scandir(folder) as listing:
        children = sorted(listing, key=lambda child: child.name)
    if not children and parts:
        yield Entry(parts)
    for child in children:
        here = (*parts, _label(child.name))
        if not child.is_dir(follow_symlinks=False):
            yield _file(Path(child.path), here)
        elif len(here) < MAX_DEPTH:
            yield from _walk(Path(child.path), here)
        else:
            yield Entry(here, problem="The folders are nested too deeply; the rest was left.")


def _label(name: str) -> str:
    """A name that can be written and shown, whatever bytes the file system holds for it."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _file(path: Path, parts: tuple[str, ...]) -> Entry:
    status = path.lstat()
    problem = ""
    if stat.S_ISLNK(status.st_mode):
        problem = "The file is a link and was not followed."
    elif not stat.S_ISREG(status.st_mode):
        problem = f"{path.name} is no ordinary file and was not opened."
    return Entry(parts, status.st_mtime, functools.partial(_read_file, path), problem)


def _read_file(path: Path, most: int) -> bytes:
    """The first bytes of an ordinary file, read through no link and no pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "This is no ordinary file; it was not read.")
        return file.read(most)


def _members(source: Path | io.BytesIO, parts: tuple[str, ...], name: str) -> Iterator[Entry]:
    """The members of an archive; the paths in it are labels and nothing more."""
    try:
        archive = zipfile.ZipFile(source)
    except _BROKEN:
        problem = f"{name} is no whole zip archive; it was not opened."
        yield Entry((*parts, name), problem=problem)
        return
    members = archive.infolist()
    for member in members[:MAX_MEMBERS]:
        inside = tuple(part for part in member.filename.replace("\\", "/").split("/") if part)
        if not inside:
            continue
        here, problem = (*parts, *inside), _why_not(member, inside)
        if problem:
            here = (*parts, *(part for part in inside if part not in ("..", ".")))
            yield Entry(here or (name,), problem=problem)
        elif not member.is_dir():
            load = functools.partial(_read_member, archive, member)
            yield Entry(here, _time_of(member), load)
        else:
            yield Entry(here)
    if len(members) > MAX_MEMBERS:
        problem = f"Only the first {MAX_MEMBERS} files of {name} were looked at."
        yield Entry((*parts, name), problem=problem)


def _why_not(member: zipfile.ZipInfo, inside: tuple[str, ...]) -> str:
    """Why a member is left alone, if it is."""
    name, kind = inside[-1], stat.S_IFMT(member.external_attr >> 16)
    if ".." in inside or "." in inside or member.filename.startswith(("/", "\\")):
        return f"{name} has a path that leads out of its archive; it was not opened."
    if len(inside) > MAX_DEPTH:
        return f"{name} is nested too deeply; it was not opened."
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"{name} is a link or no ordinary file; it was not opened."
    if member.flag_bits & 1:
        return f"{name} is encrypted; it was not opened."
    if member.file_size > max(1 << 20, MAX_RATIO * member.compress_size):
        return f"{name} is packed too tightly to be a notebook; it was not opened."
    return ""


def _time_of(member: zipfile.ZipInfo) -> float:
    try:
        return time.mktime((*member.date_time, 0, 0, -1))
    except (ValueError, OverflowError):
        return 0.0


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    """The first bytes of a member, never more than asked for, whatever its header says."""
    try:
        with archive.open(member) as file:
            return file.read(most)
    except _BROKEN as error:
        raise OSError(0, f"{Path(member.filename).name} cannot be unpacked ({error}).") from None
