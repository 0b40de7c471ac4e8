"""Chapter 07: the package passes the chapter's cases, and what the study of norms measures."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from autograder.answers.transformer import ANSWERS
from autograder.checks import load
from autograder.engine.handle import Local
from autograder.engine.judge import judge
from rnn2gpt import transformer as package

ASSIGNMENT = load("transformer", hidden=True)
EXERCISES = {exercise.name: exercise for exercise in ASSIGNMENT.exercises}


@pytest.mark.parametrize("name", EXERCISES)
def test_package_passes_the_chapters_cases(name):
    """The fused operators, which a student may not use, give what the cases ask for."""
    namespace = {name: getattr(package, name)}
    result = judge(EXERCISES[name], lambda: Local(namespace), hidden=True, secret=b"package")
    assert all(case.passed for case in result.cases), [c for c in result.cases if not c.passed]


@pytest.mark.parametrize("seed", range(3))
def test_a_right_model_is_right_for_any_seed(seed):
    """The cases draw weights for parameters they do not know: none may depend on luck."""
    model = ANSWERS["Transformer"][seed % 3]
    result = judge(
        EXERCISES["Transformer"],
        lambda: Local({"Transformer": model}),
        hidden=True,
        secret=bytes([seed]),
    )
    assert result.status == "right", [case for case in result.cases if not case.passed]


class ForgetsTheLastWord(package.Transformer):
    """A mistake that is in no catalogue: the last source word is always hidden."""

    def encode(self, source):
        memory, mask = super().encode(source)
        hidden = torch.ones_like(mask)
        hidden[..., -1] = False
        return memory, mask & hidden if source.shape[1] > 1 else mask


def test_a_mistake_without_a_name_loses_points_too():
    result = judge(EXERCISES["Transformer"], lambda: Local({"Transformer": ForgetsTheLastWord}))
    assert result.status == "wrong" and result.points < result.max_points


@pytest.fixture(scope="module")
def study(root: Path) -> ModuleType:
    path = root / "benchmarks" / "norm_placement.py"
    spec = importlib.util.spec_from_file_location("norm_placement", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_two_stacks_differ_in_the_norms_place_alone(study):
    pre, post = (study.Stack(11, 3, norm_first=first) for first in (True, False))
    names = {name for name, _ in pre.named_parameters()}
    assert names - {name for name, _ in post.named_parameters()} == {"norm.weight", "norm.bias"}
    logits, stream = post(torch.randint(0, 11, (2, 7)))
    assert logits.shape == (2, 7, 11) and len(stream) == 3
    assert torch.allclose(stream[-1].std(dim=-1, correction=0), torch.ones(2, 7), atol=1e-3)


def test_post_norm_loses_the_gradient_on_its_way_down(study):
    ids = torch.randint(0, 11, (500,), generator=torch.Generator().manual_seed(0))
    pre, post = (study.fresh(ids, 11, first, 8, 1) for first in (True, False))
    assert post["gradient"][-1] > 1.2 * post["gradient"][0]
    assert pre["gradient"][-1] < 0.8 * pre["gradient"][0]
    assert pre["stream_rms"][-1] > 1.5 * pre["stream_rms"][0]
    assert all(math.isclose(size, 1, abs_tol=0.01) for size in post["stream_rms"])


def test_a_short_study_writes_what_the_page_reads(study, tmp_path, monkeypatch):
    out = tmp_path / "norms.json"
    options = ["--steps", "2", "--seeds", "1", "--depths", "1", "--rates", "0.001"]
    monkeypatch.setattr("sys.argv", ["x", *options, "--fresh-depths", "2", "--out", str(out)])
    study.main()
    result = json.loads(out.read_text("utf-8"))
    assert [stack["depth"] for stack in result["fresh"]["pre"]] == [2]
    assert len(result["runs"]) == 4  # with and without warm-up, pre and post
    for run in result["runs"]:
        assert len(run["curve"]) == 1 and 3 < run["held_out_nats"] < 6


def test_the_stored_study_is_whole(root: Path):
    stored = json.loads((root / "book/_data/norm_placement.json").read_text("utf-8"))
    settings = {
        (run["depth"], run["learning_rate"], run["warmup"], run["norm_first"])
        for run in stored["runs"]
    }
    assert len(settings) == 16
    assert all(len(run["curve"]) == stored["steps"] // 10 for run in stored["runs"])
    assert [s["depth"] for s in stored["fresh"]["pre"]] == [
        s["depth"] for s in stored["fresh"]["post"]
    ]
