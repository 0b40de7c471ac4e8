"""Checks of chapter 08: counting pairs, merging one, learning merges, encoding and decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import regex

from autograder.engine.exercise import Assignment, Rng
from autograder.engine.expect import expect, fail
from autograder.engine.handle import Handle, StudentError

ASSIGNMENT = Assignment(
    name="08-tokenization",
    notebook="tokenization",
    page="08_tokenization",
    minutes=75,
    sections={
        "bytes": "Characters, words, bytes",
        "by-hand": "Byte-pair encoding by hand",
        "learning-merges": "Learning the merges",
        "the-pattern": "The pattern that cuts first",
        "encoding": "Encoding and decoding",
        "byte-order": "GPT-2's order of bytes",
    },
    modules=("data", "metrics", "ngram", "rnn", "lstm"),
)

Pair = tuple[int, int]
Merges = list[tuple[bytes, bytes]]

# The pattern that the notebook gives: Radford et al. 2019.
PATTERN = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


# --- pair_counts --------------------------------------------------------------------------------

pair_counts = ASSIGNMENT.exercise(
    "pair_counts",
    points=2,
    hints=(
        "A word of n ids has n − 1 pairs of neighbors. How much does each of them count, if the"
        " word stands five times in the text?",
        "Go through the words one at a time: the last id of one word and the first of the next"
        " never stood side by side.",
        "`zip(word, word[1:])` gives a word's pairs; the table is a `Counter` from pairs to"
        " sums of the words' counts.",
    ),
)


def expect_table(table: Any, right: dict[Pair, int]) -> None:
    """The counts of the pairs that occur; entries of 0 for others are welcome."""
    expect(table, "the table").holds(
        isinstance(table, dict), f"expected a Counter or another dict, got {shown(table)}."
    )
    for pair in [*right, *table]:
        have, want = table.get(pair, 0), right.get(pair, 0)
        expect(table, "the table").holds(
            have == want, f"the pair {pair} occurs {want} times, you count {shown(have)}."
        )


def counted(words: Mapping[Any, int]) -> dict[Pair, int]:
    """Every pair spelled out, and counted as often as its word stands in the text."""
    table = Counter[Pair]()
    for word, n in words.items():
        for pair in pairwise(word):
            table[pair] += n
    return table


def some_words(rng: Rng, n_words: int, n_ids: int = 5) -> dict[tuple[int, ...], int]:
    """Different random words of 2 to 6 ids, each with a count of its own."""
    words: dict[tuple[int, ...], int] = {}
    while len(words) < n_words:
        word = tuple(rng.integers(0, n_ids, rng.integer(2, 7)).tolist())
        words[word] = len(words) + 1
    return words


@pair_counts.case("counts the pairs of neighbors in a word")
def _(student: Handle, rng: Rng) -> None:
    word = tuple((300 * rng.permutation(7)).tolist())  # ids beyond the bytes, each once
    expect_table(student({word: 1}), counted({word: 1}))


@pair_counts.case("counts a pair each time it occurs in a word")
def _(student: Handle, rng: Rng) -> None:
    a, b, c = rng.permutation(9)[:3].tolist()
    words = {(a, b, c, a, b): 1}
    expect_table(student(words), counted(words))


@pair_counts.case("counts overlapping pairs: three equal ids hold two")
def _(student: Handle, rng: Rng) -> None:
    a = rng.integer(0, 256)
    words = {(a,) * 3: 1, (a + 1,) * 6: 1}
    expect_table(student(words), counted(words))


@pair_counts.case("weighs each word by how often it occurs")
def _(student: Handle, rng: Rng) -> None:
    a, b, c = rng.permutation(9)[:3].tolist()
    words = {(a, b): rng.integer(3, 9), (b, c): rng.integer(11, 19), (a, b, c): 2}
    expect_table(student(words), counted(words))


@pair_counts.case("keeps (a, b) and (b, a) apart")
def _(student: Handle, rng: Rng) -> None:
    a, b = rng.permutation(9)[:2].tolist()
    words = {(a, b): 1, (b, a): 2}
    expect_table(student(words), counted(words))


@pair_counts.case("counts nothing from one word to the next")
def _(student: Handle, rng: Rng) -> None:
    words = {tuple((10 * k + rng.permutation(4)).tolist()): 1 for k in range(3)}
    expect_table(student(words), counted(words))


@pair_counts.case("finds no pair in a word of one id")
def _(student: Handle, rng: Rng) -> None:
    expect_table(student({(rng.integer(0, 9),): 4}), {})
    expect_table(student({}), {})


@pair_counts.case("counts a whole text's words")
def _(student: Handle, rng: Rng) -> None:
    words = some_words(rng, 30)
    expect_table(student(words), counted(words))


def _counts(
    pairs: Callable[[tuple[int, ...]], Iterable[Any]], weigh: bool = True
) -> Callable[..., dict[Any, int]]:
    """A table of the pairs that `pairs` finds in a word."""

    def wrong(words: dict[tuple[int, ...], int]) -> dict[Any, int]:
        table: Counter[Any] = Counter()
        for word, n in words.items():
            for pair in pairs(word):
                table[pair] += n if weigh else 1
        return table

    return wrong


def _not_this_count(name: str, did: str, causes: str, wrong: Callable[..., Any]) -> None:
    pair_counts.misconception(did=did, causes=causes, see="by-hand", name=name)(wrong)


def _across(words: dict[tuple[int, ...], int]) -> dict[Pair, int]:
    return Counter(pairwise(i for word, n in words.items() for _ in range(n) for i in word))


_not_this_count(
    "ignores_word_counts",
    "You count each word once, however often it occurs.",
    "A pair in a word that stands ten thousand times counts as much as one in a word that stands"
    " once, so the first merges go to rare words.",
    _counts(pairwise, weigh=False),
)
_not_this_count(
    "counts_across_words",
    "You count pairs from the end of one word to the beginning of the next.",
    "The table of words has lost their order in the text, so these neighbors never met; and a"
    " merge of them could never be applied inside a word.",
    _across,
)
_not_this_count(
    "once_per_word",
    "You count a pair once per word, even where the word holds it twice.",
    "The second (a, n) of banana is lost, and repeated letters are merged too late.",
    _counts(lambda word: set(pairwise(word))),
)
_not_this_count(
    "separate_pairs",
    "You cut each word into pairs: ids 1 and 2, then 3 and 4.",
    "Every id but the first and the last stands in two pairs, so half of the pairs are missed.",
    _counts(lambda word: zip(word[::2], word[1::2], strict=False)),
)
_not_this_count(
    "either_order",
    "You count (a, b) and (b, a) as one pair.",
    "A merge replaces the two ids in one order only, so the count promises more than the merge"
    " can replace.",
    _counts(lambda word: (tuple(sorted(pair)) for pair in pairwise(word))),
)
_not_this_count(
    "wraps_around",
    "You count the last id of a word and its first as a pair.",
    "A word is no circle: that pair is never side by side in the text.",
    _counts(lambda word: pairwise((*word, word[0])) if len(word) > 1 else ()),
)
_not_this_count(
    "skips_overlaps",
    "You skip a pair that shares an id with the pair before it, as if merging already.",
    "In (7, 7, 7) both pairs are counted; what a merge replaces is decided later, when it is"
    " applied.",
    _counts(lambda word: _without_overlaps(word)),
)


def _without_overlaps(word: tuple[int, ...]) -> Iterable[Pair]:
    last: tuple[int, Pair] | None = None
    for i, pair in enumerate(pairwise(word)):
        if last is None or last != (i - 1, pair):
            last = (i, pair)
            yield pair


# --- merge_pair ---------------------------------------------------------------------------------

merge_pair = ASSIGNMENT.exercise(
    "merge_pair",
    points=2,
    hints=(
        "Reading from the left, what do you skip once you have found the pair?",
        "Build a new list. At position i either the pair begins, and you move on by two, or it"
        " does not, and you keep one id and move on by one. Mind the last id, which has no right"
        " neighbor.",
        "[1, 1, 1] with the pair (1, 1) becomes [new, 1]: n ids with k replacements leave n − k.",
    ),
)


def expect_ids(ids: Any, right: list[int], name: str = "the ids") -> None:
    expect(ids, name).holds(isinstance(ids, list), f"expected a list, got {shown(ids)}.")
    expect(ids, name).equals(right)


def merged(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """By a regular expression, each id written as one character."""
    text = "".join(map(chr, ids))
    return [ord(c) for c in text.replace(chr(pair[0]) + chr(pair[1]), chr(new_id))]


@merge_pair.case("puts the new id for each occurrence of the pair")
def _(student: Handle, rng: Rng) -> None:
    a, b, c, d = rng.permutation(256)[:4].tolist()
    ids = [a, b, c, d, a, b, d, c, a, b, c]
    expect_ids(student(ids, (a, b), 256), merged(ids, (a, b), 256))


@merge_pair.case("replaces the pair at the very end, and keeps a last id that is not in it")
def _(student: Handle, rng: Rng) -> None:
    a, b, c = rng.permutation(256)[:3].tolist()
    expect_ids(student([c, a, b], (a, b), 300), [c, 300])
    expect_ids(student([a, b, a], (a, b), 300), [300, a])


@merge_pair.case("merges from the left without overlap: aaa becomes new, a")
def _(student: Handle, rng: Rng) -> None:
    a = rng.integer(0, 256)
    for n in (3, 4, 5):
        expect_ids(student([a] * n, (a, a), 256), [256] * (n // 2) + [a] * (n % 2))


@merge_pair.case("leaves (b, a) alone when the pair is (a, b)")
def _(student: Handle, rng: Rng) -> None:
    a, b = rng.permutation(256)[:2].tolist()
    expect_ids(student([b, a, a, b, b, a], (a, b), 256), [b, a, 256, b, a])


@merge_pair.case("compares ids, not digits: 11, 2 does not hold the pair (1, 2)")
def _(student: Handle, rng: Rng) -> None:
    a, b = rng.permutation(9)[:2].add(1).tolist()
    ids = [10 * b + a, b, a, 10 * b + a]
    expect_ids(student(ids, (a, b), 300), ids)


@merge_pair.case("gives back the same ids where the pair does not occur")
def _(student: Handle, rng: Rng) -> None:
    ids = rng.permutation(11).tolist()
    expect_ids(student(ids, (ids[0], ids[2]), 256), ids)
    expect_ids(student(ids[:1], (ids[0], ids[0]), 256), ids[:1])
    expect_ids(student([], (1, 2), 256), [])


@merge_pair.case("leaves the list that was passed in as it was", guard=True)
def _(student: Handle, rng: Rng) -> None:
    a, b = rng.permutation(256)[:2].tolist()
    ids = [a, b, b, a, b]
    if student.after(ids, (a, b), 256).args[0] != ids:
        fail("the list passed in was changed.", "in_place")


def _merging(
    *, skip: int = 2, first_only: bool = False, right: bool = False, either: bool = False
) -> Callable[..., list[int]]:
    """A merge with one thing wrong."""

    def wrong(ids: list[int], pair: Pair, new_id: int) -> list[int]:
        seen, wanted = (ids[::-1], pair[::-1]) if right else (list(ids), pair)
        result: list[int] = []
        i = 0
        while i < len(seen):
            here = tuple(seen[i : i + 2])
            found = here == tuple(wanted) or (either and here[::-1] == tuple(wanted))
            if found and not (first_only and new_id in result):
                result.append(new_id)
                i += skip
            else:
                result.append(seen[i])
                i += 1
        return result[::-1] if right else result

    return wrong


def _in_place(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == tuple(pair):
            ids[i : i + 2] = [new_id]
        i += 1
    return ids


def _drops_the_last(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    result, i = [], 0
    while i < len(ids) - 1:
        found = (ids[i], ids[i + 1]) == tuple(pair)
        result.append(new_id if found else ids[i])
        i += 2 if found else 1
    return result


def _by_text(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    text = " ".join(map(str, ids)).replace(f"{pair[0]} {pair[1]}", str(new_id))
    return [int(number) for number in text.split()]


def _reads_past_the_end(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    result, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and ids[i + 1] == pair[1]:
            result.append(new_id)
            i += 2
        else:
            result.append(ids[i])
            i += 1
    return result


def _not_this_merge(name: str, did: str, causes: str, wrong: Callable[..., Any]) -> None:
    merge_pair.misconception(did=did, causes=causes, see="by-hand", name=name)(wrong)


_not_this_merge(
    "only_the_first",
    "You replace the pair's first occurrence and leave the others.",
    "The same word is then cut in two ways within one text, and the counts of the next merge are"
    " wrong.",
    _merging(first_only=True),
)
_not_this_merge(
    "merges_overlap",
    "After a merge you move on by one id, so the pair's second id is used again.",
    "Ids appear that the text does not hold: decoding gives letters twice.",
    _merging(skip=1),
)
_not_this_merge(
    "from_the_right",
    "You merge from the right: aaa becomes a, new.",
    "Training and encoding then cut runs of one letter differently from every other"
    " implementation, and ids no longer agree with GPT-2's.",
    _merging(right=True),
)
_not_this_merge(
    "either_order",
    "You also replace the pair the other way round.",
    "ab and ba then share an id, and decoding cannot tell which of them stood there.",
    _merging(either=True),
)
_not_this_merge(
    "in_place",
    "You change the list that was passed in.",
    "The caller's ids are gone: training loses the word it was about to recount. Build a new list.",
    _in_place,
)
_not_this_merge(
    "drops_the_last_id",
    "The last id is lost when it is not part of the pair: your loop ends one early.",
    "Each merge then cuts a byte off the end of words.",
    _drops_the_last,
)
_not_this_merge(
    "replaces_digits",
    "You join the ids into a string of digits and replace text in it.",
    "11 2 holds the characters “1 2”: ids that have nothing to do with the pair are torn apart.",
    _by_text,
)
_not_this_merge(
    "reads_past_the_end",
    "You look at the id after the last one.",
    "A list that ends with the pair's first id stops with an IndexError.",
    _reads_past_the_end,
)


# --- train_bpe ----------------------------------------------------------------------------------

train_bpe = ASSIGNMENT.exercise(
    "train_bpe",
    points=5,
    needs=("pair_counts", "merge_pair"),
    forbidden=("CharBPETokenizer", "ByteLevelBPETokenizer", "BpeTrainer"),
    hints=(
        "Which of the text's borders may no merge cross, and what is a word before the first"
        " merge?",
        "Cut at the special tokens, cut each part with PATTERN, turn each chunk into its bytes,"
        " and keep one table of words and counts. Then repeat: count, choose, remember, apply to"
        " every word. `regex.split` without a group drops what it splits at; without special tokens"
        " there is nothing to split at.",
        "vocab_size − 256 − len(special_tokens) merges at most. The best pair is the largest by"
        " (count, (bytes of the left, bytes of the right)).",
    ),
)


def cut(text: str, special_tokens: Sequence[str], special: str = "apart") -> list[str]:
    """The chunks of a text; `special` says what happens to special tokens in it."""
    parts = [text]
    for token in special_tokens:
        if special == "joined":
            parts = [part.replace(token, "") for part in parts]
        elif special == "apart":
            parts = [piece for part in parts for piece in part.split(token)]
    return [chunk for part in parts for chunk in PATTERN.findall(part)]


Tokens = tuple[bytes, ...]


def learn(
    text: str,
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    *,
    chunks: Callable[[str, Sequence[str]], Iterable[str]] = cut,
    units: Callable[[str], Iterable[bytes]] = lambda chunk: (
        bytes([byte]) for byte in chunk.encode()
    ),
    tie: Callable[[tuple[bytes, bytes], dict[bytes, int]], Any] = lambda pair, ids: pair,
    weigh: bool = True,
    n_merges: Callable[[int, int], int] = lambda vocab_size, n_special: (
        vocab_size - 256 - n_special
    ),
    least: int = 1,
) -> Merges:
    """The definition, over byte strings: count every pair of every word anew for each merge."""
    words: Counter[Tokens] = Counter()
    for chunk in chunks(text, special_tokens):
        words[tuple(units(chunk))] += 1
    if not weigh:
        words = Counter(words.keys())
    ids = {bytes([byte]): byte for byte in range(256)}
    merges: Merges = []
    while len(merges) < n_merges(vocab_size, len(special_tokens)):
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                counts[pair] += n
        if not counts or max(counts.values()) < least:
            break
        best = max(counts, key=lambda pair: (counts[pair], tie(pair, ids)))
        merges.append(best)
        ids[b"".join(best)] = 256 + len(merges)
        applied: Counter[Tokens] = Counter()
        for word, n in words.items():
            applied[apply(word, best)] += n
        words = applied
    return merges


def apply(word: Tokens, pair: tuple[bytes, bytes]) -> Tokens:
    tokens: list[bytes] = []
    i = 0
    while i < len(word):
        step = 2 if word[i : i + 2] == pair else 1
        tokens.append(b"".join(word[i : i + step]))
        i += step
    return tuple(tokens)


def expect_merges(student: Handle, text: str, vocab_size: int, *special: Sequence[str]) -> None:
    """The student's merges on this text are those of the definition, in order."""
    result, right = student(text, vocab_size, *special), learn(text, vocab_size, *special)
    expect(result, "the merges").holds(
        isinstance(result, list), f"expected a list of pairs of bytes, got {shown(result)}."
    )
    for number, (have, want) in enumerate(zip(result, right, strict=False), start=1):
        expect(result, f"merge {number}").holds(
            tuple(have) == want, f"expected {want}, got {shown(have)}, on {shown(text)}."
        )
    if len(result) != len(right):
        fail(f"expected {len(right)} merges on {shown(text)}, got {len(result)}.")


def lines(*words: tuple[str, int]) -> str:
    """Words by themselves, a line each: only what is inside of them can be merged."""
    return "\n".join(word for word, n in words for _ in range(n))


def letters(rng: Rng, n: int) -> list[str]:
    """Different letters in alphabetical order."""
    return sorted("abcdefghijklmnopqrstuvwxyz"[i] for i in rng.permutation(26)[:n].tolist())


def some_text(rng: Rng, n_words: int, alphabet: str = "abcd") -> str:
    picks = [rng.integers(0, len(alphabet), rng.integer(1, 6)).tolist() for _ in range(n_words)]
    return " ".join("".join(alphabet[i] for i in word) for word in picks)


@train_bpe.case("merges the most frequent pair first, then the next")
def _(student: Handle, rng: Rng) -> None:
    a, b, c, d, e, f = letters(rng, 6)
    text = lines((c + d, 5), (a + b, 9), (e + f, 2))
    expect_merges(student, text, 256 + 3)


@train_bpe.case("builds longer tokens out of merged ones")
def _(student: Handle, rng: Rng) -> None:
    a, b, c, d = letters(rng, 4)
    text = lines((a + b, 9), (a + b + c, 6), (d + a + b + c, 3))
    expect_merges(student, text, 256 + 3)


@train_bpe.case("weighs each chunk by how often it stands in the text")
def _(student: Handle, rng: Rng) -> None:
    a, b, c, d, e = letters(rng, 5)
    text = lines((a + b, 8), (c + d, 1), (c + d + e, 1), (e + c + d, 1))
    expect_merges(student, text, 256 + 1)


@train_bpe.case("gives a tie to the lexicographically larger pair of byte strings")
def _(student: Handle, rng: Rng) -> None:
    a, b, c, d, e, f = letters(rng, 6)
    # First the larger pair, then the smaller; then a merged token, whose id is larger than any
    # byte's, against a letter that comes later in the alphabet.
    expect_merges(student, lines((a + b, 2), (e + f, 2), (c + d, 2)), 256 + 3)
    expect_merges(student, lines((a + b, 5), (a + b + f, 3), (c + d, 3)), 256 + 2)


@train_bpe.case("counts the bytes and the special tokens into vocab_size")
def _(student: Handle, rng: Rng) -> None:
    text = some_text(rng, 40, "abcdefgh")
    expect_merges(student, text, 256 + 5)
    expect_merges(student, text, 256 + 5, ("<|end|>", "<|pad|>"))
    expect_merges(student, text, 256)


@train_bpe.case("merges inside the chunks of PATTERN, never across them")
def _(student: Handle, rng: Rng) -> None:
    a, b, c = letters(rng, 3)
    text = f"{a} {b}1{c} {a} {b}1{c}, {a}'s {b}!? " * 3
    expect_merges(student, text, 256 + 12)


@train_bpe.case("merges bytes, so that Chinese text and emoji are learned in pieces")
def _(student: Handle, rng: Rng) -> None:
    text = "".join("中文字节编码对"[i] for i in rng.integers(0, 7, 40).tolist()) + " 👍👍🎉" * 3
    expect_merges(student, text, 256 + 15)


@train_bpe.case("learns nothing from special tokens, and nothing across them")
def _(student: Handle, rng: Rng) -> None:
    a, b, c = letters(rng, 3)
    text = f"{a}<|end|>{b}" * 5 + f" {a}{c}" * 2
    expect_merges(student, text, 256 + 9, ("<|end|>",))


@train_bpe.case("stops when no pair is left")
def _(student: Handle, rng: Rng) -> None:
    a, b = letters(rng, 2)
    try:
        expect_merges(student, f"{a}{b} {a}{b}", 300)
        expect_merges(student, "", 300)
    except StudentError as error:
        fail(
            f"on a text whose pairs run out it stops with {error.kind}: {error.message}",
            "crashes_when_pairs_run_out",
        )


@train_bpe.case("merges pairs that occur once, if there is room")
def _(student: Handle, rng: Rng) -> None:
    text = "".join(letters(rng, 5))
    expect_merges(student, text, 256 + 3)


def _learner(**wrong: Any) -> Callable[..., Merges]:
    def train(text: str, vocab_size: int, special_tokens: Sequence[str] = ()) -> Merges:
        return learn(text, vocab_size, special_tokens, **wrong)

    return train


def _not_this_training(name: str, did: str, causes: str, see: str, **wrong: Any) -> None:
    train_bpe.misconception(did=did, causes=causes, see=see, name=name)(_learner(**wrong))


def _complement(pair: tuple[bytes, bytes], ids: dict[bytes, int]) -> Any:
    """Larger for the lexicographically smaller pair."""
    return tuple((*(255 - byte for byte in token), 256) for token in pair)


def _first_parts(text: str, special_tokens: Sequence[str]) -> list[str]:
    parts = [text]
    for token in special_tokens:
        parts = [piece for part in parts for piece in part.split(token)]
    return parts


_not_this_training(
    "ties_to_the_smaller",
    "In a tie you take the lexicographically smaller pair.",
    "Your merges come in another order than everybody else's, so ids cannot be compared. In a tie"
    " the larger pair wins.",
    "learning-merges",
    tie=_complement,
)
_not_this_training(
    "ties_to_the_first",
    "In a tie you take the pair that was counted first.",
    "The merges then depend on the order in which the text is read: shuffle its lines and the"
    " vocabulary changes. In a tie the larger pair wins.",
    "learning-merges",
    tie=lambda pair, ids: 0,
)
_not_this_training(
    "ties_by_id",
    "In a tie you compare the pairs' ids, not their bytes.",
    "A merged token has a larger id than any byte, so it wins against letters that stand behind"
    " it in the alphabet.",
    "learning-merges",
    tie=lambda pair, ids: (ids[pair[0]], ids[pair[1]]),
)
_not_this_training(
    "across_chunks",
    "You merge across the borders between chunks: the text is one long word to you.",
    "Tokens such as “of the” and “dog.” fill the vocabulary, one for each mark that may follow a"
    " word.",
    "the-pattern",
    chunks=_first_parts,
)
_not_this_training(
    "spaces_lost",
    "You split the text at spaces, and the spaces are gone.",
    "No token begins with a space, and a model that writes your tokens cannot say where a word"
    " begins. PATTERN keeps each space with the word after it.",
    "the-pattern",
    chunks=lambda text, special: [
        chunk for part in _first_parts(text, special) for chunk in part.split()
    ],
)
_not_this_training(
    "empty_pattern",
    "Without special tokens your pattern is empty, and an empty pattern cuts everywhere.",
    "Each character is a word of its own, so hardly a pair is ever counted. Cut at special tokens"
    " only if there are any.",
    "learning-merges",
    chunks=lambda text, special: [
        chunk
        for part in regex.split("|".join(map(regex.escape, special)), text)
        for chunk in PATTERN.findall(part)
    ],
)
_not_this_training(
    "specials_as_text",
    "You learn from special tokens as if they were words.",
    "<|end|> stands after every document, so merges are spent on pieces of it that no text needs.",
    "learning-merges",
    chunks=lambda text, special: cut(text, special, "text"),
)
_not_this_training(
    "specials_deleted",
    "You delete the special tokens, and what stood around them grows together.",
    "The last word of one document and the first of the next become one word that nobody wrote."
    " Cut the text there.",
    "learning-merges",
    chunks=lambda text, special: cut(text, special, "joined"),
)
_not_this_training(
    "specials_not_in_the_size",
    "You leave no room for the special tokens: vocab_size counts them too.",
    "The vocabulary is larger than the model's embedding, and the last ids fall outside of it.",
    "learning-merges",
    n_merges=lambda vocab_size, n_special: vocab_size - 256,
)
_not_this_training(
    "size_counts_merges_alone",
    "You learn vocab_size merges; the 256 bytes count too.",
    "The vocabulary is larger than the model's embedding, and the last ids fall outside of it.",
    "learning-merges",
    n_merges=lambda vocab_size, n_special: vocab_size,
)
_not_this_training(
    "characters_for_bytes",
    "You start from characters, not from bytes.",
    "A character that the training text lacks has no token at all, and the word is unknown again."
    " Start from the chunk's UTF-8 bytes.",
    "bytes",
    units=lambda chunk: (character.encode() for character in chunk),
)
_not_this_training(
    "each_chunk_once",
    "You count each different chunk once, however often it stands in the text.",
    "Rare words weigh as much as “the”, so frequent words stay in pieces.",
    "learning-merges",
    weigh=False,
)
_not_this_training(
    "stops_at_pairs_seen_once",
    "You stop when the best pair occurs only once.",
    "On a small text the vocabulary stays smaller than asked for. Stop when no pair is left.",
    "learning-merges",
    least=2,
)


@train_bpe.misconception(
    did="You look for the best pair when there is none left.",
    causes="A short text stops the training with an error; it has said all it can, so return what"
    " was learned.",
    see="learning-merges",
)
def crashes_when_pairs_run_out(
    text: str, vocab_size: int, special_tokens: Sequence[str] = ()
) -> Merges:
    merges = learn(text, vocab_size, special_tokens)
    if len(merges) < vocab_size - 256 - len(special_tokens):
        raise ValueError("max() iterable argument is empty")
    return merges


# --- BPETokenizer -------------------------------------------------------------------------------

BPETokenizer = ASSIGNMENT.exercise(
    "BPETokenizer",
    points=5,
    needs=("merge_pair",),
    forbidden=("CharBPETokenizer", "ByteLevelBPETokenizer", "get_encoding", "encoding_for_model"),
    hints=(
        "Two merges could be applied to a chunk, one of them farther left. Which of them did"
        " training make first?",
        "Build two tables in __init__: from id to bytes for decoding, and from a pair of ids to"
        " its rank and new id. For decoding, join all bytes before you turn them into text.",
        "ids: byte_order[i] is the byte of id i < 256, merge k makes id 256 + k, special token j"
        " has id 256 + len(merges) + j. `bytes.decode` has a parameter `errors`.",
    ),
)

SPECIALS = ("<|end|>", "<|end|><|end|>")


def token_table(
    merges: Merges, special_tokens: Sequence[str] = (), byte_order: Sequence[int] | None = None
) -> dict[bytes, int]:
    """From a token's bytes to its id, special tokens left out."""
    order = range(256) if byte_order is None else byte_order
    tokens = [bytes([byte]) for byte in order] + [left + right for left, right in merges]
    return {token: i for i, token in enumerate(tokens)}


def ids_of(
    text: str,
    merges: Merges,
    special_tokens: Sequence[str] = (),
    byte_order: Sequence[int] | None = None,
) -> list[int]:
    """By definition: every merge in turn, from the first made to the last, on every chunk."""
    table = token_table(merges, special_tokens, byte_order)
    first = 256 + len(merges)
    ids: list[int] = []
    for part in special_parts(text, special_tokens):
        if part in special_tokens:
            ids.append(first + list(special_tokens).index(part))
            continue
        for chunk in PATTERN.findall(part):
            word: Tokens = tuple(bytes([byte]) for byte in chunk.encode())
            for pair in merges:
                word = apply(word, pair)
            ids += [table[token] for token in word]
    return ids


def special_parts(text: str, special_tokens: Sequence[str]) -> list[str]:
    """The text cut at special tokens, which stay; where two begin, the longer one counts."""
    if not special_tokens:
        return [text]
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)


def expect_encoding(student: Handle, text: str, *config: Any) -> None:
    """The ids are those of the definition, and they decode to the text."""
    tokenizer = student.hold(*config)
    right = ids_of(text, *config)
    expect_ids(tokenizer.method("encode")(text), right, f"the ids of {shown(text)}")
    expect(tokenizer.method("decode")(right), "the text they decode to").equals(text)


def some_merges(rng: Rng, n: int = 24) -> Merges:
    """Merges learned from a random text, so that any of them can be applied."""
    return learn(some_text(rng, 60, "abcde"), 256 + n)


def pairs_of(*written: str) -> Merges:
    """Merges as "a b c": the pair (a, b), then the pair (ab, c), … each written with a space."""
    return [(left.encode(), right.encode()) for left, right in (w.split(" ") for w in written)]


@BPETokenizer.case("encodes by the merges in the order in which they were made")
def _(student: Handle, rng: Rng) -> None:
    a, b, c, d = letters(rng, 4)
    # Of (a, b) and (b, c) the second was made first, though the first stands farther left.
    expect_encoding(student, a + b + c, pairs_of(f"{b} {c}", f"{a} {b}"))
    merges = pairs_of(f"{b} {c}", f"{a} {b}", f"{a}{b} {d}", f"{a} {b}{c}")
    expect_encoding(student, f"{a}{b}{d}{a}{b}{c}", merges)


@BPETokenizer.case("builds on a pair made early, though a later one stands farther left")
def _(student: Handle, rng: Rng) -> None:
    a, b, c = letters(rng, 3)
    expect_encoding(student, a + b + c, pairs_of(f"{b} {c}", f"{a} {b}{c}", f"{a} {b}"))


@BPETokenizer.case("takes no shortcut to the longest token: merges decide what is joined")
def _(student: Handle, rng: Rng) -> None:
    a, b, c = letters(rng, 3)
    # abc is a token, but out of ab and c; in this text bc is made first, and nothing joins a, bc.
    merges = pairs_of(f"{b} {c}", f"{a} {b}", f"{a}{b} {c}")
    tokenizer = student.hold(merges)
    expect_ids(tokenizer.method("encode")(a + b + c), [ord(a), 256], f"the ids of {a + b + c!r}")


@BPETokenizer.case("applies a merge wherever its pair stands")
def _(student: Handle, rng: Rng) -> None:
    merges = some_merges(rng)
    expect_encoding(student, some_text(rng, 12, "abcde"), merges)
    expect_encoding(student, "a" * 7 + " " + "ab" * 5, [*pairs_of("a a", "aa aa"), (b"a", b"b")])


@BPETokenizer.case("keeps spaces: at the start, in runs, at line ends")
def _(student: Handle, rng: Rng) -> None:
    a, b = letters(rng, 2)
    text = f"  {a}{b} {b}   {a}\n\n {a}{b}\t{b} \n"
    expect_encoding(student, text, [(b" ", a.encode()), (a.encode(), b.encode())])


@BPETokenizer.case("cuts with PATTERN first: no merge crosses the border of a chunk")
def _(student: Handle, rng: Rng) -> None:
    a, b = letters(rng, 2)
    merges = [(a.encode(), b" "), (a.encode(), b"1"), (b.encode(), b"!")]
    expect_encoding(student, f"{a} {b} {a}1 {b}!", merges)


@BPETokenizer.case("encodes any text: Chinese, emoji, control characters, nothing at all")
def _(student: Handle, rng: Rng) -> None:
    merges = learn("语言模型，语言。" * 3 + some_text(rng, 20), 256 + 12)
    for text in ("语言模型 models 和 👩‍👩‍👧 émigré", "\x00\x1b[0m\u200b\ufeff\r\n", ""):
        expect_encoding(student, text, merges)


@BPETokenizer.case("joins the bytes of all ids before it decodes them")
def _(student: Handle, rng: Rng) -> None:
    text = "中文 👍"
    decoded = student.hold([]).method("decode")(list(text.encode()))
    expect(decoded, "the text").equals(text)


@BPETokenizer.case("gives the bytes themselves with decode_bytes, valid UTF-8 or not")
def _(student: Handle, rng: Rng) -> None:
    merges = [*pairs_of("a b"), (b"\xff", b"\xe4")]
    ids = [*rng.integers(0, 256, 9).tolist(), 257, 256, 0x80]
    right = b"".join([*(bytes([i]) for i in ids[:9]), b"\xff\xe4", b"ab", b"\x80"])
    value = student.hold(merges).method("decode_bytes")(ids)
    expect(value, "the bytes").equals(right)


@BPETokenizer.case("decodes invalid UTF-8 to the replacement character U+FFFD")
def _(student: Handle, rng: Rng) -> None:
    for data in (b"a\xff\xfeb", "中".encode()[:2] + b"c", b"\x80"):
        try:
            decoded = student.hold([]).method("decode")(list(data))
        except StudentError as error:
            if error.kind == "UnicodeDecodeError":
                fail(f"decoding {data!r} stops with {error.kind}.", "crashes_on_invalid_utf8")
            raise
        expect(decoded, f"the text of {data!r}").equals(data.decode("utf-8", errors="replace"))


@BPETokenizer.case("gives each special token its own id, after the merges")
def _(student: Handle, rng: Rng) -> None:
    a, b = letters(rng, 2)
    merges = [*pairs_of(f"{a} {b}"), (b"<", b"|")]
    expect_encoding(student, f"{a}{b}<|end|>{b} <|x|>", merges, SPECIALS[:1])
    expect_encoding(student, f"{a}[SEP]{b}.*", merges, (".*", "[SEP]"))  # no patterns, but texts


@BPETokenizer.case("takes the longer one where two special tokens begin alike")
def _(student: Handle, rng: Rng) -> None:
    text = "a<|end|><|end|>b<|end|>"
    expect_encoding(student, text, pairs_of("a b"), SPECIALS)


@BPETokenizer.case("byte_order[i] is the byte with id i")
def _(student: Handle, rng: Rng) -> None:
    order = rng.permutation(256).tolist()
    merges = some_merges(rng, 8)
    expect_encoding(student, some_text(rng, 6, "abcde") + " 中文", merges, (), order)
    expect_encoding(student, "!" + some_text(rng, 4), [], ("<|end|>",), order)


class _Tokenizer:
    """A right answer in parts, so that each mistake is one part replaced."""

    def __init__(
        self,
        merges: Merges,
        special_tokens: Sequence[str] = (),
        byte_order: Sequence[int] | None = None,
    ) -> None:
        self.merges, self.specials = [tuple(pair) for pair in merges], list(special_tokens)
        self.order = list(self.ordered(byte_order))
        self.tokens = [bytes([byte]) for byte in self.order]
        self.tokens += [left + right for left, right in self.merges]
        self.table = {token: i for i, token in enumerate(self.tokens)}
        self.tokens += [token.encode() for token in self.specials]

    def ordered(self, byte_order: Sequence[int] | None) -> Iterable[int]:
        return range(256) if byte_order is None else byte_order

    def parts(self, text: str) -> list[str]:
        return special_parts(text, self.specials)

    def chunks(self, part: str) -> list[str]:
        return PATTERN.findall(part)

    def cut(self, word: Tokens) -> Tokens:
        for pair in self.merges:
            word = apply(word, pair)  # type: ignore[arg-type]
        return word

    def special_id(self, token: str) -> int:
        return 256 + len(self.merges) + self.specials.index(token)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self.parts(text):
            if part in self.specials:
                ids.append(self.special_id(part))
            else:
                for chunk in self.chunks(part):
                    word = self.cut(tuple(bytes([byte]) for byte in chunk.encode()))
                    ids += [self.table[token] for token in word]
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[i] for i in ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


@BPETokenizer.misconception(
    did="You merge in the order of the text: the leftmost pair that is in the table goes first.",
    causes="Encoding then cuts words elsewhere than training did, and the model meets ids that it"
    " never learned. Of all pairs in a chunk, the merge made first goes first.",
    see="encoding",
)
class merges_in_text_order(_Tokenizer):
    def cut(self, word: Tokens) -> Tokens:
        known, tokens, i = set(self.merges), list(word), 0
        while i + 1 < len(tokens):
            if (tokens[i], tokens[i + 1]) in known:
                tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
                i = 0
            else:
                i += 1
        return tuple(tokens)


@BPETokenizer.misconception(
    did="You take the longest token that fits at each place.",
    causes="That is another method, WordPiece's. It joins what no merge joined in training, so the"
    " ids differ from those the model was trained on.",
    see="encoding",
)
class longest_match(_Tokenizer):
    def cut(self, word: Tokens) -> Tokens:
        rest, tokens = b"".join(word), []
        while rest:
            n = max(n for n in range(1, len(rest) + 1) if rest[:n] in self.table)
            tokens.append(rest[:n])
            rest = rest[n:]
        return tuple(tokens)


@BPETokenizer.misconception(
    did="You apply each merge once per chunk, where its pair first stands.",
    causes="A second occurrence of the pair stays in pieces: the same syllable gets two spellings.",
    see="encoding",
)
class first_occurrence_only(_Tokenizer):
    def cut(self, word: Tokens) -> Tokens:
        for left, right in self.merges:
            for i, pair in enumerate(pairwise(word)):
                if pair == (left, right):
                    word = (*word[:i], left + right, *word[i + 2 :])
                    break
        return word


@BPETokenizer.misconception(
    did="You merge across chunks: the text is not cut with PATTERN first.",
    causes="A merge learned inside a word is applied where one word ends and the next begins, so"
    " a word's ids change with its neighbors.",
    see="the-pattern",
)
class no_chunks(_Tokenizer):
    def chunks(self, part: str) -> list[str]:
        return [part]


@BPETokenizer.misconception(
    did="You split the text at spaces, and they are lost.",
    causes="decode gives the text back without its spaces and line ends.",
    see="the-pattern",
)
class loses_spaces(_Tokenizer):
    def chunks(self, part: str) -> list[str]:
        return part.split()


@BPETokenizer.misconception(
    did="You strip the text before encoding it.",
    causes="Spaces at its ends are lost: a prompt that ends with a space, or code that begins with"
    " some, comes back changed.",
    see="the-pattern",
)
class strips(_Tokenizer):
    def parts(self, text: str) -> list[str]:
        return super().parts(text.strip())


@BPETokenizer.misconception(
    did="You cut special tokens into pieces like any other text.",
    causes="The model never sees the one id that stands for the end of a document.",
    see="encoding",
)
class specials_as_text(_Tokenizer):
    def parts(self, text: str) -> list[str]:
        return [text]


@BPETokenizer.misconception(
    did="You give the special tokens their ids before the merges.",
    causes="Every merge is then off by the number of special tokens, and adding one later moves"
    " all of them.",
    see="encoding",
)
class specials_before_merges(_Tokenizer):
    def __init__(self, *config: Any, **more: Any) -> None:
        super().__init__(*config, **more)
        n = len(self.specials)
        merged = self.tokens[256 : 256 + len(self.merges)]
        self.tokens = [*self.tokens[:256], *(token.encode() for token in self.specials), *merged]
        self.table |= {token: 256 + n + i for i, token in enumerate(merged)}

    def special_id(self, token: str) -> int:
        return 256 + self.specials.index(token)


@BPETokenizer.misconception(
    did="Where two special tokens begin alike, you take the shorter one.",
    causes="The longer one can never be found: its beginning is always cut off first.",
    see="encoding",
)
class shortest_special(_Tokenizer):
    def parts(self, text: str) -> list[str]:
        if not self.specials:
            return [text]
        shortest_first = sorted(self.specials, key=len)
        return regex.split("(" + "|".join(map(regex.escape, shortest_first)) + ")", text)


@BPETokenizer.misconception(
    did="You use the special tokens as patterns: `|` and `.` mean something in one.",
    causes="<|end|> as a pattern matches the letters e, n, d with marks or without, and the text"
    " is cut in wrong places. Escape them with `regex.escape`.",
    see="encoding",
)
class specials_not_escaped(_Tokenizer):
    def parts(self, text: str) -> list[str]:
        return regex.split(f"({'|'.join(self.specials)})", text) if self.specials else [text]


@BPETokenizer.misconception(
    did="Without special tokens your pattern is empty, and an empty pattern cuts everywhere.",
    causes="Each character is a part of its own, so no merge over two of them is ever made. Cut at"
    " special tokens only if there are any.",
    see="encoding",
)
class empty_pattern(_Tokenizer):
    def parts(self, text: str) -> list[str]:
        return regex.split(f"({'|'.join(map(regex.escape, self.specials))})", text)


@BPETokenizer.misconception(
    did="You ignore byte_order.",
    causes="With GPT-2's merges every id below 256 is another byte than GPT-2's, and its weights"
    " read noise.",
    see="byte-order",
)
class ignores_byte_order(_Tokenizer):
    def ordered(self, byte_order: Sequence[int] | None) -> Iterable[int]:
        return range(256)


@BPETokenizer.misconception(
    did="You read byte_order the wrong way round, as the id of byte i.",
    causes="byte_order[i] is the byte whose id is i: GPT-2's begins with 33, so “!” has id 0.",
    see="byte-order",
)
class byte_order_inverted(_Tokenizer):
    def ordered(self, byte_order: Sequence[int] | None) -> Iterable[int]:
        order = list(super().ordered(byte_order))
        return [order.index(byte) for byte in range(256)]


@BPETokenizer.misconception(
    did="You turn each token into text by itself.",
    causes="A Chinese character or an emoji is spread over several tokens, none of which is valid"
    " UTF-8 alone: it comes back as replacement characters. Join the bytes first.",
    see="encoding",
)
class decodes_token_by_token(_Tokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.tokens[i].decode("utf-8", errors="replace") for i in ids)


@BPETokenizer.misconception(
    did="Decoding bytes that are no UTF-8 stops with an error.",
    causes="A model may write any ids in any order, half a character among them, and one of them"
    " ends the program. Use U+FFFD for what cannot be read.",
    see="encoding",
)
class crashes_on_invalid_utf8(_Tokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8")


@BPETokenizer.misconception(
    did="You drop bytes that are no UTF-8.",
    causes="What the model wrote disappears without a trace. U+FFFD shows that something stood"
    " there.",
    see="encoding",
)
class drops_invalid_utf8(_Tokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="ignore")


@BPETokenizer.misconception(
    did="Your merges make ids from 257 on; the first one makes 256.",
    causes="Id 256 is never used, and the last token's id lies outside a model's embedding.",
    see="encoding",
)
class merges_from_257(_Tokenizer):
    def __init__(self, *config: Any, **more: Any) -> None:
        super().__init__(*config, **more)
        self.tokens.insert(256, b"")
        self.table = {token: i + (i >= 256) for token, i in self.table.items()}

    def special_id(self, token: str) -> int:
        return super().special_id(token) + 1


@BPETokenizer.misconception(
    did="decode_bytes goes by way of text.",
    causes="Bytes that are no UTF-8 become U+FFFD on the way, three other bytes: what was encoded"
    " is not what comes back.",
    see="encoding",
)
class decode_bytes_by_text(_Tokenizer):
    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return super().decode_bytes(ids).decode("utf-8", errors="replace").encode()
