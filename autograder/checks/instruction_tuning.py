"""Checks of chapter 14: labels that count, batches, answers compared, preferences."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autograder.engine.exercise import Assignment, Exercise, Rng
from autograder.engine.expect import expect, fail
from autograder.engine.guards import guard
from autograder.engine.handle import Handle

ASSIGNMENT = Assignment(
    name="14-instruction-tuning",
    notebook="instruction_tuning",
    page="14_instruction_tuning",
    sections={
        "which-tokens-count": "Which tokens count",
        "where-it-ends": "Where an answer ends",
        "a-batch-of-answers": "A batch of answers",
        "judging-answers": "Judging an answer",
        "dpo": "From preferences to a loss",
    },
    minutes=60,
    modules=(
        "data", "metrics", "ngram", "rnn", "lstm", "attention", "multi_head", "positions",
        "transformer", "tokenizer", "gpt", "kv_cache", "generation",
    ),
)  # fmt: skip

Row = tuple[list[int], list[int]]


def _mistake(
    exercise: Exercise, name: str, see: str, did: str, causes: str, wrong: Callable[..., Any]
) -> None:
    exercise.misconception(did=did, causes=causes, see=see, name=name)(wrong)


# --- build_labels -------------------------------------------------------------------------------

build_labels = ASSIGNMENT.exercise(
    "build_labels",
    points=3,
    hints=(
        "The model reads everything. Which of the tokens should it be blamed for?",
        "Two lists of one length. Where a token was given, its label says so; where it was to be"
        " written, its label is the token itself, at the token's own place.",
        "P labels of ignore_index, then the R response ids: both lists have P + R entries.",
    ),
)


def expect_row(row: Any, prompt: list[int], response: list[int], ignore: int = -100) -> None:
    """Two lists: prompt and response in a row; the response's ids at their own places."""
    expect(row, "the result").holds(
        isinstance(row, (tuple, list)) and len(row) == 2, "a pair is asked for: ids and labels."
    )
    ids, labels = row
    for name, part in (("ids", ids), ("labels", labels)):
        expect(part, name).holds(isinstance(part, list), "a list is asked for.")
    n = len(prompt) + len(response)
    expect(ids, "ids").equals([*prompt, *response])
    expect(labels, "labels").holds(
        len(labels) == n, f"{n} are asked for, one for each of the ids; got {len(labels)}."
    )
    right = [ignore if i < len(prompt) else token for i, token in enumerate(ids)]
    for i, (have, want) in enumerate(zip(labels, right, strict=True)):
        part = f"token {i - len(prompt)} of the response" if i >= len(prompt) else "the prompt"
        expect(labels, "labels").holds(
            have == want, f"expected {want}, got {have} at [{i}], which is {part}."
        )


def some_ids(rng: Rng, n: int, low: int = 10) -> list[int]:
    """n different ids of a vocabulary of some hundred."""
    return (low + rng.permutation(97)[:n]).tolist()


@build_labels.case("puts the response behind the prompt and counts the response alone")
def _(student: Handle, rng: Rng) -> None:
    ids = some_ids(rng, 12)
    expect_row(student(ids[:7], ids[7:]), ids[:7], ids[7:])


@build_labels.case("counts the response's first id and its last, which ends the answer")
def _(student: Handle, rng: Rng) -> None:
    for p, r in ((1, 2), (5, 1), (3, 4)):
        ids = some_ids(rng, p + r)
        expect_row(student(ids[:p], ids[p:]), ids[:p], ids[p:])


@build_labels.case("marks the prompt with the ignore_index it is given")
def _(student: Handle, rng: Rng) -> None:
    ids = some_ids(rng, 9)
    for ignore in (-1, 511):
        row = student(ids[:4], ids[4:], ignore_index=ignore)
        expect_row(row, ids[:4], ids[4:], ignore)


@build_labels.case("goes by places and not by ids: the response may repeat the prompt")
def _(student: Handle, rng: Rng) -> None:
    a, b, end = some_ids(rng, 3)
    prompt, response = [a, b, a, end], [b, end, a, end]
    expect_row(student(prompt, response), prompt, response)


@build_labels.case("works where there is no prompt: then every id counts")
def _(student: Handle, rng: Rng) -> None:
    ids = some_ids(rng, 5)
    expect_row(student([], ids), [], ids)


@build_labels.case("leaves the two lists as they were, and gives back new ones", guard=True)
def _(student: Handle, rng: Rng) -> None:
    ids = some_ids(rng, 7)
    after = student.after(ids[:4], ids[4:]).args
    if list(after[0]) != ids[:4] or list(after[1]) != ids[4:]:
        fail("a list passed in was changed.", "in_place")


def _row_mistake(
    name: str, see: str, did: str, causes: str, labels: Callable[..., list[int]]
) -> None:
    """A right row of ids with wrong labels, made of prompt, response and ignore_index."""

    def wrong(prompt_ids: Any, response_ids: Any, ignore_index: int = -100) -> Any:
        prompt, response = list(prompt_ids), list(response_ids)
        return prompt + response, labels(prompt, response, ignore_index)

    _mistake(build_labels, name, see, did, causes, wrong)


_row_mistake(
    "loss_on_the_prompt",
    "which-tokens-count",
    "Your labels count the prompt as well.",
    "Most tokens of a question are in the prompt: the model spends its steps on learning to write"
    " questions, and short answers hardly weigh.",
    lambda p, r, ignore: p + r,
)
_row_mistake(
    "end_ignored",
    "where-it-ends",
    "Your labels leave out the response's last id, which ends the answer.",
    "The model is never told where to stop, and goes on until it runs out of room.",
    lambda p, r, ignore: [ignore] * len(p) + r[:-1] + [ignore],
)
_row_mistake(
    "shifted_left",
    "which-tokens-count",
    "Your labels are shifted: each token has the label of the one after it.",
    "The loss shifts once more, so the model is trained to predict the token after next.",
    lambda p, r, ignore: [*([ignore] * len(p) + r)[1:], ignore],
)
_row_mistake(
    "shifted_right",
    "which-tokens-count",
    "Your labels come one place too late.",
    "After the loss has shifted them back, each token is asked for itself: the model learns to"
    " repeat what it has just read.",
    lambda p, r, ignore: ([ignore, *[ignore] * len(p), *r])[:-1],
)
_row_mistake(
    "only_the_response",
    "which-tokens-count",
    "Your labels are the response alone, shorter than the ids.",
    "A label belongs to the token at its own place; without the prompt's share there is no saying"
    " which is whose.",
    lambda p, r, ignore: r,
)
_row_mistake(
    "ignore_fixed",
    "which-tokens-count",
    "Your labels mark the prompt with −100, whatever ignore_index says.",
    "A loss that ignores another number takes −100 for a token, and fails on it or counts it.",
    lambda p, r, ignore: [-100] * len(p) + r,
)
_row_mistake(
    "marked_with_zero",
    "which-tokens-count",
    "Your labels mark the prompt with 0.",
    "0 is a token. The model is trained to expect it after every word of a question.",
    lambda p, r, ignore: [0] * len(p) + r,
)
_row_mistake(
    "first_token_ignored",
    "which-tokens-count",
    "Your labels leave out the response's first id.",
    "The first token decides how an answer begins, and nothing teaches it. It is predicted from the"
    " prompt's last token, which the loss sees to.",
    lambda p, r, ignore: [ignore] * (len(p) + 1) + r[1:],
)
_row_mistake(
    "one_too_many",
    "which-tokens-count",
    "Your labels count the prompt's last id.",
    "It is given and never to be written. The shift is the loss's business: here each label stands"
    " at its own token.",
    lambda p, r, ignore: [ignore] * (len(p) - 1) + p[-1:] + r,
)
_row_mistake(
    "turned_around",
    "which-tokens-count",
    "Your labels count the prompt and leave out the response.",
    "The model learns to ask and never to answer.",
    lambda p, r, ignore: p + [ignore] * len(r),
)
_row_mistake(
    "by_ids",
    "which-tokens-count",
    "Your labels leave out every id that occurs in the prompt, wherever it stands.",
    "An answer copied from the question then has no label at all, and the end has none where the"
    " prompt holds an end too.",
    lambda p, r, ignore: [ignore if i in p else i for i in p + r],
)
_row_mistake(
    "every_end_ignored",
    "where-it-ends",
    "Your labels leave out the response's ids that equal its last one, as if they were padding.",
    "Padding is not here yet, so what was dropped is the end itself: no model learns to stop.",
    lambda p, r, ignore: [ignore] * len(p) + [ignore if i == r[-1] else i for i in r],
)


def _end_added(prompt_ids: Any, response_ids: Any, ignore_index: int = -100) -> Any:
    ids = [*prompt_ids, *response_ids, response_ids[-1]]
    return ids, [ignore_index] * len(prompt_ids) + [*response_ids, response_ids[-1]]


_mistake(
    build_labels,
    "end_added",
    "where-it-ends",
    "You add an end; the caller's response has one as its last id.",
    "The model learns to end twice, and the row is a token longer than it was measured to be.",
    _end_added,
)
_mistake(
    build_labels,
    "response_first",
    "which-tokens-count",
    "Your row begins with the response.",
    "A causal model reads from the left: it would have to answer before it has seen the question.",
    lambda prompt_ids, response_ids, ignore_index=-100: (
        [*response_ids, *prompt_ids],
        [*response_ids, *[ignore_index] * len(prompt_ids)],
    ),
)
_mistake(
    build_labels,
    "prompt_left_out",
    "which-tokens-count",
    "Your ids hold the response alone.",
    "The prompt has no label, but the model has to read it: without it every answer is a guess.",
    lambda prompt_ids, response_ids, ignore_index=-100: (list(response_ids), list(response_ids)),
)


def _in_place(prompt_ids: Any, response_ids: Any, ignore_index: int = -100) -> Any:
    labels = [ignore_index] * len(prompt_ids) + list(response_ids)
    prompt_ids += response_ids
    return prompt_ids, labels


_mistake(
    build_labels,
    "in_place",
    "which-tokens-count",
    "You extend the list that was passed in.",
    "The caller's prompt then holds the answer too: the next example built from it, or the question"
    " put to the model, gives it away. Build a new list with `+`.",
    _in_place,
)

# --- collate ------------------------------------------------------------------------------------

collate = ASSIGNMENT.exercise(
    "collate",
    points=3,
    forbidden=("pad_sequence",),
    hints=(
        "Three tables of one shape. What belongs behind the end of a short row in each of them?",
        "Start from tables that are all padding, of the longest row's length, and write each row"
        " over the left part. Say what is padding by counting, not by looking at the ids.",
        "pad_id in ids, −100 in labels, False in the mask: `torch.full` three times, then"
        " `table[i, :n] = …`.",
    ),
)


def some_rows(rng: Rng, *lengths: int, vocabulary: int = 97) -> list[Row]:
    """Rows of random ids, the later half of each with a label."""
    rows = []
    for n in lengths:
        ids = (1 + rng.integers(0, vocabulary, n)).tolist()
        rows.append((ids, [-100] * (n // 2) + ids[n // 2 :]))
    return rows


def expect_batch(student: Handle, rows: list[Row], pad_id: int) -> None:
    """The three tables: rows on the left, and behind them what each table has for padding."""
    result = student(rows, pad_id)
    expect(result, "the result").holds(
        isinstance(result, (tuple, list)) and len(result) == 3,
        "three tables are asked for: ids, labels, attention_mask.",
    )
    longest = max(len(ids) for ids, _ in rows)
    behind = [longest - len(ids) for ids, _ in rows]
    right = {
        "ids": [ids + [pad_id] * n for (ids, _), n in zip(rows, behind, strict=True)],
        "labels": [labels + [-100] * n for (_, labels), n in zip(rows, behind, strict=True)],
        "attention_mask": [
            [True] * len(ids) + [False] * n for (ids, _), n in zip(rows, behind, strict=True)
        ],
    }
    for (name, table), part in zip(right.items(), result, strict=True):
        expect(part, name).has_shape(len(rows), longest)
        expect(part, name).has_dtype(torch.bool if name == "attention_mask" else torch.int64)
        expect(part, name).equals(torch.tensor(table))


@collate.case("pads on the right to the longest row")
def _(student: Handle, rng: Rng) -> None:
    expect_batch(student, some_rows(rng, 5, 11, 2, 7), pad_id=3 + rng.integer(200, 300))


@collate.case(
    "keeps what is real where pad_id is a real token too, the end of an answer", weight=2.0
)
def _(student: Handle, rng: Rng) -> None:
    end = rng.integer(1, 98)
    rows = some_rows(rng, 4, 7, 3)
    rows = [([end, *ids, end], [-100, *labels, end]) for ids, labels in rows]
    expect_batch(student, rows, pad_id=end)


@collate.case("takes rows of equal length, and a single one, as they are")
def _(student: Handle, rng: Rng) -> None:
    expect_batch(student, some_rows(rng, 5, 5), pad_id=0)
    expect_batch(student, some_rows(rng, 3), pad_id=0)


@collate.case("keeps rows whose labels all count, and rows where none does")
def _(student: Handle, rng: Rng) -> None:
    (one, _), (two, _) = some_rows(rng, 6, 4)
    expect_batch(student, [(two, two), (one, [-100] * 6)], pad_id=rng.integer(300, 400))


@collate.case("leaves the rows as they were", guard=True)
def _(student: Handle, rng: Rng) -> None:
    rows = some_rows(rng, 3, 5)
    after = student.after(rows, 0).args[0]
    if [[list(part) for part in row] for row in after] != [list(row) for row in rows]:
        fail("a row passed in was changed.", "rows_changed")


Tables = tuple[Tensor, Tensor, Tensor]


def _batch(
    examples: Sequence[Row],
    pad_id: int,
    *,
    left: bool = False,
    longest: Callable[[list[int]], int] = max,
) -> Tables:
    """Padding with what the flags spoil."""
    n = longest([len(ids) for ids, _ in examples])

    def padded(row: list[int], filler: Any) -> list[Any]:
        extra = [filler] * (n - len(row))
        return (extra + row if left else row + extra)[:n]

    tables = [
        [padded(list(ids), pad_id) for ids, _ in examples],
        [padded(list(labels), -100) for _, labels in examples],
        [padded([True] * len(ids), False) for ids, _ in examples],
    ]
    ids, labels, mask = (torch.tensor(table) for table in tables)
    return ids, labels, mask


def _batch_mistake(
    name: str, did: str, causes: str, change: Callable[[Tables, int], Any], **how: Any
) -> None:
    _mistake(
        collate, name, "a-batch-of-answers", did, causes,
        lambda examples, pad_id: change(_batch(examples, pad_id, **how), pad_id),
    )  # fmt: skip


_batch_mistake(
    "labels_padded_with_pad_id",
    "Your labels are padded with pad_id; behind the end they must be −100.",
    "The loss counts the padding: in a batch with one long row the model mostly learns to write"
    " padding, and the loss looks splendid.",
    lambda t, pad_id: (t[0], t[1].where(t[2], pad_id), t[2]),
)
_batch_mistake(
    "labels_by_id",
    "Your labels are −100 wherever the id equals pad_id.",
    "Where padding and the end share an id, as they do for GPT-2, that wipes out the label of the"
    " end: the model never learns to stop.",
    lambda t, pad_id: (t[0], t[1].where(t[0] != pad_id, -100), t[2]),
)
_batch_mistake(
    "mask_by_id",
    "Your attention_mask is False wherever the id equals pad_id.",
    "A real token that has the id of padding, such as an end within a dialogue, becomes invisible."
    " What is padding follows from the lengths.",
    lambda t, pad_id: (t[0], t[1], t[0] != pad_id),
)
_batch_mistake(
    "both_by_id",
    "Your labels and your attention_mask take every pad_id for padding.",
    "Where padding and the end share an id, the end has no label and cannot be read: the model"
    " never learns to stop.",
    lambda t, pad_id: (t[0], t[1].where(t[0] != pad_id, -100), t[0] != pad_id),
)


def _moved(mask: Tensor, by: int) -> Tensor:
    return torch.arange(mask.shape[1]) < mask.sum(dim=1, keepdim=True) + by


_batch_mistake(
    "mask_too_short",
    "Your attention_mask is False at each row's last real token.",
    "The end of every answer, or the last word of a question, cannot be read.",
    lambda t, pad_id: (t[0], t[1], _moved(t[2], -1)),
)
_batch_mistake(
    "mask_too_long",
    "Your attention_mask is True at the first padding token.",
    "Every short row reads one token that is not part of it, and its answers depend on how long the"
    " others are.",
    lambda t, pad_id: (t[0], t[1], _moved(t[2], 1)),
)
_batch_mistake(
    "mask_of_labels",
    "Your attention_mask is True only where a label counts.",
    "The prompt has no labels, but it must be read: the model would answer without the question.",
    lambda t, pad_id: (t[0], t[1], t[1] != -100),
)
_batch_mistake(
    "mask_turned_around",
    "Your attention_mask is True at padding.",
    "In this course True means: may be attended to. The model would read the padding alone.",
    lambda t, pad_id: (t[0], t[1], ~t[2]),
)
_batch_mistake(
    "mask_of_numbers",
    "Your attention_mask holds numbers; booleans are asked for.",
    "`~mask` of the number 1 is −2, and added to scores a 0 hides nothing.",
    lambda t, pad_id: (t[0], t[1], t[2].long()),
)
_batch_mistake(
    "mask_all_true",
    "Your attention_mask is True everywhere.",
    "Padding is read like text, and a row's answer depends on its neighbors' lengths.",
    lambda t, pad_id: (t[0], t[1], torch.ones_like(t[2])),
)
_batch_mistake(
    "padded_on_the_left",
    "You pad on the left.",
    "The real tokens then stand at other positions than in use, where a text begins at 0. Padding"
    " on the left is for generating with a mask and shifted positions.",
    lambda t, pad_id: t,
    left=True,
)
_batch_mistake(
    "cut_to_the_shortest",
    "You cut all rows to the length of the shortest.",
    "What is cut off is the end of the longer ones, which is their answer.",
    lambda t, pad_id: t,
    longest=min,
)
_batch_mistake(
    "cut_to_the_first",
    "Your tables have the length of the first row.",
    "Longer rows lose their answers, and where the first is the longest nobody notices.",
    lambda t, pad_id: t,
    longest=lambda lengths: lengths[0],
)
_batch_mistake(
    "ids_padded_with_ignore",
    "Your ids are padded with −100.",
    "−100 is no token: the embedding cannot look it up. Only labels may hold it.",
    lambda t, pad_id: (t[0].where(t[2], -100), t[1], t[2]),
)
_batch_mistake(
    "padded_with_zero",
    "Your ids are padded with 0, whatever pad_id says.",
    "0 is an ordinary token in many vocabularies.",
    lambda t, pad_id: (t[0].where(t[2], 0), t[1], t[2]),
)
_batch_mistake(
    "labels_padded_with_zero",
    "Your labels are padded with 0; behind the end they must be −100.",
    "0 is a token: the model is trained to write it after every answer.",
    lambda t, pad_id: (t[0], t[1].where(t[2], 0), t[2]),
)
_batch_mistake(
    "labels_are_ids",
    "Your labels are the ids, with −100 at padding: the rows' own labels are lost.",
    "The prompt counts again, although build_labels took care that it does not.",
    lambda t, pad_id: (t[0], t[0].where(t[2], -100), t[2]),
)
_batch_mistake(
    "shifted",
    "You shift the labels by one place.",
    "The loss shifts them already; shifted twice, they ask for the token after next.",
    lambda t, pad_id: (t[0], torch.cat([t[1][:, 1:], torch.full_like(t[1][:, :1], -100)], 1), t[2]),
)
_batch_mistake(
    "two_tables",
    "You return two tables; the attention_mask is missing.",
    "A model that reads both sides cannot tell padding from text without it.",
    lambda t, pad_id: t[:2],
)


def _rows_changed(examples: Sequence[Row], pad_id: int) -> Tables:
    result = _batch(examples, pad_id)
    for ids, labels in examples:
        extra = result[0].shape[1] - len(ids)
        ids.extend([pad_id] * extra)
        labels.extend([-100] * extra)
    return result


_mistake(
    collate,
    "rows_changed",
    "a-batch-of-answers",
    "You append the padding to the rows that were passed in.",
    "In the next epoch they come with their padding, which then passes for text and only grows.",
    _rows_changed,
)

# --- exact_match --------------------------------------------------------------------------------

exact_match = ASSIGNMENT.exercise(
    "exact_match",
    points=2,
    hints=(
        "Two people write the same answer. In which ways may they write it that should not matter?",
        "Bring both texts into one normal form, in this order, and compare: lower case, punctuation"
        " out, articles out, spaces made single.",
        "`string.punctuation`, `re.sub` with `\\b` around the articles, `' '.join(text.split())`.",
    ),
)


def expect_verdicts(student: Handle, alike: Sequence[Any], apart: Sequence[Any]) -> None:
    """Both kinds in every case, so that an answer that is always the same earns nothing."""
    for pairs, right in ((apart, False), (alike, True)):
        for prediction, reference in pairs:
            verdict, call = student(prediction, reference), f"({prediction!r}, {reference!r})"
            if isinstance(verdict, (int, float)) and not isinstance(verdict, bool):
                mistake = "a_number" if isinstance(verdict, int) else "f1"
                fail(f"exact_match{call}: expected {right}, got {verdict}.", mistake)
            expect(verdict, f"exact_match{call}").equals(right)


WORDS = ("crown", "storm", "lantern", "harbor", "thistle", "orchard", "banner", "candle")


def words(rng: Rng, n: int) -> list[str]:
    return [WORDS[i] for i in rng.permutation(len(WORDS))[:n]]


@exact_match.case("tells equal answers from different ones")
def _(student: Handle, rng: Rng) -> None:
    a, b, c = words(rng, 3)
    expect_verdicts(student, [(f"{a} {b}", f"{a} {b}"), (c, c)], [(a, b), (f"{a} {b}", f"{a} {c}")])


@exact_match.case("ignores case")
def _(student: Handle, rng: Rng) -> None:
    a, b = words(rng, 2)
    expect_verdicts(student, [(a.title(), a), (b, b.upper())], [(a.upper(), b)])


@exact_match.case("takes punctuation out, also inside a word")
def _(student: Handle, rng: Rng) -> None:
    a, b = words(rng, 2)
    alike = [(f"{a}.", a), (f'"{a}"', a), (f"{a}'s", f"{a}s")]
    expect_verdicts(student, [*alike, (f"{a}-{b}", f"{a}{b}")], [(f"{a}.", b), (f"{a}-{b}", b)])


@exact_match.case("leaves no space where punctuation stood")
def _(student: Handle, rng: Rng) -> None:
    a, b = words(rng, 2)
    expect_verdicts(student, [(f"{a}-{b}.", f"{a}{b}")], [(f"{a}-{b}", f"{a} {b}")])


@exact_match.case("ignores the articles a, an and the, on either side")
def _(student: Handle, rng: Rng) -> None:
    a, b = words(rng, 2)
    alike = [(f"the {a}", a), (f"an {a}", a), (f"{b} of a {a}", f"{b} of the {a}"), (a, f"A {a}")]
    expect_verdicts(student, alike, [(f"the {a}", f"the {b}")])


@exact_match.case("takes articles for whole words: “thereafter” keeps its “the”")
def _(student: Handle, rng: Rng) -> None:
    a = words(rng, 1)[0]
    apart = [("banana", "bnn"), (f"there {a}", f"re {a}"), (f"{a} at an end", f"{a} t end")]
    expect_verdicts(
        student, [(f"there {a}", f"there {a}"), (f"the other {a}", f"other {a}")], apart
    )


@exact_match.case("makes spaces single and keeps them between words")
def _(student: Handle, rng: Rng) -> None:
    a, b = words(rng, 2)
    alike = [(f"  {a}   {b}\n", f"{a} {b}"), (f"{a} the {b}", f"{a} {b}")]
    expect_verdicts(student, alike, [(f"{a} {b}", f"{a}{b}")])


@exact_match.case("wants the whole answer, in its order")
def _(student: Handle, rng: Rng) -> None:
    a, b, c = words(rng, 3)
    apart = [(f"{a} {a}", a), (f"{a} {b}", a), (a, f"{a} {b}"), (f"{a} {b}", f"{b} {a}")]
    expect_verdicts(student, [(f"{a} {b} {c}", f"{a} {b} {c}")], apart)


@exact_match.case("takes two answers of nothing but articles and marks for equal")
def _(student: Handle, rng: Rng) -> None:
    a = words(rng, 1)[0]
    expect_verdicts(student, [("The", ""), ("...", "an")], [("the", a), ("", a)])


@exact_match.case("removes punctuation before articles: “the-crown” is one word, “thecrown”")
def _(student: Handle, rng: Rng) -> None:
    a = words(rng, 1)[0]
    expect_verdicts(student, [(f"the-{a}", f"the{a}"), ("a.m.", "am")], [(f"the-{a}", a)])


def _lower(text: str) -> str:
    return text.lower()


def _no_marks(text: str) -> str:
    return "".join(c for c in text if c not in string.punctuation)


def _no_articles(text: str) -> str:
    return re.sub(r"\b(a|an|the)\b", " ", text)


def _single(text: str) -> str:
    return " ".join(text.split())


Step = Callable[[str], str]
ORDER: tuple[Step, ...] = (_lower, _no_marks, _no_articles, _single)


def _compared(
    *steps: Step, judge: Callable[[Any, Any], Any] = lambda one, other: one == other
) -> Callable[..., Any]:
    def normal(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return lambda prediction, reference: judge(normal(prediction), normal(reference))


def _match_mistake(name: str, did: str, causes: str, wrong: Callable[..., Any]) -> None:
    _mistake(exact_match, name, "judging-answers", did, causes, wrong)


_match_mistake(
    "plain_equality",
    "You compare the texts as they are.",
    "“The pound.” for “pound” counts as wrong: the number then measures spelling habits.",
    lambda prediction, reference: prediction == reference,
)
_match_mistake(
    "lower_and_strip",
    "You put the texts in lower case and trim their ends, and leave it at that.",
    "Punctuation, articles and double spaces still make equal answers different.",
    _compared(_lower, str.strip),
)
_match_mistake(
    "case_kept",
    "You keep the case.",
    "“Norway” and “norway” count as different answers.",
    _compared(_no_marks, lambda t: re.sub(r"\b(a|an|the)\b", " ", t, flags=re.IGNORECASE), _single),
)
_match_mistake(
    "punctuation_kept",
    "You keep the punctuation.",
    "An answer that ends with a full stop is never right where the reference has none.",
    _compared(_lower, _no_articles, _single),
)
_match_mistake(
    "articles_kept",
    "You keep the articles.",
    "“the pound” and “pound” count as different answers.",
    _compared(_lower, _no_marks, _single),
)
_match_mistake(
    "articles_inside_words",
    "You take the letters of articles out of other words as well.",
    "“banana” and “bnn” become equal, and so do answers that differ. Put `\\b` around the article.",
    _compared(_lower, _no_marks, lambda t: re.sub("the|an|a", "", t), _single),
)
_match_mistake(
    "only_a_leading_article",
    "You remove an article at the beginning only.",
    "“king of the storm” and “king of storm” stay different.",
    _compared(_lower, _no_marks, lambda t: re.sub(r"^\s*(a|an|the)\b", " ", t), _single),
)
_match_mistake(
    "the_alone",
    "Of the articles you remove “the” alone.",
    "“a crown” for “crown” counts as wrong. SQuAD's form drops a, an and the.",
    _compared(_lower, _no_marks, lambda t: re.sub(r"\bthe\b", " ", t), _single),
)
_match_mistake(
    "marks_at_the_ends",
    "You remove punctuation at the ends of the text only.",
    "“1,000” and “1000”, or “dont” and “don't”, stay different.",
    _compared(_lower, lambda t: t.strip(string.punctuation), _no_articles, _single),
)
_match_mistake(
    "marks_become_spaces",
    "You put a space in the place of punctuation; SQuAD's form removes it.",
    "“don't” becomes two words and no longer equals “dont”, and the “a” of “a.m.” passes for an"
    " article.",
    _compared(
        _lower,
        lambda t: "".join(" " if c in string.punctuation else c for c in t),
        _no_articles,
        _single,
    ),
)
_match_mistake(
    "articles_first",
    "You remove articles before punctuation.",
    "In “the-crown” the hyphen then makes an article of “the”, and your numbers are not those of"
    " others.",
    _compared(_lower, _no_articles, _no_marks, _single),
)
_match_mistake(
    "spaces_kept",
    "You leave the spaces as they are.",
    "A double space, or the gap that an article left behind, makes equal answers different.",
    _compared(_lower, _no_marks, _no_articles),
)
_match_mistake(
    "only_stripped",
    "You trim the ends and leave the spaces inside as they are.",
    "The gap that an article left behind, two spaces wide, makes equal answers different.",
    _compared(_lower, _no_marks, _no_articles, str.strip),
)
_match_mistake(
    "no_spaces",
    "You remove all spaces.",
    "“no where” and “nowhere” become the same answer.",
    _compared(*ORDER, lambda t: t.replace(" ", "")),
)
_match_mistake(
    "contained",
    "You ask whether the reference occurs in the prediction.",
    "A model that lists every country it knows is then always right.",
    _compared(*ORDER, judge=lambda one, other: other in one),
)
_match_mistake(
    "either_contained",
    "You ask whether one of the texts occurs in the other.",
    "An answer of one letter, or of none, is then right for many questions.",
    _compared(*ORDER, judge=lambda one, other: other in one or one in other),
)
_match_mistake(
    "same_words",
    "You compare the sets of words.",
    "“Peru beats Norway” and “Norway beats Peru” become the same headline.",
    _compared(*ORDER, judge=lambda one, other: set(one.split()) == set(other.split())),
)
_match_mistake(
    "counted_words",
    "You compare the sorted words: their order is lost.",
    "“Peru beats Norway” and “Norway beats Peru” become the same headline.",
    _compared(*ORDER, judge=lambda one, other: sorted(one.split()) == sorted(other.split())),
)


def _overlap(one: str, other: str) -> float:
    left, right = set(one.split()), set(other.split())
    return 2 * len(left & right) / max(1, len(left) + len(right)) if left or right else 1.0


_match_mistake(
    "f1",
    "You return the share of words in common; a bool is asked for.",
    "That is F1, SQuAD's other measure. A half-right answer counts half there, and nothing here.",
    _compared(*ORDER, judge=_overlap),
)
_match_mistake(
    "a_number",
    "You return 1 or 0; a bool is asked for.",
    "A mean comes out the same, but `is True`, or a mask made of it, means something else.",
    _compared(*ORDER, judge=lambda one, other: int(one == other)),
)
_match_mistake(
    "one_side",
    "You normalize the prediction and leave the reference as it is.",
    "References with a capital letter or an article can then never be met.",
    lambda prediction, reference: (
        _compared(*ORDER, judge=lambda a, b: a)(prediction, "") == reference
    ),
)

# --- dpo_loss -----------------------------------------------------------------------------------

dpo_loss = ASSIGNMENT.exercise(
    "dpo_loss",
    points=3,
    forbidden=("binary_cross_entropy", "binary_cross_entropy_with_logits"),
    hints=(
        "By how much does the policy prefer the chosen answer? By how much did the reference? Which"
        " of the two differences should be the larger one?",
        "The margin, one number for each pair, is the policy's difference less the reference's."
        " The loss of a pair falls as its margin grows; average over the pairs at the very end.",
        "mean of −ln σ(β · margin), margin (B,). `F.logsigmoid` does not overflow where σ is 0.",
    ),
)

Sums = tuple[Tensor, Tensor, Tensor, Tensor]


def some_sums(rng: Rng, n: int, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Sums:
    """Sums of log-probabilities as answers of some tokens have them: all far below 0."""
    chosen, rejected, old_chosen, old_rejected = (
        -20 - scale * rng.normal(n, dtype=dtype) for _ in range(4)
    )
    return chosen, rejected, old_chosen, old_rejected


def right_loss(sums: Sums, beta: float) -> Tensor:
    """Equation 7 of Rafailov et al. 2023."""
    chosen, rejected, old_chosen, old_rejected = sums
    return -F.logsigmoid(beta * ((chosen - old_chosen) - (rejected - old_rejected))).mean()


@dpo_loss.case("is the mean of −ln σ(β · margin)")
def _(student: Handle, rng: Rng) -> None:
    for beta in (0.1, 0.7):
        sums = some_sums(rng, 7)
        expect(student(*sums, beta), "the loss").close_to(right_loss(sums, beta))


@dpo_loss.case("falls when the chosen answer gains and rises when the rejected one does")
def _(student: Handle, rng: Rng) -> None:
    sums = some_sums(rng, 5)
    for part, sign in ((0, -1), (1, 1), (2, 1), (3, -1)):
        moved: Any = [s + 2.0 if i == part else s for i, s in enumerate(sums)]
        expect(student(*moved, 0.5), "the loss").close_to(right_loss(moved, 0.5))
        step = right_loss(moved, 0.5) - right_loss(sums, 0.5)
        assert step.sign() == sign


@dpo_loss.case("is ln 2 where the policy is the reference")
def _(student: Handle, rng: Rng) -> None:
    chosen, rejected, *_ = some_sums(rng, 5)
    loss = student(chosen, rejected, chosen.clone(), rejected.clone(), 0.3)
    expect(loss, "the loss").close_to(torch.tensor(math.log(2), dtype=torch.float64))


@dpo_loss.case("does not change where policy and reference are moved alike")
def _(student: Handle, rng: Rng) -> None:
    chosen, rejected, old_chosen, old_rejected = some_sums(rng, 5)
    shift = 5 * rng.normal(5)
    moved = chosen + shift, rejected - shift, old_chosen + shift, old_rejected - shift
    right = right_loss((chosen, rejected, old_chosen, old_rejected), 0.4)
    expect(student(*moved, 0.4), "the loss").close_to(right)


@dpo_loss.case("averages over pairs at the end: pairs that disagree do not cancel")
def _(student: Handle, rng: Rng) -> None:
    gap = torch.tensor([9.0, -9.0, 4.0, -4.0], dtype=torch.float64)
    chosen, _, old_chosen, old_rejected = some_sums(rng, 4)
    sums = chosen, chosen - gap - old_chosen + old_rejected, old_chosen, old_rejected
    expect(student(*sums, 1.0), "the loss").close_to(right_loss(sums, 1.0))


@dpo_loss.case("stays finite for margins in the thousands, right or wrong")
def _(student: Handle, rng: Rng) -> None:
    chosen, rejected, old_chosen, old_rejected = some_sums(rng, 3)
    for far in (5000.0, -5000.0):
        sums = chosen + far, rejected, old_chosen, old_rejected
        expect(student(*sums, 1.0), "the loss").close_to(right_loss(sums, 1.0))


@dpo_loss.case("works on a single pair")
def _(student: Handle, rng: Rng) -> None:
    sums = some_sums(rng, 1)
    expect(student(*sums, 0.2), "the loss").close_to(right_loss(sums, 0.2))


guard(dpo_loss, lambda rng, dtype: (*some_sums(rng, 3, dtype=dtype), 0.3))


def _dpo(
    margin: Callable[..., Tensor] = lambda c, r, oc, orr: (c - r) - (oc - orr),
    loss: Callable[[Tensor, float], Tensor] = lambda m, beta: -F.logsigmoid(beta * m),
    finish: Callable[[Tensor], Tensor] = torch.mean,
) -> Callable[..., Tensor]:
    """A loss with one thing wrong."""

    def wrong(
        policy_chosen: Tensor,
        policy_rejected: Tensor,
        reference_chosen: Tensor,
        reference_rejected: Tensor,
        beta: float,
    ) -> Tensor:
        sums = policy_chosen, policy_rejected, reference_chosen, reference_rejected
        return finish(loss(margin(*sums), beta))

    return wrong


def _dpo_mistake(name: str, did: str, causes: str, wrong: Callable[..., Tensor]) -> None:
    _mistake(dpo_loss, name, "dpo", did, causes, wrong)


_dpo_mistake(
    "sign",
    "Your margin has the wrong sign: rejected less chosen.",
    "The policy is trained to prefer the answers that people rejected.",
    _dpo(lambda c, r, oc, orr: (r - c) - (orr - oc)),
)
_dpo_mistake(
    "minus_missing",
    "You return the mean of ln σ(β · margin), without the minus.",
    "The loss is negative and falls as the margins fall: the policy learns the opposite.",
    _dpo(loss=lambda m, beta: F.logsigmoid(beta * m)),
)
_dpo_mistake(
    "reference_ignored",
    "Your margin leaves the reference out.",
    "What the model preferred before it saw any preference counts as a success, and nothing holds"
    " the policy near the model that it came from.",
    _dpo(lambda c, r, oc, orr: c - r),
)
_dpo_mistake(
    "reference_added",
    "You add the reference's difference; subtract it.",
    "At the start the loss should be ln 2 for every pair. Yours rewards what the reference already"
    " prefers.",
    _dpo(lambda c, r, oc, orr: (c - r) + (oc - orr)),
)
_dpo_mistake(
    "mean_first",
    "You average the margins first and take −ln σ of the average.",
    "A pair that is far on the right side then hides one that is far on the wrong side.",
    _dpo(lambda c, r, oc, orr: ((c - r) - (oc - orr)).mean()),
)
_dpo_mistake(
    "beta_ignored",
    "You leave β out.",
    "β says how dear it is to leave the reference. Without it, it is 1, ten times the usual.",
    _dpo(loss=lambda m, beta: -F.logsigmoid(m)),
)
_dpo_mistake(
    "beta_outside",
    "You multiply the loss by β; it belongs to the margin, inside σ.",
    "That only scales the learning rate: how far a margin must grow until it counts as settled"
    " stays the same.",
    _dpo(loss=lambda m, beta: -beta * F.logsigmoid(m)),
)
_dpo_mistake(
    "beta_divides",
    "You divide the margin by β.",
    "β would be a temperature; here a large β is a tight leash.",
    _dpo(loss=lambda m, beta: -F.logsigmoid(m / beta)),
)
_dpo_mistake(
    "beta_on_the_policy",
    "Your β scales the policy's difference and not the reference's.",
    "Where the policy is the reference the margin must be 0; yours is not.",
    lambda c, r, oc, orr, beta: -F.logsigmoid(beta * (c - r) - (oc - orr)).mean(),
)
_dpo_mistake(
    "summed",
    "You sum over the pairs; the mean is asked for.",
    "The learning rate then depends on the batch size.",
    _dpo(finish=torch.sum),
)
_dpo_mistake(
    "not_reduced",
    "You return a loss for each pair; their mean is asked for.",
    "`backward` wants one number.",
    _dpo(finish=lambda loss: loss),
)
_dpo_mistake(
    "sigmoid_first",
    "You take the sigmoid and then its logarithm.",
    "For a margin of −5000, σ is 0 in floating point, its logarithm −∞, and the gradient NaN."
    " `F.logsigmoid` is the same function, computed without leaving the range.",
    _dpo(loss=lambda m, beta: -(beta * m).sigmoid().log()),
)
_dpo_mistake(
    "epsilon",
    "You add a small number inside the logarithm.",
    "A pair that is far on the wrong side then has no gradient, and it is the one that needs it."
    " `F.logsigmoid` needs no such number.",
    _dpo(loss=lambda m, beta: -((beta * m).sigmoid() + 1e-8).log()),
)
_dpo_mistake(
    "no_logarithm",
    "You take σ of the margin without the logarithm.",
    "Its gradient vanishes for pairs that are far on the wrong side: they are given up.",
    _dpo(loss=lambda m, beta: 1 - (beta * m).sigmoid()),
)
_dpo_mistake(
    "no_sigmoid",
    "You return −β · margin, without σ.",
    "The gradient never fades, so pairs that are settled push the policy on, without end.",
    _dpo(loss=lambda m, beta: -beta * m),
)
_dpo_mistake(
    "chosen_alone",
    "Your margin looks at the chosen answers alone.",
    "That is training on good examples. What makes them better than the rejected ones is not seen.",
    _dpo(lambda c, r, oc, orr: c - oc),
)
_dpo_mistake(
    "logarithm_of_logarithms",
    "You take the logarithm of the inputs, which are log-probabilities already.",
    "They are negative: the logarithm is NaN.",
    _dpo(lambda c, r, oc, orr: (c.log() - oc.log()) - (r.log() - orr.log())),
)
_dpo_mistake(
    "probabilities",
    "You turn the sums into probabilities before you compare them.",
    "e to the −20 is nearly 0 for every answer, so the differences vanish. The loss is made of"
    " log-probabilities.",
    _dpo(lambda c, r, oc, orr: (c.exp() - r.exp()) - (oc.exp() - orr.exp())),
)
_dpo_mistake(
    "two_sigmoids",
    "You take −ln σ of the chosen answer's gain and of the rejected one's apart.",
    "DPO compares the two answers with each other. Judged apart, both may gain together and nothing"
    " says which should be ahead.",
    lambda c, r, oc, orr, beta: (
        -(F.logsigmoid(beta * (c - oc)) + F.logsigmoid(-beta * (r - orr))).mean() / 2
    ),
)
