"""The ladder's arithmetic, and a climb of its lowest rungs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from course.ladder import (
    BLOCK,
    PARAMETERS,
    Job,
    Plan,
    best_rate,
    climb,
    flops_per_token,
    machine,
    matched_config,
    rates_to_try,
    seed_interval,
    summarize,
    table,
    text_interval,
)
from rnn2gpt.checkpoint import MODELS, load_model
from rnn2gpt.gpt import flops_per_token as gpt_flops


@pytest.mark.parametrize("model", ["rnn", "lstm"])
def test_widths_match_parameters(model: str) -> None:
    config = matched_config(model, 64, PARAMETERS)

    def closed_form(d: int, v: int = 64) -> int:
        recurrent = {"rnn": 2 * d * d + 2 * d, "lstm": 8 * d * d + 8 * d}[model]
        return v * d + recurrent + d * v + v  # embedding, recurrence, head with its bias

    built = MODELS[model].build(config)
    count = sum(p.numel() for p in built.parameters())
    assert count == closed_form(config.d_model)
    assert abs(count - PARAMETERS) <= min(
        abs(closed_form(config.d_model + step) - PARAMETERS) for step in (-1, 1)
    )
    assert flops_per_token(built) == 6 * (count - 64 * config.d_model)


@pytest.mark.parametrize("model", ["lstm-attention", "self-attention"])
def test_attention_pays_for_its_window(model: str) -> None:
    config = matched_config(model, 64, PARAMETERS)
    built = MODELS[model].build(config)
    count, d = sum(p.numel() for p in built.parameters()), config.d_model
    assert abs(count - PARAMETERS) < 12 * d + 100  # one more or less in width is farther away
    layers, tables = {"lstm-attention": (1, 64), "self-attention": (2, 64 + 64)}[model]
    assert flops_per_token(built) == 6 * (count - tables * d) + 12 * layers * 64 * d


@pytest.mark.parametrize("model", ["gpt", "modern-gpt"])
def test_gpts_are_matched_and_pay_for_their_window(model: str) -> None:
    config = matched_config(model, 64, PARAMETERS)
    built = MODELS[model].build(config)
    count, d = sum(p.numel() for p in built.parameters()), config.d_model
    assert abs(count - PARAMETERS) < 0.02 * PARAMETERS
    assert d % (2 * config.n_heads) == 0
    looked_up = 64 * d  # GPT's positions; the modern one's embedding, whose head is another
    assert flops_per_token(built) == 6 * (count - looked_up) + 12 * 4 * 64 * d
    if model == "gpt":
        assert flops_per_token(built) == gpt_flops(config)


def test_seed_interval_is_students() -> None:
    assert seed_interval([1.0]) is None
    low, high = seed_interval([1.0, 2.0, 3.0]) or (0, 0)
    assert (low + high) / 2 == pytest.approx(2)
    assert (high - low) / 2 == pytest.approx(4.303 / math.sqrt(3))


def test_text_interval_covers_the_mean_as_often_as_it_says() -> None:
    chance = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = text_interval(chance.normal(5, 2, size=60), resamples=400) or (0, 0)
        hits += low < 5 < high
    assert 180 <= hits <= 198  # 95 % of 200, within what chance allows
    assert text_interval(np.ones(1)) is None


def test_summarize_averages_seeds_and_keeps_blocks() -> None:
    chance = np.random.default_rng(2)
    runs = [
        {"nll": chance.random(2 * BLOCK + 7), "seed": s, "seconds": 1.0 + s, "cpu_seconds": 1.0}
        | {"parameters": 9}
        for s in range(3)
    ]
    rung = summarize(runs)
    means = [run["nll"].mean() for run in runs]
    assert rung["nats"] == pytest.approx(np.mean(means), abs=1e-5)
    assert rung["bits_per_character"] == pytest.approx(rung["nats"] / math.log(2), abs=1e-4)
    assert [run["nats"] for run in rung["runs"]] == pytest.approx(means, abs=1e-5)
    assert rung["seconds"] == 2 and rung["parameters"] == 9
    first = np.mean([run["nll"][:BLOCK].mean() for run in runs])
    assert len(rung["block_nats"]) == 2
    assert rung["block_nats"][0] == pytest.approx(first, abs=1e-4)


@pytest.mark.slow
def test_climb_writes_rungs_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "ladder.json"
    plan = Plan(
        models=("ngram", "rnn"),
        seeds=2,
        flops=2e9,
        orders=(1, 2),
        rates=(2e-3, 4e-3),
        data_curve=False,
        jobs=2,
        export=tmp_path / "models",
    )
    ladder = climb(plan, path, progress=False)
    assert json.loads(path.read_text()) == ladder
    rungs = ladder["rungs"]
    assert list(rungs) == ["kneser-ney-1", "kneser-ney-2", "rnn"]
    # Order 1 spends what the letters' frequencies allow, order 2 is near bigram entropy.
    assert rungs["kneser-ney-2"]["nats"] < rungs["kneser-ney-1"]["nats"] < math.log(64)
    rnn = rungs["rnn"]
    assert [run["seed"] for run in rnn["runs"]] == [0, 1]
    assert rnn["runs"][0]["nats"] != rnn["runs"][1]["nats"]
    assert rnn["flops"] == pytest.approx(2e9, rel=0.5)
    assert set(ladder["search"]["rnn"]) == {"0.002", "0.004"}
    assert rnn["learning_rate"] == best_rate(ladder["search"]["rnn"])
    kept = load_model(tmp_path / "models" / "rnn")
    assert (tmp_path / "models" / "rnn" / "model.safetensors").stat().st_size < 300_000
    assert kept.info["validation_nats"] == pytest.approx(rnn["runs"][0]["nats"], abs=1e-2)
    assert "kneser-ney-2" in table(ladder)

    # Again: what is there stays as it is, what was taken away is measured again and is the same.
    ladder["rungs"]["rnn"]["nats"] = 0.0
    taken = ladder["rungs"].pop("kneser-ney-1")
    path.write_text(json.dumps(ladder))
    again = climb(plan, path, progress=False)["rungs"]
    assert again["rnn"]["nats"] == 0.0
    assert again["kneser-ney-1"]["block_nats"] == taken["block_nats"]


def test_the_search_goes_on_while_the_best_rate_is_at_an_end() -> None:
    first = (0.001, 0.002, 0.004)
    assert rates_to_try({}, first) == list(first)
    assert rates_to_try({"0.001": 1.0}, first) == [0.002, 0.004]
    falling = {"0.001": 3.0, "0.002": 2.0, "0.004": 1.0}
    assert rates_to_try(falling, first) == [0.008]
    assert rates_to_try(falling | {"0.008": 1.5}, first) == []
    assert rates_to_try({"0.001": 1.0, "0.002": 2.0, "0.004": 3.0}, first) == [0.0005]
    assert best_rate(falling | {"0.008": 1.5}) == 0.004


def test_tuning_never_sees_the_held_out_text() -> None:
    """A tuning job judges on the last tenth of the training part."""
    plain, tuning = (Job(model="ngram", order=1, tuning=t).run() for t in (False, True))
    assert plain["train_characters"] + len(plain["nll"]) + 1 == 1_131_995
    assert tuning["train_characters"] + len(tuning["nll"]) + 1 == plain["train_characters"]


def test_machine_names_the_processor_only() -> None:
    assert set(machine()) == {"processor", "cores", "system"}
    assert torch.get_num_threads() >= 1
