"""The speedrun's arithmetic, and all of it in a few steps."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rnn2gpt.gpt import GPT, GPTConfig


@pytest.fixture(scope="module")
def speedrun(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("speedrun", root / "benchmarks" / "speedrun.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speedrun"] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_the_first_rung_is_nanogpts_recipe(speedrun: Any) -> None:
    recipe = speedrun.recipes(speedrun.RUNGS)[speedrun.RUNGS[0]]
    model = recipe.build(65)
    sizes = GPTConfig(vocab_size=65, block_size=64, n_layers=4, n_heads=4, d_model=128, bias=False)
    GPT(sizes).load_state_dict(model.state_dict())  # the same weights, by the same names
    rates = [recipe.rate(done) for done in (0.025, 0.05, 0.525, 1.0)]
    assert rates == pytest.approx([5e-4, 1e-3, 5.5e-4, 1e-4])
    assert recipe.batch_size * recipe.block_size * speedrun.STEPS == 1_536_000


def test_every_rung_changes_something_and_keeps_the_rest(speedrun: Any) -> None:
    built = speedrun.recipes((*speedrun.RUNGS, *speedrun.LONGER))
    before = speedrun.Recipe()
    for rung in speedrun.RUNGS[1:]:
        assert rung.set and built[rung] == replace(before, **rung.set) != before
        before = built[rung]
    for rung in speedrun.LONGER:  # from the last rung, not from each other
        assert built[rung] == replace(before, **rung.set)
    assert len({rung.name for rung in (*speedrun.RUNGS, *speedrun.LONGER)}) == len(
        speedrun.RUNGS
    ) + len(speedrun.LONGER)


def test_a_straight_line_ends_at_nothing(speedrun: Any) -> None:
    recipe = speedrun.Recipe(schedule="linear", final_rate=0.0, learning_rate=1.0, warmup=0.2)
    rates = [recipe.rate(done) for done in (0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_averaging_probabilities(speedrun: Any) -> None:
    p, q = torch.tensor([0.5, 1e-30, 0.2]), torch.tensor([0.25, 1.0, 0.2])
    assert torch.allclose(speedrun.mixed(-p.log(), -q.log()), -((p + q) / 2).log())


def test_all_of_it_in_a_few_steps(
    speedrun: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "own.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 120)
    out, cache = tmp_path / "speedrun.json", tmp_path / "cache"
    argv = [
        "speedrun.py",
        "--quick",
        "--text",
        text,
        "--seeds",
        "2",
        "--out",
        out,
        "--cache",
        cache,
    ]
    monkeypatch.setattr("sys.argv", [str(a) for a in argv])
    monkeypatch.setattr(speedrun, "RUNGS", (speedrun.RUNGS[0], speedrun.RUNGS[-1]))
    monkeypatch.setattr(speedrun, "LONGER", (speedrun.Rung("longer", "", {"n_layers": 1}, 2.0),))
    monkeypatch.setattr(speedrun, "attention", lambda *_: [])  # its sizes are not small
    speedrun.main()
    first = json.loads(out.read_text())
    part = first["texts"]["own"]
    assert [r["name"] for r in part["rungs"]] == [speedrun.RUNGS[0].name, speedrun.RUNGS[-1].name]
    for rung in part["rungs"]:
        assert [run["seed"] for run in rung["runs"]] == [0, 1]
        assert rung["nats"] == pytest.approx(sum(r["nats"] for r in rung["runs"]) / 2, abs=1e-4)
        assert rung["bits_per_character"] == pytest.approx(rung["nats"] / math.log(2), abs=1e-4)
        recipe = speedrun.Recipe(**rung["recipe"])
        assert rung["tokens"] == rung["steps"] * recipe.batch_size * rung["context"]
        low, high = rung["seed_interval"]
        assert low < rung["nats"] < high
    recipe, last = part["rungs"]
    assert recipe["steps"] == 3 and part["T"] == recipe["cpu_seconds"]
    assert last["gain"] == pytest.approx(recipe["nats"] - last["nats"], abs=1e-4)
    assert [(run["budget"], len(run["runs"])) for run in part["longer"]] == [(2.0, 1)]
    assert set(part["counting"]["mixed"]) == {
        speedrun.RUNGS[0].name,
        speedrun.RUNGS[-1].name,
        "longer",
    }
    assert "bars" not in part and str(tmp_path) not in out.read_text()

    # Again: nothing is trained anew, and what it says is the same.
    monkeypatch.setattr(speedrun, "train", lambda *_: pytest.fail("trained again"))
    speedrun.main()
    assert json.loads(out.read_text())["texts"]["own"]["rungs"] == part["rungs"]


def test_bars_are_judged_by_the_best_within_each_budget(speedrun: Any) -> None:
    def run(name: str, budget: float, nats: float) -> dict[str, object]:
        return {"name": name, "budget": budget, "nats": nats, "cpu_seconds": 10.0 * budget}

    part = {
        "T": 10.0,
        "rungs": [run("recipe", 1.0, 1.9), run("last", 1.0, 1.51)],
        "longer": [run("more", 2.5, 1.46)],
        "counting": {"mixed": {"last": {"nats": 1.45}, "more": {"nats": 1.4}}},
    }
    assert speedrun.bars(part) == [
        {"budget": 1.0, "target": 1.5, "nats": 1.51, "in_T": 1.0, "met": False, "mixed_nats": 1.45},
        {
            "budget": 2.5,
            "target": 1.4697,
            "nats": 1.46,
            "in_T": 2.5,
            "met": True,
            "mixed_nats": 1.4,
        },
    ]
