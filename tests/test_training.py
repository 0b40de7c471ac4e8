"""The training loop: batches, schedule, budgets, exact resume, and the commands on top of it."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from course.cli import main
from course.cli.models import LANGUAGE_MODELS
from rnn2gpt import checkpoint, generation
from rnn2gpt.attention import CharAttention, CharAttentionConfig
from rnn2gpt.checkpoint import MODELS, Architecture, CheckpointError, load_model, save_model
from rnn2gpt.data import CharTokenizer
from rnn2gpt.devices import PRECISIONS, OutOfMemory, peak_flops, pick_device, pick_precision
from rnn2gpt.distributed import Team
from rnn2gpt.evaluation import evaluate
from rnn2gpt.gpt import GPTConfig
from rnn2gpt.lstm import CharLSTM, CharLSTMConfig, generate
from rnn2gpt.optim import cosine_schedule, trapezoid_schedule
from rnn2gpt.pretrained import load_pretrained
from rnn2gpt.rnn import CharRNNConfig
from rnn2gpt.tokenizer import BPETokenizer, train_bpe
from rnn2gpt.training import Trainer, TrainingConfig, seed_everything, snapshot_steps, tapes

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


def test_trapezoid_schedule_at_its_corners() -> None:
    def rate(step: int, total: float = 20) -> float:
        return trapezoid_schedule(step, 1.0, 0.1, warmup_steps=4, total_steps=total)

    assert [rate(s) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(rate(s) == 1.0 for s in range(4, 13))
    assert rate(16) == pytest.approx(0.55) and rate(20) == rate(99) == pytest.approx(0.1)
    assert rate(1000, math.inf) == 1.0  # no end in sight, no fall
    assert trapezoid_schedule(5, 1.0, 0.0, warmup_steps=10, total_steps=5) == pytest.approx(6 / 11)


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


GPT_CONFIG = replace(CONFIG, model="gpt", batch_size=6)
GPT_SIZES = GPTConfig(
    vocab_size=TOKENIZER.vocab_size, block_size=10, n_layers=2, n_heads=2, d_model=16, dropout=0.2
)
PLAIN_SIZES = replace(GPT_SIZES, dropout=0.0)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (CONFIG, SIZES),
        (GPT_CONFIG, GPT_SIZES),
        (replace(GPT_CONFIG, accumulate=3, schedule="trapezoid"), GPT_SIZES),
        (replace(GPT_CONFIG, optimizer="muon"), GPT_SIZES),
        (replace(GPT_CONFIG, precision="bfloat16"), GPT_SIZES),
        (replace(GPT_CONFIG, precision="float16"), GPT_SIZES),
    ],
    ids=["lstm", "gpt", "accumulate", "muon", "bfloat16", "float16"],
)
def test_resume_is_exact_to_the_last_bit(
    tmp_path: Path, config: TrainingConfig, sizes: Any
) -> None:
    """Stopped between two evaluations, with dropout on: weights and log equal the unbroken run."""
    whole = trainer(tmp_path / "whole", config, sizes)
    whole.run()
    part = trainer(tmp_path / "parts", config, sizes)
    train_step = part.train_step

    def press_ctrl_c_at_step_7() -> None:
        train_step()
        if part.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    part.train_step = press_ctrl_c_at_step_7  # type: ignore[method-assign]
    result = part.run()
    assert result.interrupted and result.step == 7
    seed_everything(99)  # whatever else happened in between
    rest = trainer(tmp_path / "parts", config, sizes)
    rest.resume()
    assert rest.step == 7
    assert rest.run().step == 12
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, rest.model.state_dict()[name]), name
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        for name in ("step", "learning_rate", "train_nats", "validation_nats"):
            assert a[name] == b[name], name


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    """Gradients, and so a whole run, are those of the batch in one piece, up to rounding."""
    runs = {}
    for parts in (1, 2, 6):
        run = trainer(None, replace(GPT_CONFIG, accumulate=parts), PLAIN_SIZES)
        assert len(list(run._micro_batches(parts))) == parts
        runs[parts] = run.run()
        assert runs[parts].tokens == runs[1].tokens == 12 * 60
        assert runs[parts].validation_nats == pytest.approx(runs[1].validation_nats, abs=1e-4)
    with pytest.raises(ValueError, match="accumulate=4 does not divide batch_size=6"):
        replace(GPT_CONFIG, accumulate=4)
    with pytest.raises(ValueError, match="lstm reads pairs or carries a state"):
        replace(CONFIG, accumulate=2)


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [("adamw", "float32"), ("adamw", "bfloat16"), ("adamw", "float16"), ("muon", "float32")],
)
def test_a_gpt_learns_with_every_optimizer_and_precision(optimizer: str, precision: str) -> None:
    config = replace(GPT_CONFIG, steps=150, evaluate_every=150, precision=precision)
    run = trainer(None, replace(config, optimizer=optimizer), PLAIN_SIZES)
    seen = []
    run.model.blocks[0].feed_forward.register_forward_hook(lambda *three: seen.append(three[2]))
    result = run.run()
    assert result.validation_nats is not None
    assert result.validation_nats < 0.6 * math.log(TOKENIZER.vocab_size)
    assert seen[0].dtype == PRECISIONS[precision]
    assert seen[-1].dtype == torch.float32  # validation is in full precision
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert result.mfu is not None and 0 < result.mfu < 1


def test_only_matrices_of_a_gpt_decay_and_muon_takes_the_hidden_ones() -> None:
    run = trainer(None, replace(GPT_CONFIG, optimizer="muon"), PLAIN_SIZES)
    names = {id(p): name for name, p in run.model.named_parameters()}
    for group in run.optimizer.param_groups:
        for p in group["params"]:
            assert (p.dim() == 2) == (group["weight_decay"] > 0)
            hidden = names[id(p)].startswith("blocks") and p.dim() == 2
            assert group["muon"] == hidden
    with pytest.raises(ValueError, match="rnn is no stack of blocks"):
        replace(CONFIG, model="rnn", optimizer="muon")


def test_compiling_is_for_cuda_or_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    trainer(None, GPT_CONFIG, PLAIN_SIZES)
    assert not compiled
    run = trainer(None, replace(GPT_CONFIG, compile=True), PLAIN_SIZES)
    assert compiled == [run.objective]
    run.run()


def test_full_memory_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    for error in (torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(said), MemoryError()):
        run = trainer(None, replace(GPT_CONFIG, accumulate=2), PLAIN_SIZES)
        monkeypatch.setattr(run, "loss", lambda *_, error=error: (_ for _ in ()).throw(error))
        run.objective.loss = run.loss
        with pytest.raises(OutOfMemory, match=r"memory of cpu is full.*3 × 10 .*--accumulate 4"):
            run.run()
    run.objective.loss = lambda *_: torch.zeros(3) @ torch.zeros(4)  # any other error stays itself
    with pytest.raises(RuntimeError, match="size"):
        run.run()

    def full(self: Trainer) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Trainer, "train_step", full)
    (tmp_path / "t.txt").write_text(TEXT)
    train = ("train", "--model", "rnn", "--text", tmp_path / "t.txt", "--out", tmp_path / "run")
    done = invoke(*train, "--device", "cpu")
    assert done.exit_code == 1 and "Lower --batch-size or --d-model" in done.output


def test_snapshots_are_half_precision_copies_along_the_way(tmp_path: Path) -> None:
    assert snapshot_steps(12, 5) == {0, 1, 2, 5, 12} and snapshot_steps(9, 2) == {0, 9}
    assert snapshot_steps(9, 0) == set() and len(snapshot_steps(2000, 14)) == 14
    run = trainer(tmp_path, replace(GPT_CONFIG, snapshots=5), GPT_SIZES)
    run.run()
    folders = sorted((tmp_path / "snapshots").iterdir())
    assert [int(folder.name) for folder in folders] == [0, 1, 2, 5, 12]
    assert load_file(folders[0] / "model.safetensors")["norm.weight"].dtype == torch.float16
    last = load_model(folders[-1])
    assert last.info["step"] == 12
    for a, b in zip(last.model.parameters(), run.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)
    with pytest.raises(ValueError, match="budget in steps"):
        replace(GPT_CONFIG, steps=None, minutes=1, snapshots=3)


def test_the_log_is_drawn_and_sent_to_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: Path) -> None:
            assert folder == tmp_path / "tensorboard"

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            pass

    package = ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    Trainer(CONFIG, SIZES, TOKENIZER, IDS[:2500], IDS[2500:], tmp_path, tensorboard=True).run()
    log = rows(tmp_path)
    for name in ("train_nats", "validation_nats"):
        sent = [(value, step) for n, value, step in written if n == name]
        assert sent == [(float(row[name]), int(row["step"])) for row in log]
    assert (tmp_path / "log.svg").read_text().rstrip().endswith("</svg>")
    assert all(row["mfu"] == "" for row in log)  # an LSTM's FLOPs are not counted

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        Trainer(CONFIG, SIZES, TOKENIZER, IDS[:2500], IDS[2500:], tmp_path, tensorboard=True)


def test_runs_of_an_older_version_resume(tmp_path: Path) -> None:
    """Its settings, its log's columns and its training.json lack what came later."""
    trainer(tmp_path).run()
    path = tmp_path / "last" / "training.json"
    scalars = json.loads(path.read_text())
    for name in ("precision", "accumulate", "optimizer", "schedule", "snapshots"):
        del scalars["config"][name]
    del scalars["scaler"]
    path.write_text(json.dumps(scalars))
    log = [{k: v for k, v in row.items() if k != "mfu"} for row in rows(tmp_path)]
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, log[0])
        writer.writeheader()
        writer.writerows(log)
    longer = trainer(tmp_path, replace(CONFIG, steps=15))
    longer.resume()
    longer.run()
    assert [row["step"] for row in rows(tmp_path)] == ["5", "10", "12", "15"]
    assert rows(tmp_path)[0]["mfu"] == "" and rows(tmp_path)[0]["train_nats"]
    with pytest.raises(CheckpointError, match="optimizer=adamw, not muon"):
        config = replace(GPT_CONFIG, optimizer="muon")
        trainer(tmp_path / "gpt", GPT_CONFIG, GPT_SIZES).run()
        trainer(tmp_path / "gpt", config, GPT_SIZES).resume()
    with pytest.raises(CheckpointError, match="other sizes"):
        trainer(tmp_path / "gpt", GPT_CONFIG, replace(GPT_SIZES, d_model=32)).resume()


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
    with pytest.raises(CheckpointError, match="no run to resume"):
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
    with pytest.raises(ValueError, match="precision='int4'"):
        trainer(None, replace(CONFIG, precision="int4"))
    with pytest.raises(ValueError, match="optimizer='sgd'"):
        replace(CONFIG, optimizer="sgd")
    with pytest.raises(ValueError, match="choose one of cosine, trapezoid"):
        replace(CONFIG, schedule="square")


def test_auto_precision_is_bfloat16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    for has in (True, False):
        capabilities = {"avx512_f": True, "avx512_bf16": has, "amx_bf16": False}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        expected = torch.bfloat16 if has else torch.float32
        assert pick_precision("auto", cpu) == expected
    assert 1e8 < peak_flops(cpu, torch.float32) < 1e14


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


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 of random weights with GPT-2's vocabulary, as Hugging Face saves it."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=32)
    folder = tmp_path_factory.mktemp("gpt2")
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_pretrained_weights_start_a_run_and_write(
    tmp_path: Path, gpt2_folder: Path, text_file: Path
) -> None:
    theirs = transformers.GPT2LMHeadModel.from_pretrained(gpt2_folder).eval()
    loaded = load_pretrained(str(gpt2_folder))
    ids = torch.tensor([loaded.tokenizer.encode("Now is the winter of our discontent")])
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids)[0], theirs(ids).logits, atol=1e-4)

    ask = ("--prompt", "Now is", "--tokens", 12, "--temperature", 0)
    greedy = theirs.generate(ids[:, :2], max_new_tokens=12, do_sample=False, pad_token_id=0)
    written = invoke("generate", "--pretrained", gpt2_folder, *ask)
    assert written.stdout == loaded.tokenizer.decode(greedy[0].tolist()) + "\n"

    train = ("train", "--model", "gpt", "--text", text_file, "--device", "cpu", "--json")
    train += ("--pretrained", gpt2_folder, "--block-size", 8, "--batch-size", 2)
    done = invoke(*train, "--steps", 1, "--learning-rate", 1e-9, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    tuned = load_model(tmp_path / "run")
    assert tuned.info["pretrained"] == str(gpt2_folder) and tuned.tokenizer.vocab_size == 50257
    with torch.no_grad():  # the run began at these weights and has hardly moved
        assert torch.allclose(tuned.model(ids)[0], theirs(ids).logits, atol=1e-3)
    refused = invoke(*train, "--d-model", 32, "--out", tmp_path / "other")
    assert refused.exit_code == 1 and "no use for --d-model" in refused.output
    refused = invoke("train", "--model", "rnn", "--pretrained", gpt2_folder)
    assert refused.exit_code == 1 and "no use for --pretrained" in refused.output


def test_one_file_of_weights_is_enough_if_heads_are_64_wide(
    tmp_path: Path, gpt2_folder: Path
) -> None:
    weights = load_file(gpt2_folder / "model.safetensors")
    save_file(weights, tmp_path / "weights.safetensors")
    config = load_pretrained(str(tmp_path / "weights.safetensors")).model.config
    assert (config.n_layers, config.n_heads, config.block_size) == (2, 1, 32)
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match=r"mlp\.c_fc"):
        load_pretrained(str(tmp_path / "less.safetensors"))
    with pytest.raises(CheckpointError, match=r"no file or folder \./gpt2"):
        load_pretrained("./gpt2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_pretrained(str(tmp_path / "empty"))
    small = transformers.GPT2Config(n_embd=64, n_layer=1, n_head=1, n_positions=8, vocab_size=99)
    transformers.GPT2LMHeadModel(small).save_pretrained(tmp_path / "small")
    with pytest.raises(CheckpointError, match="99 tokens"):
        load_pretrained(str(tmp_path / "small"))


def test_a_name_is_downloaded_or_the_error_says_what_to_do(
    gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(gpt2_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_pretrained("gpt2").info["pretrained"] == "gpt2"
    assert asked == [("gpt2", ["config.json", "*.safetensors"])]

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    done = invoke("generate", "--pretrained", "gpt2")
    assert done.exit_code == 1 and "could not be downloaded" in done.output
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = invoke("generate", "--pretrained", "gpt2")
    assert done.exit_code == 1 and "pip install huggingface-hub" in done.output
    both = invoke("generate", STORED / "lstm", "--pretrained", "gpt2")
    assert both.exit_code == 2 and "Give the folder CHECKPOINT, or --pretrained" in both.output


def test_train_resumes_with_a_larger_budget(tmp_path: Path, text_file: Path) -> None:
    train = ["train", "--model", "rnn", "--text", text_file, "--out", tmp_path / "run"]
    train += ["--d-model", 8, "--batch-size", 2, "--block-size", 8, "--device", "cpu"]
    assert invoke(*train, "--steps", 3).exit_code == 0
    done = invoke(*train, "--steps", 5, "--resume", "--json")
    assert json.loads(done.stdout)["step"] == 5


def test_every_option_reaches_the_run(tmp_path: Path, text_file: Path) -> None:
    wanted = {
        "optimizer": "muon",
        "schedule": "trapezoid",
        "precision": "bfloat16",
        "accumulate": 2,
        "snapshots": 3,
        "weight_decay": 0.1,
        "warmup_steps": 1,
        "evaluate_every": 2,
        "batch_size": 4,
        "block_size": 6,
        "learning_rate": 0.004,
        "seed": 5,
        "steps": 4,
    }
    out = tmp_path / "run"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in wanted.items()]
    options += ["--d-model=16", "--n-layers=1", "--n-heads=2", "--dropout=0.1", "--no-compile"]
    done = invoke("train", "--model", "gpt", "--text", text_file, "--out", out, *options)
    assert done.exit_code == 0, done.output
    config = json.loads((out / "last" / "training.json").read_text())["config"]
    assert {name: config[name] for name in wanted} == wanted
    assert config["compile"] is False and config["shard"] is False
    sizes = load_model(out).info["config"]
    given = {"d_model": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.1, "block_size": 6}
    assert {name: sizes[name] for name in given} == given
    assert [row["step"] for row in rows(out)] == ["2", "4"]
    assert len(list((out / "snapshots").iterdir())) == 3 and (out / "log.svg").is_file()
    assert "nats per token" in done.output and "bits per character" in done.output


def test_errors_name_the_file_the_problem_and_the_remedy(tmp_path: Path, text_file: Path) -> None:
    missing = invoke("train", "--model", "rnn", "--text", tmp_path / "no.txt", "--out", tmp_path)
    assert missing.exit_code == 1 and "no.txt" in missing.output and "path" in missing.output
    nothing = invoke("generate", tmp_path)
    assert nothing.exit_code == 1 and "rnn2gpt train" in nothing.output
    short = tmp_path / "short.txt"
    short.write_text("abc")
    done = invoke("train", "--model", "rnn", "--text", short, "--out", tmp_path / "run")
    assert done.exit_code == 1 and "empty" in done.output


def test_a_bert_fills_in_and_neither_writes_nor_translates() -> None:
    for verb, ask in (("generate", ["--prompt", "my"]), ("translate", ["my"])):
        refused = invoke(verb, STORED / "small-bert", *ask)
        assert refused.exit_code == 1 and "holds a BERT" in refused.output
    with pytest.raises(ValueError, match="bert fills in hidden tokens"):
        replace(CONFIG, model="bert")


def test_data_command_verifies_texts_pairs_and_merges() -> None:
    done = invoke("data", "--json")
    assert done.exit_code == 0, done.output
    table = {row["name"]: row for row in json.loads(done.stdout)}
    assert table["nine-plays"]["characters"] == 1_131_995
    assert table["all-plays"]["characters"] == 4_782_357
    assert table["gettext"]["pairs"] > 9_000 and table["gpt2"]["merges"] == 50_000
    shown = invoke("data").output
    assert all(name in shown for name in table)


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["--accumulate", "2"], ["--shard"]], ids=["data-parallel", "sharded"]
)
def test_two_processes_do_what_one_does(
    tmp_path: Path, text_file: Path, options: list[str]
) -> None:
    """The same losses for the same batches; the files are one process's, which can resume them."""
    train = ["train", "--model", "gpt", "--text", text_file, "--device", "cpu", "--json"]
    train += ["--d-model", 16, "--n-layers", 2, "--n-heads", 2, "--block-size", 12]
    train += ["--batch-size", 8, "--evaluate-every", 5]
    train += [
        "--precision",
        "float32",
    ]  # in bfloat16, where a machine has it, rounding differs more
    alone = json.loads(invoke(*train, "--steps", 15, "--out", tmp_path / "one").stdout)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # any free port
    command += ["-m", "course.cli", *map(str, train), *options, "--steps", "10"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout)  # of one process: only the first speaks
    assert (together["step"], together["tokens"]) == (10, 10 * 8 * 12)
    rest = invoke(*train, "--steps", 15, "--out", tmp_path / "two", "--resume")
    assert json.loads(rest.stdout)["step"] == 15
    for name in ("train_nats", "validation_nats"):
        losses = [[float(row[name]) for row in rows(tmp_path / run)] for run in ("one", "two")]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert alone["validation_nats"] == pytest.approx(losses[0][-1])
    one, two = (load_file(tmp_path / run / "last" / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=1e-3), name


def test_what_processes_cannot_share_is_said() -> None:
    two = Team(rank=0, size=2)
    with pytest.raises(ValueError, match="lstm trains in one process"):
        Trainer(CONFIG, SIZES, TOKENIZER, IDS, IDS, team=two)
    odd = replace(GPT_CONFIG, batch_size=9)
    with pytest.raises(ValueError, match="2 processes do not divide batch_size=9"):
        Trainer(odd, GPT_SIZES, TOKENIZER, IDS, IDS, team=two)
    with pytest.raises(ValueError, match="start them with torchrun"):
        trainer(None, replace(GPT_CONFIG, shard=True), GPT_SIZES)
    with pytest.raises(ValueError, match="shard goes with optimizer adamw"):
        config = replace(GPT_CONFIG, shard=True, optimizer="muon")
        Trainer(config, GPT_SIZES, TOKENIZER, IDS, IDS, team=two)
