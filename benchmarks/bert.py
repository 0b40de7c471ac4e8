"""BERT and GPT of one size, on one text, with one budget: what each is better at.

    python benchmarks/bert.py   # 9 minutes of one core

writes book/_data/bert.json and book/_data/models/small-bert. With `--keep FOLDER --seconds 240` it
stops after some four minutes, keeps where it stood, and goes on from there when it is run again.

Three models read the same windows of all the plays, in the same order, letter by letter (a
byte-pair vocabulary without merges): `gpt`; `bert`, with 80/10/10 masking; and `bert-100`, where
every chosen token becomes [MASK]. BERT's windows stand between [CLS] and [SEP]. All have one
learning rate, and chapter 6's sinusoids as the position table to start with: learned from nothing,
it takes most of a short training until a letter finds its neighbors. GPT and BERT are trained from
another seed too, which draws other weights, windows and masks. BERT is stored in float16, and it is
the stored one that is judged, all on the last tenth of the text, which no model was trained on.

What the file holds:

    models      name -> parameters, steps, tokens read, predictions learned from, cpu_seconds,
                curve: [{cpu_seconds, tokens, nats, accuracy}] of the token in the `hole` of 200
                windows, which BERT fills from both sides and GPT from the left
    fill        `hole` (tokens to its left and right), `n`, and way -> nats, hits and their
                intervals: filling the same hole of the first n windows from the left (gpt), from
                both sides by trying every token (gpt-both), by BERT, and by the most frequent
                token; `bert_less`: way -> the way's nats minus BERT's, with an interval. `all` does
                so for every window, without gpt-both
    reading     bert and bert-100 -> what stands in the hole -> nats and hits of the right token:
                a mask, the token itself (kept), another one (wrong)
    probe       did a punctuation mark stand at this space, in as many places with as without: way
                -> number of labeled places -> accuracies (one for each draw of them); `places`
                counts them, `interval` is for all labels, `bert_more`: labels -> way -> BERT's
                accuracy minus the way's
    order       two versions of a line, the second with two neighboring words swapped -> how often
                each model, and a Kneser-Ney model, gives the first the higher score; bert-words
                hides, with a letter, the rest of its word; `bert_more`
    writing     way -> the judge's nats for each written token (a Kneser-Ney model of order 5) with
                an interval, the share of different tokens, samples that go on after equal prompts
    seeds       gpt and bert -> for each seed the nats in all holes, and the shares of right
                places (all labels) and right lines
    positions   lines -> for each token the best five guesses of BERT (both sides) and GPT (left)

Intervals are 95 %: of shares Wilson's (1927), of means and of paired differences a percentile
bootstrap of 2,000 resamples. They say what other held-out text might have given. What another
training might have given, only the second seed hints at.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import cross_entropy

from course.ladder import machine
from rnn2gpt.bert import BertConfig, BertForMaskedLM, mask_tokens, pseudo_log_likelihood
from rnn2gpt.checkpoint import load_model, save_model, write_json
from rnn2gpt.data import get_batch, load_text
from rnn2gpt.generation import sample
from rnn2gpt.gpt import GPT, GPTConfig
from rnn2gpt.kv_cache import KVCache
from rnn2gpt.ngram import KneserNey, KneserNeyConfig
from rnn2gpt.optim import parameter_groups
from rnn2gpt.positions import sinusoidal_positions
from rnn2gpt.tokenizer import BPETokenizer, train_bpe
from rnn2gpt.training import cosine_schedule

COMMAND = "python benchmarks/bert.py"
RESULT, STORED = Path("book/_data/bert.json"), Path("book/_data/models/small-bert")
SPECIAL = ("[PAD]", "[MASK]", "[CLS]", "[SEP]")
SIZES = {"block_size": 32, "n_layers": 2, "n_heads": 4, "d_model": 64}
WINDOW, HOLE = 30, 20  # tokens of a window, and which of them is to be found
BATCH, STEPS, POINTS, RATE = 64, 4000, 20, 4e-3
NAMES = ("bert", "gpt", "bert-100")
PROMPT, WRITTEN = 10, 20  # letters
MARKS = ",.;:?!"
LINEAR: dict[str, Any] = {"Cs": (0.003, 0.1, 3.0), "cv": 3, "max_iter": 1000, "scoring": "accuracy"}
LINEAR |= {"l1_ratios": (0,), "use_legacy_attributes": False}  # the defaults to come
LABELED = (50, 200, 800, 3200)
SEEDS = 2
LINES = (
    "Is this a dagger which I see",
    "How sharper than a serpent's",
    "Out, damned spot! out, I say",
    "Put out the light, and then",
    "Blow, winds, and crack your",
)


class Text:
    """The tokens to train on and those held out, and what surrounds BERT's windows."""

    def __init__(self, text: str, n_tokens: int) -> None:
        cut = round(0.9 * len(text))
        self.parts = text[:cut], text[cut:]
        self.tokenizer = BPETokenizer(train_bpe(self.parts[0], n_tokens), SPECIAL)
        self.train, self.held_out = (torch.tensor(self.tokenizer.encode(p)) for p in self.parts)
        self.pad, self.mask, self.cls, self.sep = self.special = self.tokenizer.encode(
            "".join(SPECIAL)
        )

    def decode(self, ids: Tensor) -> str:
        return self.tokenizer.decode(ids.tolist())

    def wrap(self, rows: Tensor) -> Tensor:
        """[CLS] row [SEP]: (B, T) → (B, T + 2)."""
        return torch.nn.functional.pad(
            torch.nn.functional.pad(rows, (1, 0), value=self.cls), (0, 1), value=self.sep
        )


# --- training -------------------------------------------------------------------------------------


def loss_of(name: str, model: Any, text: Text, x: Tensor, y: Tensor, chance: Any) -> Tensor:
    """GPT predicts the next token everywhere; BERT the hidden tokens, at their own places."""
    if name == "gpt":
        return model(x, y)[1]
    rows = text.wrap(x)
    inputs, labels = mask_tokens(
        rows, text.mask, text.tokenizer.vocab_size, text.special, generator=chance
    )
    asked = labels != -100
    if name == "bert-100":
        inputs = rows.where(~asked, text.mask)
    return cross_entropy(model.predict(model.encode(inputs)[asked]), labels[asked])


def waves(table: Tensor) -> Tensor:
    """Chapter 6's sinusoids in the size of the table, to start it with; training changes them."""
    return sinusoidal_positions(*table.shape) * table.std() * 2**0.5


def train(
    name: str,
    text: Text,
    steps: int,
    keep: Path | None = None,
    seconds: float = math.inf,
    seed: int = 0,
) -> tuple[Any, dict[str, Any]]:
    """A trained model, and what its training cost.

    `keep` is a folder for the state at each point of the curve: a call goes on from the last one
    there. Raises `SystemExit` at the point after which this process has used `seconds`.
    """
    torch.manual_seed(seed)
    sizes: Any = {"vocab_size": text.tokenizer.vocab_size, **SIZES}
    model = GPT(GPTConfig(**sizes)) if name == "gpt" else BertForMaskedLM(BertConfig(**sizes))
    model.position_embedding.weight.data = waves(model.position_embedding.weight)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=RATE, betas=(0.9, 0.98))
    windows, masking = (torch.Generator().manual_seed(10 * seed + k) for k in (1, 2))
    parts = {"model": model, "optimizer": optimizer}
    done, spent, curve = 0, 0.0, list[dict[str, float]]()
    state = None if keep is None else keep / f"{name}-{seed}.pt"
    if state and state.exists():
        kept = torch.load(state)
        done, spent, curve = kept["step"], kept["spent"], kept["curve"]
        for part, whole in parts.items():
            whole.load_state_dict(kept[part])
        windows.set_state(kept["windows"])
        masking.set_state(kept["masking"])
    watched, every = holes(text, 200), max(1, steps // POINTS)
    for step in range(done, steps + 1):
        if step % every == 0 and (step > done or not curve):
            nats, hits = score(fill(name, model.eval(), text, watched), watched)
            print(name, seed, step, f"{nats:.3f}", hits, f"{spent:.0f} s", flush=True)
            curve.append({"cpu_seconds": spent, "tokens": step * BATCH * WINDOW, "nats": nats})
            curve[-1]["accuracy"] = hits / len(watched)
            if state:
                state.parent.mkdir(parents=True, exist_ok=True)
                kept = {part: whole.state_dict() for part, whole in parts.items()}
                kept |= {"step": step, "spent": spent, "curve": curve}
                kept |= {"windows": windows.get_state(), "masking": masking.get_state()}
                torch.save(kept, state)
            if step < steps and time.process_time() > seconds:
                raise SystemExit(f"{name} {seed} stands at step {step:,} of {steps:,}: run again.")
        if step == steps:
            break
        began = time.process_time()
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = cosine_schedule(step, RATE, RATE / 30, steps // 15, steps)
        x, y = get_batch(text.train, WINDOW, BATCH, windows)
        loss = loss_of(name, model, text, x, y, masking)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spent += time.process_time() - began
    tokens = steps * BATCH * WINDOW
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "tokens": tokens,
        "predictions": round(tokens * (1 if name == "gpt" else 0.15)),
        "cpu_seconds": spent,
        "curve": curve,
    }
    return model.eval(), facts


# --- filling a hole -------------------------------------------------------------------------------


def holes(text: Text, n: int) -> Tensor:
    """n windows of held-out text, evenly spaced: (n, WINDOW)."""
    starts = torch.linspace(0, len(text.held_out) - WINDOW - 1, n).long()
    return text.held_out[starts[:, None] + torch.arange(WINDOW)]


@torch.no_grad()
def fill(name: str, model: Any, text: Text, windows: Tensor, hole: Tensor | None = None) -> Tensor:
    """Log-probabilities (N, V) of the token in the hole, which BERT finds masked, or as given."""
    if name == "gpt":
        logits = model(windows[:, :HOLE])[0][:, -1]
    else:
        rows = text.wrap(windows)
        rows[:, HOLE + 1] = text.mask if hole is None else hole
        logits = model.predict(model.encode(rows)[:, HOLE + 1])
    return logits.log_softmax(dim=-1)


@torch.no_grad()
def fill_by_trying(model: GPT, text: Text, windows: Tensor) -> Tensor:
    """GPT from both sides: log p(token, all that follows | left) for every token, normalized."""
    everything = torch.arange(text.tokenizer.vocab_size)  # (V,)
    rows = []
    for window in windows:
        left, right = window[None, :HOLE], window[HOLE + 1 :]
        c = model.config
        cache = KVCache(c.n_layers, 1, c.n_heads, WINDOW, c.d_model // c.n_heads)
        before = model(left, cache=cache)[0][0, -1].log_softmax(dim=-1)  # (V,)
        cache.select([0] * len(everything))
        tried = torch.cat([everything[:, None], right[:-1].expand(len(everything), -1)], dim=1)
        logits = model(tried, cache=cache)[0]  # (V, R, V)
        after = logits.log_softmax(dim=-1)[:, torch.arange(len(right)), right].sum(dim=1)  # (V,)
        rows.append((before + after).log_softmax(dim=-1))
    return torch.stack(rows)


def losses(log_p: Tensor, windows: Tensor) -> Tensor:
    """Nats of the true tokens: (N,)."""
    return -log_p[torch.arange(len(windows)), windows[:, HOLE]]


def score(log_p: Tensor, windows: Tensor) -> tuple[float, int]:
    """Mean nats of the true tokens, and how many of them are the best guess."""
    hits = int((log_p.argmax(dim=-1) == windows[:, HOLE]).sum())
    return losses(log_p, windows).mean().item(), hits


def measured(log_p: Tensor, windows: Tensor) -> dict[str, Any]:
    nats, hits = score(log_p, windows)
    found: dict[str, Any] = {"nats": nats, "hits": hits, "interval": interval(hits, len(windows))}
    return found | {"nats_interval": mean_interval(losses(log_p, windows))[1:]}


def interval(hits: int, n: int) -> list[float]:
    return list(binomtest(hits, n).proportion_ci(method="wilson"))


def mean_interval(values: Any) -> list[float]:
    """The mean of a sample, and the ends of its 95 % interval, by the bootstrap."""
    sample_of = np.asarray(values, dtype=float)
    rows = np.random.default_rng(0).integers(len(sample_of), size=(2000, len(sample_of)))
    low, high = np.quantile(sample_of[rows].mean(axis=1), (0.025, 0.975))
    return [sample_of.mean().item(), low.item(), high.item()]


def compare_filling(models: dict[str, Any], text: Text, n: int, n_trying: int) -> dict[str, Any]:
    windows = holes(text, n)
    counts = torch.bincount(text.train, minlength=text.tokenizer.vocab_size)
    frequent = ((counts + 1) / (counts + 1).sum()).log()[None]  # (1, V)
    ways = {name: fill(name, models[name], text, windows) for name in ("gpt", "bert")}
    ways["frequent"] = frequent.expand(n, -1)
    chosen = torch.linspace(0, n - 1, n_trying).long()
    some = windows[chosen]
    few = {name: log_p[chosen] for name, log_p in ways.items()}
    few["gpt-both"] = fill_by_trying(models["gpt"], text, some)

    def compared(found: dict[str, Tensor], windows: Tensor) -> dict[str, Any]:
        bert = losses(found["bert"], windows)
        others = {k: losses(log_p, windows) for k, log_p in found.items() if k != "bert"}
        return {
            "n": len(windows),
            "ways": {name: measured(log_p, windows) for name, log_p in found.items()},
            "bert_less": {name: mean_interval(nats - bert) for name, nats in others.items()},
        }

    return {
        "hole": [HOLE, WINDOW - HOLE - 1],
        **compared(few, some),
        "all": compared(ways, windows),
    }


def compare_reading(models: dict[str, Any], text: Text, n: int) -> dict[str, Any]:
    """What a BERT believes of a token that is masked, kept, or replaced by another."""
    windows = holes(text, n)
    chance = torch.Generator().manual_seed(3)
    other = torch.randint(text.special[0], (n,), generator=chance)
    shown = {"mask": None, "kept": windows[:, HOLE], "wrong": other}
    return {
        name: {
            what: measured(fill(name, models[name], text, windows, hole), windows)
            for what, hole in shown.items()
        }
        for name in ("bert", "bert-100")
    } | {"n": n}


# --- a probe: did a mark stand here? --------------------------------------------------------------


def between_words(text: str) -> Iterator[tuple[str, int]]:
    """Windows with a space at HOLE, all marks taken away, and whether one stood there (1) or not.

    Capitals, line breaks and the names of speakers are taken away too: they would tell.
    """
    said = re.sub(r"^[A-Z][^\n:]{0,40}:\n", "", text, flags=re.MULTILINE).lower().split()
    words = [(word.rstrip(MARKS), int(word[-1] in MARKS)) for word in said]
    words = [(word, label) for word, label in words if word]
    flat, at = " ".join(word for word, _ in words), -1
    for word, label in words[:-1]:
        at += len(word) + 1  # the space behind the word
        if HOLE <= at <= len(flat) - WINDOW + HOLE:
            yield flat[at - HOLE : at - HOLE + WINDOW], label


def balanced(text: str, n: int) -> tuple[list[str], np.ndarray]:
    """n windows, half of them with a mark, shuffled, and their labels (n,)."""
    kinds: tuple[list[str], list[str]] = [], []
    for window, label in between_words(text):
        kinds[label].append(window)
    chance = random.Random(0)
    both = [(w, label) for label in (0, 1) for w in chance.sample(kinds[label], n // 2)]
    chance.shuffle(both)
    return [window for window, _ in both], np.array([label for _, label in both])


def neighbors(window: str) -> str:
    """The words before and behind the space, as two tokens to be counted."""
    return f"before={window[:HOLE].split(' ')[-1]} behind={window[HOLE + 1 :].split(' ')[0]}"


@torch.no_grad()
def features(name: str, model: Any, text: Text, windows: Sequence[str]) -> np.ndarray:
    """The last hidden vector that is to answer for the place: (N, D).

    BERT's at the place, which is masked; GPT's at the letter before it, whose task was to predict
    the place.
    """
    made: list[Tensor] = []  # what GPT's last norm hands to the head
    hook = model.norm.register_forward_hook(lambda module, args, output: made.append(output))
    ids, found = torch.stack([torch.tensor(text.tokenizer.encode(w)) for w in windows]), []
    for rows in ids.split(256):
        if name == "gpt":
            model(rows[:, :HOLE])
            found.append(made.pop()[:, -1])
        else:
            rows = text.wrap(rows)
            rows[:, HOLE + 1] = text.mask
            found.append(model.encode(rows)[:, HOLE + 1])
    hook.remove()
    return torch.cat(found).numpy()


class Places:
    """Labeled places and held-out ones; every model is asked about the same."""

    def __init__(self, text: Text, labeled: int, asked: int) -> None:
        self.text = text
        self.known, self.labels = balanced(text.parts[0], labeled)
        self.asked, self.truth = balanced(text.parts[1], asked)

    def inputs(self, name: str, model: Any) -> tuple[np.ndarray, np.ndarray]:
        known, asked = (features(name, model, self.text, p) for p in (self.known, self.asked))
        return known, asked

    def words(self) -> tuple[np.ndarray, np.ndarray]:
        known, asked = ([neighbors(w) for w in part] for part in (self.known, self.asked))
        return np.array(known, dtype=object), np.array(asked, dtype=object)

    def right(self, x: np.ndarray, asked: np.ndarray, rows: Any = slice(None)) -> np.ndarray:
        """Which held-out places a linear model, fitted to `rows` of x, tells right: (N,), bool."""
        counts = CountVectorizer(token_pattern=r"\S+", binary=True)
        first = counts if x.dtype == object else StandardScaler()
        model = make_pipeline(first, LogisticRegressionCV(**LINEAR))
        return model.fit(x[rows], self.labels[rows]).predict(asked) == self.truth


def probe(
    models: dict[str, Any], places: Places, sizes: Sequence[int], draws: int
) -> dict[str, Any]:
    """How well a linear model on frozen vectors, or on counted words, tells where a mark stood."""
    torch.manual_seed(1)
    sizes_of: Any = {"vocab_size": places.text.tokenizer.vocab_size, **SIZES}
    seen = {**models, "untrained": BertForMaskedLM(BertConfig(**sizes_of)).eval()}
    inputs = {name: places.inputs(name, model) for name, model in seen.items()}
    inputs["words"] = places.words()
    found: dict[str, dict[str, list[float]]] = {name: {} for name in inputs}
    right: dict[int, dict[str, np.ndarray]] = {}
    n = len(places.asked)
    for size in sizes:
        rows = [
            np.random.default_rng(k).permutation(len(places.known))[:size] for k in range(draws)
        ]
        for name, (x, asked) in inputs.items():
            each = [
                places.right(x, asked, some) for some in rows[: 1 if size == max(sizes) else draws]
            ]
            found[name][str(size)] = [one.mean().item() for one in each]
            right.setdefault(size, {})[name] = np.mean(each, axis=0)
    return {
        "places": {"labeled": len(places.known), "held_out": n},
        "accuracy": found,
        "interval": {name: mean_interval(ones)[1:] for name, ones in right[max(sizes)].items()},
        "bert_more": {
            str(size): {
                name: mean_interval(of["bert"] - ones)
                for name, ones in of.items()
                if name != "bert"
            }
            for size, of in right.items()
        },
        "examples": [
            [w, int(label)] for w, label in zip(places.known[:6], places.labels[:6], strict=True)
        ],
    }


# --- scores of whole lines ------------------------------------------------------------------------


def swapped(line: str, chance: random.Random) -> str | None:
    """The line with two different neighboring words, neither the first, swapped."""
    words = line.split(" ")
    places = [i for i in range(1, len(words) - 1) if words[i] != words[i + 1]]
    if not places:
        return None
    i = chance.choice(places)
    words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def log_likelihood(model: GPT, ids: Tensor) -> float:
    """Σ log p(token | those before it) over all but the first."""
    with torch.no_grad():
        log_p = model(ids[None, :-1])[0][0].log_softmax(dim=-1)  # (T − 1, V)
    return log_p[torch.arange(len(ids) - 1), ids[1:]].sum().item()


def log_likelihood_by_words(model: BertForMaskedLM, text: Text, ids: Tensor) -> float:
    """As `pseudo_log_likelihood`, but with a letter the rest of its word is hidden.

    Kauf & Ivanova 2023, for pieces of words.
    """
    letters = [character.isalpha() or character == "'" for character in text.decode(ids)]
    rows = ids.repeat(len(ids), 1)
    for start in range(len(ids)):
        end = start + 1
        while letters[start] and end < len(ids) and letters[end]:
            end += 1
        rows[start, start:end] = text.mask
    t = torch.arange(len(ids))
    with torch.no_grad():
        log_p = model.predict(model.encode(text.wrap(rows))[t, t + 1]).log_softmax(dim=-1)
    return log_p[t, ids].sum().item()


class Lines:
    """Held-out lines, each beside itself with two words swapped."""

    def __init__(self, text: Text, n: int) -> None:
        chance = random.Random(0)
        lines = [
            line
            for line in text.parts[1].split("\n")
            if len(line.split()) >= 5 and len(line) <= WINDOW - 2
        ]
        chance.shuffle(lines)
        self.text = text
        self.pairs = [(line, other) for line in lines if (other := swapped(line, chance))][:n]

    def right(self, way: Callable[[Tensor], float]) -> np.ndarray:
        """For which pairs the line as it stands has the higher score: (N,), bool."""
        found = []
        for pair in self.pairs:
            ids = [torch.tensor(self.text.tokenizer.encode(f"\n{line}\n")) for line in pair]
            found.append(way(ids[0]) > way(ids[1]))
        return np.array(found)

    def right_by(self, name: str, model: Any) -> np.ndarray:
        if name == "gpt":
            return self.right(lambda ids: log_likelihood(model, ids))
        text = self.text
        if name == "bert-words":
            return self.right(lambda ids: log_likelihood_by_words(model, text, ids))
        whole = lambda rows: model(text.wrap(rows))[:, 1:-1]  # noqa: E731
        return self.right(lambda ids: pseudo_log_likelihood(whole, ids, text.mask))


def compare_order(models: dict[str, Any], lines: Lines, judge: KneserNey) -> dict[str, Any]:
    """Which of two lines, Shakespeare's and one with two words swapped, scores higher."""
    right = {name: lines.right_by(name, models[name]) for name in ("bert", "gpt")}
    right["bert-words"] = lines.right_by("bert-words", models["bert"])
    right["counts"] = lines.right(lambda ids: -judge.nll(ids).sum().item())
    n = len(lines.pairs)
    return {
        "n": n,
        "hits": {name: int(ones.sum()) for name, ones in right.items()},
        "interval": {name: interval(int(ones.sum()), n) for name, ones in right.items()},
        "bert_more": {
            name: mean_interval(right["bert"].astype(float) - right[name])
            for name in ("gpt", "counts", "bert-words")
        },
        "example": lines.pairs[0],
    }


# --- writing --------------------------------------------------------------------------------------


@torch.no_grad()
def write_gpt(model: GPT, text: Text, ids: Tensor, chance: torch.Generator) -> Tensor:
    """WRITTEN tokens after the prompts, each drawn from the text so far."""
    for _ in range(WRITTEN):
        logits = model(ids)[0][:, -1, : text.special[0]]
        ids = torch.cat([ids, sample(logits, 0.8, generator=chance)[:, None]], dim=1)
    return ids


@torch.no_grad()
def draw_at(
    model: BertForMaskedLM, text: Text, ids: Tensor, at: int, chance: torch.Generator
) -> Tensor:
    """The rows with a token drawn at one place, which is hidden from BERT first."""
    rows = text.wrap(ids)
    rows[:, at + 1] = text.mask
    logits = model.predict(model.encode(rows)[:, at + 1])[:, : text.special[0]]
    rows[:, at + 1] = sample(logits, 0.8, generator=chance)
    return rows[:, 1:-1]


def write_rightward(
    model: BertForMaskedLM, text: Text, ids: Tensor, chance: torch.Generator
) -> Tensor:
    """A mask behind the text so far, filled, and again: BERT used as a GPT."""
    for _ in range(WRITTEN):
        ids = torch.nn.functional.pad(ids, (0, 1), value=text.mask)
        ids = draw_at(model, text, ids, ids.shape[1] - 1, chance)
    return ids


def write_gibbs(
    model: BertForMaskedLM, text: Text, ids: Tensor, chance: torch.Generator, sweeps: int = 4
) -> Tensor:
    """All places masked, then each drawn anew given the rest, in random order (Wang & Cho 2019)."""
    ids = torch.nn.functional.pad(ids, (0, WRITTEN), value=text.mask)
    for _ in range(sweeps):
        for place in torch.randperm(WRITTEN, generator=chance).tolist():
            ids = draw_at(model, text, ids, PROMPT + place, chance)
    return ids


def compare_writing(models: dict[str, Any], text: Text, judge: KneserNey, n: int) -> dict[str, Any]:
    """What each writes after the same prompts, and how well an n-gram model likes it."""
    starts = torch.linspace(0, len(text.held_out) - WINDOW - 1, n).long()
    real = text.held_out[starts[:, None] + torch.arange(PROMPT + WRITTEN)]  # (n, P + W)
    prompts, chance = real[:, :PROMPT], torch.Generator().manual_seed(0)
    written = {
        "gpt": write_gpt(models["gpt"], text, prompts, chance),
        "bert-rightward": write_rightward(models["bert"], text, prompts, chance),
        "bert-gibbs": write_gibbs(models["bert"], text, prompts, chance),
        "shakespeare": real,
    }
    found = {}
    for name, rows in written.items():
        nats = mean_interval([judge.nll(row)[PROMPT - 1 :].mean().item() for row in rows])
        found[name] = {
            "n": n,
            "nats": nats[0],
            "interval": nats[1:],
            "different": np.mean([len(set(r[PROMPT:].tolist())) / WRITTEN for r in rows]).item(),
            "prompts": [text.tokenizer.decode(row[:PROMPT].tolist()) for row in rows[:4]],
            "samples": [text.tokenizer.decode(row[PROMPT:].tolist()) for row in rows[:4]],
        }
    return found


def guesses(models: dict[str, Any], text: Text, line: str) -> dict[str, Any]:
    """For each token of a line the best five guesses, and the right one's share, in thousandths."""
    ids = torch.tensor(text.tokenizer.encode(f"\n{line}\n"))
    n = len(ids) - 2
    rows = text.wrap(ids.repeat(n, 1))  # row i hides the line's token i, which stands at i + 2
    rows[torch.arange(n), torch.arange(n) + 2] = text.mask
    with torch.no_grad():
        both = models["bert"](rows)[torch.arange(n), torch.arange(n) + 2]
        left = models["gpt"](ids[None, :-2])[0][0]
    tokens = [text.tokenizer.decode([i]) for i in ids[1:-1].tolist()]
    found: dict[str, Any] = {"line": line, "tokens": tokens}
    for name, logits in (("bert", both), ("gpt", left)):
        p = logits[:, : text.special[0]].softmax(dim=-1)
        best = p.topk(5)
        found[name] = [
            {
                "tokens": [text.tokenizer.decode([i]) for i in best.indices[k].tolist()],
                "shares": [round(1000 * x) for x in best.values[k].tolist()],
                "right": round(1000 * p[k, ids[k + 1]].item()),
            }
            for k in range(n)
        ]
    return found


def study(
    text: Text,
    steps: int,
    stored: Path,
    scale: float = 1.0,
    keep: Path | None = None,
    seconds: float = math.inf,
    seeds: int = SEEDS,
) -> dict[str, Any]:
    """Train, store, measure; `scale` makes the held-out samples smaller."""
    models, facts, others = {}, {}, list[tuple[str, int, Any, float]]()
    for name in NAMES:
        models[name], facts[name] = train(name, text, steps, keep, seconds)
    for seed in range(1, seeds):
        for name in ("bert", "gpt"):
            model, more = train(name, text, steps, keep, seconds, seed)
            others.append((name, seed, model, more["cpu_seconds"]))
    began = time.process_time()
    bert = models["bert"]
    card = {"text": "all-plays", "command": COMMAND, **facts["bert"]}
    card["validation_nats"] = card.pop("curve")[-1]["nats"]
    save_model(
        stored, "bert", bert.config, bert.state_dict(), text.tokenizer, torch.float16, **card
    )
    models["bert"] = load_model(stored).model
    judge = KneserNey.fit(
        text.train, KneserNeyConfig(vocab_size=text.tokenizer.vocab_size, order=5)
    )
    n = {k: max(4, round(scale * k)) for k in (100, 300, 400, 800, 2000)}
    labeled = [max(40, round(scale * k)) for k in LABELED]
    places, lines = Places(text, max(labeled), n[2000]), Lines(text, n[400])
    windows = holes(text, n[800])

    def once_more(name: str, model: Any, seed: int) -> dict[str, Any]:
        return {
            "seed": seed,
            "nats": score(fill(name, model, text, windows), windows)[0],
            "probe": places.right(*places.inputs(name, model)).mean().item(),
            "order": lines.right_by(name, model).mean().item(),
        }

    return {
        "command": COMMAND,
        "machine": machine(),
        "text": {"name": "all-plays", "train": len(text.train), "held_out": len(text.held_out)},
        "vocab_size": text.tokenizer.vocab_size,
        "sizes": SIZES,
        "learning_rate": RATE,
        "window": WINDOW,
        "models": facts,
        "fill": compare_filling(models, text, n[800], n[300]),
        "reading": compare_reading(models, text, n[800]),
        "probe": probe(models, places, labeled, draws=3),
        "order": compare_order(models, lines, judge),
        "writing": compare_writing(models, text, judge, n[100]),
        "seeds": {
            name: [
                once_more(name, models[name], 0),
                *(
                    once_more(name, model, seed)
                    for other, seed, model, _ in others
                    if other == name
                ),
            ]
            for name in ("bert", "gpt")
        },
        "positions": [guesses(models, text, line) for line in LINES],
        "cpu_seconds": sum(one["cpu_seconds"] for one in facts.values())
        + sum(cost for *_, cost in others)
        + time.process_time()
        - began,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--keep", type=Path, help="a folder for states of training, to resume")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop at the next state after so long"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--model-out", type=Path, default=STORED)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = study(
        Text(load_text("all-plays"), 256),
        options.steps,
        options.model_out,
        1.0,
        options.keep,
        options.seconds,
        options.seeds,
    )
    write_json(options.out, made)
