"""A student's own GPT: assembled, proved, trained, filled with GPT-2's weights, and honest."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import submissions as s
import torch
from click.testing import CliRunner

from autograder.checks import CHAPTERS, load
from course import assemble
from course.cli import main
from course.release import exercise_of
from rnn2gpt import entry
from rnn2gpt.capstone import OURS


def release(task):
    path = exercise_of(s.ROOT, task)
    return path.read_bytes() if path.is_file() else None


def hand_in(folder: Path, notebook: str, made) -> None:
    (folder / f"{notebook}.ipynb").write_bytes(s.as_bytes(made))


def parts_of(made: assemble.Assembly) -> dict[str, assemble.Part]:
    return {part.name: part for part in made.parts}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every chapter solved, assembled and trained for a few steps."""
    folder = tmp_path_factory.mktemp("student")
    notebooks = folder / "exercises"
    for chapter in CHAPTERS:
        place = notebooks / load(chapter).name
        place.mkdir(parents=True)
        hand_in(place, chapter, s.solved(chapter))
    made = assemble.assemble([notebooks], folder / "my_gpt", release)
    assemble.train(made, 40, "cpu")
    return made


@pytest.mark.slow
def test_every_solved_part_is_the_students_own(whole):
    assert [part for part in whole.parts if part.by != "you"] == []
    graded = [e for c in CHAPTERS for e in load(c).exercises if e.on_files is None]
    assert len(whole.parts) == len(graded)
    assert "Chapter 09" not in " ".join(whole.notes)  # its GPT stands on the student's own parts
    text = (whole.folder / "gpt.py").read_text()
    assert "from .transformer import TransformerBlock" in text
    assert "from .self_attention import causal_mask" in text
    assert "from .multi_head_attention import MultiHeadAttention" in (
        (whole.folder / "transformer.py").read_text()
    )


@pytest.mark.slow
def test_it_is_proved_to_be_ours(whole):
    assert whole.agrees
    assert set(whole.parity) == {
        "logits", "loss", "gradient", "weights after 3 steps", "logits with GPT-2's layout"
    }  # fmt: skip


@pytest.mark.slow
def test_it_trains_and_writes(whole):
    facts = whole.facts
    assert facts["last_nats"] < facts["first_nats"] - 0.8
    assert abs(facts["first_nats"] - math.log(64)) < 0.3
    files = [(whole.folder / "entry" / name).read_bytes() for name in entry.FILES]
    score = entry.score_entry(*files).nats_per_character
    assert score == pytest.approx(facts["held_out_nats"], abs=1e-5)
    text = assemble.sample_text(whole, "KING:\n", 30)
    assert text.startswith("KING:\n") and len(text) == 36


@pytest.mark.slow
def test_manifest_and_card_say_what_happened(whole):
    manifest = json.loads((whole.folder / "manifest.json").read_text())
    assert manifest["agrees"] and manifest["facts"]["steps"] == 40
    assert str(whole.folder.parent) not in (whole.folder / "manifest.json").read_text()
    card = (whole.folder / "MODEL_CARD.md").read_text()
    n = len(whole.parts)
    assert f"{n} of {n} parts" in card and f"{whole.facts['held_out_nats']:.3f} nats" in card
    assert card.count("To be written by you") == 3


@pytest.mark.slow
def test_two_processes_learn_what_one_does(whole):
    """The multi-GPU recipe, over gloo on a CPU."""
    folder = whole.folder.parent
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{s.ROOT}"}
    run = ["--steps", "3", "--device", "cpu", "--block-size", "8", "--d-model", "16"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    losses = []
    for start, out in (([], "one"), (torchrun, "two")):
        command = [sys.executable, "-m", *start, "my_gpt.train", *run, "--out", str(folder / out)]
        subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300)
        facts = json.loads((folder / out / "run.json").read_text())
        assert facts["processes"] == (2 if start else 1)
        losses.append(facts["held_out_nats"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_any_gpt2_goes_into_it(whole, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_positions=32, n_embd=12, n_layer=2, n_head=3)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    model, tokenizer, apart = assemble.pretrained(whole, str(tmp_path))
    ids = torch.tensor([tokenizer.encode("To be, or not")])
    with torch.no_grad():
        difference = (model(ids)[0] - theirs(ids).logits).abs().max()
    assert difference < 1e-4 and apart < 1e-4
    assert assemble.continued(whole, model, tokenizer, "To be", 3).startswith("To be")


# --- parts that are not there, or not right -----------------------------------------------------

SLEEPS = "class LayerNorm(nn.Module):\n    pass\nraise RuntimeError('at import')\n"


@pytest.fixture(scope="module")
def patchy(tmp_path_factory):
    """Chapters 05, 07, 09 and 10 alone: one part wrong, one that stops, one unwritten."""
    folder = tmp_path_factory.mktemp("patchy")
    hand_in(folder, "self_attention", s.solved("self_attention"))
    wrong = "def count_parameters(config):\n    return 7\n"
    flops = "def flops_per_token(config):\n    raise NotImplementedError()\n"
    hand_in(folder, "gpt", s.solved("gpt", count_parameters=wrong, flops_per_token=flops))
    made = s.solved("transformer", LayerNorm=SLEEPS)
    hand_in(folder, "transformer", s.with_cell(made, "raise SystemExit('a demonstration')", at=-1))
    taken = "from rnn2gpt.optim import cosine_schedule\n"
    made = s.solved("pretraining", cosine_schedule=taken, parameter_groups="def broken(:\n")
    hand_in(folder, "pretraining", made)
    (folder / "notes.ipynb").write_text("{}")
    return assemble.assemble([folder], folder / "mine", release)


def test_what_is_not_right_is_ours_and_says_so(patchy):
    parts = parts_of(patchy)
    assert parts["scaled_dot_product_attention"].by == parts["GPT"].by == "you"
    for name, reason in (
        ("count_parameters", ""),
        ("flops_per_token", "not written yet"),
        ("cosine_schedule", "taken from the package"),
        ("parameter_groups", "SyntaxError"),
        ("get_batch", "no notebook of this chapter"),
        ("MultiHeadAttention", "no notebook"),
    ):
        assert parts[name].by == "us" and reason in parts[name].reason, parts[name]
        assert f"Ours: {name}" in (patchy.folder / f"{_module(parts[name])}.py").read_text()
    assert "count_parameters" in (patchy.folder / "__init__.py").read_text()
    assert "cosine_schedule" in (patchy.folder / "MODEL_CARD.md").read_text()
    assert patchy.agrees  # ours fill the gaps


def _module(part: assemble.Part) -> str:
    return next(name for name in CHAPTERS if load(name).name == part.chapter)


def test_a_cell_that_stops_costs_itself_alone(patchy):
    parts = parts_of(patchy)
    assert parts["RMSNorm"].by == parts["FeedForward"].by == "you"
    assert parts["LayerNorm"].by == "us"
    assert any("notes.ipynb was left out" in note for note in patchy.notes)


def test_a_package_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    hand_in(tmp_path, "gpt", s.unsolved("gpt"))
    with pytest.raises(assemble.AssembleError, match="something else"):
        assemble.assemble([tmp_path], tmp_path / "mine", release)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(assemble.AssembleError, match="no name for a package"):
        assemble.assemble([tmp_path], tmp_path / "my-gpt", release)
    with pytest.raises(assemble.AssembleError, match="No notebook"):
        assemble.assemble([tmp_path / "mine"], tmp_path / "other", release)
    with pytest.raises(assemble.AssembleError, match="does not exist"):
        assemble.assemble([tmp_path / "nowhere"], tmp_path / "other", release)


def test_a_gpt_that_is_another_one_is_told():
    class Parts:
        GPT, GPTConfig = OURS.GPT, OURS.GPTConfig
        AdamW, cosine_schedule = torch.optim.SGD, staticmethod(OURS.cosine_schedule)
        parameter_groups = staticmethod(OURS.parameter_groups)
        clip_grad_norm_ = staticmethod(OURS.clip_grad_norm_)

        @staticmethod
        def load_gpt2_state_dict(model, state):
            raise KeyError("wte")

    found = assemble.prove(Parts)
    assert found["logits"] == 0 and found["weights after 3 steps"] > 1e-4
    assert found["logits with GPT-2's layout"] == math.inf
    assert not assemble.Assembly(Path("x"), [], parity=found).agrees


def test_the_verb_prints_what_is_whose(tmp_path):
    hand_in(tmp_path, "self_attention", s.solved("self_attention"))
    out = tmp_path / "own"
    result = CliRunner().invoke(main, ["assemble", str(tmp_path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "5 of" in result.output and "all of it" in result.output
    again = CliRunner().invoke(main, ["assemble", str(tmp_path), "--out", str(out), "--json"])
    assert json.loads(again.output)["agrees"] is True
    failed = CliRunner().invoke(main, ["assemble", str(tmp_path / "no"), "--out", str(out)])
    assert failed.exit_code == 1 and "does not exist" in failed.output
