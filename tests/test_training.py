"""The training loop: batches, schedule, budgets, exact resume, and the commands on top of it."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor, nn

from course.cli import LANGUAGE_MODELS, main
from rnn2gpt import checkpoint, generation
from rnn2gpt.attention import CharAttention, CharAttentionConfig
from rnn2gpt.checkpoint import MODELS, Architecture, CheckpointError, load_model, save_model
from rnn2gpt.data import CharTokenizer
from rnn2gpt.gpt import GPTConfig
from rnn2gpt.lstm import CharLSTM, CharLSTMConfig, generate
from rnn2gpt.rnn import CharRNNConfig
from rnn2gpt.tokenizer import BPETokenizer, train_bpe
from rnn2gpt.training import (
    Trainer,
    TrainingConfig,
    cosine_schedule,
    evaluate,
    pick_device,
    seed_everything,
    tapes,
)

STORED = Path(__file__).parent.parent / "book" / "_data" / "models"
TEXT = "how much wood would a woodchuck chuck if a woodchuck could chuck wood?\n" * 40
TOKENIZER = CharTokenizer(TEXT)
IDS = TOKENIZER.encode(TEXT)
CONFIG = TrainingConfig(
    model="lstm",
    steps=12,
    batch_size=4,
    block_size=10,
    learning_rate=1e-2,
    warmup_steps=2,
    evaluate_every=5,
    device="cpu",
)
SIZES = CharLSTMConfig(vocab_size=TOKENIZER.vocab_size, d_model=16, n_layers=2, dropout=0.2)


def trainer(
    out: Path | None = None, config: TrainingConfig = CONFIG, sizes: Any = SIZES
) -> Trainer:
    return Trainer(config, sizes, TOKENIZER, IDS[:2500], IDS[2500:], out)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- batches and schedule -------------------------------------------------------------------------


def test_tapes_go_on_where_they_stopped_and_around_the_end() -> None:
    ids = torch.arange(23)
    blocks = [tapes(ids, step, block_size=4, batch_size=3, offset=21) for step in range(8)]
    for x, y in blocks:
        assert torch.equal(y, (x + 1) % 23)
    for (_, y), (x, _) in pairwise(blocks):
        assert torch.equal(y[:, -1], x[:, 0])
    starts = blocks[0][0][:, 0]
    assert starts.tolist() == [21, (21 + 7) % 23, (21 + 15) % 23]
    seen = torch.cat([x for x, _ in blocks[:2]], dim=1).unique()
    assert len(seen) == 23  # 2 blocks of 4 on each of 3 tapes cover all 23 places


def test_cosine_schedule_at_its_corners() -> None:
    def rate(step: int) -> float:
        return cosine_schedule(step, 1.0, 0.1, warmup_steps=4, total_steps=10)

    assert [rate(s) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rate(7) == pytest.approx(0.55)  # half-way down
    assert rate(10) == rate(99) == 0.1
    assert all(rate(s) > rate(s + 1) for s in range(4, 10))
    assert cosine_schedule(0, 1.0, 0.1, warmup_steps=0, total_steps=10) == 1.0


@pytest.mark.parametrize("n", [300, 301, 257, 20, 2])
def test_evaluate_predicts_every_id_once(n: int) -> None:
    """A model whose state is the number of ids it has seen finds each target exactly once."""

    class Bigram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(7, 7))

        def forward(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            assert (state is None) == (ids.shape == first)
            return self.table[ids], torch.zeros(1)

    model, ids = Bigram(), torch.randint(7, (n,))
    streams = max(1, min(16, (n - 1) // 300))
    first = (streams, min(300, -(-(n - 1) // streams)))
    architecture = Architecture(config=object, build=nn.Module, learning_rate=1, recurrent=True)
    nll = evaluate(architecture, model, ids, block_size=300)
    expected = -model.table.log_softmax(dim=1)[ids[:-1], ids[1:]].double()
    assert torch.allclose(nll, expected)


def test_evaluate_carries_the_state() -> None:
    """With one stream, the sweep in blocks equals the model run once over the whole text."""
    seed_everything(0)
    model = CharLSTM(TOKENIZER.vocab_size, 16, 2, dropout=0.5)
    whole = nn.functional.cross_entropy(model.eval()(IDS[None, :-1])[0][0], IDS[1:])
    model.train()
    swept = evaluate(MODELS["lstm"], model, IDS, block_size=64, n_streams=1).mean()
    assert swept.item() == pytest.approx(whole.item(), abs=1e-5)
    assert model.training
    side_by_side = evaluate(MODELS["lstm"], model, IDS, block_size=64).mean()
    assert side_by_side.item() == pytest.approx(swept.item(), abs=0.05)


@pytest.mark.parametrize("n", [300, 40, 11, 10, 2])
def test_models_without_a_state_are_judged_with_half_a_window_to_read(n: int) -> None:
    seed_everything(1)
    model, ids = CharAttention(7, 8, n_layers=1, block_size=9).eval(), torch.randint(7, (n,))
    nll = evaluate(MODELS["self-attention"], model, ids)
    assert nll.shape == (n - 1,)
    for p in {0, n // 3, n // 2, n - 2} - {n - 1}:
        starts = [0, *range(4, n - 10, 4), max(0, n - 10)]  # of windows of 9, half apart
        start = next(s for s in starts if p < s + 9)
        logits, _ = model(ids[None, start : p + 1])
        expected = -logits[0, -1].log_softmax(dim=0)[ids[p + 1]].item()
        assert nll[p].item() == pytest.approx(expected, abs=1e-5)


# --- runs -----------------------------------------------------------------------------------------


def test_training_learns(tmp_path: Path) -> None:
    result = trainer(tmp_path, replace(CONFIG, steps=150, evaluate_every=50)).run()
    assert result.step == 150 and result.tokens == 150 * 40
    log = rows(tmp_path)
    assert [int(row["step"]) for row in log] == [50, 100, 150]
    nats = [float(row["validation_nats"]) for row in log]
    assert nats[-1] < 0.6 * math.log(TOKENIZER.vocab_size)
    assert result.validation_nats == nats[-1] and result.best_nats == min(nats)
    loaded = load_model(tmp_path)
    again = evaluate(MODELS["lstm"], loaded.model, IDS[2500:]).mean().item()
    assert again == pytest.approx(result.best_nats, abs=1e-6)
    assert loaded.info["validation_nats"] == result.best_nats
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("chuck")) == "chuck"


def test_resume_is_exact_to_the_last_bit(tmp_path: Path) -> None:
    """Stopped between two evaluations, with dropout on: weights and log equal the unbroken run."""
    whole = trainer(tmp_path / "whole")
    whole.run()
    part = trainer(tmp_path / "parts")
    train_step = part.train_step

    def press_ctrl_c_at_step_7() -> None:
        train_step()
        if part.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    part.train_step = press_ctrl_c_at_step_7  # type: ignore[method-assign]
    result = part.run()
    assert result.interrupted and result.step == 7
    seed_everything(99)  # whatever else happened in between
    rest = trainer(tmp_path / "parts")
    rest.resume()
    assert rest.step == 7
    assert rest.run().step == 12
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, rest.model.state_dict()[name]), name
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        for name in ("step", "learning_rate", "train_nats", "validation_nats"):
            assert a[name] == b[name], name


def test_a_log_row_later_than_the_checkpoint_is_written_again(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with (tmp_path / "log.csv").open("a") as file:
        file.write("999,1,1,1,1,1,1,1\r\n")
    longer = trainer(tmp_path, replace(CONFIG, steps=15))
    longer.resume()
    longer.run()
    assert [row["step"] for row in rows(tmp_path)] == ["5", "10", "12", "15"]


def test_minutes_end_a_run_and_bring_the_rate_down(tmp_path: Path) -> None:
    run = trainer(tmp_path, replace(CONFIG, steps=None, minutes=1 / 60, evaluate_every=10**6))
    result = run.run()
    assert result.seconds >= 1 and result.step == int(rows(tmp_path)[-1]["step"]) >= 1
    # At step 20 of a run whose time is half gone, half of a cosine after 2 warm-up steps remains.
    run.step, run.seconds = 20, 0.5
    expected = cosine_schedule(20, 1e-2, 1e-4, warmup_steps=2, total_steps=40)
    assert run.learning_rate == pytest.approx(expected)
    run.seconds = 1.0
    assert run.learning_rate == 1e-4


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(CheckpointError, match="same settings"):
        trainer(tmp_path, replace(CONFIG, learning_rate=1e-3)).resume()
    other = Trainer(CONFIG, SIZES, TOKENIZER, IDS[:2400], IDS[2400:], tmp_path)
    with pytest.raises(CheckpointError, match="another text"):
        other.resume()
    with pytest.raises(CheckpointError, match=r"training\.json"):
        trainer(tmp_path / "nothing").resume()


def test_resume_after_a_crash_between_two_renames(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    (tmp_path / "last").rename(tmp_path / "last.old")
    again = trainer(tmp_path)
    again.resume()
    assert again.step == 12


def test_a_model_without_state_trains_on_random_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class BigramConfig:
        vocab_size: int

    class Bigram(nn.Module):
        def __init__(self, vocab_size: int) -> None:
            super().__init__()
            self.table = nn.Embedding(vocab_size, vocab_size)
            self.block_size = 10

        def forward(self, ids: Tensor) -> tuple[Tensor, None]:
            return self.table(ids), None

    entry = Architecture(
        config=BigramConfig,
        build=lambda config: Bigram(config.vocab_size),
        learning_rate=1e-2,
        recurrent=False,
    )
    monkeypatch.setitem(checkpoint.MODELS, "bigram", entry)
    sizes = BigramConfig(vocab_size=TOKENIZER.vocab_size)
    run = trainer(None, replace(CONFIG, model="bigram", steps=60, learning_rate=0.1), sizes)
    first = run.batch()
    result = run.run()
    assert result.validation_nats is not None
    assert result.validation_nats < 0.7 * math.log(TOKENIZER.vocab_size)
    assert not torch.equal(first[0], run.batch()[0])
    run.step = 0
    assert torch.equal(first[0], run.batch()[0])  # a batch is a function of seed and step


def test_seeds_differ_and_repeat() -> None:
    losses = []
    for seed in (1, 1, 2):
        run = trainer(None, replace(CONFIG, steps=2, seed=seed))
        losses.append((run.offset, run.run().validation_nats))
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[2][0] and losses[0][1] != losses[2][1]


def test_the_command_line_offers_every_model() -> None:
    """The names stand in the command line once more, because its help must not wait for torch."""
    languages = {name for name, one in MODELS.items() if one.tokenizer is CharTokenizer}
    assert {"ngram", *languages} == set(LANGUAGE_MODELS)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="choose one of rnn, lstm"):
        replace(CONFIG, model="transformer-xl")
    with pytest.raises(ValueError, match="budget"):
        replace(CONFIG, steps=None)
    with pytest.raises(ValueError, match=r"'tpu' is not available here"):
        pick_device("tpu")
    assert pick_device("cpu").type == "cpu"


# --- model folders --------------------------------------------------------------------------------


def test_half_precision_folders_load_as_float32(tmp_path: Path) -> None:
    model = MODELS["rnn"].build(CharRNNConfig(vocab_size=5, d_model=4))
    config = CharRNNConfig(vocab_size=5, d_model=4)
    save_model(tmp_path, "rnn", config, model.state_dict(), CharTokenizer("abcde"), torch.float16)
    loaded = load_model(tmp_path).model
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        assert b.dtype == torch.float32
        assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 20), r"model\.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json"),
        (lambda f: (f / "config.json").write_text('{"model": "mamba"}'), "another version"),
        (lambda f: (f / "config.json").unlink(), "rnn2gpt train"),
    ],
)
def test_damaged_folders_are_named(tmp_path: Path, damage: Any, message: str) -> None:
    model = MODELS["rnn"].build(CharRNNConfig(vocab_size=5, d_model=4))
    config = CharRNNConfig(vocab_size=5, d_model=4)
    save_model(tmp_path, "rnn", config, model.state_dict(), CharTokenizer("abcde"))
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_tied_weight_is_stored_once_and_tied_again(tmp_path: Path) -> None:
    config = GPTConfig(vocab_size=5, block_size=4, n_layers=1, n_heads=1, d_model=8)
    model = MODELS["gpt"].build(config)
    save_model(tmp_path, "gpt", config, model.state_dict(), CharTokenizer("abcde"))
    stored = load_file(tmp_path / "model.safetensors")
    assert "head.weight" not in stored and "token_embedding.weight" in stored
    loaded = load_model(tmp_path)
    assert loaded.model.head.weight is loaded.model.token_embedding.weight
    assert loaded.cached and not load_model(STORED / "lstm").cached
    for a, b in zip(model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_byte_pair_vocabulary_stands_beside_the_weights(tmp_path: Path) -> None:
    tokenizer = BPETokenizer(train_bpe(TEXT, 280), ["<|end|>"])
    config = GPTConfig(vocab_size=281, block_size=4, n_layers=1, n_heads=1, d_model=8)
    save_model(tmp_path, "gpt", config, MODELS["gpt"].build(config).state_dict(), tokenizer)
    again = load_model(tmp_path).tokenizer
    assert again.vocabulary == tokenizer.vocabulary
    assert again.encode(TEXT + "<|end|>") == tokenizer.encode(TEXT + "<|end|>")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_model(tmp_path)


def test_text_is_continued_by_the_last_window_of_a_model_without_a_state(tmp_path: Path) -> None:
    config = CharAttentionConfig(vocab_size=5, d_model=8, block_size=4)
    model = MODELS["self-attention"].build(config)
    save_model(tmp_path, "self-attention", config, model.state_dict(), CharTokenizer("abcde"))
    loaded = load_model(tmp_path)
    text = generate(loaded.stream, torch.tensor([[0, 1, 2]]), 6, temperature=0)
    for t in range(3, 9):
        logits, _ = loaded.model(text[:, max(0, t - 4) : t])
        assert text[0, t] == logits[0, -1].argmax()


# --- commands -------------------------------------------------------------------------------------


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "wood.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("model", ["ngram", "rnn", "lstm", "gpt"])
def test_train_then_generate(tmp_path: Path, text_file: Path, model: str) -> None:
    out = tmp_path / "run"
    train = ["train", "--model", model, "--text", text_file, "--out", out, "--device", "cpu"]
    sizes = ["--steps", 200, "--d-model", 32, "--batch-size", 8, "--block-size", 16, "--order", 5]
    done = invoke(*train, *sizes, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["validation_nats"] < 0.5 * math.log(TOKENIZER.vocab_size)

    refused = invoke(*train, *sizes)
    assert refused.exit_code == 1 and "--resume" in refused.output

    ask = ["generate", out, "--prompt", "how much", "--tokens", 60]
    hot = [*ask, "--temperature", 3]  # well learned, the text leaves little to chance
    texts = [invoke(*hot, "--seed", seed).output for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == len("how much") + 60 + 1
    greedy = invoke(*ask, "--temperature", 0).output
    assert greedy == invoke(*ask, "--temperature", 0).output
    assert "chuck" in greedy

    unknown = invoke("generate", out, "--prompt", "Zürich")
    assert unknown.exit_code == 1 and "ü" in unknown.output


def test_a_gpt_on_byte_pairs_trains_streams_and_counts_characters(tmp_path: Path) -> None:
    text = "für Élise, für 爱丽丝 und für 🎹!\n" * 150
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    out = tmp_path / "run"
    done = invoke(
        *("train", "--model", "gpt", "--text", tmp_path / "own.txt", "--out", out),
        *("--tokenizer", "bpe", "--vocab-size", 262, "--steps", 120, "--learning-rate", 0.01),
        *("--d-model", 32, "--n-layers", 2, "--n-heads", 2, "--block-size", 24, "--device", "cpu"),
        *("--batch-size", 8, "--json"),
    )
    assert done.exit_code == 0, done.output
    loaded = load_model(out)
    assert loaded.info["config"]["n_layers"] == 2 and loaded.tokenizer.vocab_size == 262
    held_out = text[round(0.9 * len(text)) :]
    ids = loaded.tokenizer.encode(held_out)
    assert len(ids) != len(held_out)  # bits per token and per character differ
    nll = evaluate(MODELS["gpt"], loaded.model, torch.tensor(ids)).sum().item()
    n_characters = len(loaded.tokenizer.decode(ids[1:]))
    assert loaded.info["bits_per_character"] == pytest.approx(
        nll / math.log(2) / n_characters, rel=1e-5
    )

    for n_tokens in (40, 41, 42, 43, 44):  # some of them end inside a character
        ask = ["generate", out, "--prompt", "für", "--tokens", n_tokens, "--temperature", 0]
        prompt = torch.tensor([loaded.tokenizer.encode("für")])
        whole = generation.generate(loaded.model, prompt, n_tokens, temperature=0)
        written = loaded.tokenizer.decode(whole[0].tolist()).rstrip("\ufffd")
        assert invoke(*ask).stdout == written + "\n"
        assert "爱丽丝" in written
    narrow = ["generate", out, "--prompt", "f", "--temperature", 5, "--seed", 1, "--tokens", 30]
    greedy = invoke("generate", out, "--prompt", "f", "--temperature", 0, "--tokens", 30).stdout
    assert invoke(*narrow, "--top-k", 1).stdout == greedy
    assert invoke(*narrow, "--top-p", 1e-9).stdout == greedy != invoke(*narrow).stdout
    refused = invoke("generate", STORED / "lstm", "--top-k", 3)
    assert refused.exit_code == 1 and "are for a GPT" in refused.output


def test_train_resumes_with_a_larger_budget(tmp_path: Path, text_file: Path) -> None:
    train = ["train", "--model", "rnn", "--text", text_file, "--out", tmp_path / "run"]
    train += ["--d-model", 8, "--batch-size", 2, "--block-size", 8, "--device", "cpu"]
    assert invoke(*train, "--steps", 3).exit_code == 0
    done = invoke(*train, "--steps", 5, "--resume", "--json")
    assert json.loads(done.stdout)["step"] == 5


def test_errors_name_the_file_the_problem_and_the_remedy(tmp_path: Path, text_file: Path) -> None:
    missing = invoke("train", "--model", "rnn", "--text", tmp_path / "no.txt", "--out", tmp_path)
    assert missing.exit_code == 1 and "no.txt" in missing.output and "path" in missing.output
    nothing = invoke("generate", tmp_path)
    assert nothing.exit_code == 1 and "rnn2gpt train" in nothing.output
    short = tmp_path / "short.txt"
    short.write_text("abc")
    done = invoke("train", "--model", "rnn", "--text", short, "--out", tmp_path / "run")
    assert done.exit_code == 1 and "empty" in done.output


def test_data_command_verifies_texts_pairs_and_merges() -> None:
    done = invoke("data", "--json")
    assert done.exit_code == 0, done.output
    table = {row["name"]: row for row in json.loads(done.stdout)}
    assert table["nine-plays"]["characters"] == 1_131_995
    assert table["all-plays"]["characters"] == 4_782_357
    assert table["gettext"]["pairs"] > 9_000 and table["gpt2"]["merges"] == 50_000
    shown = invoke("data").output
    assert all(name in shown for name in table)
