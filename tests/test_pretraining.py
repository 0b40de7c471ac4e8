"""Chapter 10: the package passes the chapter's cases, the law is found again, the studies run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autograder.checks import load
from autograder.engine.handle import Local
from autograder.engine.judge import judge
from rnn2gpt import optim
from rnn2gpt.scaling import ScalingLaw, fit_scaling_law

ASSIGNMENT = load("pretraining", hidden=True)
EXERCISES = {exercise.name: exercise for exercise in ASSIGNMENT.exercises}
LAW = ScalingLaw(E=1.2, A=40.0, B=900.0, alpha=0.34, beta=0.52)


class Fused(torch.optim.AdamW):
    """PyTorch's optimizer in the form that `rnn2gpt train` uses."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, fused=True, **options)


@pytest.mark.parametrize("name", EXERCISES)
def test_package_passes_the_chapters_cases(name: str) -> None:
    """What the package does instead of the exercise's explicit version gives what is asked for."""
    answer = Fused if name == "AdamW" else getattr(optim, name)
    result = judge(EXERCISES[name], lambda: Local({name: answer}), hidden=True, secret=b"package")
    assert all(case.passed for case in result.cases), [c for c in result.cases if not c.passed]


class NeverForgets(torch.optim.AdamW):
    """A mistake that is in no catalogue: v only grows (AMSGrad)."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, amsgrad=True, **options)


def test_a_mistake_without_a_name_loses_points_too() -> None:
    result = judge(EXERCISES["AdamW"], lambda: Local({"AdamW": NeverForgets}), hidden=True)
    assert result.status == "wrong" and result.points < result.max_points


def test_an_optimizer_from_the_library_is_no_answer() -> None:
    result = judge(
        EXERCISES["AdamW"], lambda: Local({"AdamW": torch.optim.AdamW}), shortcuts=("AdamW",)
    )
    assert result.status == "forbidden" and result.points == 0


def test_tied_tables_stand_once_in_the_optimizer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
            self.head.weight = self.table.weight

    groups = optim.parameter_groups(Tied(), 0.1)
    assert [len(group["params"]) for group in groups] == [1, 1]
    torch.optim.AdamW(groups)  # refuses a tensor that stands in two groups


# --- the law --------------------------------------------------------------------------------------

GRID = [(n, d) for n in (1e4, 4e4, 16e4) for d in (1e5, 4e5, 16e5)]


def test_the_law_is_found_again() -> None:
    found = fit_scaling_law(*zip(*GRID, strict=True), [LAW.loss(n, d) for n, d in GRID])
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(LAW, name), rel=1e-6), name


def test_the_optimum_is_the_least_loss_of_its_budget() -> None:
    n, d = LAW.optimal(1e12)
    assert 6 * n * d == pytest.approx(1e12)
    best = LAW.loss(n, d)
    assert all(LAW.loss(k * n, d / k) > best for k in (0.5, 0.9, 1.1, 2))


def test_a_loss_that_grows_with_the_model_has_no_law() -> None:
    losses = [1 + n / 1e5 + d / 1e6 for n, d in GRID]
    with pytest.raises(ValueError, match="negative"):
        fit_scaling_law(*zip(*GRID, strict=True), losses)


# --- the studies ----------------------------------------------------------------------------------


def run(root: Path, script: str, *options: str) -> str:
    command = [sys.executable, f"benchmarks/{script}", *options]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_scaling_study_goes_on_where_it_stopped(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    options = ["--budgets", "4096", "8192", "--rates", "0.01", "--resamples", "2"]
    run(root, "scaling.py", "--widths", "16", *options, "--out", str(out))
    first = json.loads(out.read_text())
    assert [one["tokens"] for one in first["runs"]] == [4096, 8192]
    assert first["runs"][0]["flops"] > 6 * 4096 * first["runs"][0]["parameters_of_blocks"]
    printed = run(root, "scaling.py", "--widths", "16", "32", *options, "--out", str(out))
    assert "'d_model': 32" in printed and "'d_model': 16" not in printed
    assert len(json.loads(out.read_text())["runs"]) == 4
    options[options.index("0.01")] = "0.02"  # another rate to choose from: its runs, no others
    run(root, "scaling.py", "--widths", "16", *options, "--out", str(out))
    rates = [(one["d_model"], one["learning_rate"]) for one in json.loads(out.read_text())["runs"]]
    assert sorted(rates) == [(16, 0.02), (16, 0.02), (32, 0.01), (32, 0.01)]


def test_stored_scaling_study_holds_the_law_of_its_runs(root: Path) -> None:
    study = json.loads((root / "book/_data/scaling.json").read_text())
    columns = ([one[k] for one in study["runs"]] for k in ("parameters", "tokens", "nats"))
    found = fit_scaling_law(*columns)
    stored = study["fits"]["parameters"]["law"]
    assert {k: pytest.approx(v, rel=1e-6) for k, v in stored.items()} == vars(found)
    searched = {(one["d_model"], one["learning_rate"]) for one in study["search"]}
    assert {(one["d_model"], one["learning_rate"]) for one in study["runs"]} <= searched


@pytest.mark.slow
def test_two_processes_end_where_one_does(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.json"
    run(root, "two_processes.py", "--steps", "2", "--evaluate-every", "2", "--out", str(out))
    for study in (out, root / "book/_data/two_processes.json"):
        for name, one in json.loads(study.read_text())["runs"].items():
            assert one["apart"] < 1e-3, name
