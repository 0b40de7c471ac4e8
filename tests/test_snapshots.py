"""What a run looked like as it learned, and the small model that the chapters share."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from course import snapshots
from rnn2gpt.checkpoint import MODELS, load_model
from rnn2gpt.evaluation import evaluate
from rnn2gpt.gpt import GPT, GPTConfig
from rnn2gpt.tokenizer import BPETokenizer, train_bpe
from rnn2gpt.training import Trainer, TrainingConfig

TEXT = "Now is the winter of our discontent, and now the summer.\nKING RICHARD:\nNow!\n" * 60


def test_weights_are_those_that_the_model_reads_with() -> None:
    """Replacing what one layer attends to by the weights times its values changes nothing."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, block_size=9, n_layers=2, n_heads=2, d_model=8)).eval()
    ids, seen = torch.randint(11, (9,)), []
    block = model.blocks[1].attention
    block.W_o.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    values = []
    block.W_v.register_forward_hook(lambda module, inputs, output: values.append(output))
    model(ids[None])
    weights = snapshots.attention_weights(model, ids, 1)  # (H, T, T)
    mixed = weights @ values[0][0].view(9, 2, 4).transpose(0, 1)  # (H, T, D/H)
    assert torch.allclose(mixed.transpose(0, 1).flatten(1), seen[0][0], atol=1e-6)
    layer, head = snapshots.one_back_head(model, ids)
    best = snapshots.attention_weights(model, ids, layer)[head].diagonal(-1).mean()
    every = [snapshots.attention_weights(model, ids, i).diagonal(-1, 1, 2) for i in (0, 1)]
    assert best.item() == pytest.approx(torch.cat(every).mean(1).max().item())


def test_a_run_becomes_a_model_and_a_file_to_scrub_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "load_text", lambda name: TEXT)
    monkeypatch.setattr(snapshots, "SAMPLE_TOKENS", 7)
    tokenizer = BPETokenizer(train_bpe(TEXT, 290))
    ids = torch.tensor(tokenizer.encode(TEXT))
    config = TrainingConfig(
        model="gpt", steps=40, batch_size=4, block_size=80, snapshots=4, device="cpu"
    )
    sizes = GPTConfig(vocab_size=290, block_size=80, n_layers=2, n_heads=2, d_model=16)
    run = tmp_path / "run"
    Trainer(config, sizes, tokenizer, ids[:-200], ids[-200:], run, text="all-plays").run()

    content = json.loads(json.dumps(snapshots.read_snapshots(run)))
    assert "".join(content["sentence"]) == snapshots.SENTENCE
    assert [one["step"] for one in content["snapshots"]] == [0, 1, 6, 40]
    first, *_, last = content["snapshots"]
    assert first["validation_nats"] == pytest.approx(math.log(290), abs=0.2)
    assert last["validation_nats"] < first["validation_nats"] - 0.5
    for one in content["snapshots"]:
        assert [len(row) for row in one["attention"]] == [*range(1, len(content["sentence"]) + 1)]
        assert all(sum(row) == pytest.approx(1, abs=0.05) for row in one["attention"])
        assert len(one["places"]) == len(content["words"])
        assert one["tokens"] == one["step"] * 4 * 80

    facts = snapshots.export_model(run, tmp_path / "model")
    stored = load_model(tmp_path / "model")
    held_out = snapshots.parts(stored)[1]
    nats = evaluate(MODELS["gpt"], stored.model, held_out).mean().item()
    assert facts["validation_nats"] == pytest.approx(nats) and stored.info["step"] == 40
    text = (tmp_path / "model" / "README.md").read_text()
    assert f"{nats:.4f}" in text and "    --steps 2000 \\\n" in text


def test_the_stored_model_is_the_last_snapshot(root: Path) -> None:
    """Its size, its loss on what the snapshots were judged on, and what its card says."""
    content = json.loads((root / snapshots.OUT).read_text(encoding="utf-8"))
    assert (root / snapshots.OUT).stat().st_size < 1_000_000
    assert 12 <= len(content["snapshots"]) <= 16
    stored = load_model(root / snapshots.MODEL)
    last = content["snapshots"][-1]
    assert (stored.info["step"], stored.info["tokens"]) == (last["step"], last["tokens"])
    assert (root / snapshots.MODEL / "model.safetensors").stat().st_size < 4_000_000
    held_out = snapshots.parts(stored)[1][: content["judged_tokens"] + 1]
    nats = evaluate(MODELS["gpt"], stored.model, held_out).mean().item()
    assert nats == pytest.approx(last["validation_nats"], abs=1e-3)
    text = (root / snapshots.MODEL / "README.md").read_text(encoding="utf-8")
    for number in ("validation_nats", "bits_per_character"):
        assert f"{stored.info[number]:.4f}" in text
    losses = [one["validation_nats"] for one in content["snapshots"]]
    assert losses[0] == pytest.approx(math.log(1024), abs=0.05) and losses[-1] == min(losses)
