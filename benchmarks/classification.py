"""What pretraining is worth to a classifier, and what each way of fine-tuning costs.

    python benchmarks/classification.py    # writes book/_data/classification.json

Some 25 minutes of processor time on one core of a busy AMD EPYC. `--part NAME` measures one part
anew and leaves the others as they are stored; `rates` and `curve` start from the model that
`further` keeps in `--keep`. `rates` also writes the classifier that the page asks,
`book/_data/models/film-classifier`.

    words     majority and TF-IDF with logistic regression, English and Chinese; and what the
              Chinese texts' doubles do to a test that is split before they are taken out
    tokens    how many tokens a text takes with the small GPT's English byte pairs
    further   the small GPT reads the film sentences of the training part, without their labels
    rates     all labels, for every start and method: from scratch, from the small GPT, from the one
              that `further` made; head, last block, all weights, LoRA. On the same batches, some
              with several peak rates, among which the validation texts choose
    curve     the same with fewer labels, all weights trained
    costs     seconds and memory of a step of each method
    optimizers  AdamW in Muon's place, from the small GPT on 2,000 labels
    chinese   the small GPT with its English byte pairs, the same from scratch, and a network of
              its size from scratch with byte pairs that were learned from Chinese
    entities  token classification on generated sentences, causal and reading both sides, names
              seen and held out, and a dictionary of the training names

Accuracies are those of the last step on 2,000 test texts, with Wilson's interval. Seconds are
processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn

from course.ladder import machine
from rnn2gpt.checkpoint import Checkpoint, load_model, read_json, save_model, write_json
from rnn2gpt.classifier import (
    OURS,
    ClassificationConfig,
    ClassificationTrainer,
    accuracy,
    classifier_config,
    encode,
    predict,
    wilson,
)
from rnn2gpt.entities import TAGS, entities, entity_f1, sentences, split_names
from rnn2gpt.finetune import TokenClassifier, build_classifier, choose, trained_parameters
from rnn2gpt.gpt import GPT
from rnn2gpt.optim import cosine_schedule, parameter_groups
from rnn2gpt.sentiment import LABELS, LabeledTexts, distinct, load_examples, majority
from rnn2gpt.sentiment import _load as all_lines  # doubles included
from rnn2gpt.tokenizer import BPETokenizer, train_bpe
from rnn2gpt.training import Trainer, TrainingConfig

OUT = Path("book/_data/classification.json")
MODELS = Path("book/_data/models")
COMMAND = "python benchmarks/classification.py"
WINDOW, BATCH = 128, 16
EPOCHS = {500: 4, 2000: 3, 8066: 2}  # by the number of labels

ALL = max(EPOCHS)

# The optimizer of each start and method, and the peak rates that are tried. Where there is one, it
# comes from short trials on 2,000 labels, some of which were judged on test texts too.
GRID: dict[str, tuple[str, Sequence[float]]] = {
    "films head": ("adamw", (1e-2,)),
    "films lora": ("adamw", (6e-4, 1.7e-3, 5e-3, 1.5e-2)),
    "films last-block": ("muon", (1.3e-3, 4e-3, 1.2e-2)),
    "films all": ("muon", (4e-3,)),
    "scratch all": ("adamw", (3e-4, 1e-3, 3e-3)),
    "plays all": ("muon", (4e-3,)),
}
# By start, for 2,000 labels and fewer: from the same short trials.
FEW = {"scratch": ("adamw", 1e-3), "plays": ("muon", 4e-3), "films": ("muon", 4e-3)}


class Plan:
    """What is run, how much of it, and where it goes. `scale` below 1 is for tests."""

    def __init__(
        self,
        out: Path,
        keep: Path,
        seeds: Sequence[int] = (0,),
        only: Sequence[str] = (),
        scale: float = 1.0,
    ) -> None:
        self.out, self.keep, self.scale = out, keep, scale
        self.seeds, self.only = list(seeds), list(only)

    def wants(self, name: str) -> bool:
        return not self.only or name in self.only

    def some(self, n: int) -> int:
        return n if self.scale == 1 else max(40, round(self.scale * n))

    def keep_partial(self, part: str, found: dict[str, Any]) -> None:
        """What was measured so far, beside what is stored; a start's rows replace its old ones."""
        stored = read_json(self.out) if self.out.exists() else {}
        old = stored.get(part, {}) if part in ("rates", "curve", "chinese") else {}
        stored |= {part: old | found, "command": COMMAND, "machine": machine()}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        new = self.out.with_suffix(f".{os.getpid()}")
        write_json(new, stored)
        os.replace(new, self.out)


def chosen(plan: Plan, kind: str) -> tuple[str, float]:
    """Optimizer and peak rate of the run of a kind with the lowest loss on the validation texts."""
    trials = read_json(plan.out)["rates"]
    rows = [row for key, row in trials.items() if key.startswith(f"{kind} ")]
    best = min(rows, key=lambda row: row["validation_nats"])
    return best["optimizer"], best["learning_rate"]


class Timer:
    """Processor seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.process_time()

    def __call__(self) -> float:
        return time.process_time() - self.began


def share(hits: float, n: int) -> dict[str, Any]:
    low, high = wilson(hits, n)
    return {"accuracy": hits, "low": low, "high": high, "n": n}


def small_gpt() -> Checkpoint:
    return load_model(MODELS / "small-gpt")


# --- baselines ------------------------------------------------------------------------------------


def by_words(train: Sequence[tuple[str, int]], test: Sequence[tuple[str, int]], zh: bool) -> float:
    """TF-IDF and logistic regression: words and pairs of words, or characters and pairs of them."""
    grams = {"analyzer": "char"} if zh else {}
    model = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), **grams),
        LogisticRegression(C=10, max_iter=500),
    )
    model.fit(*zip(*train, strict=True))
    return float(model.score(*zip(*test, strict=True)))


def study_words(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for task in ("sentiment", "sentiment-zh"):
        texts, zh = load_examples(task), task.endswith("zh")
        n = len(texts.test)
        common = majority(texts.train)
        curve = {}
        for labels in [*EPOCHS, len(texts.train)]:
            hits = by_words(texts.train[: plan.some(labels)], texts.test, zh)
            curve[str(labels)] = share(hits, n)
        found[task] = {
            "train": len(texts.train),
            "validation": len(texts.validation),
            "test": n,
            "majority": share(sum(label == common for _, label in texts.test) / n, n),
            "curve": curve,
        }
    lines = all_lines("sentiment-zh")
    mixed = lines[:]
    random.Random(13).shuffle(mixed)
    test, train = mixed[:2000], mixed[2500 : 2500 + plan.some(len(mixed))]
    known = {text for text, _ in train}
    found["doubles"] = {
        "lines": len(lines),
        "texts": len({text for text, _ in lines}),
        "distinct": len(distinct(lines)),
        "seen": sum(text in known for text, _ in test) / len(test),
        "leaked": share(by_words(train, test, True), len(test)),
    }
    return found


def study_tokens(plan: Plan) -> dict[str, Any]:
    tokenizer, found = small_gpt().tokenizer, dict[str, Any]()
    chinese = chinese_pairs(plan)
    for task, name, bpe in (
        ("sentiment", "plays", tokenizer),
        ("sentiment-zh", "plays", tokenizer),
        ("sentiment-zh", "chinese", chinese),
    ):
        texts = [text for text, _ in load_examples(task).train[: plan.some(2000)]]
        counts = torch.tensor([len(bpe.encode(text)) for text in texts]).double()
        found[f"{task} {name}"] = {
            "vocabulary": bpe.vocab_size,
            "tokens": counts.mean().item(),
            "characters": sum(map(len, texts)) / len(texts),
            "cut": (counts > WINDOW).double().mean().item(),
        }
    return found


def chinese_pairs(plan: Plan) -> BPETokenizer:
    """4,096 byte pairs of 3,000 Chinese training texts."""
    texts = [text for text, _ in load_examples("sentiment-zh").train[: plan.some(3000)]]
    return BPETokenizer(train_bpe("\n".join(texts), 4096 if plan.scale == 1 else 600))


# --- classifiers ----------------------------------------------------------------------------------


def finetune(
    plan: Plan,
    texts: LabeledTexts,
    start: Checkpoint,
    epochs: float,
    rate: tuple[str, float],
    method: str = "all",
    scratch: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Any], ClassificationTrainer]:
    """Train, and judge on the test texts."""
    steps = max(2, round(epochs * plan.scale * (len(texts.train) // BATCH)))
    optimizer, learning_rate = rate
    config = ClassificationConfig(
        method=method,
        optimizer=optimizer,
        steps=steps,
        batch_size=BATCH,
        block_size=WINDOW,
        learning_rate=learning_rate,
        warmup_steps=steps // 10,
        evaluate_every=10**9,
        seed=seed,
        device="cpu",
    )
    sizes = classifier_config(start.model.config, texts.labels, method, 8, 16.0, 0.1)
    began = Timer()
    trainer = ClassificationTrainer(
        config, sizes, start.tokenizer, texts, start=None if scratch else start.model
    )
    result = trainer.run()
    seconds = began()
    test = texts.test[: plan.some(len(texts.test))]
    ids, labels = zip(*encode(start.tokenizer, test, WINDOW), strict=True)
    hits = accuracy(predict(trainer.model, ids), labels)
    row = {
        "labels": len(texts.train),
        "steps": steps,
        "tokens": result.tokens,
        "seconds": seconds,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "seed": seed,
        "trained": trained_parameters(trainer.model),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "validation_nats": result.validation_nats,
        **share(hits, len(test)),
    }
    print(method, *rate, seed, len(texts.train), f"{hits:.4f} {seconds:.0f} s", flush=True)
    return row, trainer


def study_further(plan: Plan) -> dict[str, Any]:
    """One pass over the film sentences as one text, at half of the small GPT's peak rate."""
    start, texts = small_gpt(), load_examples("sentiment")
    both = ("\n".join(t for t, _ in part) for part in (texts.train, texts.validation))
    ids, held_out = (torch.tensor(start.tokenizer.encode(text)) for text in both)
    steps = max(2, round(plan.scale * len(ids) / (BATCH * WINDOW)))
    config = TrainingConfig(
        model="gpt", steps=steps, batch_size=BATCH, block_size=WINDOW, learning_rate=4e-3,
        schedule="trapezoid", optimizer="muon", device="cpu", evaluate_every=10**9,
    )  # fmt: skip
    began = Timer()
    trainer = Trainer(
        config, start.model.config, start.tokenizer, ids, held_out,
        initialize=lambda model: model.load_state_dict(start.model.state_dict()),
    )  # fmt: skip
    before = trainer.validate()
    after = trainer.run()
    save_model(
        plan.keep / "films", "gpt", start.model.config, trainer.model.state_dict(),
        start.tokenizer, text="film sentences",
    )  # fmt: skip
    return {
        "steps": steps,
        "tokens": after.tokens,
        "seconds": began(),
        "nats_before": before,
        "nats_after": after.validation_nats,
        "bits_after": after.bits_per_character,
    }


def start_of(plan: Plan, name: str) -> Checkpoint:
    """What a run begins with; from scratch only the sizes and the tokenizer are taken of it."""
    return load_model(plan.keep / "films") if name == "films" else small_gpt()


def study_rates(plan: Plan) -> dict[str, Any]:
    """All labels, every start and method, every rate; the validation texts choose."""
    texts, found = load_examples("sentiment"), dict[str, Any]()
    texts = replace(texts, train=texts.train[: plan.some(ALL)])
    for kind, (optimizer, rates) in GRID.items():
        if not plan.wants(kind):
            continue
        start, method = kind.split()
        for rate in rates:
            row, trainer = finetune(
                plan, texts, start_of(plan, start), EPOCHS[ALL], (optimizer, rate), method,
                scratch=start == "scratch",
            )  # fmt: skip
            found[f"{kind} {rate:g}"] = row
            if kind == "films all":
                row["spectra"] = spectra(trainer.model, load_model(plan.keep / "films").model)
            plan.keep_partial("rates", found)
            if kind == "films all" and rate == chosen(plan, kind)[1] and plan.scale == 1:
                store(trainer, row["accuracy"])
    return found


def study_curve(plan: Plan) -> dict[str, Any]:
    texts, found = load_examples("sentiment"), dict[str, Any]()
    for name in filter(plan.wants, FEW):
        for n in (n for n in EPOCHS if n < ALL):  # all of them are in `rates`
            for seed in plan.seeds:
                some = replace(texts, train=texts.train[: plan.some(n)])
                found[f"{name} {n} {seed}"], _ = finetune(
                    plan, some, start_of(plan, name), EPOCHS[n], FEW[name],
                    scratch=name == "scratch", seed=seed,
                )  # fmt: skip
                plan.keep_partial("curve", found)
    return found


def study_optimizers(plan: Plan) -> dict[str, Any]:
    """AdamW in Muon's place from the small GPT, at the rate of random weights."""
    texts, start, n = load_examples("sentiment"), small_gpt(), 2000
    some = replace(texts, train=texts.train[: plan.some(n)])
    row, trainer = finetune(plan, some, start, EPOCHS.get(n, 1), FEW["scratch"])
    return {"adamw": row | {"spectra": spectra(trainer.model, start.model)}}


def store(trainer: ClassificationTrainer, right: float) -> None:
    """Keep the classifier that the page asks, in half precision."""
    save_model(
        MODELS / "film-classifier", "classifier", trainer.model_config, trainer.model.state_dict(),
        trainer.tokenizer, torch.float16, task="sentiment", method=trainer.config.method,
        max_tokens=WINDOW, command=COMMAND, accuracy=right,
    )  # fmt: skip


def spectra(classifier: Any, start: GPT) -> dict[str, list[float]]:
    """Singular values of what fine-tuning added to the matrices of the middle block, largest 1."""
    layer, found = start.config.n_layers // 2, {}
    for name in ("W_q", "W_k", "W_v", "W_o"):
        after, before = (
            getattr(gpt.blocks[layer].attention, name).weight.detach()
            for gpt in (classifier.gpt, start)
        )
        values = torch.linalg.svdvals((after - before).double())
        found[name] = (values / values[0]).tolist()
    return found


def study_costs(plan: Plan) -> dict[str, Any]:
    return {method: step_costs(method) for method in OURS}


def step_costs(method: str) -> dict[str, Any]:
    """Processor seconds of a step, and the bytes that it holds: one batch of 16 × 64 tokens."""
    torch.manual_seed(0)
    sizes = classifier_config(small_gpt().model.config, LABELS, method, 8, 16.0, 0.1)
    model, vocab = build_classifier(sizes).train(), sizes.vocab_size
    choose(model, method)
    inputs = torch.randint(vocab, (BATCH, 64)), torch.ones(BATCH, 64, dtype=torch.bool)
    labels = torch.randint(2, (BATCH,))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), 0.0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        loss = nn.functional.cross_entropy(model(*inputs), labels)
    loss.backward()
    optimizer.step()
    times = []
    for _ in range(7):
        began = Timer()
        nn.functional.cross_entropy(model(*inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(began())
    trained = trained_parameters(model)
    return {
        "trained": trained,
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_seconds": sorted(times)[3],
        "bytes": {
            "weights": 4 * sum(p.numel() for p in model.parameters()),
            "gradients": 4 * trained,
            "moments": 8 * trained,
            "activations": sum(held.values()),
        },
    }


def study_chinese(plan: Plan) -> dict[str, Any]:
    texts, start = load_examples("sentiment-zh"), small_gpt()
    texts = replace(texts, train=texts.train[: plan.some(2000)])
    own = chinese_pairs(plan)
    sizes = replace(start.model.config, vocab_size=own.vocab_size)
    ours = Checkpoint(GPT(sizes), own, start.info)
    found: dict[str, Any] = {"words": share(by_words(texts.train, texts.test, True), 2000)}
    for name, begin, scratch in (
        ("plays", start, False),
        ("scratch", start, True),
        ("own tokens", ours, True),
    ):
        if not plan.wants(name):
            continue
        rate = FEW["scratch" if scratch else "plays"]
        found[name], _ = finetune(plan, texts, begin, 2, rate, scratch=scratch)
        plan.keep_partial("chinese", found)
    return found


# --- named entities -------------------------------------------------------------------------------


def study_entities(plan: Plan) -> dict[str, Any]:
    start = small_gpt()
    train = sentences(start.tokenizer, plan.some(2000), seed=1)
    tests = {
        "seen": sentences(start.tokenizer, 400, seed=2),
        "held out": sentences(start.tokenizer, 400, held_out=True, seed=3),
    }
    found: dict[str, Any] = {
        "train": len(train),
        "test": 400,
        "names": {k: [len(v), len(split_names(True)[k])] for k, v in split_names(False).items()},
    }
    found["dictionary"] = judged(tests, dictionary(start.tokenizer))
    for name, causal in (("causal", True), ("both sides", False)):
        torch.manual_seed(0)
        began = Timer()
        gpt = GPT(start.model.config)
        gpt.load_state_dict(start.model.state_dict())
        model = TokenClassifier(gpt, len(TAGS), causal)
        losses = teach_tags(model, train)
        guess = tagger(model)
        found[name] = judged(tests, guess) | {"seconds": began(), "loss": losses[-1]}
    return found


Guess = Callable[[Sequence[Any]], list[list[int]]]


def teach_tags(model: TokenClassifier, train: Sequence[Any], epochs: int = 4) -> list[float]:
    """Batches of sentences of one length, in an order that is shuffled; all weights are trained."""
    by_length: dict[int, list[Any]] = {}
    for sentence in train:
        by_length.setdefault(len(sentence.ids), []).append(sentence)
    batches = [
        same[i : i + 16] for same in by_length.values() for i in range(0, len(same), 16)
    ] * epochs
    random.Random(0).shuffle(batches)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), 1e-3)
    losses = []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = cosine_schedule(step, 1e-3, 0.0, 20, len(batches))
        logits = model(torch.tensor([s.ids for s in batch]))  # (B, T, 7)
        tags = torch.tensor([s.tags for s in batch])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tags.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def tagger(model: TokenClassifier) -> Guess:
    @torch.no_grad()
    def guess(some: Sequence[Any]) -> list[list[int]]:
        model.eval()
        return [model(torch.tensor([s.ids]))[0].argmax(-1).tolist() for s in some]

    return guess


def dictionary(tokenizer: BPETokenizer) -> Guess:
    """Every name of the training part is marked wherever it stands; the rest is O."""
    known: dict[tuple[int, ...], int] = {}
    for kind, names in split_names(False).items():
        for name in names:
            for text in (name, f" {name}"):
                known.setdefault(tuple(tokenizer.encode(text)), TAGS.index(f"B-{kind}"))
    longest = max(map(len, known))

    def guess(some: Sequence[Any]) -> list[list[int]]:
        found = []
        for s in some:
            tags, i = [0] * len(s.ids), 0
            while i < len(s.ids):
                ends = (j for j in range(min(len(s.ids), i + longest), i, -1))
                end = next((j for j in ends if tuple(s.ids[i:j]) in known), None)
                if end is not None:
                    first = known[tuple(s.ids[i:end])]
                    tags[i:end] = [first] + [first + 1] * (end - i - 1)
                i = end or i + 1
            found.append(tags)
        return found

    return guess


def judged(tests: Mapping[str, Sequence[Any]], guess: Guess) -> dict[str, Any]:
    """Entity-level F1 on names seen and held out, by where the clue stands."""
    row = {}
    for name, some in tests.items():
        for place, behind in (("before", False), ("behind", True)):
            part = [s for s in some if s.behind is behind]
            f1 = entity_f1(guess(part), [s.tags for s in part])
            row[f"{name}, clue {place}"] = f1
        row[name] = entity_f1(guess(some), [s.tags for s in some])
        row[f"{name}, entities"] = sum(len(entities(s.tags)) for s in some)
    return row


# --- the command ----------------------------------------------------------------------------------

STUDIES: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "words": study_words,
    "tokens": study_tokens,
    "further": study_further,
    "rates": study_rates,
    "curve": study_curve,
    "costs": study_costs,
    "optimizers": study_optimizers,
    "chinese": study_chinese,
    "entities": study_entities,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--part", choices=STUDIES, action="append")
    parser.add_argument("--only", nargs="+", default=[], help="kinds of rates, starts of curve, …")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of curve")
    parser.add_argument("--keep", type=Path, default=Path("runs/classification"))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(given.out, given.keep, given.seeds, given.only)
    for part in given.part or STUDIES:
        began = Timer()
        plan.keep_partial(part, STUDIES[part](plan))
        print(f"{part}: {began():.0f} s")


if __name__ == "__main__":
    main()
