"""Chapter 16: twelve bugs, each worth a point in any order; a GPT that reads pictures."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from autograder.checks import load
from autograder.engine.handle import Local
from autograder.engine.judge import ExerciseResult, judge
from course.release import SOLUTION, read_solution, source_of
from rnn2gpt.gpt import GPTConfig
from rnn2gpt.vision import (
    COLORS,
    SHAPES,
    SIDE,
    WORDS,
    Captioner,
    Scene,
    as_batch,
    decode_words,
    draw_scenes,
    encode_words,
    patches,
)

# What mends each bug in the code as it is handed over, in the order of the misconceptions.
FIXES = {
    "embed": [("] * positions", "] + positions"), ("[:, None]", "")],
    "attention": [
        ("k.shape[1]", "k.shape[2]"),
        ("softmax(dim=1)", "softmax(dim=2)"),
        ("q @ k.transpose(1, 2)", "(q @ k.transpose(1, 2) + future(q))"),
    ],
    "feed_forward": [
        ("torch.relu(hidden @ W_2)", "hidden @ W_2"),
        ("torch.relu(x @ W_1 + b_1)", 'F.gelu(x @ W_1 + b_1, approximate="tanh")'),
    ],
    "block": [
        ("    x = norm_1(x)\n    x = x + attend(x)", "    x = x + attend(norm_1(x))"),
        ("return feed", "return x + feed"),
    ],
    "lm_loss": [
        ("hidden.", "(hidden @ W_embedding.T)."),
        (".softmax(dim=-1)", ".clone()"),
    ],
    "greedy": [
        (
            "predicted = next_logits(ids)",
            "for _ in range(n_tokens):\n"
            "        ids = torch.cat([ids, next_logits(ids)[:, -1:].argmax(-1)], dim=1)\n"
            "    return ids\n"
            "    predicted = next_logits(ids)",
        )
    ],
}
SUBSETS = [
    (name, done)
    for name, fixes in FIXES.items()
    for n in range(len(fixes) + 1)
    for done in itertools.combinations(range(len(fixes)), n)
]


def future(q: torch.Tensor) -> torch.Tensor:
    t = q.shape[1]
    return torch.full((t, t), -torch.inf, dtype=q.dtype, device=q.device).triu(1)


@pytest.fixture(scope="module")
def handed(root: Path) -> dict[str, str]:
    """The answer cells as a student gets them."""
    cells = read_solution(source_of(root, load("reading_critically"))).cells
    return {
        cell.metadata["answer"]: SOLUTION.sub("", cell.source)
        for cell in cells
        if cell.metadata.get("broken")
    }


def judged(name: str, source: str, hidden: bool) -> ExerciseResult:
    assignment = load("reading_critically", hidden=True)
    exercise = next(e for e in assignment.exercises if e.name == name)
    tools = {"torch": torch, "F": torch.nn.functional, "math": math, "future": future}
    namespace: dict[str, Any] = dict(tools)
    exec(source, namespace)
    return judge(exercise, lambda: Local(namespace), hidden=hidden, secret=b"a secret")


def test_twelve_bugs_are_handed_over(handed):
    assert handed.keys() == FIXES.keys()
    assert sum(map(len, FIXES.values())) == 12
    for name, source in handed.items():
        assert all(source.count(old) == 1 for old, _ in FIXES[name]), name


@pytest.mark.parametrize(("name", "done"), SUBSETS)
def test_each_bug_found_is_worth_a_point_whatever_else_is_left(handed, name, done):
    source = handed[name]
    for i in done:
        source = source.replace(*FIXES[name][i])
    n = len(FIXES[name])
    for hidden in (False, True):
        result = judged(name, source, hidden)
        assert result.points == pytest.approx(len(done) + (len(done) == n))
        if len(done) == n:
            assert result.status == "right"
        elif n - len(done) == 1:  # one is left, and named
            (left,) = set(range(n)) - set(done)
            mistakes = load("reading_critically").exercises[list(FIXES).index(name)].misconceptions
            assert result.misconception == mistakes[left].name
        else:
            assert result.misconception == "as_handed_over" or " and " in result.misconception


def test_a_fix_that_breaks_something_else_costs_the_point_of_the_whole(handed):
    source = handed["feed_forward"]
    for old, new in FIXES["feed_forward"]:
        source = source.replace(old, new)
    result = judged(
        "feed_forward", source.replace("hidden @ W_2", "hidden.float() @ W_2.float()"), False
    )
    assert result.points < 3 and result.status == "wrong"
    source = handed["embed"].replace(
        "tokens[ids] * positions[places]", "tokens[ids] + positions[ids]"
    )
    assert judged("embed", source, True).misconception == "by_the_tokens_id"


# --- pictures -----------------------------------------------------------------------------------


@pytest.fixture
def model() -> Captioner:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=len(WORDS), block_size=22, n_layers=2, n_heads=2, d_model=16)
    made = Captioner(config).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def test_patches_are_squares_of_the_picture_in_reading_order():
    images = torch.randn(2, 3, 6, 4)
    cut = patches(images, 2)
    assert cut.shape == (2, 6, 12)
    assert torch.equal(cut[1, 3].view(3, 2, 2), images[1, :, 2:4, 2:4])
    fold = torch.nn.functional.unfold(images, 2, stride=2).transpose(1, 2)
    assert torch.equal(cut, fold)


def test_words_read_the_picture_and_the_words_before_them_alone(model):
    images, ids = torch.randn(2, 3, SIDE, SIDE).double(), torch.randint(len(WORDS), (2, 6))
    logits = model(images, ids)
    assert logits.shape == (2, 6, len(WORDS))
    later = torch.cat([ids[:, :4], (ids[:, 4:] + 1) % len(WORDS)], dim=1)
    assert torch.allclose(model(images, later)[:, :4], logits[:, :4])
    assert not torch.allclose(model(images.flip(3), ids)[:, 0], logits[:, 0])


def test_scenes_are_drawn_as_their_captions_say():
    looks = set()
    for shape in SHAPES:
        scene = Scene("red", shape)
        assert decode_words([*encode_words(scene.caption), 1, 2, 2]) == f"a red {shape}"
        picture = scene.draw(np.random.default_rng(3))
        painted = (abs(picture - np.array(COLORS["red"])[:, None, None]) < 1e-9).all(0)
        assert 10 < painted.sum() < SIDE**2 / 2
        looks.add(painted.tobytes())
    assert len(looks) == len(SHAPES)  # no two shapes look alike


def test_a_captioner_learns_a_handful_of_scenes_by_heart():
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=len(WORDS), block_size=22, n_layers=2, n_heads=2, d_model=32)
    model, rng = Captioner(config), np.random.default_rng(0)
    scenes = draw_scenes(3, [(c, s) for c in COLORS for s in SHAPES], rng)
    images, ids, targets = as_batch(scenes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        logits = model(images, ids)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.eval().caption(images) == [scene.caption for scene, _ in scenes]


def test_a_picture_with_more_patches_than_places_is_refused():
    config = GPTConfig(vocab_size=len(WORDS), block_size=16, n_layers=1, n_heads=1, d_model=4)
    with pytest.raises(ValueError, match="16 patches leave no room"):
        Captioner(config)


@pytest.fixture(scope="module")
def captions(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("captions", root / "benchmarks" / "captions.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_new_things_are_left_out_of_training(captions):
    rng = np.random.default_rng(0)
    for known, sizes in zip(captions.WORLDS.values(), ((4, 4), (8, 6)), strict=True):
        assert len(known) == math.prod(sizes) - 4 and not set(known) & set(captions.NEW)
        for part in range(2):  # every color and every shape is seen in training
            assert len({pair[part] for pair in known}) == sizes[part]
        drawn = draw_scenes(200, known, rng)
        assert {(scene.color, scene.shape) for scene, _ in drawn} <= set(known)


def test_the_stored_run_is_the_benchmarks(root, captions):
    stored = json.loads((root / "book" / "_data" / "captions.json").read_text("utf-8"))
    assert stored["new"] == [" ".join(pair) for pair in captions.NEW]
    assert stored["parameters"] == sum(p.numel() for p in Captioner(captions.CONFIG).parameters())
    seeds = sorted({run["seed"] for run in stored["runs"]})
    asked = [(world, seed) for world in captions.WORLDS for seed in seeds]
    assert [(run["world"], run["seed"]) for run in stored["runs"]] == asked
    for run in stored["runs"]:
        assert all(test["n"] == captions.TESTED for test in run["tests"].values())
        assert len(run["curve"]) == stored["steps"] // 50
