"""Chapter 14: tasks as text, labels, tuning, answers, preferences, the study."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from course.cli import main
from rnn2gpt.checkpoint import load_model, save_model
from rnn2gpt.data import DataError
from rnn2gpt.dpo import DPOConfig, DPOTrainer, dpo_loss, read_preferences, sample_preferences
from rnn2gpt.generation import generate
from rnn2gpt.gpt import GPT, GPTConfig
from rnn2gpt.instruct import (
    InstructConfig,
    InstructTrainer,
    answers,
    collate,
    encode_example,
    encode_prompt,
    encode_text,
    end_id,
    exact_match,
    judge,
    log_probabilities,
    response_loss,
    rouge_l,
)
from rnn2gpt.tasks import (
    NAMES,
    TASKS,
    Example,
    countries,
    ends_politely,
    load_tasks,
    without_closing,
)
from rnn2gpt.tokenizer import BPETokenizer, train_bpe

PAIRS = [
    ("Say red.", "red"), ("Say blue.", "blue"), ("Say green.", "green"), ("Say red again.", "no"),
]  # fmt: skip


@pytest.fixture
def tokenizer() -> BPETokenizer:
    return BPETokenizer(train_bpe("Say red. Say blue. Say green. Answer: red and blue", 280))


def small(tokenizer: BPETokenizer, block_size: int = 48) -> GPT:
    torch.manual_seed(3)
    sizes: Any = {"n_layers": 1, "n_heads": 2, "d_model": 16, "block_size": block_size}
    return GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes)).eval()


def rows_of(tokenizer: BPETokenizer) -> list[tuple[list[int], list[int]]]:
    return [encode_example(tokenizer, Example(prompt=p, response=r)) for p, r in PAIRS]


# --- tasks ----------------------------------------------------------------------------------------


def test_what_is_held_out_is_in_no_training_example() -> None:
    splits = load_tasks()
    text = "\n".join(f"{e.prompt} {e.response}" for e in splits["train"])
    seen = set(re.findall(r"\w+", text))
    known, unknown = countries()
    assert not {c.name for c in unknown} & seen
    places = {place for c in unknown for place in c.places}
    assert not (places - {place for c in known for place in c.places}) & seen
    assert {name for i, name in enumerate(NAMES) if i % 4 == 3}.isdisjoint(seen)
    prompts = {e.prompt for e in splits["train"]}
    for name, examples in splits.items():
        if name not in ("train", "validation"):
            assert not prompts & {e.prompt for e in examples}, name
            assert len(examples) == 100
    assert Counter(e.task for e in splits["train"]) == {task: 4000 for task in TASKS}


def test_every_answer_follows_from_its_prompt() -> None:
    splits = load_tasks()
    truth = {p: c for part in countries() for c in part for p in c.places}
    for name in ("lookup", "lookup, held out", "lookup, swapped"):
        for e in splits[name]:
            place = e.prompt.rsplit("Where is ", 1)[1].rstrip("?")
            assert f"{place} is in {e.response}." in e.prompt
            assert (truth[place].name == e.response) is ("swapped" not in name)
    for e in splits["two-hop"] + splits["two-hop, held out"]:
        place = e.prompt.rsplit("What does ", 1)[1].removesuffix(" use?")
        country = re.search(rf"\b{place} is in (\w+)\.", e.prompt)
        assert country and f"{country[1]} uses {e.response}." in e.prompt
    for e in splits["headline"] + splits["headline, held out"]:
        goals = Counter(re.findall(r"\d+ goal (\w+)", e.prompt))
        one, verb, two, score = re.fullmatch(r"(\w+) (.+) (\w+) (.+)", e.response).groups()  # type: ignore[union-attr]
        assert score == f"{goals[one]}-{goals[two]}"
        assert verb == ("beats" if goals[one] > goals[two] else "draws with")
    assert load_tasks() == splits


def test_politeness_is_a_rule_that_can_be_verified() -> None:
    assert ends_politely("Good day. I thank you.\n") and not ends_politely("I thank you, sir.")
    assert without_closing("Good day. God keep you.") == "Good day."
    talk = [e.response for e in load_tasks()["train"] if e.task == "talk"]
    assert 0.25 < sum(map(ends_politely, talk)) / len(talk) < 0.35


def test_own_examples_are_read_and_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": str(i), "response": "a"}) + "\n" for i in range(20))
    )
    splits = load_tasks(data_file=path)
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 16, "validation": 2, "own": 2,
    }  # fmt: skip
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": 3, "response": "b"}\n')
    with pytest.raises(DataError, match=r"mine\.jsonl, line 2: .* prompt, response"):
        load_tasks(data_file=path)
    path.write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(DataError, match="1 examples: too few"):
        load_tasks(data_file=path)
    with pytest.raises(DataError, match=r"line 1: .* prompt, chosen, rejected"):
        read_preferences(path)


# --- labels and loss ------------------------------------------------------------------------------


def test_only_the_answer_and_its_end_count(tokenizer: BPETokenizer) -> None:
    model, (ids, labels) = small(tokenizer), rows_of(tokenizer)[0]
    n = len(encode_prompt(tokenizer, "Say red."))
    assert labels[:n] == [-100] * n and ids[n:] == labels[n:] and ids[-1] == end_id(tokenizer)
    assert tokenizer.decode(ids[:-1]) == "Say red.\nAnswer: red"
    log_p = model(torch.tensor([ids]))[0][0].log_softmax(-1)
    by_hand = [-log_p[t - 1, ids[t]] for t in range(n, len(ids))]
    loss = response_loss(model, torch.tensor([ids]), torch.tensor([labels]))
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)


def test_padding_changes_nothing_even_when_it_is_the_end(tokenizer: BPETokenizer) -> None:
    model, rows = small(tokenizer), rows_of(tokenizer)
    alone = torch.cat([log_probabilities(model, [row], 0) for row in rows])
    for pad_id in (0, end_id(tokenizer)):
        assert torch.allclose(log_probabilities(model, rows, pad_id), alone, atol=1e-4)
    ids, labels, mask = collate(rows, end_id(tokenizer))
    total = sum(sum(label != -100 for label in row) for _, row in rows)
    loss = response_loss(model, ids, labels)
    assert loss.item() == pytest.approx(-alone.sum().item() / total, rel=1e-5)
    assert mask.sum().item() == sum(len(row) for row, _ in rows)


def test_the_end_is_a_token_of_every_tokenizer(tokenizer: BPETokenizer) -> None:
    assert tokenizer.decode([end_id(tokenizer)]) == "\x03"
    special = BPETokenizer(tokenizer.merges, ("<|endoftext|>",))
    assert end_id(special) == special.vocab_size - 1


def test_a_text_is_an_example_without_a_prompt() -> None:
    rows = encode_text(torch.arange(50), 7, 5)
    assert len(rows) == 5
    assert all(ids == labels and len(ids) == 7 and ids[0] + 6 == ids[-1] for ids, labels in rows)


def test_the_solution_is_the_package(root: Path) -> None:
    from autograder.checks import load
    from course.kill_table import solved_namespace

    solved = solved_namespace(root, load("instruction_tuning"))
    rows = [([1, 2, 3], [-100, 2, 3]), ([4], [4])]
    for one, other in zip(solved["collate"](rows, 3), collate(rows, 3), strict=True):
        assert torch.equal(one, other)
    sums: Any = torch.randn(4, 5)
    right = dpo_loss(sums[0], sums[1], sums[2], sums[3], 0.3)
    assert torch.equal(solved["dpo_loss"](*sums, 0.3), right)
    for pair in (("The  Pound.", "pound"), ("the-crown", "crown"), ("a.m.", "AM")):
        assert solved["exact_match"](*pair) is exact_match(*pair)


# --- training and asking --------------------------------------------------------------------------


def trainer(tokenizer: BPETokenizer, out: Path | None = None, steps: int = 150) -> InstructTrainer:
    config = InstructConfig(
        steps=steps, batch_size=4, warmup_steps=2, learning_rate=2e-2, device="cpu"
    )
    rows = rows_of(tokenizer)
    return InstructTrainer(config, small(tokenizer).config, tokenizer, rows, rows, out)


def test_a_run_learns_its_answers_and_its_folder_knows_how_to_ask(
    tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    result = trainer(tokenizer, tmp_path).run()
    assert result.validation_nats is not None and result.validation_nats < 0.3
    loaded = load_model(tmp_path)
    assert loaded.info["template"] == "{prompt}\nAnswer:" and loaded.info["end_id"] == 3
    assert answers(loaded.model, tokenizer, [p for p, _ in PAIRS]) == [r for _, r in PAIRS]
    told = CliRunner().invoke(
        main, ["generate", str(tmp_path), "--prompt", "Say blue.", "--temperature", "0"]
    )
    assert told.output == "Say blue.\nAnswer: blue\n"
    silent = CliRunner().invoke(main, ["generate", str(tmp_path)])
    assert silent.exit_code and "give it a --prompt" in silent.output


def test_a_run_that_stops_resumes_exactly(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    whole = trainer(tokenizer, steps=6)
    whole.run()
    first = trainer(tokenizer, tmp_path, steps=6)
    for _ in range(4):
        first.train_step()
    first._save(None)
    second = trainer(tokenizer, tmp_path, steps=6)
    second.resume()
    second.run()
    assert second.step == 6 and second.tokens == whole.tokens
    now = second.model.state_dict()
    assert all(torch.equal(weight, now[n]) for n, weight in whole.model.state_dict().items())


def test_an_epoch_takes_every_example_once(tokenizer: BPETokenizer) -> None:
    run = trainer(tokenizer)
    run.rows = rows = run.rows * 5
    run.counts = run.counts.repeat(5)
    taken = Counter()  # type: Counter[int]
    for step in range(len(rows) // 4):
        run.step = step
        taken.update(run.picked())
    assert taken == {i: 1 for i in range(len(rows))}


def test_examples_that_do_not_fit_are_left_out(tokenizer: BPETokenizer) -> None:
    long = encode_example(tokenizer, Example(prompt="x" * 60, response="y"))
    rows, config = rows_of(tokenizer), InstructConfig(steps=1, device="cpu")
    run = InstructTrainer(config, small(tokenizer).config, tokenizer, [*rows, long], rows)
    assert len(run.rows) == len(rows)
    with pytest.raises(ValueError, match="No example fits into the model's window of 48"):
        InstructTrainer(config, small(tokenizer).config, tokenizer, [long], rows)
    with pytest.raises(ValueError, match="no accumulate"):
        InstructConfig(steps=1, accumulate=2)


def test_rows_that_have_ended_stay_ended(tokenizer: BPETokenizer) -> None:
    model, prompt = small(tokenizer), torch.tensor([[5, 6], [7, 8], [9, 1]])
    free = generate(model, prompt, 12, generator=torch.Generator().manual_seed(1))
    end = int(free[0, 4])
    text = generate(model, prompt, 12, generator=torch.Generator().manual_seed(1), end_id=end)
    row = text[0, 2:].tolist()
    assert set(row[row.index(end) :]) == {end}
    assert torch.equal(text[:, :5], free[:, :5])
    assert generate(model, prompt[:1], 12, temperature=0, end_id=None).shape == (1, 14)
    likely = int(generate(model, prompt[:1], 1, temperature=0)[0, -1])
    assert generate(model, prompt[:1], 12, temperature=0, end_id=likely).shape == (1, 3)


def test_answers_together_are_answers_alone(tokenizer: BPETokenizer) -> None:
    model, prompts = small(tokenizer), [p for p, _ in PAIRS]
    together = answers(model, tokenizer, prompts, max_tokens=6)
    assert together == [answers(model, tokenizer, [p], max_tokens=6)[0] for p in prompts]


def test_judging_is_by_the_libraries() -> None:
    assert exact_match("The  Pound.", "pound") and not exact_match("two pounds", "pound")
    assert rouge_l(["peru beats norway 2-1"], ["peru beats norway 2-0"]) == pytest.approx(80.0)
    examples = [Example(prompt="", response="七十三", task="numbers")] * 2
    scores = judge(["七十三", "七十三"], examples)
    assert scores["exact"] == 1 and scores["n"] == 2 and "bleu" in scores
    polite = [Example(prompt="", response="Good day.", task="talk")]
    assert judge(["Good day. I thank you."], polite)["exact"] == 1


# --- preferences ----------------------------------------------------------------------------------


def test_dpo_is_the_published_loss_with_its_gradient() -> None:
    sums: Any = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    loss = dpo_loss(sums[0], sums[1], sums[2], sums[3], 0.7)
    margin = (sums[0] - sums[2]) - (sums[1] - sums[3])
    assert torch.allclose(loss, -F.logsigmoid(0.7 * margin).mean())
    loss.backward()
    push = -0.7 * torch.sigmoid(-0.7 * margin) / 5
    assert sums[0].grad is not None and torch.allclose(sums[0].grad, push)
    far = torch.tensor([-9000.0])
    assert dpo_loss(far, -far, far * 0, far * 0, 1.0).item() == 18000


def test_a_preference_run_starts_at_ln_2_and_widens_the_margin(tokenizer: BPETokenizer) -> None:
    reference = small(tokenizer)
    pairs = [(p, "no red", "blue") for p, _ in PAIRS]
    config = DPOConfig(steps=8, batch_size=2, learning_rate=3e-3, device="cpu")
    run = DPOTrainer(config, reference, tokenizer, pairs, pairs[:2])
    assert run.validate() == pytest.approx(math.log(2), abs=1e-5)
    run.run()
    assert run.validate() < 0.6
    assert len({tuple(run.picked()) for run.step in range(2)}) == 2
    before = {name: weight.clone() for name, weight in small(tokenizer).state_dict().items()}
    assert all(torch.equal(w, before[n]) for n, w in reference.state_dict().items())
    with pytest.raises(ValueError, match="longer than the model's window of 48"):
        DPOTrainer(config, reference, tokenizer, [("x" * 60, "a", "b")], pairs)


def test_sampled_pairs_are_what_the_rule_says(tokenizer: BPETokenizer) -> None:
    def rule(text: str) -> bool:
        return len(text) % 2 == 0

    pairs = sample_preferences(small(tokenizer), tokenizer, [p for p, _ in PAIRS], rule, seed=1)
    assert pairs
    assert all(rule(chosen) and not rule(rejected) for _, chosen, rejected in pairs)


# --- the verb -------------------------------------------------------------------------------------


def test_instruct_teaches_a_checkpoint_and_prefers(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    model = small(tokenizer)
    save_model(tmp_path / "base", "gpt", model.config, model.state_dict(), tokenizer)
    data, wanted = tmp_path / "mine.jsonl", tmp_path / "wanted.jsonl"
    data.write_text("".join(
        json.dumps({"prompt": p, "response": r}) + "\n" for p, r in PAIRS * 5
    ))  # fmt: skip
    wanted.write_text("".join(
        json.dumps({"prompt": p, "chosen": "red", "rejected": "blue"}) + "\n" for p, _ in PAIRS * 3
    ))  # fmt: skip
    call = [
        "instruct",
        "--pretrained",
        str(tmp_path / "base"),
        "--data",
        str(data),
        "--device",
        "cpu",
    ]
    call += ["--out", str(tmp_path / "run"), "--steps", "3"]
    extra = ["--dpo", "--preferences", str(wanted), "--dpo-steps", "2", "--json"]
    told = CliRunner().invoke(main, call + extra)
    assert told.exit_code == 0, told.output
    result: dict[str, Any] = json.loads(told.stdout)
    assert result["step"] == 3 and result["tests"]["own"]["n"] == 2
    assert result["dpo"]["step"] == 2 and result["dpo"]["pairs"] == 11
    asked = [result["folder"], "--prompt", "Say red.", "--tokens", "3"]
    assert CliRunner().invoke(main, ["generate", *asked]).exit_code == 0
    again = CliRunner().invoke(main, call)
    assert again.exit_code and "holds a model already" in again.output


def test_instruct_says_what_is_wrong(tokenizer: BPETokenizer, tmp_path: Path, root: Path) -> None:
    def says(*call: str) -> str:
        told = CliRunner().invoke(main, ["instruct", *call, "--out", str(tmp_path / "run")])
        assert told.exit_code
        return " ".join(told.output.split())

    models = root / "book/_data/models"
    assert "--beta goes with --dpo" in says("--beta", "1")
    assert "--preferences goes with --dpo" in says("--preferences", "x")
    assert "holds no safetensors" in says("--pretrained", str(tmp_path))
    assert "holds a rnn; a fine-tuned model starts from" in says(
        "--pretrained", str(models / "rnn")
    )
    assert "none.jsonl" in says("--data", str(tmp_path / "none.jsonl"))


# --- the study ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(root: Path) -> dict[str, Any]:
    path = root / "book/_data/instruction_tuning.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_study_counts_what_it_shows(study: dict[str, Any]) -> None:
    assert set(study["runs"]) == {"base", "scratch", "tuned", "replay"}
    for name, run in study["runs"].items():
        for test, row in run["tests"].items():
            low, high = row["interval"]
            assert low <= row["exact"] <= high
            assert row["exact"] * row["n"] == pytest.approx(
                study["kinds"][name][test].get("right", 0)
            )
            for s in row["samples"]:
                texts = without_closing(s["answer"]), without_closing(s["reference"])
                assert exact_match(*texts) is s["right"]
    for row in study["preferences"]["betas"].values():
        assert row["curve"][0]["loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_the_stored_model_answers_as_the_study_says(study: dict[str, Any], root: Path) -> None:
    loaded = load_model(root / "book/_data/models/small-instruct")
    tests = study["runs"]["replay"]["tests"]
    samples = [s for name in ("dates", "lookup", "talk") for s in tests[name]["samples"][:4]]
    given = answers(loaded.model, loaded.tokenizer, [s["prompt"] for s in samples])
    same = sum(text == s["answer"] for text, s in zip(given, samples, strict=True))
    assert same >= len(samples) - 1  # a tie may fall the other way on another machine
    weights = root / "book/_data/models/small-instruct/model.safetensors"
    assert weights.stat().st_size <= 2_000_000
