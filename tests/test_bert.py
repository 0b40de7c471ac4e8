"""Chapter 12: the encoder against `transformers`, masking, pseudo-likelihood, the study."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autograder.child import stand_ins
from rnn2gpt.bert import (
    BertConfig,
    BertForMaskedLM,
    load_bert_state_dict,
    mask_tokens,
    pseudo_log_likelihood,
)
from rnn2gpt.checkpoint import load_model
from rnn2gpt.data import load_text

SIZES = {"vocab_size": 101, "block_size": 33, "n_layers": 3, "n_heads": 4, "d_model": 48}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


# --- the model ------------------------------------------------------------------------------------


def bert() -> tuple[nn.Module, BertForMaskedLM]:
    """A `transformers` BERT with random weights, and ours of its size."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=101, max_position_embeddings=33, num_hidden_layers=3, hidden_size=48,
            num_attention_heads=4, intermediate_size=192,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms that show
    return theirs, BertForMaskedLM(BertConfig(**SIZES)).eval()


def test_berts_weights_give_berts_logits() -> None:
    theirs, ours = bert()
    load_bert_state_dict(ours, theirs.state_dict())
    ids, types = torch.randint(101, (2, 33)), torch.randint(2, (2, 33))
    real = torch.arange(33) < torch.tensor([[33], [20]])
    assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-4)
    right = theirs(ids, attention_mask=real.long(), token_type_ids=types).logits
    assert torch.allclose(ours(ids, real, types)[real], right[real], atol=1e-4)
    assert ours.decoder.weight is ours.token_embedding.weight


def test_weights_that_do_not_fit_are_named() -> None:
    theirs, ours = bert()
    weights = dict(theirs.state_dict())
    pooler = {"bert.pooler.dense.weight": torch.zeros(48, 48), "cls.seq_relationship.bias": 0}
    load_bert_state_dict(ours, weights | pooler)  # parts that have no use here
    with pytest.raises(ValueError, match=r"No place .* for extra"):
        load_bert_state_dict(ours, weights | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="do not fit"):
        load_bert_state_dict(ours, weights | {"cls.predictions.bias": torch.zeros(7)})
    del weights["bert.encoder.layer.1.output.dense.weight"]
    with pytest.raises(ValueError, match=r"lack bert\.encoder\.layer\.1\.output\.dense\.weight"):
        load_bert_state_dict(ours, weights)


def test_every_token_reads_both_sides_and_no_padding() -> None:
    model = BertForMaskedLM(BertConfig(**SIZES)).eval()
    ids = torch.randint(101, (1, 9))
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 101
    apart = (model(changed) - model(ids)).abs().amax(dim=-1)[0]  # (T,)
    assert (apart > 1e-5).all()
    real = torch.arange(9) < 6
    padded = torch.where(real, ids, 0)
    assert torch.allclose(model(ids[:, :6]), model(padded, real[None])[:, :6], atol=1e-6)


def test_bert_starts_at_chance_and_refuses_what_does_not_fit() -> None:
    model = BertForMaskedLM(BertConfig(**SIZES)).eval()
    ids = torch.randint(101, (2, 8, 33))
    loss = nn.functional.cross_entropy(model(ids[0]).flatten(0, 1), ids[1].flatten())
    assert loss.item() == pytest.approx(math.log(101), abs=0.3)
    with pytest.raises(ValueError, match="34 tokens are longer than block_size=33"):
        model(torch.zeros(1, 34, dtype=torch.long))
    with pytest.raises(ValueError, match="n_heads=5"):
        BertConfig(**(SIZES | {"n_heads": 5}))


def test_predicting_where_asked_is_predicting_everywhere() -> None:
    model = BertForMaskedLM(BertConfig(**SIZES)).eval()
    ids = torch.randint(101, (3, 12))
    _, labels = mask_tokens(ids, 1, 101, (0, 1))
    asked = labels != -100
    assert torch.allclose(model.predict(model.encode(ids)[asked]), model(ids)[asked], atol=1e-5)


def test_the_solution_is_the_package(root: Path) -> None:
    from autograder.checks import load
    from course.kill_table import solved_namespace

    solved = solved_namespace(root, load("bert"))
    theirs = solved["BertForMaskedLM"](solved["BertConfig"](**SIZES)).eval()
    ours = BertForMaskedLM(BertConfig(**SIZES, norm_eps=1e-5)).eval()
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(101, (2, 17))
    assert torch.allclose(ours(ids), theirs(ids), atol=1e-6)
    one, two = (
        f(ours, ids[0], 3) for f in (pseudo_log_likelihood, solved["pseudo_log_likelihood"])
    )
    assert one == pytest.approx(two, rel=1e-5)


def test_the_stand_in_has_the_fields_of_the_config() -> None:
    def defaults(kind: type) -> dict[str, Any]:
        return {field.name: field.default for field in fields(kind) if field.name != "norm_eps"}

    assert defaults(stand_ins.BertConfig) == defaults(BertConfig)


@pytest.mark.parametrize("mistake", ["labels_zero", "relu", "raw_logits"])
def test_a_mistake_can_be_written_down_as_a_students_cell(mistake: str) -> None:
    from autograder.checks.bert import ASSIGNMENT
    from course.sample_class import mistaken

    exercise = next(e for e in ASSIGNMENT.exercises for m in e.misconceptions if m.name == mistake)
    source = mistaken(ASSIGNMENT, exercise.name, mistake)
    assert "_mistake" not in source and "did" not in source
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    assert callable(namespace[exercise.name])


# --- masking and scoring --------------------------------------------------------------------------


def test_masks_fall_as_often_as_they_should() -> None:
    ids = torch.randint(10, 60, (400, 100))
    inputs, labels = mask_tokens(ids, 3, 60, (0, 3), generator=torch.Generator().manual_seed(0))
    asked = labels != -100
    assert torch.equal(inputs[~asked], ids[~asked]) and torch.equal(labels[asked], ids[asked])
    n = int(asked.sum())
    assert n / ids.numel() == pytest.approx(0.15, abs=0.01)
    assert int((inputs == 3).sum()) / n == pytest.approx(0.8, abs=0.03)
    replaced = inputs[asked & (inputs != ids) & (inputs != 3)]
    assert len(replaced) / n == pytest.approx(0.1, abs=0.02)
    assert set(replaced.tolist()) == set(range(60)) - {0, 3}


def exact(joint: Tensor) -> Callable[[Tensor], Tensor]:
    """A model that knows a joint distribution over two tokens of V, and masks by the id V."""
    v = len(joint)

    def model(rows: Tensor) -> Tensor:
        logits = torch.zeros(*rows.shape, v + 1).fill_(-math.inf)
        for b, (x, y) in enumerate(rows.tolist()):
            logits[b, 0, :v] = (joint[:, y] if y < v else joint.sum(1)).log()
            logits[b, 1, :v] = (joint[x] if x < v else joint.sum(0)).log()
        return logits

    return model


def test_pseudo_likelihoods_do_not_sum_to_one() -> None:
    joint = torch.tensor([[0.5, 0.0], [0.0, 0.5]])  # the second token repeats the first
    scores = [pseudo_log_likelihood(exact(joint), torch.tensor([t, t]), 2) for t in range(2)]
    assert scores == [0.0, 0.0]  # each is sure given the other: e⁰ + e⁰ = 2
    apart = torch.outer(torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.4]))
    pairs = itertools.product(range(2), repeat=2)
    total = sum(
        math.exp(pseudo_log_likelihood(exact(apart), torch.tensor(pair), 2)) for pair in pairs
    )
    assert total == pytest.approx(1.0)  # independent tokens are the exception


# --- the study ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("bert", root / "benchmarks" / "bert.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small(study: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any, Path]:
    """The study on a piece of text, and the model that it stored."""
    folder = tmp_path_factory.mktemp("bert")
    text = study.Text(load_text()[:150_000], 256)
    made = study.study(text, 6, folder / "small-bert", scale=0.02, keep=folder)
    return study, text, made, folder


def test_the_study_measures_what_the_page_shows(root: Path, small: Any) -> None:
    study, _, made, _ = small
    stored = json.loads((root / "book/_data/bert.json").read_text("utf-8"))
    assert set(made) == set(stored) and stored["command"] == study.COMMAND

    def keys(content: Any) -> Any:
        if isinstance(content, dict):
            return {k: keys(v) for k, v in content.items() if not k.isdigit()}
        # A list is as its first entry; an example may be missing in so short a run.
        return keys(content[0]) if isinstance(content, list) and content else None

    for part in ("models", "fill", "reading", "probe", "order", "writing", "seeds", "positions"):
        assert keys(made[part]) == keys(stored[part]), part
    gpt, bert = (stored["models"][name] for name in ("gpt", "bert"))
    assert bert["tokens"] == gpt["tokens"]
    assert bert["parameters"] == pytest.approx(gpt["parameters"], rel=0.05)


def test_the_stored_model_is_the_one_that_was_judged(root: Path) -> None:
    loaded = load_model(root / "book/_data/models/small-bert")
    stored = json.loads((root / "book/_data/bert.json").read_text("utf-8"))
    assert isinstance(loaded.model, BertForMaskedLM)
    assert sum(p.numel() for p in loaded.model.parameters()) == loaded.info["parameters"]
    assert loaded.tokenizer.vocab_size == stored["vocab_size"] == loaded.model.config.vocab_size
    assert loaded.info["command"] == stored["command"]


def test_trying_every_token_is_bayes(small: Any) -> None:
    """log p(token | both sides) by GPT, against whole sequences scored one by one."""
    study, text, _, folder = small
    gpt, _ = study.train("gpt", text, 6, folder)  # kept: it is read, not trained
    window = study.holes(text, 3)[1:2]
    found = study.fill_by_trying(gpt, text, window)[0]
    tried = window.repeat(text.tokenizer.vocab_size, 1)
    tried[:, study.HOLE] = torch.arange(len(tried))
    with torch.no_grad():
        log_p = gpt(tried[:, :-1])[0].log_softmax(dim=-1)
    whole = log_p.gather(2, tried[:, 1:, None]).sum(dim=(1, 2))
    assert torch.allclose(found, whole.log_softmax(dim=0), atol=1e-4)


def test_places_are_told_by_nothing_but_words(study: Any) -> None:
    said = (
        "KENT:\nNow is the winter of our discontent,\nMade glorious summer; by this Sun of York.\n"
    )
    found = dict(study.between_words(f"{said}\nFOOL:\nAnd all the clouds.\n"))
    assert all(len(w) == study.WINDOW and w[study.HOLE] == " " for w in found)
    assert set("".join(found)) <= set("abcdefghijklmnopqrstuvwxyz ")  # no mark, capital, speaker
    marked = [w[: study.HOLE].split(" ")[-1] for w, label in found.items() if label]
    assert marked == ["discontent", "summer", "york"]
    assert study.neighbors(next(w for w in found if found[w])) == "before=discontent behind=made"
    windows, labels = study.balanced(said * 5, 6)
    assert len(windows) == 6 and labels.sum() == 3


def test_training_goes_on_from_where_it_stood(study: Any, tmp_path: Path) -> None:
    text = study.Text(load_text()[:20_000], 256)
    whole, facts = study.train("bert", text, 4)
    with pytest.raises(SystemExit, match="stands at step 0 of 4"):
        study.train("bert", text, 4, tmp_path, seconds=0)
    while True:
        try:
            pieces, again = study.train("bert", text, 4, tmp_path, seconds=0)
            break
        except SystemExit:
            pass
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, pieces.state_dict()[name]), name
    assert [p["nats"] for p in facts["curve"]] == [p["nats"] for p in again["curve"]]


def test_hiding_the_rest_of_the_word_as_well(study: Any) -> None:
    """Rows of 'a bc': a; the space; b and c; c. In between stand [CLS] and [SEP]."""
    text = study.Text(load_text()[:20_000], 256)
    asked: list[Tensor] = []

    class Model:
        def encode(self, rows: Tensor) -> Tensor:
            asked.append(rows)
            return torch.zeros(*rows.shape, 3)

        def predict(self, hidden: Tensor) -> Tensor:
            return torch.zeros(len(hidden), 8)

    ids = torch.tensor(text.tokenizer.encode("a bc")) % 8
    text.decode = lambda _: "a bc"
    score = study.log_likelihood_by_words(Model(), text, ids)
    assert score == pytest.approx(4 * -math.log(8))
    hidden = [(row == text.mask).nonzero().flatten().tolist() for row in asked[0]]
    assert hidden == [[1], [2], [3, 4], [4]]
