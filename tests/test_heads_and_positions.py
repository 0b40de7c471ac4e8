"""Chapter 06: rotary positions against the `transformers` library, and the chapter's own study."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj_rotary
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama_rotary

from rnn2gpt.multi_head import split_heads
from rnn2gpt.positions import apply_rotary


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


@pytest.fixture(scope="module")
def study(root: Path) -> Any:
    path = root / "benchmarks" / "heads_and_positions.py"
    spec = importlib.util.spec_from_file_location("heads_and_positions", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- rotary positions ---------------------------------------------------------------------------

POSITIONS = torch.tensor([0, 3, 1, 40, 41])


def test_rotary_is_gptjs() -> None:
    x = torch.randn(2, 3, 5, 16)  # (B, H, T, D)
    sin, cos = create_sinusoidal_positions(50, 16)[None, POSITIONS].chunk(2, dim=-1)
    theirs = gptj_rotary(x.transpose(1, 2), sin, cos).transpose(1, 2)  # it takes (B, T, H, D)
    torch.testing.assert_close(apply_rotary(x, POSITIONS), theirs, atol=1e-5, rtol=1e-5)


def test_llamas_rotary_is_ours_after_a_permutation_of_channels() -> None:
    d = 16
    x = torch.randn(2, 3, 5, d)
    angles = POSITIONS[:, None] * 10000 ** (-torch.arange(0, d, 2) / d)  # (T, D/2)
    cos, sin = (torch.cat([wave, wave], dim=-1)[None] for wave in (angles.cos(), angles.sin()))
    evens_first = torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)])
    reordered = x[..., evens_first]
    theirs, _ = llama_rotary(reordered, reordered, cos, sin)
    ours = apply_rotary(x, POSITIONS)
    torch.testing.assert_close(ours[..., evens_first], theirs, atol=1e-5, rtol=1e-5)
    unordered, _ = llama_rotary(x, x, cos, sin)
    assert (ours - unordered).abs().max() > 0.1  # without it the two are not the same


def test_reordering_the_projections_rows_converts_between_the_two() -> None:
    d_model, n_heads, d = 24, 3, 8
    x, W_q, W_k = torch.randn(1, 5, d_model), *torch.randn(2, d_model, d_model)
    angles = POSITIONS[:, None] * 10000 ** (-torch.arange(0, d, 2) / d)
    cos, sin = (torch.cat([wave, wave], dim=-1)[None] for wave in (angles.cos(), angles.sin()))
    evens_first = torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)])
    rows = torch.arange(d_model).view(n_heads, d)[:, evens_first].flatten()  # head by head
    q, k = (split_heads(x @ W.T, n_heads) for W in (W_q, W_k))
    ours = apply_rotary(q, POSITIONS) @ apply_rotary(k, POSITIONS).mT
    q, k = (split_heads(x @ W[rows].T, n_heads) for W in (W_q, W_k))
    q, k = llama_rotary(q, k, cos, sin)
    torch.testing.assert_close(q @ k.mT, ours, atol=1e-3, rtol=1e-4)


# --- the study ----------------------------------------------------------------------------------


def test_study_measures_every_split_and_every_kind(study: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(study, "JUDGED", 1024)
    result = study.measure(seeds=1, places_steps=1, text_steps=1)
    right = result["places"]["right"]
    assert [len(row) for row in right] == [4, 4, 4, 4]
    assert all(0 <= share <= 1 for row in right for seeds in row for share in seeds)
    assert len(set(result["text"]["parameters"])) == 1  # the split costs no weight
    assert set(result["positions"]["nats_by_bin"]) == set(study.KINDS)
    for runs in result["positions"]["nats_by_bin"].values():
        assert [len(run) for run in runs] == [len(study.BINS) - 1]
        assert all(2 < nats < 9 for run in runs for nats in run)  # ln 64 is 4.2: no chance yet
    heads = result["text"]["inside"]
    assert len(heads) == study.N_LAYERS * study.N_HEADS
    for head in heads:
        assert 0 < sum(head["weight_by_distance"]) <= 1 + 1e-3


def test_study_reads_what_its_kinds_say(study: Any) -> None:
    """Shifted input: rotation and a penalty on distance score it alike, a table does not."""
    y = torch.randn(1, 9, study.D_MODEL)
    layer = study.PositionedAttention(study.D_MODEL, 2, "none")
    weights = {}
    for kind in ("none", "rotary", "alibi"):
        layer.kind = kind
        weights[kind], _ = layer.read(y)
        whole = weights[kind][..., 4:, 4:]
        part, _ = layer.read(y[:, 4:])  # the same tokens, four places earlier
        again = whole / whole.sum(-1, keepdim=True)  # they now have the row to themselves
        torch.testing.assert_close(again, part, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(weights["none"], weights["rotary"], atol=1e-3)
    assert not torch.allclose(weights["none"], weights["alibi"], atol=1e-3)
    far = weights["alibi"][0, 0, 8, 0] / weights["none"][0, 0, 8, 0]
    assert far < weights["alibi"][0, 0, 8, 7] / weights["none"][0, 0, 8, 7]


def test_stored_study_is_the_scripts(study: Any, root: Path) -> None:
    stored = json.loads((root / "book/_data/heads_and_positions.json").read_text("utf-8"))
    assert stored["places"]["heads"] == list(study.HEADS) == stored["text"]["heads"]
    assert stored["places"]["places"] == list(study.PLACES)
    assert stored["positions"]["kinds"] == list(study.KINDS)
    assert stored["positions"]["bins"] == list(study.BINS)
    assert (stored["text"]["block"], stored["text"]["long"]) == (study.BLOCK, study.LONG)
    cells = [seeds for row in stored["places"]["right"] for seeds in row]
    cells += stored["text"]["nats"] + list(stored["positions"]["nats_short"].values())
    assert {len(seeds) for seeds in cells} == {stored["seeds"]}
