"""Chapter 15: the instruments, on any GPT; what they must give by construction; the study."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rnn2gpt.checkpoint import load_model
from rnn2gpt.evaluation import (
    bootstrap_interval,
    expected_calibration_error,
    nll_with_stride,
    paired_prompt_bias,
    reliability,
)
from rnn2gpt.gpt import GPT, GPTConfig, load_gpt2_state_dict
from rnn2gpt.interpret import (
    Probe,
    ablate_heads,
    attention_weights,
    control_labels,
    induction_score,
    logit_lens,
    mean_head_outputs,
    repeated,
    replace_heads,
    residual_stream,
)

SIZES = {"vocab_size": 31, "block_size": 16, "n_layers": 3, "n_heads": 4, "d_model": 24}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    torch.manual_seed(3)
    with torch.no_grad():
        yield


def gpt(**changes: int) -> GPT:
    """An untrained model whose every weight is large enough to show."""
    model = GPT(GPTConfig(**(SIZES | changes))).eval()
    for weight in model.parameters():
        weight.add_(0.2 * torch.randn_like(weight))
    return model


# --- inside ---------------------------------------------------------------------------------------


def test_the_lens_ends_with_the_models_own_logits_and_its_weights_are_those_of_the_heads() -> None:
    model, ids = gpt(), torch.randint(31, (2, 11))
    lens = logit_lens(model, ids[0])
    assert lens.shape == (3, 11, 31)
    assert torch.allclose(lens[-1], model(ids[:1])[0][0], atol=1e-5)
    weights = attention_weights(model, ids)
    assert weights.shape == (3, 2, 4, 11, 11)
    assert torch.allclose(weights.sum(-1), torch.ones(3, 2, 4, 11), atol=1e-5)
    assert weights.triu(1).abs().max() == 0
    with pytest.raises(ValueError, match="17 tokens"):
        residual_stream(model, torch.zeros(1, 17, dtype=torch.long))


def test_gpt2s_layout_goes_through_the_same_instruments() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_positions": 16, "n_layer": 3, "n_head": 4, "n_embd": 24}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=31, **sizes)).eval()
    theirs.config._attn_implementation = "eager"
    ours = gpt()
    load_gpt2_state_dict(ours, theirs.state_dict())
    ids = torch.randint(31, (1, 9))
    seen = theirs(ids, output_hidden_states=True, output_attentions=True)
    stream = residual_stream(ours, ids)
    for mine, right in zip(stream[:-1], seen.hidden_states[:-1], strict=True):
        assert torch.allclose(mine, right, atol=1e-5)
    assert torch.allclose(attention_weights(ours, ids), torch.stack(seen.attentions), atol=1e-5)
    assert torch.allclose(logit_lens(ours, ids[0])[-1], seen.logits[0], atol=1e-4)


def test_a_head_left_out_is_a_head_whose_columns_of_the_projection_are_zero() -> None:
    model, ids = gpt(), torch.randint(31, (2, 7))
    before = model(ids)[0]
    with ablate_heads(model, [(1, 2), (2, 0)]):
        without = model(ids)[0]
    assert torch.equal(model(ids)[0], before)
    for layer, head in ((1, 2), (2, 0)):
        model.get_submodule(f"blocks.{layer}.attention.W_o").weight[:, 6 * head : 6 * head + 6] = 0
    assert torch.allclose(without, model(ids)[0], atol=1e-5)


def test_the_model_comes_back_from_an_error_and_unknown_heads_are_refused() -> None:
    model, ids = gpt(), torch.randint(31, (1, 7))
    before = model(ids)[0]
    with pytest.raises(KeyboardInterrupt), ablate_heads(model, [(0, 0)]):
        raise KeyboardInterrupt
    assert torch.equal(model(ids)[0], before)
    for head in ((3, 0), (0, 4), (-1, 0)):
        with pytest.raises(ValueError, match="no head"), ablate_heads(model, [head]):
            pass


def test_a_mean_output_put_in_its_own_place_changes_nothing_for_one_token() -> None:
    model, ids = gpt(), torch.randint(31, (1, 1))
    means = mean_head_outputs(model, ids)
    assert means.shape == (3, 4, 6)
    before = model(ids)[0]
    with replace_heads(model, {(0, 1): means[0, 1], (2, 3): means[2, 3]}):
        assert torch.allclose(model(ids)[0], before, atol=1e-5)


def test_induction_is_where_the_next_token_stood_the_last_time() -> None:
    rows = repeated(5, 7, 20, 31, torch.Generator().manual_seed(0))
    assert rows.shape == (5, 20) and torch.equal(rows[:, 7:], rows[:, :-7])
    weights = torch.zeros(2, 20, 20)
    for i in range(7, 20):
        weights[0, i, i - 6] = 1.0  # what followed
        weights[1, i, i - 7] = 1.0  # the token itself
    assert induction_score(weights, 7).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="no repetition"):
        induction_score(weights, 20)


def test_a_probe_finds_what_is_there_and_labels_by_lot_depend_on_the_token_alone() -> None:
    x = torch.randn(400, 8)
    labels = (x[:, 3] + 2 * x[:, 5] > 0.5).long()
    fitted = Probe(8, 2).fit(x[:300], labels[:300])
    assert fitted.accuracy(x[300:], labels[300:]) > 0.9
    xor = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    linear, bent = (Probe(8, 2, hidden).fit(x[:300], xor[:300]) for hidden in (0, 16))
    assert linear.accuracy(x[300:], xor[300:]) < 0.7 < bent.accuracy(x[300:], xor[300:])
    ids = torch.randint(31, (6, 50))
    control = control_labels(ids, 31, torch.tensor([0.5, 0.5]), torch.Generator().manual_seed(0))
    assert control.shape == ids.shape
    assert all(len(control[ids == token].unique()) == 1 for token in ids.unique())


# --- judging --------------------------------------------------------------------------------------


def test_a_stride_gives_each_token_at_least_what_it_promises_to_read() -> None:
    model, ids = gpt(), torch.randint(31, (40,))

    def nll(t: int, reads: int) -> float:
        logits = model(ids[None, t - reads : t])[0][0, -1]
        return cross_entropy(logits, ids[t]).item()

    cut = nll_with_stride(model, ids, 16)
    assert cut[16].item() == pytest.approx(nll(17, 1), rel=1e-4)
    slow = nll_with_stride(model, ids, 1)
    for t in (5, 17, 39):
        assert slow[t - 1].item() == pytest.approx(nll(t, min(t, 16)), rel=1e-4)
    half = nll_with_stride(model, ids, 8)
    assert half[16].item() == pytest.approx(nll(17, 9), rel=1e-4)
    for stride in (0, 17):
        with pytest.raises(ValueError, match="stride"):
            nll_with_stride(model, ids, stride)


def test_calibration_by_hand() -> None:
    p = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 0])
    sure, right, counts = reliability(p, labels, 4)
    assert counts.tolist() == [0, 1, 2, 1]  # an edge lies in the bin below it
    assert sure[1:].tolist() == [0.5, 0.75, 1.0] and right[1:].tolist() == [1.0, 0.5, 1.0]
    assert math.isnan(sure[0])
    error = expected_calibration_error(p, labels, 4)
    assert error.item() == pytest.approx(0.25 * 0.5 + 0.5 * 0.25)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    chance = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(400):
        low, high = bootstrap_interval(torch.randn(60, generator=chance), 0.9, chance, 300)
        inside += low < 0 < high
    assert inside / 400 == pytest.approx(0.9, abs=0.06)  # four standard deviations


def test_pairs_are_subtracted_before_anything_is_drawn() -> None:
    scores = {"a1": 105.0, "b1": 104.0, "a2": -50.0, "b2": -51.0, "a3": 7.0, "b3": 6.0}
    pairs = [(f"a{k}", f"b{k}") for k in (1, 2, 3)]
    assert paired_prompt_bias(scores.__getitem__, pairs) == (1.0, (1.0, 1.0))


# --- the exercise and the study -------------------------------------------------------------------


def test_the_solution_is_the_package(root: Path) -> None:
    from autograder.checks import looking_inside as checks
    from course.kill_table import solved_namespace

    solved = solved_namespace(root, checks.ASSIGNMENT)
    model, ids = gpt(), torch.randint(31, (9,))
    assert torch.allclose(solved["logit_lens"](model, ids), logit_lens(model, ids), atol=1e-6)
    weights = attention_weights(model, ids[None])[1, 0]
    assert torch.allclose(solved["induction_score"](weights, 4), induction_score(weights, 4))
    logits: list[Tensor] = []
    for ablate in (ablate_heads, solved["ablate_heads"]):
        with ablate(model, [(0, 3), (0, 1)]):
            logits.append(model(ids[None])[0])
    assert torch.allclose(*logits, atol=1e-6)
    p, labels = torch.randn(50, 7).softmax(-1), torch.randint(7, (50,))
    errors = [
        float(error(p, labels, 6))
        for error in (expected_calibration_error, solved["expected_calibration_error"])
    ]
    assert errors[0] == pytest.approx(errors[1], abs=1e-6)
    pairs = [(str(k), str(k + 1)) for k in range(0, 30, 3)]
    found = [
        bias(lambda text: float(text) ** 2, pairs, 0.8, torch.Generator().manual_seed(1))
        for bias in (paired_prompt_bias, solved["paired_prompt_bias"])
    ]
    assert found[0] == found[1]


def test_the_grader_gives_the_solution_full_marks_and_names_a_mistake() -> None:
    from tests import submissions as s

    right = s.result_of(s.solved("looking_inside"), "looking_inside")
    assert set(s.points(right).values()) == {2.0, 3.0, 4.0} and right["score"] == 15
    stays = """
def ablate_heads(model, heads):
    class Never:
        def __enter__(self):
            for layer, head in heads:
                w = model.config.d_model // model.config.n_heads
                model.blocks[layer].attention.W_o.weight.data[:, head * w : head * w + w] = 0
        def __exit__(self, *ended):
            pass
    return Never()
"""
    wrong = s.result_of(s.solved("looking_inside", ablate_heads=stays), "looking_inside")
    named = {one["name"]: one["misconception"] for one in wrong["exercises"]}
    assert named["ablate_heads"] == "weights_stay_zero"
    assert s.points(wrong)["ablate_heads"] < 4 and s.points(wrong)["logit_lens"] == 3


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    path = Path(__file__).parent.parent / "book/_data/looking_inside.json"
    return json.loads(path.read_text("utf-8"))


def test_the_stored_model_is_the_one_that_was_measured(study: dict[str, Any], root: Path) -> None:
    model = load_model(root / "book/_data/models/induction").model
    size = (root / "book/_data/models/induction/model.safetensors").stat().st_size
    assert size <= 300_000
    rows = repeated(256, 16, 32, 26, torch.Generator().manual_seed(99))
    logits, maps = model(rows[:, :-1], need_weights=True)
    nll = cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")[:, 16:].mean()
    stored = study["induction"]["models"]["two"]["periods"]["16"]
    assert nll.item() == pytest.approx(stored["loss"], abs=0.02)
    score = induction_score(maps[1].mean(0, keepdim=True), 16).item()
    assert score == pytest.approx(stored["scores"][1], abs=0.01)


def test_the_study_counts_what_it_says(study: dict[str, Any]) -> None:
    two, one = (study["induction"]["models"][name]["runs"] for name in ("two", "one"))
    assert len(two) == 3
    assert max(run["curve"][-1]["loss"] for run in two) < one[0]["curve"][-1]["loss"] - 1
    heads = study["heads"]
    assert len(heads["zero"]) == len(heads["mean"]) == 16
    for one_head in heads["zero"].values():
        low, high = one_head["interval"]
        assert low < one_head["added"] < high
    for row in study["canaries"]["rows"]:
        assert 1 <= row["rank"] <= study["canaries"]["forms"]
    for condition in ("before", "refusing", "after benign tuning"):
        for counted in study["refusal"][condition].values():
            assert counted["refused"]["hits"] + counted["told"]["hits"] <= counted["told"]["n"]
