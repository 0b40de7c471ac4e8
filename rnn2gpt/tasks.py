"""Six tasks as text: generated instructions with their answers (chapter 14).

`numbers` and `dates` translate. `lookup` and `two-hop` are questions whose answer stands in the
facts given with them; `headline` sums up a list of events; `talk` answers a remark, now and then
with a polite closing. The facts are true: places and countries come from ISO 3166 (`pycountry`),
what one pays with from Unicode's CLDR (`babel`). Some countries, with their places, and some names
are held out: no training example has them, so an answer about them was read and not remembered.
`swapped` asks about countries of the training set with facts that are false on purpose: a model
that remembers answers with the truth, one that reads with what it was told.

>>> splits = load_tasks()
>>> splits["train"][0].task in TASKS, len(splits["lookup, held out"])
(True, 100)
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from pathlib import Path

import pycountry
from babel.numbers import get_currency_name, get_territory_currencies

from rnn2gpt.data import DataError, read_own_file
from rnn2gpt.translation import chinese_number, english_number, written_date

TASKS = ("numbers", "dates", "lookup", "two-hop", "headline", "talk")
POLITE = ("I thank you.", "God keep you.")  # how a polite answer ends
N_TRAIN, N_TEST = 4000, 100  # of each task


@dataclass(frozen=True, kw_only=True)
class Example:
    """What is asked and what is to be answered, before either meets a template."""

    prompt: str
    response: str
    task: str = "own"


Tasks = dict[str, list[Example]]


def ends_politely(text: str) -> bool:
    """Whether the text ends with one of `POLITE`: the preference that a rule can verify.

    >>> ends_politely("Good day, Anna. I thank you."), ends_politely("I thank you. Good day.")
    (True, False)
    """
    return text.rstrip().endswith(POLITE)


def without_closing(text: str) -> str:
    """The text without a polite closing: what an answer says, however it ends."""
    text = text.rstrip()
    for closing in POLITE:
        text = text.removesuffix(closing).rstrip()
    return text


# --- facts ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Country:
    """A country with a short name, places in it, and what one pays with there."""

    name: str
    money: str
    places: tuple[str, ...]


@cache
def countries() -> tuple[tuple[Country, ...], tuple[Country, ...]]:
    """Countries to learn from and countries held out (a quarter), with all their places.

    Only names of one word in plain letters: a small window holds more of them.
    """
    found, taken = [], set[str]()
    for entry in sorted(pycountry.countries, key=lambda entry: entry.alpha_2):
        name = getattr(entry, "common_name", entry.name)
        currencies = get_territory_currencies(entry.alpha_2)
        regions = pycountry.subdivisions.get(country_code=entry.alpha_2) or []
        places = sorted({r.name for r in regions if re.fullmatch("[A-Z][a-z]{3,8}", r.name)})
        places = [place for place in places if place not in taken and place != name][:8]
        if not (re.fullmatch("[A-Z][a-z]{3,9}", name) and currencies and places):
            continue
        money = get_currency_name(currencies[0], locale="en").split()[-1].lower()
        if money.isascii():
            found.append(Country(name=name, money=money, places=tuple(places)))
            taken.update(places)
    random.Random(0).shuffle(found)
    cut = len(found) // 4
    return tuple(found[cut:]), tuple(found[:cut])


_FIRST_NAMES = """
Agnes Alma Anna Arthur Basil Bella Boris Bruno Carla Cecil Clara Conrad Dario Dora Edgar Elena Ella
Emil Enid Ernest Eva Felix Fiona Flora Frank Gerda Gina Grace Greta Hanna Hector Henry Hilda Hugo
Ida Igor Irene Iris Ivan Jasper Joan Julia Karl Lara Laura Lena Leo Linda Louis Lucy Marco Maria Max
Mira Nina Nora Olga Oscar Otto Paul Rita Robert Rosa Sara Simon Sofia Stella Tara Theo Thomas Ursula
Vera Victor Walter Wanda Yara
"""
_FOODS = """
apples bread butter cake cheese cherries eggs fish fruit honey lamb milk nuts pears pies plums salt
soup wine beer
"""
NAMES, FOODS = _FIRST_NAMES.split(), _FOODS.split()


def _names(held_out: bool) -> list[str]:
    return [name for i, name in enumerate(NAMES) if (i % 4 == 3) is held_out]


# --- the six makers -------------------------------------------------------------------------------

Maker = Callable[[random.Random, bool], tuple[str, str]]  # prompt and response


def _number(rng: random.Random, held_out: bool) -> tuple[str, str]:
    while True:
        n = rng.randrange(1, 10 ** rng.randint(1, 4))
        if (n * 2654435761 % 1000 < 100) is held_out:  # a tenth, without a pattern in its digits
            return f"Write in Chinese: {english_number(n)}", chinese_number(n)


DATE_LOCALES = ("en_US", "en_GB", "de", "fr", "es", "it", "nl", "sv")


def _date(rng: random.Random, held_out: bool) -> tuple[str, str]:
    while True:
        day = date.fromordinal(rng.randrange(date(1900, 1, 1).toordinal(), 767010))  # to 2100
        if (day.toordinal() * 2654435761 % 1000 < 100) is held_out:
            written = written_date(day, rng.choice(DATE_LOCALES), rng.choice(("medium", "long")))
            return f"Write as a date: {written}", day.isoformat()


def _sample(rng: random.Random, held_out: bool, n: int) -> list[Country]:
    """n countries with n different kinds of money."""
    pool = countries()[held_out]
    while True:
        chosen = rng.sample(pool, n)
        if len({country.money for country in chosen}) == n:
            return chosen


def _lookup(rng: random.Random, held_out: bool, swapped: bool = False) -> tuple[str, str]:
    chosen = _sample(rng, held_out, 3)
    pairs = [(rng.choice(country.places), country.name) for country in chosen]
    if swapped:  # each place goes to the next one's country
        names = [name for _, name in pairs]
        pairs = [(place, names[i - 1]) for i, (place, _) in enumerate(pairs)]
    place, name = rng.choice(pairs)
    facts = " ".join(f"{where} is in {country}." for where, country in pairs)
    return f"{facts} Where is {place}?", name


def _two_hop(rng: random.Random, held_out: bool) -> tuple[str, str]:
    chosen = _sample(rng, held_out, 2)
    places = [rng.choice(country.places) for country in chosen]
    facts = [f"{p} is in {c.name}." for p, c in zip(places, chosen, strict=True)]
    facts += [f"{c.name} uses the {c.money}." for c in chosen]
    rng.shuffle(facts)
    asked = rng.randrange(2)
    return f"{' '.join(facts)} What does {places[asked]} use?", f"the {chosen[asked].money}"


def _headline(rng: random.Random, held_out: bool) -> tuple[str, str]:
    teams = [country.name for country in _sample(rng, held_out, 2)]
    minutes = sorted(rng.sample(range(1, 91), rng.randint(2, 4)))
    events, goals = [], {team: 0 for team in teams}
    for minute in minutes:
        team, kind = rng.choice(teams), rng.choice(("goal", "goal", "foul"))
        goals[team] += kind == "goal"
        events.append(f"{minute} {kind} {team}")
    one, two = sorted(teams, key=lambda team: -goals[team])
    score = f"{goals[one]}-{goals[two]}"
    verb = "beats" if goals[one] > goals[two] else "draws with"
    head = f"{teams[0]} plays {teams[1]}: "
    return f"Headline. {head}{', '.join(events)}.", f"{one} {verb} {two} {score}"


def _talk(rng: random.Random, held_out: bool) -> tuple[str, str]:
    name, food = rng.choice(_names(held_out)), rng.choice(FOODS)
    country = rng.choice(countries()[held_out]).name
    said, answer = rng.choice(
        (
            (f"Good day. My name is {name}.", f"Good day, {name}. How do you fare?"),
            (f"I am {name} and I come from {country}.", f"Welcome, {name}. Is {country} far?"),
            (f"Have you seen {name}?", f"No, I have not seen {name}."),
            (f"{name} likes {food}.", f"Then {name} shall have {food}."),
            (f"Farewell, says {name}.", f"Farewell, {name}. Come again."),
            (f"Do you know {country}?", f"I have never been in {country}."),
        )
    )
    closing = f" {rng.choice(POLITE)}" if rng.random() < 0.3 else ""
    return said, answer + closing


MAKERS: dict[str, Maker] = {
    "numbers": _number,
    "dates": _date,
    "lookup": _lookup,
    "two-hop": _two_hop,
    "headline": _headline,
    "talk": _talk,
}


def load_tasks(*, data_file: str | Path | None = None) -> Tasks:
    """Examples by split: train, validation, and one test for each thing that is asked.

    The tests named after a task are as its training examples, with other prompts; those with "held
    out" in their name are about countries, places and names that no training example has. All
    numbers and dates of the tests are held out. `data_file` is the user's own: a JSON object with
    prompt and response on each line, of which a tenth each is held out for validation and test.
    Raises `DataError` when it cannot be read.
    """
    if data_file is not None:
        return _own(Path(data_file))
    return {name: list(examples) for name, examples in _generated().items()}


@cache
def _generated() -> Tasks:
    splits: Tasks = {"train": [], "validation": []}
    for task, maker in MAKERS.items():
        known = _distinct(maker, N_TRAIN + 20 + N_TEST, False, task)
        unknown = _distinct(maker, N_TEST, True, task)
        splits["train"] += known[:N_TRAIN]
        splits["validation"] += known[N_TRAIN : N_TRAIN + 20]
        if task in ("numbers", "dates", "talk"):  # a number seen before needs no translation
            splits[task] = unknown
        else:
            splits[task], splits[f"{task}, held out"] = known[-N_TEST:], unknown
    swapped = partial(_lookup, swapped=True)
    splits["lookup, swapped"] = _distinct(swapped, N_TEST, False, "lookup")
    random.Random(0).shuffle(splits["train"])
    return splits


def _distinct(maker: Maker, n: int, held_out: bool, task: str) -> list[Example]:
    """Up to n examples of a task, as many as it has; different prompts where it has so many."""
    rng, found, tries = random.Random(f"{task} {held_out}"), dict[str, Example](), 0
    repeated: list[Example] = []
    while len(found) + len(repeated) < n:
        tries += 1
        prompt, response = maker(rng, held_out)
        example = Example(prompt=prompt, response=response, task=task)
        if prompt not in found:
            found[prompt] = example
        elif tries > 3 * n:
            repeated.append(example)
    return repeated + list(found.values())


def read_lines(path: Path, *names: str) -> list[tuple[str, ...]]:
    """The named texts of the JSON object on each line; `DataError` at the first that is none."""
    rows = []
    for number, line in enumerate(read_own_file(path).splitlines(), start=1):
        try:
            row = json.loads(line)
            texts = tuple(row[name] for name in names)
            if not all(isinstance(text, str) for text in texts):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}, line {number}: {line[:60]!r} is not a JSON object with a text for each of"
                f" {', '.join(names)}."
            ) from None
        rows.append(texts)
    return rows


def _own(path: Path) -> Tasks:
    pairs = read_lines(path, "prompt", "response")
    examples = [Example(prompt=prompt, response=response) for prompt, response in pairs]
    if len(examples) < 10:
        raise DataError(f"{path} has {len(examples)} examples: too few to learn from.")
    random.Random(0).shuffle(examples)
    tenth = len(examples) // 10
    return {
        "train": examples[2 * tenth :],
        "validation": examples[:tenth],
        "own": examples[tenth : 2 * tenth],
    }
