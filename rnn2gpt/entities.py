"""Named entities in generated sentences, each token with its label (chapter 13).

Names come from pycountry and Babel: places, languages and currencies. A third of the names of each
kind is held out, so a model that has learned names by heart finds none of them. Some names are a
place in one sentence and a language in another (Tonga, Niue): only what stands around them tells.

A label says `B-` where an entity begins, `I-` where it goes on, `O` elsewhere (Ramshaw & Marcus
1995), and the score counts whole entities (Tjong Kim Sang & De Meulder 2003).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import pycountry
from babel import Locale

from rnn2gpt.tokenizer import BPETokenizer

KINDS = ("PLACE", "LANGUAGE", "CURRENCY")
TAGS = ("O", *(f"{prefix}-{kind}" for kind in KINDS for prefix in "BI"))

# Where the words that give the kind away stand: before the name, or only behind it.
BEFORE = (
    "They sailed to {PLACE} in the spring",
    "She was born in {PLACE} and never left",
    "A ship from {PLACE} came into the port",
    "He answered her in {LANGUAGE} and laughed",
    "The letter was written in {LANGUAGE} by hand",
    "I had to learn to speak {LANGUAGE} first",
    "They asked to be paid in {CURRENCY} at once",
    "The price was given in {CURRENCY} as before",
    "In {PLACE} they speak {LANGUAGE} at home",
    "We changed our money into {CURRENCY} in {PLACE}",
)
BEHIND = (
    "{PLACE} is a land of hills and rivers",
    "{PLACE} has many towns along its coast",
    "{LANGUAGE} is spoken by few people now",
    "{LANGUAGE} has more vowels than one would think",
    "{CURRENCY} lost half of its worth that year",
    "{CURRENCY} is printed on paper of two colors",
)


@dataclass(frozen=True)
class Entity:
    """A span of tokens, its end not included."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Sentence:
    """Ids and the number of each token's tag; `behind` says that no clue stands before the name."""

    text: str
    ids: list[int]
    tags: list[int]
    behind: bool


@cache
def names() -> dict[str, list[str]]:
    """The names of each kind, sorted: short ones, in letters that the course's GPT has read."""
    english = Locale("en")
    places = {country.name for country in pycountry.countries}
    places |= {name for code, name in english.territories.items() if len(code) == 2}
    languages = {language.name for language in pycountry.languages if language.type == "L"}
    currencies = set(english.currencies.values()) | {c.name for c in pycountry.currencies}
    found = {"PLACE": places, "LANGUAGE": languages, "CURRENCY": currencies}
    return {kind: sorted(filter(_plain, some)) for kind, some in found.items()}


def _plain(name: str) -> bool:
    return name.isascii() and name.replace(" ", "").isalpha() and len(name) <= 24


def split_names(held_out: bool, seed: int = 7) -> dict[str, list[str]]:
    """Two thirds of the names of each kind, or the third that is held out.

    A name that is of two kinds falls on the same side with both.
    """
    every = sorted({name for some in names().values() for name in some})
    random.Random(seed).shuffle(every)
    kept = set(every[: len(every) // 3]) if held_out else set(every[len(every) // 3 :])
    return {kind: [name for name in some if name in kept] for kind, some in names().items()}


def sentences(
    tokenizer: BPETokenizer, n: int, held_out: bool = False, seed: int = 0
) -> list[Sentence]:
    """n sentences with names that training may show, or with names that it must not."""
    chance, pool = random.Random(seed), split_names(held_out)
    made = []
    for _ in range(n):
        behind = chance.random() < 0.5
        template = chance.choice(BEHIND if behind else BEFORE)
        parts: list[tuple[str, str]] = []  # a text and its kind, "" for none
        for i, piece in enumerate(template.replace("}", "{").split("{")):
            if piece:
                parts.append((chance.choice(pool[piece]), piece) if i % 2 else (piece, ""))
        made.append(_tag(tokenizer, [*parts, (".", "")], behind))
    return made


def _tag(tokenizer: BPETokenizer, parts: Sequence[tuple[str, str]], behind: bool) -> Sentence:
    """A name takes the space before it along: so the pieces' ids are the ids of the whole."""
    ids: list[int] = []
    tags: list[int] = []
    space = ""
    for text, kind in parts:
        whole = space + text
        space = " " if whole.endswith(" ") else ""
        piece = tokenizer.encode(whole.removesuffix(" "))
        ids += piece
        first = TAGS.index(f"B-{kind}") if kind else 0
        tags += [first] + [first + bool(kind)] * (len(piece) - 1)
    return Sentence("".join(text for text, _ in parts), ids, tags, behind)


def entities(tags: Iterable[int]) -> set[Entity]:
    """The spans that the tags mark. An `I-` that follows nothing of its kind begins one.

    >>> sorted((e.start, e.end, e.kind) for e in entities([0, 1, 2, 0, 4, 1]))
    [(1, 3, 'PLACE'), (4, 5, 'LANGUAGE'), (5, 6, 'PLACE')]
    """
    found: set[Entity] = set()
    start, kind = 0, ""
    for i, tag in enumerate([*tags, 0]):
        prefix, _, now = TAGS[tag].partition("-")
        if kind and (prefix != "I" or now != kind):
            found.add(Entity(start, i, kind))
            kind = ""
        if now and not kind:
            start, kind = i, now
    return found


def entity_f1(guesses: Sequence[Sequence[int]], rights: Sequence[Sequence[int]]) -> float:
    """The harmonic mean of precision and recall over whole entities: span and kind must be right.

    >>> entity_f1([[1, 2, 0]], [[1, 2, 2]])
    0.0
    """
    hits = asked = given = 0
    for guess, right in zip(guesses, rights, strict=True):
        mine, theirs = entities(guess), entities(right)
        hits, given, asked = hits + len(mine & theirs), given + len(mine), asked + len(theirs)
    return 2 * hits / (given + asked) if given + asked else 1.0
