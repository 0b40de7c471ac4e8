"""Pairs, encoder-decoders, beam search, their training, and the commands on top of them."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
from collections import defaultdict
from dataclasses import replace
from datetime import date, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from num2words import num2words
from torch import Tensor, nn

from course.cli import main
from rnn2gpt import translation
from rnn2gpt.checkpoint import CheckpointError, load_model
from rnn2gpt.data import DataError
from rnn2gpt.generation import beam_search
from rnn2gpt.seq2seq import (
    AdditiveAttention,
    MultiplicativeAttention,
    Seq2Seq,
    masked_softmax,
    sequence_cross_entropy,
    shift_right,
    source_mask,
)
from rnn2gpt.transformer import Transformer
from rnn2gpt.translation import (
    BOS,
    EOS,
    FORMATS,
    LOCALES,
    PAD,
    PairTokenizer,
    Vocabulary,
    chinese_number,
    english_number,
    load_pairs,
    pad_pairs,
    written_date,
)
from rnn2gpt.translator import (
    TranslationConfig,
    TranslationTrainer,
    _beam,
    alignment,
    bleu,
    chrf,
    conditioned,
    exact_match,
    held_out_nats,
    model_config,
    translate,
)

# --- the tasks ------------------------------------------------------------------------------------


def text_key(source: str) -> str:
    return re.sub(r"^\W+|\W+$", "", source.lower())


@pytest.mark.parametrize(
    ("task", "sizes", "vocabularies", "key"),
    [
        ("numbers", (20_000, 500, 1000, 500), (35, 18), lambda pair: pair[1]),
        ("dates", (20_000, 500, 1000), (302, 14), lambda pair: pair[1]),
        ("gettext", (8129, 400, 600), (106, 1208), lambda pair: text_key(pair[0])),
    ],
)
def test_nothing_held_out_is_trained_on(task: str, sizes: Any, vocabularies: Any, key: Any) -> None:
    splits = load_pairs(task)
    assert tuple(map(len, splits.values())) == sizes
    seen = [key(pair) for pairs in splits.values() for pair in pairs]
    assert len(seen) == len(set(seen)) == sum(sizes)
    tokenizer = PairTokenizer.of(task, splits)
    assert (len(tokenizer.source), len(tokenizer.target)) == vocabularies
    assert load_pairs(task) == splits


def test_longer_numbers_are_longer_than_any_trained() -> None:
    splits = load_pairs("numbers")
    longest = {
        name: max(len(source.split()) for source, _ in pairs) for name, pairs in splits.items()
    }
    assert longest["train"] == longest["test"] == 16
    assert min(len(source.split()) for source, _ in splits["longer"]) == 17
    assert longest["longer"] >= 22


def test_english_numbers_are_those_of_num2words() -> None:
    rng = random.Random(1)
    for n in [*range(1100), *(rng.randrange(10 ** rng.randint(4, 12)) for _ in range(2000))]:
        assert english_number(n) == " ".join(re.findall("[a-z]+", num2words(n))), n


def value(numeral: str) -> int:
    """A second way to read Chinese numerals: units multiply what stands before them."""
    total = section = digit = 0
    for character in numeral if not numeral.startswith("十") else "一" + numeral:
        if character in "零一二三四五六七八九":
            digit = "零一二三四五六七八九".index(character)
        elif character in "十百千":
            section += digit * 10 ** (1 + "十百千".index(character))
            digit = 0
        else:
            total += (section + digit) * {"万": 10**4, "亿": 10**8}[character]
            section = digit = 0
    return total + section + digit


def test_chinese_numerals() -> None:
    written = {
        0: "零",
        10: "十",
        15: "十五",
        20: "二十",
        110: "一百一十",
        1005: "一千零五",
        1050: "一千零五十",
        10_000: "一万",
        10_010: "一万零一十",
        100_000: "十万",
        10_001_000: "一千万一千",
        10_000_100: "一千万零一百",
        100_001_000: "一亿零一千",
        101_000_100: "一亿零一百万零一百",
        100_000_000_001: "一千亿零一",
    }
    assert {n: chinese_number(n) for n in written} == written
    rng = random.Random(2)
    for n in [*range(12_000), *(rng.randrange(10 ** rng.randint(5, 12)) for _ in range(5000))]:
        numeral = chinese_number(n)
        assert value(numeral) == n
        assert "零零" not in numeral and not (n and numeral.endswith("零"))
    for refused in (-1, 10**12):
        with pytest.raises(ValueError, match="below 10"):
            chinese_number(refused)
        with pytest.raises(ValueError, match="below 10"):
            english_number(refused)


def test_no_written_date_means_two_days() -> None:
    meanings = defaultdict(set)
    for locale, form in product(LOCALES, FORMATS):
        for n in range(366):
            day = date(1904, 1, 1) + timedelta(n)  # January 1904: 01, 04 and 19 all occur
            meanings[written_date(day, locale, form)].add(day)
    assert not [text for text, days in meanings.items() if len(days) > 1]


def test_dates_of_both_names_for_one_word() -> None:
    assert written_date(date(1987, 7, 9), "pl", "medium") == "9 lip 1987"
    assert written_date(date(1987, 6, 9), "hr", "medium") == "9. lip 1987."


def test_gettext_sides_are_filled_in_alike() -> None:
    pairs = [pair for split in load_pairs("gettext").values() for pair in split]
    slots = [[sorted(re.findall(r"\{\d\}", text)) for text in pair] for pair in pairs]
    assert all(source == target for source, target in slots)
    assert sum(bool(source) for source, _ in slots) > 1000
    assert not [pair for pair in pairs if re.search(r"[<>|\t\n]|%s|%\(", "".join(pair))]
    assert max(len(source) for source, _ in pairs) <= 60


def test_gettext_is_built_again_from_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_pairs("gettext")
    packages = translation.fetch_packages(translation.REQUIREMENTS, translation.CATALOGUES)
    assert not list(packages.rglob("*.py"))
    monkeypatch.setenv("RNN2GPT_DATA", str(tmp_path))
    monkeypatch.setattr(translation, "fetch_packages", lambda *_: packages)
    (tmp_path / "gettext.tsv").write_text("Save\t保存\n", encoding="utf-8")
    assert load_pairs("gettext") == expected
    with pytest.raises(DataError, match=r"0 pairs.*rnn2gpt data"):
        translation._build_gettext(tmp_path)


def test_own_pairs(tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("".join(f"word {n}\t词{n}\n" for n in range(20)), encoding="utf-8")
    splits = load_pairs(data_file=path)
    assert {name: len(pairs) for name, pairs in splits.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }
    assert sorted(pair for pairs in splits.values() for pair in pairs)[0] == ("word 0", "词0")
    path.write_text("one\t一\ntwo 二\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"mine.tsv, line 2: 'two 二'"):
        load_pairs(data_file=path)
    path.write_text("one\t一\n" * 30, encoding="utf-8")
    with pytest.raises(DataError, match="1 different sources"):
        load_pairs(data_file=path)
    path.write_bytes("ein\tune\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-8"):
        load_pairs(data_file=path)
    with pytest.raises(DataError, match="Check the path"):
        load_pairs(data_file=tmp_path / "none.tsv")
    with pytest.raises(DataError, match="numbers, dates, gettext"):
        load_pairs("poems")


# --- tokens and batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["numbers", "dates", "gettext"])
def test_vocabularies_give_every_text_back(task: str) -> None:
    splits = load_pairs(task)
    tokenizer = PairTokenizer.of(task, splits)
    again = PairTokenizer(json.loads(json.dumps(tokenizer.vocabulary)))
    for source, target in splits["test"]:
        assert again.source.decode(again.source.encode(source)) == source
        ids = again.target.encode(target)
        assert again.target.decode([BOS, *ids, EOS, PAD]) == target
        assert min(ids) > EOS


def test_vocabulary_says_what_it_does_not_know() -> None:
    vocabulary = Vocabulary.of(["twelve thousand and five"], "words")
    assert vocabulary.encode("Twelve-thousand, five") == vocabulary.encode("twelve thousand five")
    with pytest.raises(ValueError, match=r"'dozen', 'plus'.*4 words"):
        vocabulary.encode("dozen plus five")
    with pytest.raises(ValueError, match="no words"):
        vocabulary.encode(" ! ")
    with pytest.raises(ValueError, match="words, characters"):
        Vocabulary("syllables", [])
    assert Vocabulary.of(["{0}个{1}"], "characters").split("{1}个") == ["{1}", "个"]


def test_pad_pairs_and_shift_right() -> None:
    source, lengths, target = pad_pairs([([3], [4, 5, EOS]), ([6, 7], [8, EOS])])
    assert source.tolist() == [[3, PAD], [6, 7]] and lengths.tolist() == [1, 2]
    assert target.tolist() == [[4, 5, EOS], [8, EOS, PAD]]
    assert shift_right(target, BOS).tolist() == [[BOS, 4, 5], [BOS, 8, EOS]]
    assert target.tolist() == [[4, 5, EOS], [8, EOS, PAD]]


def test_sequence_cross_entropy_is_the_mean_over_real_tokens() -> None:
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[1, 2, 0], [3, 0, 0]])
    log_p = logits.log_softmax(-1)
    expected = -(log_p[0, 0, 1] + log_p[0, 1, 2] + log_p[1, 0, 3]) / 3
    assert sequence_cross_entropy(logits, targets, 0).item() == pytest.approx(expected.item())
    assert sequence_cross_entropy(logits, torch.full((2, 3), -7), -7).item() == 0.0


# --- attention and the two networks ---------------------------------------------------------------


def test_masked_softmax() -> None:
    scores = (1e4 * torch.randn(3, 4, 5)).double().requires_grad_()
    mask = torch.rand(3, 1, 5) < 0.5
    mask[:, :, 2], mask[1] = True, False
    weights = masked_softmax(scores, mask)
    assert torch.equal(
        weights[~mask.expand_as(weights)], torch.zeros(4 * int((~mask).sum())).double()
    )
    assert torch.allclose(weights.sum(-1), mask.any(-1).double().expand(3, 4))
    (grad,) = torch.autograd.grad(weights.pow(2).sum(), scores)
    assert grad.isfinite().all() and not grad[1].any()
    assert torch.equal(masked_softmax(scores, None, dim=1), scores.softmax(1))
    row = scores[0, 0][mask[0, 0]].softmax(0)
    assert torch.allclose(weights[0, 0][mask[0, 0]], row)


def explicit_scores(attention: nn.Module, q: Tensor, k: Tensor) -> Tensor:
    if isinstance(attention, AdditiveAttention):
        hidden = torch.tanh(attention.W_q.weight @ q + attention.W_k.weight @ k)
        return attention.v.weight[0] @ hidden
    W_a = getattr(attention.W_a, "weight", torch.eye(len(k)).double())
    return q @ W_a @ k


@pytest.mark.parametrize("form", ["additive", "general", "dot"])
def test_attention_against_its_definition_in_values_and_gradients(form: str) -> None:
    d_query, d_key = (5, 5) if form == "dot" else (5, 7)
    attention = (
        AdditiveAttention(d_query, d_key, 3)
        if form == "additive"
        else MultiplicativeAttention(d_query, d_key, form)
    ).double()
    query = torch.randn(2, 3, d_query).double().requires_grad_()
    keys = torch.randn(2, 4, d_key).double().requires_grad_()
    mask = torch.tensor([[True, True, True, True], [True, False, True, False]])
    context, weights = attention(query, keys, mask)
    for b, t in product(range(2), range(3)):
        real = [s for s in range(4) if mask[b, s]]
        row = torch.stack([explicit_scores(attention, query[b, t], keys[b, s]) for s in real])
        expected = sum(w * keys[b, s] for w, s in zip(row.softmax(0), real, strict=True))
        assert torch.allclose(weights[b, t, real], row.softmax(0))
        assert torch.allclose(context[b, t], expected)
        inputs = [query, keys, *attention.parameters()]
        cotangent = torch.randn(d_key).double()
        ours = torch.autograd.grad(context[b, t] @ cotangent, inputs, retain_graph=True)
        theirs = torch.autograd.grad(expected @ cotangent, inputs, retain_graph=True)
        for a, e in zip(ours, theirs, strict=True):
            assert torch.allclose(a, e)
    assert torch.equal(weights[1, :, [1, 3]], torch.zeros(3, 2).double())


def test_multiplicative_attention_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        MultiplicativeAttention(3, 4, "dot")
    with pytest.raises(ValueError, match="dot or general"):
        MultiplicativeAttention(3, 4, "cosine")


SOURCE = torch.tensor([[3, 4, 5, 6, 7], [5, 3, PAD, PAD, PAD], [7, 7, 3, PAD, PAD]])
LENGTHS = torch.tensor([5, 2, 3])
TARGET_IN = torch.tensor([[BOS, 3, 4, 5], [BOS, 6, 3, PAD], [BOS, 4, 4, 4]])


def cell(gru: nn.GRU, suffix: str = "") -> nn.GRUCell:
    """One step of one direction of a GRU layer, on the very same parameters."""
    made = nn.GRUCell(gru.input_size, gru.hidden_size).double()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(made, name, getattr(gru, f"{name}_l0{suffix}"))
    return made


def explicit_seq2seq(model: Seq2Seq, source: list[int], target_in: list[int]) -> Tensor:
    """One pair, token by token, as the chapter writes it out."""
    embedded = model.source_embedding.weight[source]
    zero = torch.zeros(1, embedded.shape[1]).double()
    states = {}
    for suffix, order in (("", range(len(source))), ("_reverse", reversed(range(len(source))))):
        step, h = cell(model.encoder, suffix), zero
        for s in order:
            h = step(embedded[s : s + 1], h)
            states[suffix, s] = h
    memory = [states["", s] + states["_reverse", s] for s in range(len(source))]
    h, step = states["", len(source) - 1] + states["_reverse", 0], cell(model.decoder)
    logits = []
    for token in target_in:
        h = step(model.target_embedding.weight[token : token + 1], h)
        out = h
        if model.attention is not None:
            scores = [explicit_scores(model.attention, h[0], m[0]) for m in memory]
            weights = torch.stack(scores).softmax(0)
            context = sum(w * m for w, m in zip(weights, memory, strict=True))
            out = torch.tanh(model.W_c(torch.cat([context, h], dim=1)))
        logits.append(model.head(out)[0])
    return torch.stack(logits)


@pytest.mark.parametrize("attention", [False, True, "general"])
def test_seq2seq_against_its_definition_in_values_and_gradients(attention: bool | str) -> None:
    model = Seq2Seq(8, 7, d_model=5, attention=attention).double()
    logits = model(SOURCE, LENGTHS, TARGET_IN)
    expected = torch.stack(
        [
            explicit_seq2seq(model, row[:n], target)
            for row, n, target in zip(
                SOURCE.tolist(), LENGTHS.tolist(), TARGET_IN.tolist(), strict=True
            )
        ]
    )
    assert torch.allclose(logits, expected)
    cotangent, parameters = torch.randn_like(logits), list(model.parameters())
    ours = torch.autograd.grad((logits * cotangent).sum(), parameters, retain_graph=True)
    theirs = torch.autograd.grad((expected * cotangent).sum(), parameters)
    for a, e in zip(ours, theirs, strict=True):
        assert torch.allclose(a, e)


@pytest.mark.parametrize("attention", [False, True])
def test_what_stands_after_a_source_changes_nothing(attention: bool) -> None:
    model = Seq2Seq(8, 7, d_model=6, attention=attention)
    logits = model(SOURCE, LENGTHS, TARGET_IN)
    junk = torch.where(source_mask(SOURCE, LENGTHS), SOURCE, 4)
    assert torch.equal(model(junk, LENGTHS, TARGET_IN), logits)
    wider = nn.functional.pad(SOURCE, (0, 3), value=6)
    assert torch.allclose(model(wider, LENGTHS, TARGET_IN), logits, atol=1e-6)
    alone = model(SOURCE[1:2, :2], LENGTHS[1:2], TARGET_IN[1:2])
    assert torch.allclose(alone, logits[1:2], atol=1e-6)


@pytest.mark.parametrize("attention", [False, True])
def test_step_by_step_equals_all_at_once(attention: bool) -> None:
    model = Seq2Seq(8, 7, d_model=6, attention=attention)
    memory, state = model.encode(SOURCE, LENGTHS)
    mask = source_mask(SOURCE, LENGTHS)
    logits, last, weights = model.decode(TARGET_IN, state, memory, mask)
    for t in range(TARGET_IN.shape[1]):
        step, state, read = model.decode_step(TARGET_IN[:, t], state, memory, mask)
        assert torch.allclose(step, logits[:, t], atol=1e-6)
        if attention:
            assert weights is not None and read is not None
            assert torch.allclose(read, weights[:, t], atol=1e-6)
            assert torch.allclose(read.sum(1), torch.ones(3))
        else:
            assert weights is None and read is None
    assert torch.allclose(state, last, atol=1e-6)
    without = model.decode(TARGET_IN, model.encode(SOURCE, LENGTHS)[1], 0 * memory, mask)[0]
    assert torch.allclose(without, logits, atol=1e-6) != attention  # what attention reads counts


def networks() -> list[nn.Module]:
    torch.manual_seed(3)
    recurrent = [Seq2Seq(8, 7, 6, attention) for attention in (True, False)]
    return [*recurrent, Transformer(8, 7, 8, 2, 16, 2, 32, PAD)]


@pytest.mark.parametrize("model", networks(), ids=["seq2seq", "plain", "transformer"])
def test_greedy_is_the_argmax_of_each_step_and_a_beam_of_one(model: nn.Module) -> None:
    source, target = (
        {"level": "characters", "tokens": ["<pad>", "<bos>", "<eos>", *letters]}
        for letters in ("abcde", "wxyz")
    )
    tokenizer = PairTokenizer({"source": source, "target": target})
    texts = ["abcde", "ca", "eea", "d"]
    together = translate(model.eval(), tokenizer, texts, max_len=9)
    assert together == [translate(model, tokenizer, [text], max_len=9)[0] for text in texts]
    for text, output in zip(texts, together, strict=True):
        row, ids = tokenizer.source.encode(text), [BOS]
        decode = conditioned(model, torch.tensor([row]), torch.tensor([len(row)]))
        while len(ids) <= 9 and ids[-1] != EOS:
            ids.append(int(decode(torch.tensor([ids]))[0, -1].argmax()))
        assert tokenizer.target.decode(ids) == output
        assert _beam(model, row, 1, 9, length_penalty=0.6) == ids[1:]
    assert translate(model, tokenizer, []) == []
    assert len(translate(model, tokenizer, texts, beam_size=3, max_len=4)) == 4


# --- beam search ----------------------------------------------------------------------------------


def table(seed: int) -> Any:
    """log p that depends on the whole prefix, over 4 tokens, of which 3 is EOS."""

    def score_next(prefixes: list[list[int]]) -> Tensor:
        rows = []
        for prefix in prefixes:
            generator = torch.Generator().manual_seed(hash((seed, *prefix)) % 2**32)
            rows.append((2 * torch.randn(4, generator=generator)).log_softmax(0))
        return torch.stack(rows)

    return score_next


def all_sequences(score_next: Any, max_len: int) -> dict[tuple[int, ...], float]:
    """Every sequence that ends in EOS or is as long as it may be, with its sum of log p."""
    found, live = {}, {(): 0.0}
    for length in range(1, max_len + 1):
        grown = {}
        for ids, total in live.items():
            for token, log_p in enumerate(score_next([[0, *ids]])[0].double().tolist()):
                grown[*ids, token] = total + log_p
        live = {ids: total for ids, total in grown.items() if ids[-1] != 3}
        found |= {ids: t for ids, t in grown.items() if ids[-1] == 3 or length == max_len}
    return found


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(penalty: float) -> None:
    for seed in range(6):
        found = all_sequences(table(seed), max_len=4)
        best = max(found, key=lambda ids: found[ids] / len(ids) ** penalty)
        ids, score = beam_search(table(seed), 0, 3, 200, 4, penalty)
        assert tuple(ids) == best
        assert score == pytest.approx(found[best] / len(best) ** penalty, abs=1e-6)


def test_a_beam_scores_what_it_returns_and_helps() -> None:
    gains = []
    for seed in range(40):
        found = all_sequences(table(seed), max_len=5)
        scores = []
        for size in (1, 3):
            ids, score = beam_search(table(seed), 0, 3, size, 5)
            assert score == pytest.approx(found[tuple(ids)], abs=1e-6)
            scores.append(score)
        gains.append(scores[1] - scores[0])
    assert sum(gain > 1e-6 for gain in gains) > 10
    assert sum(gain < -1e-6 for gain in gains) <= 2  # greedy's path may fall out of the beam


def test_a_beam_is_bounded() -> None:
    asked = []

    def never_ends(prefixes: list[list[int]]) -> Tensor:
        asked.append(len(prefixes))
        return torch.tensor([[-0.1, -3.0, -4.0, -100.0]]).expand(len(prefixes), 4)

    ids, _ = beam_search(never_ends, 0, 3, 3, max_len=5)
    assert ids == [0] * 5 and asked == [1, 3, 3, 3, 3]
    for sizes in ((0, 5), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            beam_search(never_ends, 0, 3, *sizes)


# --- training -------------------------------------------------------------------------------------

DIGITS = {"zero": "零", "one": "一", "two": "二", "three": "三", "four": "四", "five": "五"}


def spelled(n: int = 90) -> translation.Splits:
    rng = random.Random(0)
    pairs = []
    for _ in range(n):
        words = rng.choices(list(DIGITS), k=rng.randint(1, 3))
        pairs.append((" ".join(words), "".join(DIGITS[word] for word in words)))
    return {"train": pairs[20:], "validation": pairs[:10], "test": pairs[10:20]}


SPLITS, MANY = spelled(), spelled(400)
TOKENIZER = PairTokenizer.of("numbers", SPLITS)
CONFIG = TranslationConfig(
    model="transformer",
    steps=12,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=2,
    evaluate_every=5,
    label_smoothing=0.1,
    device="cpu",
)


def trainer(out: Path | None = None, **changes: Any) -> TranslationTrainer:
    config = replace(CONFIG, **changes)
    sizes = model_config(config.model, TOKENIZER, d_model=16, dropout=0.2)
    return TranslationTrainer(config, sizes, TOKENIZER, SPLITS, out)


def test_batches_go_through_every_epoch_without_a_gap() -> None:
    run = trainer(steps=1)
    encoded = TOKENIZER.encode(SPLITS["train"])
    n, seen = len(encoded), []
    for step in range(27):  # 216 pairs: three epochs of 70, and a few
        run.step = step
        source, lengths, target = run.pair_batch()
        assert torch.equal(source, run.pair_batch()[0])
        assert run.tokens == sum(len(pair[1]) for pair in seen)
        for row, length, ids in zip(
            source.tolist(), lengths.tolist(), target.tolist(), strict=True
        ):
            seen.append((row[:length], [i for i in ids if i != PAD]))
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == sorted(encoded)
    assert seen[:n] != seen[n : 2 * n]


@pytest.mark.parametrize("model", ["seq2seq", "seq2seq-plain", "transformer"])
def test_resume_is_exact_to_the_last_bit(tmp_path: Path, model: str) -> None:
    whole = trainer(tmp_path / "whole", model=model)
    whole.run()
    part = trainer(tmp_path / "parts", model=model)
    train_step = part.train_step

    def press_ctrl_c_at_step_7() -> None:
        train_step()
        if part.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    part.train_step = press_ctrl_c_at_step_7  # type: ignore[method-assign]
    assert part.run().interrupted
    torch.manual_seed(99)
    rest = trainer(tmp_path / "parts", model=model)
    rest.resume()
    result = rest.run()
    assert result.step == 12 and result.tokens == whole.tokens
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, rest.model.state_dict()[name]), name
    with pytest.raises(CheckpointError, match=r"label_smoothing=0.1, not 0.2.*same settings"):
        trainer(tmp_path / "parts", model=model, label_smoothing=0.2).resume()


def test_validation_is_the_plain_loss_of_every_target_token() -> None:
    run = trainer()
    pairs = TOKENIZER.encode(SPLITS["validation"])
    run.model.eval()
    total, count = 0.0, 0
    for source, target in pairs:
        decode = conditioned(run.model, torch.tensor([source]), torch.tensor([len(source)]))
        log_p = decode(torch.tensor([[BOS, *target[:-1]]]))[0].log_softmax(-1)
        total -= sum(log_p[t, i].item() for t, i in enumerate(target))
        count += len(target)
    run.model.train()
    assert run.validate() == pytest.approx(total / count, abs=1e-5)
    assert held_out_nats(run.model, pairs, batch_size=3) == pytest.approx(total / count, abs=1e-5)
    assert run.model.training


@pytest.fixture(scope="module")
def learned() -> dict[str, TranslationTrainer]:
    """All three models, after 140 steps on spelled digits."""
    runs = {}
    for model in ("seq2seq", "seq2seq-plain", "transformer"):
        config = replace(
            CONFIG, model=model, steps=140, batch_size=16, label_smoothing=0.0, evaluate_every=1000
        )
        sizes = model_config(model, TOKENIZER, d_model=32, dropout=0.0)
        runs[model] = TranslationTrainer(config, sizes, TOKENIZER, MANY)
        runs[model].run()
        runs[model].model.eval()
    return runs


def test_every_model_learns_to_translate(learned: dict[str, TranslationTrainer]) -> None:
    sources, targets = zip(*MANY["test"], strict=True)
    for name, run in learned.items():
        outputs = translate(run.model, TOKENIZER, sources)
        assert exact_match(outputs, targets) >= (0.5 if name == "seq2seq-plain" else 0.8), name
        assert translate(run.model, TOKENIZER, sources, beam_size=3) != [""] * len(sources)


def test_alignment_shows_what_the_attention_reads(learned: dict[str, TranslationTrainer]) -> None:
    model: Any = learned["seq2seq"].model
    source, target, weights = alignment(model, TOKENIZER, "five one three", "五一三")
    assert source == ["five", "one", "three"] and target == ["五", "一", "三", "<eos>"]
    assert weights.shape == (4, 3)
    assert torch.allclose(weights.sum(1), torch.ones(4))
    own = translate(model, TOKENIZER, ["five one three"])[0]
    assert alignment(model, TOKENIZER, "five one three")[1] == [*own, "<eos>"]
    plain: Any = learned["seq2seq-plain"].model
    with pytest.raises(ValueError, match="no attention"):
        alignment(plain, TOKENIZER, "five")


def test_scores() -> None:
    reference = ["我们都很喜欢看书", "删除用户"]
    assert exact_match(reference, reference) == 1.0
    assert bleu(reference, reference) == pytest.approx(100)
    assert chrf(reference, reference) == pytest.approx(100)
    near = ["我们都很喜欢读书", "删除用户"]
    assert exact_match(near, reference) == 0.5
    # of 12 characters 11 are right; the wrong one stands in two of the 2-, 3- and 4-grams each
    n_grams = [11 / 12, 8 / 10, 6 / 8, 4 / 6]
    assert bleu(near, reference) == pytest.approx(100 * math.prod(n_grams) ** 0.25)
    assert 50 < chrf(near, reference) < 100


# --- commands -------------------------------------------------------------------------------------


def invoke(*arguments: object, stdin: str | None = None) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.mark.parametrize("model", ["seq2seq", "transformer"])
def test_train_then_translate(tmp_path: Path, model: str) -> None:
    pairs = tmp_path / "digits.tsv"
    lines = {f"{s.replace(' ', '-')}\t{t}\n" for split in spelled(400).values() for s, t in split}
    pairs.write_text("".join(sorted(lines)), encoding="utf-8")
    out = tmp_path / "run"
    train = ["train", "--model", model, "--pairs", pairs, "--out", out, "--device", "cpu"]
    train += ["--steps", 10, "--d-model", 16, "--batch-size", 8]
    done = invoke(*train, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["step"] == 10
    assert load_model(out).info["pairs"] == "digits.tsv"
    refused = invoke(*train)
    assert refused.exit_code == 1 and "--resume" in refused.output
    more = invoke(*train, "--resume", "--steps", 12)
    assert more.exit_code == 0 and "rnn2gpt translate" in more.output

    one = invoke("translate", out, "one-two", "--max-tokens", 5)
    assert one.exit_code == 0, one.output
    assert len(one.output.splitlines()) == 1
    several = invoke("translate", out, "--json", "--beam", 2, stdin="one-two\n\nfive\n")
    assert [row["source"] for row in json.loads(several.output)] == ["one-two", "five"]
    unknown = invoke("translate", out, "ONE")
    assert unknown.exit_code == 1 and "'E', 'N', 'O'" in unknown.output
    writes = invoke("generate", out)
    assert writes.exit_code == 1 and "rnn2gpt translate" in writes.output


def test_commands_say_what_does_not_fit(tmp_path: Path) -> None:
    task, pairs = ("--task", "numbers"), ("--pairs", "none.tsv")
    for options in (("lstm", *task), ("rnn", *pairs), ("seq2seq",), ("seq2seq", *task, *pairs)):
        done = invoke("train", "--model", *options, "--out", tmp_path)
        assert done.exit_code == 1 and "either --task or --pairs" in done.output
    done = invoke("train", "--model", "seq2seq", "--task", "dates", "--block-size", 5)
    assert done.exit_code == 1 and "no use for --block-size" in done.output
    done = invoke("train", "--model", "rnn", "--label-smoothing", 0.1, "--dropout", 0.1)
    assert done.exit_code == 1 and "no use for --dropout, --label-smoothing" in done.output
    stored = Path(__file__).parent.parent / "book" / "_data" / "models"
    done = invoke("translate", stored / "lstm", "hello")
    assert done.exit_code == 1 and "rnn2gpt generate" in done.output
    done = invoke("translate", stored / "lstm", stdin="\n\n")
    assert done.exit_code == 1 and "nothing to translate" in done.output
    done = invoke("translate", tmp_path, "hello")
    assert done.exit_code == 1 and "holds no model" in done.output


# --- the stored models ----------------------------------------------------------------------------


RECORD = json.loads(
    (Path(__file__).parent.parent / "book/_data/translation.json").read_text(encoding="utf-8")
)


def test_every_model_of_the_chapters_is_stored() -> None:
    kinds = ("seq2seq", "seq2seq-plain", "transformer")
    expected = {f"{task}-{kind}" for task in ("numbers", "dates") for kind in kinds}
    assert RECORD["models"].keys() == expected | {"gettext-transformer"}


@pytest.mark.parametrize("name", RECORD["models"])
def test_a_stored_model_scores_what_is_recorded(root: Path, name: str) -> None:
    data = root / "book" / "_data"
    record = RECORD["models"][name]
    loaded = load_model(data / "models" / name)
    assert loaded.info["command"] == record["command"] and loaded.info["model"] == record["model"]
    assert sum(p.numel() for p in loaded.model.parameters()) == record["parameters"]
    assert (data / "models" / name / "model.safetensors").stat().st_size == record["bytes"]
    held_out = loaded.tokenizer.encode(load_pairs(record["task"])["validation"])
    nats = held_out_nats(loaded.model, held_out[:100])
    assert nats == pytest.approx(loaded.info["validation_nats"], rel=0.6, abs=0.02)
    lengths = record["by_source_length"]
    scores = [split["greedy"] for split in record["scores"].values()]
    assert sum(row["n"] for row in lengths) == sum(score["n"] for score in scores)
    hits = sum(row["n"] * row["exact"] for row in lengths)
    assert hits == pytest.approx(sum(score["n"] * score["exact"] for score in scores), abs=0.5)
    for wrong in record["wrong"]:
        assert translate(loaded.model, loaded.tokenizer, [wrong["source"]]) == [wrong["output"]]
