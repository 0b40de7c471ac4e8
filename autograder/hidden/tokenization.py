"""Hidden cases of chapter 08."""

from __future__ import annotations

from autograder.checks.tokenization import (
    ASSIGNMENT,
    SPECIALS,
    BPETokenizer,
    counted,
    expect_encoding,
    expect_ids,
    expect_merges,
    expect_table,
    learn,
    letters,
    merge_pair,
    merged,
    pair_counts,
    some_merges,
    some_text,
    some_words,
    train_bpe,
)
from autograder.engine.exercise import Rng
from autograder.engine.expect import expect
from autograder.engine.handle import Handle

for exercise in ASSIGNMENT.exercises:
    exercise.redraw()


@pair_counts.hidden("a thousand words", hint="A table of a thousand words must be counted right.")
def _(student: Handle, rng: Rng) -> None:
    words = some_words(rng, 1000, n_ids=40)
    expect_table(student(words), counted(words))


@merge_pair.hidden(
    "a long run of one id", hint="Runs of one id, of any length, are merged from the left."
)
def _(student: Handle, rng: Rng) -> None:
    ids = [7] * (2 * rng.integer(20, 40) + 1) + [8] + [7] * 4
    expect_ids(student(ids, (7, 7), 300), merged(ids, (7, 7), 300))


@merge_pair.hidden("ids of earlier merges", hint="The pair may itself hold ids of 256 and more.")
def _(student: Handle, rng: Rng) -> None:
    ids = (256 + rng.integers(0, 3, 60)).tolist()
    expect_ids(student(ids, (257, 256), 259), merged(ids, (257, 256), 259))


@train_bpe.hidden(
    "a text with everything in it",
    hint="Words, digits, marks, spaces, Chinese and special tokens in one text.",
)
def _(student: Handle, rng: Rng) -> None:
    text = some_text(rng, 40, "abc1.") + "\n\n  中文字，中文。<|end|>" + some_text(rng, 40, "abé'")
    expect_merges(student, text, 256 + 40, ("<|end|>",))


@train_bpe.hidden("one long run", hint="A run of one letter is merged again and again.")
def _(student: Handle, rng: Rng) -> None:
    expect_merges(student, letters(rng, 1)[0] * rng.integer(25, 60), 256 + 20)


@train_bpe.hidden(
    "special tokens side by side and at the ends",
    hint="A text may begin and end with special tokens, or hold two in a row.",
)
def _(student: Handle, rng: Rng) -> None:
    text = "<|end|><|pad|>" + some_text(rng, 20) + "<|pad|><|pad|>"
    expect_merges(student, text, 256 + 12, ("<|end|>", "<|pad|>"))


@BPETokenizer.hidden(
    "many merges on a long text", hint="Encoding must follow the merges' order on any text."
)
def _(student: Handle, rng: Rng) -> None:
    text = some_text(rng, 120, "abcdef")
    expect_encoding(student, some_text(rng, 60, "abcdef"), learn(text, 256 + 80))


@BPETokenizer.hidden(
    "special tokens and a byte order together",
    hint="byte_order moves the ids of the bytes alone: merges and special tokens keep theirs.",
)
def _(student: Handle, rng: Rng) -> None:
    order = rng.permutation(256).tolist()
    text = f"<|end|>{some_text(rng, 9, 'abcde')}<|end|><|end|> 中\n"
    expect_encoding(student, text, some_merges(rng), SPECIALS, order)


@BPETokenizer.hidden("a lone byte of every value", hint="Every byte has an id and comes back.")
def _(student: Handle, rng: Rng) -> None:
    order = rng.permutation(256).tolist()
    value = student.hold([], (), order).method("decode_bytes")(list(range(256)))
    expect(value, "the bytes").equals(bytes(order))


@BPETokenizer.hidden("no ids at all", hint="An empty list decodes to an empty text.")
def _(student: Handle, rng: Rng) -> None:
    tokenizer = student.hold(some_merges(rng))
    expect(tokenizer.method("decode")([]), "the text").equals("")
    expect(tokenizer.method("decode_bytes")([]), "the bytes").equals(b"")
