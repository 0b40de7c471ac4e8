"""The tokenizer against tiktoken and tokenizers, by properties, on disk and at the command line."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext import openai_public

from course.cli import main
from rnn2gpt.data import DataError, load_text
from rnn2gpt.tokenizer import (
    PATTERN,
    BPETokenizer,
    gpt2_folder,
    load_gpt2,
    merge_pair,
    pair_counts,
    train_bpe,
)

NASTY = [
    "",
    " ",
    "   leading and trailing   ",
    "tabs\tand\t\tmore\r\nlines\n\n\n  indented\n",
    "don't, we've, I'LL, it's 'tis ''''s",
    "2026-11-22 3.14159 ½ ٣٤ Ⅷ x²",
    "The cat, the cat; the-cat (cat)!?... ***",
    "我们在学习语言模型。今天天气很好!「你好」",
    "日本語のテキスト 한국어 עברית العربية ไทย हिन्दी",
    "👩‍👩‍👧‍👦🏳️‍🌈 👍🏽 🇨🇳 e\u0301 é",
    "\x00\x01\x1b[0m\x7f\x80\x85\xa0\u2028\u2029\u200b\ufeff\u3000",
    "a" * 1000 + " " * 257 + "ab" * 300,
    "\U0010ffff\U000e0001 \ue000 \ufffd",
    "<|endoftext|> is text here",
]


@pytest.fixture(scope="module")
def theirs() -> tiktoken.Encoding:
    """GPT-2's encoding in tiktoken, from local files: nothing is downloaded by tiktoken."""
    folder = gpt2_folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        ranks = data_gym_to_mergeable_bpe_ranks(
            str(folder / "vocab.bpe"), str(folder / "encoder.json")
        )
    special = {"<|endoftext|>": 50256}
    pattern = openai_public.r50k_pat_str
    return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="module")
def gpt2() -> BPETokenizer:
    return load_gpt2()


def test_gpt2_vocabulary_and_byte_order_are_tiktokens(
    gpt2: BPETokenizer, theirs: tiktoken.Encoding
) -> None:
    assert gpt2.vocab_size == theirs.n_vocab == 50257
    assert gpt2.vocabulary == [theirs.decode_single_token_bytes(i) for i in range(50257)]
    assert gpt2.vocabulary[0] == b"!"


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_gpt2_ids_are_tiktokens(gpt2: BPETokenizer, theirs: tiktoken.Encoding, text: str) -> None:
    ids = gpt2.encode(text)
    assert ids == theirs.encode(text, allowed_special="all")
    assert gpt2.decode(ids) == text


def test_gpt2_ids_are_tiktokens_on_every_assigned_character(
    gpt2: BPETokenizer, theirs: tiktoken.Encoding
) -> None:
    assigned = [
        chr(code)
        for code in range(0x110000)
        if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")
    ]
    rng = random.Random(0)
    for start in range(0, len(assigned), 500):
        some = assigned[start : start + 500]
        rng.shuffle(some)
        text = "".join(c + rng.choice(["", " ", "  ", "a", " 7", "'s"]) for c in some)
        assert gpt2.encode(text) == theirs.encode_ordinary(text)


def test_gpt2_ids_are_tiktokens_on_a_play(gpt2: BPETokenizer, theirs: tiktoken.Encoding) -> None:
    text = load_text()[:200_000]
    assert gpt2.encode(text) == theirs.encode_ordinary(text)


@pytest.mark.parametrize("text", ["a\ud800b", "\udc00", "\ud83d\udc4d!", "\udc4d\ud83d"])
def test_half_a_surrogate_pair_becomes_the_replacement_character_as_in_tiktoken(
    gpt2: BPETokenizer, theirs: tiktoken.Encoding, text: str
) -> None:
    assert gpt2.encode(text) == theirs.encode_ordinary(text)
    assert BPETokenizer([]).decode(BPETokenizer([]).encode("a\ud800b")) == "a\ufffdb"


def test_bytes_that_are_no_utf8_decode_as_in_tiktoken(
    gpt2: BPETokenizer, theirs: tiktoken.Encoding
) -> None:
    rng = random.Random(1)
    for _ in range(200):
        ids = [rng.randrange(50256) for _ in range(rng.randrange(12))]
        assert gpt2.decode_bytes(ids) == theirs.decode_bytes(ids)
        assert gpt2.decode(ids) == theirs.decode(ids)
    everything = bytes(range(256))
    ids = [gpt2.byte_order.index(byte) for byte in everything]
    assert gpt2.decode_bytes(ids) == everything
    assert gpt2.decode(ids) == everything.decode("utf-8", errors="replace")


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    tokenizer = BPETokenizer(SMALL, ("<|end|>",), range(255, -1, -1))
    assert tokenizer.decode(tokenizer.encode(text)) == text


TEXT = load_text()[:30_000] + "中文和英文，中文和英文。" * 40
SMALL = train_bpe(TEXT, 256 + 150)


def slow_bpe(text: str, n_merges: int) -> list[tuple[bytes, bytes]]:
    """The definition, written down: count all pairs of all chunks anew for each merge."""
    words = Counter(
        tuple(bytes([byte]) for byte in chunk.encode()) for chunk in PATTERN.findall(text)
    )
    merges = []
    for _ in range(n_merges):
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                counts[pair] += n
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        again: Counter[tuple[bytes, ...]] = Counter()
        for word, n in words.items():
            parts, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == best else 1
                parts.append(b"".join(word[i : i + step]))
                i += step
            again[tuple(parts)] += n
        words = again
    return merges


def test_training_with_kept_counts_gives_what_counting_anew_gives() -> None:
    assert train_bpe(TEXT, 256 + 80) == slow_bpe(TEXT, 80)


@settings(max_examples=60, deadline=None)
@given(st.text("ab \n", max_size=60))
def test_training_agrees_on_small_alphabets_where_ties_abound(text: str) -> None:
    assert train_bpe(text, 256 + 30) == slow_bpe(text, 30)


def test_tokens_of_tokenizers_with_our_merges_are_ours() -> None:
    """The Rust library, given our merges, cuts the same text at the same places."""
    ours = BPETokenizer(SMALL)
    symbols = {byte: character for character, byte in byte_characters().items()}

    def written(token: bytes) -> str:
        return "".join(symbols[byte] for byte in token)

    vocabulary = {written(token): i for i, token in enumerate(ours.vocabulary)}
    merges = [(written(left), written(right)) for left, right in SMALL]
    peer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in [TEXT, *NASTY]:
        assert peer.encode(text).ids == ours.encode(text)


def byte_characters() -> dict[str, int]:
    """The characters that GPT-2's files write for the 256 bytes, read from its vocabulary."""
    known = json.loads((gpt2_folder() / "encoder.json").read_text("utf-8"))
    order = load_gpt2().byte_order
    return {token: order[i] for token, i in known.items() if i < 256}


def test_training_stops_where_no_pair_is_left_and_refuses_too_small_a_vocabulary() -> None:
    assert train_bpe("aaaa", 1000) == [(b"a", b"a"), (b"aa", b"aa")]
    assert train_bpe("", 300) == []
    assert train_bpe("ab ab", 256) == []
    with pytest.raises(ValueError, match="at least 258"):
        train_bpe("ab", 257, ("<a>", "<b>"))


def test_special_tokens_take_no_part_in_training_and_get_one_id() -> None:
    text = "the end<|end|>the start<|end|>the end"
    merges = train_bpe(text, 280, ("<|end|>", "<|end|><|end|>"))
    assert not any(b"<" in left + right or b"|" in left + right for left, right in merges)
    tokenizer = BPETokenizer(merges, ("<|end|>", "<|end|><|end|>"))
    single, double = 256 + len(merges), 257 + len(merges)
    assert tokenizer.encode("<|end|><|end|><|end|>") == [double, single]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="byte_order"):
        BPETokenizer([], byte_order=[0] * 256)
    with pytest.raises(ValueError, match="made before"):
        BPETokenizer([(b"ab", b"c")])
    with pytest.raises(ValueError, match="special"):
        BPETokenizer([], ("<a>", "<a>"))
    with pytest.raises(ValueError, match="id 256"):
        BPETokenizer([]).decode([256])
    with pytest.raises(ValueError, match="id -1"):
        BPETokenizer([]).decode([-1])


def test_a_saved_tokenizer_is_the_same_tokenizer(gpt2: BPETokenizer, tmp_path: Path) -> None:
    for tokenizer in (gpt2, BPETokenizer(SMALL, ("<|end|>",))):
        tokenizer.save(tmp_path / "t.json")
        again = BPETokenizer.load(tmp_path / "t.json")
        assert (again.merges, again.vocabulary) == (tokenizer.merges, tokenizer.vocabulary)
        assert again.encode(TEXT[:2000] + "<|end|>") == tokenizer.encode(TEXT[:2000] + "<|end|>")
    (tmp_path / "t.json").write_text('{"merges": [[999, 1]]}')
    with pytest.raises(DataError, match=r"t\.json holds no tokenizer"):
        BPETokenizer.load(tmp_path / "t.json")
    with pytest.raises(DataError, match="Check the path"):
        BPETokenizer.load(tmp_path / "none.json")


def test_other_merges_than_gpt2s_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnn2gpt.tokenizer.gpt2_folder", lambda: tmp_path / "a" / "b" / "c")
    with pytest.raises(DataError, match="does not hold GPT-2's merges"):
        load_gpt2()


def test_pairs_and_merges() -> None:
    assert pair_counts({(1, 1, 1): 2, (1, 2): 3, (5,): 7}) == {(1, 1): 4, (1, 2): 3}
    ids = [1, 1, 1, 2, 1, 1]
    assert merge_pair(ids, (1, 1), 9) == [9, 1, 2, 9]
    assert ids == [1, 1, 1, 2, 1, 1]


def test_the_command_trains_on_the_training_part_and_saves(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("low lower lowest " * 60 + "zzzz " * 20, "utf-8")
    out = tmp_path / "mine.json"
    command = ["tokenizer", "--text", str(text), "--vocab-size", "270", "--out", str(out)]
    ran = CliRunner().invoke(main, [*command, "--special", "<|end|>"])
    assert ran.exit_code == 0, ran.output
    learned = BPETokenizer.load(out)
    assert learned.special_tokens == ("<|end|>",)
    assert (b"l", b"o") in learned.merges or (b"o", b"w") in learned.merges
    assert not any(b"z" in left for left, _ in learned.merges)
    assert f"{learned.vocab_size} tokens" in ran.output
    assert CliRunner().invoke(main, [*command[:-1], str(tmp_path / "no/where")]).exit_code == 0
    refused = CliRunner().invoke(main, [*command, *["--special", "<a>"] * 15])
    assert refused.exit_code == 1 and "at least 271" in refused.output


def load_script(root: Path, name: str) -> Any:
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, root / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_compares_equal_work(root: Path) -> None:
    script = load_script(root, "tokenizer")
    text = load_text()[:20_000]
    result = script.measure(rounds=2, vocab_size=300, training_text=text, text=text)
    assert result["merges"] == 44
    assert result["encoding_tokens"] == len(load_gpt2().encode(text))
    for part in ("training", "encoding"):
        assert result[part]["ours"]["ratio"] == 1
        assert all(
            row["ratio_least"] <= row["ratio"] <= row["ratio_most"] for row in result[part].values()
        )
    stored = json.loads((root / "book/_data/tokenizer_benchmark.json").read_text("utf-8"))
    assert stored.keys() == result.keys()


def test_the_study_of_vocabularies_judges_all_on_one_text(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script(root, "vocabulary")
    monkeypatch.setattr(script, "load_text", lambda: load_text()[:20_000])
    rows = script.measure((0, 40), flops=1e10, rates=(8e-3,), seeds=1)
    assert [row["merges"] for row in rows] == [0, 40]
    assert rows[0]["characters_per_token"] == 1 < rows[1]["characters_per_token"]
    assert rows[1]["lstm"]["tokens"] < rows[0]["lstm"]["tokens"] <= rows[0]["lstm"]["characters"]
    for row in rows:
        for kind in ("ngram", "lstm"):
            per_character = row[kind]["nats_per_token"] / row["characters_per_token"]
            assert row[kind]["bits_per_character"] == pytest.approx(per_character / math.log(2))
    stored = json.loads((root / "book/_data/vocabulary.json").read_text("utf-8"))
    assert [row.keys() for row in stored["rows"][:2]] == [row.keys() for row in rows]
