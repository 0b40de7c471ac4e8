"""Chapter 17: the package's own functions, and entries: good ones, broken ones, hostile ones."""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
import struct
import time

import pytest
import submissions as s
import torch
from safetensors.torch import save

from autograder.checks import capstone as checks
from autograder.engine.exercise import HandedIn
from autograder.engine.handle import Local
from autograder.engine.judge import judge
from autograder.grader.grade import Plan, grade
from autograder.grader.run import Work
from rnn2gpt import capstone, entry
from rnn2gpt.data import CharTokenizer, load_text, split
from rnn2gpt.gpt import GPT, GPTConfig

SIZES = {"vocab_size": 64, "block_size": 16, "n_layers": 1, "n_heads": 2, "d_model": 16}


def model(**changes) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**(SIZES | changes)))


@pytest.fixture(scope="module")
def good() -> tuple[bytes, str]:
    return entry.pack_entry(model())


@pytest.mark.parametrize("name", ["parity", "from_gpt2", "train_steps"])
def test_the_packages_functions_are_right(name):
    exercise = next(e for e in checks.ASSIGNMENT.exercises if e.name == name)
    result = judge(exercise, lambda: Local({name: getattr(capstone, name)}))
    assert result.status == "right", result.message


def test_the_packages_packer_is_right():
    result = judge(checks.pack_entry, lambda: Local({"pack_entry": entry.pack_entry}))
    assert result.status == "right", result.message


def test_an_entry_comes_back_as_it_was(good):
    back, was = entry.read_entry(*good), model()
    for (name, one), other in zip(back.named_parameters(), was.parameters(), strict=True):
        assert torch.equal(one, other), name
    score = entry.score_entry(*good)
    assert score.parameters == sum(p.numel() for p in was.parameters())
    assert abs(score.nats_per_character - math.log(64)) < 0.3


def tensors() -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model().named_parameters()}


def safetensors_of(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def with_(name: str, value) -> bytes:
    return save(tensors() | {name: value})


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("an entry was unpickled",))


def torch_saved() -> bytes:
    stream = io.BytesIO()
    torch.save(tensors(), stream)
    return stream.getvalue()


HOSTILE_WEIGHTS = {
    "a pickle": (lambda: pickle.dumps(Bomb()), "a pickle"),
    "PyTorch's own format": (torch_saved, "a pickle"),
    "nothing": (lambda: b"", "no whole safetensors"),
    "noise": (lambda: bytes(range(256)) * 8, "no whole safetensors"),
    "cut short": (lambda: save(tensors())[:5000], "cannot be read"),
    "a header that announces a terabyte": (lambda: struct.pack("<Q", 1 << 40), "no whole"),
    "a header of brackets": (lambda: safetensors_of(b"[" * 90_000), "header is broken"),
    "a header of lists": (lambda: safetensors_of(b'{"a": []}'), "header is broken"),
    "another tensor": (lambda: with_("extra", torch.ones(2)), "no place"),
    "the head twice": (lambda: with_("head.weight", torch.ones(64, 16)), "stands once"),
    "another shape": (lambda: with_("norm.weight", torch.ones(17)), "must have the shape"),
    "whole numbers": (lambda: with_("norm.weight", torch.ones(16, dtype=torch.int64)), "I64"),
    "NaN": (lambda: with_("norm.weight", torch.full((16,), math.nan)), "not finite"),
    "infinity": (lambda: with_("norm.bias", torch.full((16,), -math.inf)), "not finite"),
    "overflow": (lambda: save({n: 3e38 * w.sign() for n, w in tensors().items()}), "overflow"),
    "overlapping tensors": (
        lambda: safetensors_of(
            json.dumps(
                {
                    n: {"dtype": "F32", "shape": list(w.shape), "data_offsets": [0, 4 * w.numel()]}
                    for n, w in tensors().items()
                }
            ).encode(),
            bytes(4 * 64 * 16),
        ),
        "cannot be read",
    ),
    "too much": (lambda: bytes(entry.FILES[entry.WEIGHTS] + 1), "larger than"),
}


@pytest.mark.parametrize("what", HOSTILE_WEIGHTS)
def test_bad_weights_are_refused_with_a_reason(what, good):
    make, reason = HOSTILE_WEIGHTS[what]
    with pytest.raises(entry.EntryError, match=reason):
        entry.score_entry(make(), good[1])


BAD_CONFIGS = {
    "no JSON": ("{'a': 1}", "not JSON"),
    "a list": ("[]", "no JSON object"),
    "brackets": ("[" * 4000, "not JSON"),
    "no heads": ({"n_heads": None}, "n_heads must be"),
    "half a layer": ({"n_layers": 1.0}, "n_layers must be"),
    "true layers": ({"n_layers": True}, "n_layers must be"),
    "a billion layers": ({"n_layers": 10**9}, "n_layers must be"),
    "a window of a million": ({"block_size": 10**6}, "block_size must be"),
    "no width": ({"d_model": 0}, "d_model must be"),
    "another vocabulary": ({"vocab_size": 63}, "vocab_size must be 64"),
    "heads that do not divide": ({"n_heads": 3}, "equal heads"),
    "a word for a bias": ({"bias": "no"}, "bias must be"),
    "dropout of NaN": ('{"dropout": NaN}', "lacks"),
    "too wide": ({"d_model": 512, "n_heads": 16, "n_layers": 16}, "may have 1,000,000"),
    "a field of its own": ({"__class__": "os.system"}, "no field"),
    "another model": ({"n_layers": 2}, "lacks blocks.1"),
    "too much": (" " * 5000, "larger than"),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_bad_sizes_are_refused_with_a_reason(what, good):
    given, reason = BAD_CONFIGS[what]
    config = given if isinstance(given, str) else json.dumps(json.loads(good[1]) | given)
    with pytest.raises(entry.EntryError, match=reason):
        entry.score_entry(good[0], config)


def test_tiny_numbers_do_not_stall_the_class(good):
    """Weights whose products are denormal are slow on a CPU unless they count as 0."""
    slow = save({n: 1e-22 * torch.ones_like(w) for n, w in tensors().items()})

    def seconds(weights: bytes) -> float:
        start = time.process_time()
        entry.score_entry(weights, good[1])
        return time.process_time() - start

    seconds(good[0])
    assert seconds(slow) < 5 * max(0.05, seconds(good[0]))


def test_weights_that_are_not_finite_are_not_packed():
    broken = model()
    with torch.no_grad():
        broken.norm.weight[0] = math.nan
    with pytest.raises(ValueError, match="diverged"):
        entry.pack_entry(broken)


# --- points -------------------------------------------------------------------------------------


def judged(**files: HandedIn):
    names = {"weights": entry.WEIGHTS, "config": entry.CONFIG}
    return checks.judge_entry(checks.entry, {names[name]: file for name, file in files.items()})


def test_an_entry_earns_by_its_loss(good, monkeypatch):
    files = {"weights": HandedIn(good[0]), "config": HandedIn(good[1].encode())}
    for loss, points in ((5.0, 0), (4.0, 1), (3.0, 2), (2.4, 3), (2.2, 4)):
        score = entry.Score(nats_per_character=loss, parameters=1000)
        monkeypatch.setattr(entry, "score_entry", lambda *files, score=score: score)
        result = judged(**files)
        assert result.points == points
        assert result.status == ("right" if points == 4 else "wrong")
        assert result.measured == {"nats_per_character": loss, "parameters": 1000.0}
        assert f"{loss:.4f} nats" in result.message


def test_the_lines_of_the_points_are_what_counting_reaches():
    train, _ = split(CharTokenizer(load_text()).encode(load_text()))
    text = entry.held_out()
    single = torch.bincount(train, minlength=64).double() + 1
    pairs = torch.bincount(64 * train[:-1] + train[1:], minlength=64 * 64).view(64, 64) + 1.0
    even, one, two, _ = (most for most, _ in checks.TIERS)
    assert even == math.log(64)
    assert 0 <= -(single / single.sum()).log()[text[1:]].mean() - one < 0.01
    assert 0 <= -(pairs / pairs.sum(1, keepdim=True)).log()[text[:-1], text[1:]].mean() - two < 0.01


def test_half_an_entry_and_none(good):
    assert judged().status == "missing"
    assert "config.json` does not lie" in judged(weights=HandedIn(good[0])).message
    late = judged(weights=HandedIn(problem="It is a link."), config=HandedIn(b"{}"))
    assert late.points == 0 and "It is a link." in late.message


# --- a class ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graded(root, good, tmp_path_factory):
    """A class of six: good, a pickle, none, too large, a link, a broken notebook with an entry."""
    folder = tmp_path_factory.mktemp("class")
    notebook = s.as_bytes(s.unsolved("capstone"))

    def hand_in(student: str, weights: bytes | None, data: bytes = notebook) -> None:
        place = folder / "submitted" / student / "17-capstone"
        place.mkdir(parents=True)
        (place / "capstone.ipynb").write_bytes(data)
        if weights is not None:
            (place / entry.WEIGHTS).write_bytes(weights)
            (place / entry.CONFIG).write_text(good[1])

    hand_in("ada", good[0])
    hand_in("bob", pickle.dumps(Bomb()))
    hand_in("cy", None)
    hand_in("dee", bytes(entry.FILES[entry.WEIGHTS] + 1))
    hand_in("eve", good[0])
    own = folder / "submitted" / "eve" / "17-capstone" / entry.WEIGHTS
    own.unlink()
    own.symlink_to(folder / "submitted" / "ada" / "17-capstone" / entry.WEIGHTS)
    hand_in("flo", good[0], notebook[:300])
    plan = Plan(root / "exercises", folder / "out", b"secret", trust=True, jobs=1)
    rows = grade(folder / "submitted", plan)
    return {row["student"]: row for row in rows}, folder / "out"


def entry_of(row) -> dict:
    return next(e for e in row["exercises"] if e["name"] == "entry")


@pytest.mark.slow
def test_the_grader_computes_every_loss_itself(graded):
    rows, _ = graded
    assert set(rows) == {"ada", "bob", "cy", "dee", "eve", "flo"}
    for student in ("ada", "flo"):
        mine = entry_of(rows[student])
        assert abs(mine["measured"]["nats_per_character"] - math.log(64)) < 0.3
    assert rows["flo"]["status"] == "refused" and "ends in the middle" in rows["flo"]["message"]
    for student, reason in (
        ("bob", "a pickle"),
        ("dee", "larger than"),
        ("eve", "is a link"),
    ):
        mine = entry_of(rows[student])
        assert mine["points"] == 0 and reason in mine["message"] and not mine["measured"]
    assert entry_of(rows["cy"])["status"] == "missing"


@pytest.mark.slow
def test_entries_stand_in_results_feedback_and_report(graded):
    _, out = graded
    stored = {row["student"]: row for row in json.loads((out / "results.json").read_text())}
    assert entry_of(stored["ada"])["measured"]["parameters"] > 1000
    table = list(csv.DictReader(io.StringIO((out / "results.csv").read_text("utf-8-sig"))))
    losses = {row["student"]: row["entry nats_per_character"] for row in table}
    assert float(losses["ada"]) > 1 and losses["bob"] == ""
    page = (out / "feedback" / "ada" / "17-capstone" / "capstone.html").read_text()
    assert "nats" in page and "held-out text" in page
    assert "ada" not in (out / "feedback" / "bob" / "17-capstone" / "capstone.html").read_text()
    report = (out / "report.html").read_text()
    assert "Leaderboard" in report and "ada" in report


def test_the_same_notebook_with_another_entry_is_other_work():
    def key(*files) -> str:
        return Work("capstone", b"x", ".ipynb", b"", "process", files=files).key()

    keys = {
        key(),
        key(("a", HandedIn(b"1"))),
        key(("a", HandedIn(b"2"))),
        key(("b", HandedIn(b"1"))),
        key(("a", HandedIn(problem="1"))),
    }
    assert len(keys) == 5
