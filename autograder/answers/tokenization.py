"""Right answers to chapter 08, each written another way."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import pairwise

import regex

Pair = tuple[int, int]
Merges = list[tuple[bytes, bytes]]

PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)

# --- pair_counts --------------------------------------------------------------------------------


def counts_in_a_dict(words: dict[tuple[int, ...], int]) -> dict[Pair, int]:
    table: dict[Pair, int] = {}
    for word, n in words.items():
        for pair in pairwise(word):
            table[pair] = table.get(pair, 0) + n
    return table


def counts_by_index(words: dict[tuple[int, ...], int]) -> Counter[Pair]:
    table: Counter[Pair] = Counter()
    for word in words:
        for i in range(len(word) - 1):
            table[word[i], word[i + 1]] += words[word]
    return table


def counts_by_sum(words: dict[tuple[int, ...], int]) -> defaultdict[Pair, int]:
    table: defaultdict[Pair, int] = defaultdict(int)
    for word, n in words.items():
        for pair, times in Counter(pairwise(word)).items():
            table[pair] += n * times
    return table


# --- merge_pair ---------------------------------------------------------------------------------


def merge_by_index(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    result, i = [], 0
    while i < len(ids):
        if ids[i : i + 2] == list(pair):
            result.append(new_id)
            i += 2
        else:
            result.append(ids[i])
            i += 1
    return result


def merge_on_a_stack(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """Ids go on a stack; one that completes the pair takes its left part off again."""
    stack: list[int] = []
    open_left = False  # the id on top is an input id that has not been merged
    for i in ids:
        if open_left and (stack[-1], i) == tuple(pair):
            stack[-1] = new_id
            open_left = False
        else:
            stack.append(i)
            open_left = True
    return stack


def merge_on_a_copy(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    copy = list(ids)
    i = 0
    while i < len(copy) - 1:
        if copy[i] == pair[0] and copy[i + 1] == pair[1]:
            copy[i] = new_id
            del copy[i + 1]
        i += 1
    return copy


# --- train_bpe ----------------------------------------------------------------------------------


def _chunks(text: str, special_tokens: Sequence[str]) -> Iterator[str]:
    parts = [text]
    if special_tokens:
        parts = re.split("|".join(map(re.escape, special_tokens)), text)
    for part in parts:
        yield from PATTERN.findall(part)


def train_by_ids(text: str, vocab_size: int, special_tokens: Sequence[str] = ()) -> Merges:
    words = Counter(tuple(chunk.encode()) for chunk in _chunks(text, special_tokens))
    vocabulary = [bytes([byte]) for byte in range(256)]
    merges: Merges = []
    while len(vocabulary) < vocab_size - len(special_tokens):
        counts = counts_by_index(words)
        if not counts:
            break
        a, b = max(counts, key=lambda p: (counts[p], vocabulary[p[0]], vocabulary[p[1]]))
        merged: Counter[tuple[int, ...]] = Counter()
        for word, n in words.items():
            merged[tuple(merge_by_index(list(word), (a, b), len(vocabulary)))] += n
        words = merged
        merges.append((vocabulary[a], vocabulary[b]))
        vocabulary.append(vocabulary[a] + vocabulary[b])
    return merges


def train_on_bytes(text: str, vocab_size: int, special_tokens: Sequence[str] = ()) -> Merges:
    """No ids: a word is a list of byte strings, once for each time it stands in the text."""
    words = [[bytes([byte]) for byte in chunk.encode()] for chunk in _chunks(text, special_tokens)]
    merges: Merges = []
    for _ in range(vocab_size - 256 - len(special_tokens)):
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            return merges
        most = max(counts.values())
        left, right = best = max(pair for pair, n in counts.items() if n == most)
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if word[i] == left and word[i + 1] == right:
                    word[i : i + 2] = [left + right]
                i += 1
    return merges


def train_with_kept_counts(
    text: str, vocab_size: int, special_tokens: Sequence[str] = ()
) -> Merges:
    """Counts are changed where a merge changed a word, not made anew."""
    chunks = Counter(_chunks(text, special_tokens))
    words, sizes = [list(chunk.encode()) for chunk in chunks], list(chunks.values())
    tokens = {byte: bytes([byte]) for byte in range(256)}
    counts: Counter[Pair] = Counter()

    def count(word: list[int], n: int) -> None:
        for pair in pairwise(word):
            counts[pair] += n

    for word, n in zip(words, sizes, strict=True):
        count(word, n)
    merges: Merges = []
    while len(merges) + 256 + len(special_tokens) < vocab_size and +counts:
        best = max(+counts, key=lambda p: (counts[p], (tokens[p[0]], tokens[p[1]])))
        new = 256 + len(merges)
        merges.append((tokens[best[0]], tokens[best[1]]))
        tokens[new] = b"".join(merges[-1])
        for i, n in enumerate(sizes):
            again = merge_on_a_stack(words[i], best, new)
            if len(again) < len(words[i]):
                count(words[i], -n)
                count(again, n)
                words[i] = again
    return merges


# --- BPETokenizer -------------------------------------------------------------------------------


class ByRank:
    """Of all pairs in a chunk, merge the one of the lowest rank; ids throughout."""

    def __init__(
        self,
        merges: Merges,
        special_tokens: Sequence[str] = (),
        byte_order: Sequence[int] | None = None,
    ) -> None:
        order = list(range(256)) if byte_order is None else list(byte_order)
        self.bytes_of = {i: bytes([byte]) for i, byte in enumerate(order)}
        self.id_of_byte = {byte: i for i, byte in enumerate(order)}
        ids = {token: i for i, token in self.bytes_of.items()}
        self.new_ids: dict[Pair, int] = {}
        for k, (left, right) in enumerate(merges):
            self.new_ids[ids[left], ids[right]] = 256 + k
            self.bytes_of[256 + k] = left + right
            ids[left + right] = 256 + k
        self.specials = {token: 256 + len(merges) + j for j, token in enumerate(special_tokens)}
        self.bytes_of |= {i: token.encode() for token, i in self.specials.items()}

    def encode(self, text: str) -> list[int]:
        parts = [text]
        if self.specials:
            longest = sorted(self.specials, key=len, reverse=True)
            parts = re.split(f"({'|'.join(map(re.escape, longest))})", text)
        result = []
        for part in parts:
            if part in self.specials:
                result.append(self.specials[part])
            else:
                for chunk in PATTERN.findall(part):
                    result.extend(self._chunk(chunk))
        return result

    def _chunk(self, chunk: str) -> list[int]:
        ids = [self.id_of_byte[byte] for byte in chunk.encode()]
        while True:
            found = [pair for pair in pairwise(ids) if pair in self.new_ids]
            if not found:
                return ids
            best = min(found, key=self.new_ids.__getitem__)
            ids = merge_by_index(ids, best, self.new_ids[best])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.bytes_of[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class MergeAfterMerge:
    """Every merge in turn over each chunk, as byte strings; ids come last."""

    def __init__(
        self,
        merges: Merges,
        special_tokens: Sequence[str] = (),
        byte_order: Sequence[int] | None = None,
    ) -> None:
        order = byte_order or range(256)
        self.merges, self.special_tokens = merges, tuple(special_tokens)
        self.tokens = [*(bytes((byte,)) for byte in order), *(a + b for a, b in merges)]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.tokens.extend(token.encode("utf-8") for token in special_tokens)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            starts = {t: text.find(t) for t in self.special_tokens if t in text}
            first = min(starts, key=lambda t: (starts[t], -len(t)), default="")
            end = starts[first] if first else len(text)
            for chunk in PATTERN.findall(text[:end]):
                start = [chunk.encode()[i : i + 1] for i in range(len(chunk.encode()))]
                ids += [self.ids[token] for token in reduce(self._join, self.merges, start)]
            if first:
                ids.append(256 + len(self.merges) + self.special_tokens.index(first))
            text = text[end + len(first) :]
        return ids

    @staticmethod
    def _join(tokens: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
        joined: list[bytes] = []
        waiting = False
        for token in tokens:
            if waiting and (joined[-1], token) == tuple(pair):
                joined[-1] += token
                waiting = False
            else:
                joined.append(token)
                waiting = True
        return joined

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        data = bytearray()
        for i in ids:
            data += self.tokens[i]
        return bytes(data)

    def decode(self, ids: Iterable[int]) -> str:
        return str(self.decode_bytes(ids), "utf-8", "replace")


class OneMergeAtATime:
    """tiktoken's way: a chunk as byte strings; of its pairs, the first of the lowest rank joins."""

    def __init__(
        self,
        merges: Merges,
        special_tokens: Sequence[str] = (),
        byte_order: Sequence[int] | None = None,
    ) -> None:
        self.rank = {tuple(pair): k for k, pair in enumerate(merges)}
        order = tuple(range(256)) if byte_order is None else tuple(byte_order)
        self.encoder: dict[bytes, int] = {bytes([byte]): i for i, byte in enumerate(order)}
        for pair in merges:
            self.encoder[b"".join(pair)] = len(self.encoder)
        self.decoder = {i: token for token, i in self.encoder.items()}
        self.special: dict[str, int] = {}
        for token in special_tokens:
            self.special[token] = len(self.encoder) + len(self.special)
            self.decoder[self.special[token]] = token.encode()

    def encode(self, text: str) -> list[int]:
        ids, i, plain = [], 0, 0
        while i < len(text):
            here = [token for token in self.special if text.startswith(token, i)]
            if here:
                token = max(here, key=len)
                ids += [*self._plain(text[plain:i]), self.special[token]]
                plain = i = i + len(token)
            else:
                i += 1
        return ids + self._plain(text[plain:])

    def _plain(self, text: str) -> list[int]:
        ids = []
        for match in PATTERN.finditer(text):
            tokens = [bytes([byte]) for byte in match.group().encode()]
            while len(tokens) > 1:
                ranks = [self.rank.get(pair, math.inf) for pair in pairwise(tokens)]
                if (lowest := min(ranks)) == math.inf:
                    break
                i = ranks.index(lowest)
                tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
            ids += [self.encoder[token] for token in tokens]
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self.decoder.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")


ANSWERS = {
    "pair_counts": [counts_in_a_dict, counts_by_index, counts_by_sum],
    "merge_pair": [merge_by_index, merge_on_a_stack, merge_on_a_copy],
    "train_bpe": [train_by_ids, train_on_bytes, train_with_kept_counts],
    "BPETokenizer": [ByRank, MergeAfterMerge, OneMergeAtATime],
}
