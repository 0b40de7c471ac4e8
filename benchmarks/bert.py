"""BERT and GPT of one size, on one text, with one budget: what each is better at.

    python benchmarks/bert.py   # writes book/_data/bert.json and book/_data/models/small-bert

Three models read the same windows of all the plays, in the same order, letter by letter (a
byte-pair vocabulary without merges): `gpt`; `bert`, with 80/10/10 masking; and `bert-100`, where
every chosen token becomes [MASK]. BERT's windows stand between [CLS] and [SEP]. All have one seed,
one learning rate, and chapter 6's sinusoids as the position table to start with: learned from
nothing, it takes most of so short a training until a letter finds its neighbors. BERT is stored in
float16, and it is the stored one that is judged, all on the last tenth of the text, which no model
was trained on.

What the file holds:

    models      name -> parameters, steps, tokens read, predictions learned from, cpu_seconds,
                curve: [{cpu_seconds, tokens, nats, accuracy}] of the token in the `hole` of 200
                windows, which BERT fills from both sides and GPT from the left
    fill        `hole` (tokens to its left and right), `n`, and way -> nats, hits, interval: filling
                the same hole of the first n windows from the left (gpt), from both sides by trying
                every token (gpt-both), by BERT, and by the most frequent token; `all` does so for
                every window, without gpt-both
    reading     bert and bert-100 -> what stands in the hole -> nats and hits of the right token:
                a mask, the token itself (kept), another one (wrong)
    probe       verse or prose, line breaks and capitals removed: majority, and way -> number of
                labeled speeches -> accuracies (one for each draw of them); `speeches` counts them,
                `interval` is for all labels
    order       two versions of a line, the second with two neighboring words swapped -> how often
                each model, and a Kneser-Ney model, gives the first the higher score
    writing     way -> the judge's nats for each written token (a Kneser-Ney model of order 5), the
                share of different tokens, samples that go on after the same prompts
    positions   lines -> for each token the best five guesses of BERT (both sides) and GPT (left)

Intervals are 95 %, Wilson 1927.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.feature_extraction.text import TfidfVectorizer
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
BATCH, STEPS, POINTS, RATE = 64, 400, 8, 4e-3
NAMES = ("bert", "gpt", "bert-100")
PROMPT, WRITTEN, SPOKEN = 10, 20, 120  # letters
LINEAR: dict[str, Any] = {"Cs": (0.003, 0.1, 3.0), "cv": 3, "max_iter": 1000, "scoring": "accuracy"}
LINEAR |= {"l1_ratios": (0,), "use_legacy_attributes": False}  # the defaults to come
LABELED = (50, 200, 800)
LINES = (
    "Is this a dagger which I see",
    "Nothing will come of nothing",
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
    name: str, text: Text, steps: int, keep: Path | None = None, seed: int = 0
) -> tuple[Any, dict[str, Any]]:
    """A trained model, and what its training cost; `keep` holds models trained before."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": text.tokenizer.vocab_size, **SIZES}
    model = GPT(GPTConfig(**sizes)) if name == "gpt" else BertForMaskedLM(BertConfig(**sizes))
    done = None if keep is None else keep / f"{name}.pt"
    if done and done.exists():
        stored = torch.load(done)
        model.load_state_dict(stored["weights"])
        return model.eval(), stored["facts"]
    model.position_embedding.weight.data = waves(model.position_embedding.weight)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=RATE, betas=(0.9, 0.98))
    windows, masking = (torch.Generator().manual_seed(seed + k) for k in (1, 2))
    watched = holes(text, 200)
    spent, curve = 0.0, list[dict[str, float]]()
    for step in range(steps + 1):
        if step % max(1, steps // POINTS) == 0:
            nats, hits = score(fill(name, model.eval(), text, watched), watched)
            print(name, step, f"{nats:.3f}", hits, f"{spent:.0f} s", flush=True)
            curve.append({"cpu_seconds": spent, "tokens": step * BATCH * WINDOW, "nats": nats})
            curve[-1]["accuracy"] = hits / len(watched)
            model.train()
        if step == steps:
            break
        began = time.process_time()
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
    if done:
        done.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weights": model.state_dict(), "facts": facts}, done)
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


def score(log_p: Tensor, windows: Tensor) -> tuple[float, int]:
    """Mean nats of the true tokens, and how many of them are the best guess."""
    right = windows[:, HOLE]
    nats = -log_p[torch.arange(len(right)), right].mean().item()
    return nats, int((log_p.argmax(dim=-1) == right).sum())


def measured(log_p: Tensor, windows: Tensor) -> dict[str, Any]:
    nats, hits = score(log_p, windows)
    return {"nats": nats, "hits": hits, "interval": interval(hits, len(windows))}


def interval(hits: int, n: int) -> list[float]:
    return list(binomtest(hits, n).proportion_ci(method="wilson"))


def compare_filling(models: dict[str, Any], text: Text, n: int, n_trying: int) -> dict[str, Any]:
    windows = holes(text, n)
    counts = torch.bincount(text.train, minlength=text.tokenizer.vocab_size)
    frequent = ((counts + 1) / (counts + 1).sum()).log()[None]  # (1, V)
    ways = {name: fill(name, models[name], text, windows) for name in ("gpt", "bert")}
    ways["frequent"] = frequent.expand(n, -1)
    chosen = torch.linspace(0, n - 1, n_trying).long()
    few = {name: measured(log_p[chosen], windows[chosen]) for name, log_p in ways.items()}
    tried = fill_by_trying(models["gpt"], text, windows[chosen])
    few["gpt-both"] = measured(tried, windows[chosen])
    return {
        "hole": [HOLE, WINDOW - HOLE - 1],
        "n": n_trying,
        "ways": few,
        "all": {"n": n, "ways": {name: measured(log_p, windows) for name, log_p in ways.items()}},
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


# --- a probe: verse or prose ----------------------------------------------------------------------


def speeches(text: str) -> Iterator[tuple[str, int]]:
    """Speeches without line breaks and capitals, and whether they are verse (1) or prose (0).

    Every line of verse begins with a capital, a line of prose where the page's width ended the last
    one. Speeches of fewer than three lines, and those that are neither, are left out.
    """
    for speech in re.findall(r"^[A-Z][^\n:]{0,40}:\n((?:.+\n)+)", text, re.MULTILINE):
        first, *rest = speech.strip().split("\n")
        small = sum(line[0].islower() for line in rest)
        if len(rest) >= 2 and (small == 0 or 2 * small > len(rest)):
            yield " ".join([first, *rest]).lower()[:SPOKEN], int(small == 0)


@torch.no_grad()
def features(name: str, model: Any, text: Text, said: Sequence[str]) -> np.ndarray:
    """The mean over a speech's tokens of the model's last hidden vectors: (N, D)."""
    last: list[Tensor] = []  # what GPT's last norm hands to the head
    hook = model.norm.register_forward_hook(lambda module, args, output: last.append(output))
    means = []
    for start in range(0, len(said), 64):
        spoken = [torch.tensor(text.tokenizer.encode(s)) for s in said[start : start + 64]]
        ids = torch.nn.utils.rnn.pad_sequence(spoken, batch_first=True, padding_value=text.pad)
        ids = torch.nn.functional.pad(ids, (0, -ids.shape[1] % WINDOW), value=text.pad)
        ids = ids.reshape(-1, WINDOW)  # (N, n·W) → (N·n, W): a speech is read window by window
        real = ids != text.pad
        if name == "gpt":
            model(ids)
            hidden = last.pop()
        else:
            ends = real.new_ones(len(ids), 1)
            seen = torch.cat([ends, real, ends], dim=1)
            hidden = model.encode(text.wrap(ids), seen)[:, 1:-1]
        hidden, real = (part.reshape(len(spoken), -1, *part.shape[2:]) for part in (hidden, real))
        means.append((hidden * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True))
    hook.remove()
    return torch.cat(means).numpy()


def probe(models: dict[str, Any], text: Text, sizes: Sequence[int], draws: int) -> dict[str, Any]:
    """How well a linear model on frozen features, or on counted words, tells verse from prose."""
    known, asked = (list(speeches(part)) for part in text.parts)
    random.Random(0).shuffle(known)
    known = known[: max(sizes)]
    labels, truth = (np.array([label for _, label in part]) for part in (known, asked))
    said, told = ([s for s, _ in part] for part in (known, asked))
    torch.manual_seed(1)
    sizes_of = {"vocab_size": text.tokenizer.vocab_size, **SIZES}
    seen = {**models, "untrained": BertForMaskedLM(BertConfig(**sizes_of)).eval()}
    inputs: dict[str, tuple[Any, Any]] = {
        name: tuple(features(name, model, text, part) for part in (said, told))
        for name, model in seen.items()
    }
    inputs["tf-idf"] = np.array(said, dtype=object), np.array(told, dtype=object)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in inputs}
    for size in sizes:
        for draw in range(1 if size == max(sizes) else draws):
            rows = np.random.default_rng(draw).permutation(len(known))[:size]
            for name, (x, asked_x) in inputs.items():
                first = (
                    TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
                    if name == "tf-idf"
                    else StandardScaler()
                )
                model = make_pipeline(first, LogisticRegressionCV(**LINEAR))
                model.fit(x[rows], labels[rows])
                accuracy = (model.predict(asked_x) == truth).mean().item()
                found[name].setdefault(str(size), []).append(accuracy)
    most = str(max(sizes))
    n = len(asked)
    return {
        "speeches": {"labeled": len(known), "held_out": n},
        "majority": max(truth.mean().item(), 1 - truth.mean().item()),
        "accuracy": found,
        "interval": {name: interval(round(a[most][0] * n), n) for name, a in found.items()},
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


def compare_order(models: dict[str, Any], text: Text, judge: KneserNey, n: int) -> dict[str, Any]:
    """Which of two lines, Shakespeare's and one with two words swapped, scores higher."""
    chance = random.Random(0)
    lines = [s for s in text.parts[1].split("\n") if len(s.split()) >= 5 and len(s) <= WINDOW - 2]
    chance.shuffle(lines)
    pairs = [(line, other) for line in lines if (other := swapped(line, chance))][:n]
    whole = lambda rows: models["bert"](text.wrap(rows))[:, 1:-1]  # noqa: E731
    ways: dict[str, Callable[[Tensor], float]] = {
        "bert": lambda ids: pseudo_log_likelihood(whole, ids, text.mask),
        "gpt": lambda ids: log_likelihood(models["gpt"], ids),
        "counts": lambda ids: -judge.nll(ids).sum().item(),
    }
    hits = dict.fromkeys(ways, 0)
    for pair in pairs:
        ids = [torch.tensor(text.tokenizer.encode(f"\n{line}\n")) for line in pair]
        for name, way in ways.items():
            hits[name] += way(ids[0]) > way(ids[1])
    intervals = {name: interval(k, len(pairs)) for name, k in hits.items()}
    return {"n": len(pairs), "hits": hits, "interval": intervals, "example": pairs[0]}


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
    return {
        name: {
            "nats": np.mean([judge.nll(row)[PROMPT - 1 :].mean().item() for row in rows]).item(),
            "different": np.mean([len(set(r[PROMPT:].tolist())) / WRITTEN for r in rows]).item(),
            "prompts": [text.tokenizer.decode(row[:PROMPT].tolist()) for row in rows[:4]],
            "samples": [text.tokenizer.decode(row[PROMPT:].tolist()) for row in rows[:4]],
        }
        for name, rows in written.items()
    }


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
    text: Text, steps: int, stored: Path, scale: float = 1.0, keep: Path | None = None
) -> dict[str, Any]:
    """Train, store, measure; `scale` makes the held-out samples smaller."""
    models, facts = {}, {}
    for name in NAMES:
        models[name], facts[name] = train(name, text, steps, keep)
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
    n = {k: max(4, round(scale * k)) for k in (24, 200, 300, 800)}
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
        "probe": probe(models, text, [max(40, round(scale * k)) for k in LABELED], draws=3),
        "order": compare_order(models, text, judge, n[200]),
        "writing": compare_writing(models, text, judge, n[24]),
        "positions": [guesses(models, text, line) for line in LINES],
        "cpu_seconds": time.process_time(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--keep", type=Path, help="a folder that keeps trained models, to resume")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--model-out", type=Path, default=STORED)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = study(
        Text(load_text("all-plays"), 256), options.steps, options.model_out, keep=options.keep
    )
    write_json(options.out, made)
