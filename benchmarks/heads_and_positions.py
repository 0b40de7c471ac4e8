"""How many heads, and which positions: the measurements of chapter 06.

    python benchmarks/heads_and_positions.py          # writes book/_data/heads_and_positions.json

Three studies, each with several seeds, in one process on one core:

places     One layer of attention, one question: name the symbols at n places of a random sequence.
           All layers have the same number of parameters; only the number of heads differs.
text       A language model of two attention layers on the course's text, with 1, 2, 4 and 8 heads
           of the same total width.
positions  The same model with five ways to say where a token stands, trained on windows of
           `BLOCK` characters and read on windows of `LONG`.

The models of the last two are attention alone: x + attention(norm(x)), twice, then a linear head.
Random windows and learning rate are the same for all, and nothing is tuned for one of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import re
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rnn2gpt.attention import causal_mask
from rnn2gpt.data import CharTokenizer, get_batch, load_text, split
from rnn2gpt.multi_head import MultiHeadAttention, merge_heads, split_heads
from rnn2gpt.positions import alibi_bias, apply_rotary, sinusoidal_positions
from rnn2gpt.training import cosine_schedule

OUT = Path(__file__).resolve().parent.parent / "book" / "_data" / "heads_and_positions.json"
HEADS = (1, 2, 4, 8)
PLACES = (1, 2, 4, 8)
KINDS = ("none", "learned", "sinusoidal", "rotary", "alibi")
BLOCK, LONG = 64, 512
D_MODEL, N_LAYERS, N_HEADS = 64, 2, 4
BATCH, RATE = 16, 4e-3
JUDGED = 32_768  # characters of the held-out text that a model is judged on, at either length
BINS = (1, 2, 3, 5, 9, 17, 33, 65, 81, 97, 129, 193, 257, 385, 513)  # positions counted from 1


# --- places --------------------------------------------------------------------------------------


def name_the_places(
    n_heads: int,
    n_places: int,
    seed: int,
    steps: int = 500,
    d_model: int = 32,
    length: int = 16,
    n_symbols: int = 64,
    rows: int = 64,
) -> dict[str, float]:
    """Train one attention layer to name the symbols at n places; the share it gets right.

    One learned query reads the whole sequence. A linear map of what it read names all n symbols.
    """
    torch.manual_seed(seed)
    places = torch.randperm(length)[:n_places]
    symbols, positions = nn.Embedding(n_symbols, d_model), nn.Embedding(length, d_model)
    attention, head = MultiHeadAttention(d_model, n_heads), nn.Linear(d_model, n_places * n_symbols)
    query = nn.Parameter(torch.randn(1, 1, d_model))
    modules = (symbols, positions, attention, head)
    optimizer = torch.optim.AdamW([query, *(p for m in modules for p in m.parameters())])

    def answer(rows: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(n_symbols, (rows, length))
        x = symbols(ids) + positions.weight  # (B, S, D)
        read, _ = attention(query.expand(rows, 1, d_model), x, x, need_weights=False)
        logits = head(read[:, 0]).view(rows, n_places, n_symbols)  # (B, D) → (B, n, V)
        return logits, ids[:, places]

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = cosine_schedule(step, 6e-3, 3e-4, 50, steps)
        logits, right = answer(rows)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), right.flatten()).backward()
        optimizer.step()
    with torch.no_grad():
        logits, right = answer(2000)
    return {
        "right": (logits.argmax(-1) == right).float().mean().item(),
        "attention_parameters": sum(p.numel() for p in attention.parameters()),
    }


# --- language models -----------------------------------------------------------------------------


class PositionedAttention(MultiHeadAttention):
    """Causal self-attention with the two kinds of position that act inside it."""

    def __init__(self, d_model: int, n_heads: int, kind: str) -> None:
        super().__init__(d_model, n_heads)
        self.kind = kind

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each head's weights (B, H, T, T) and values (B, H, T, D/H)."""
        q, k, v = (split_heads(w(x), self.n_heads) for w in (self.W_q, self.W_k, self.W_v))
        t = x.shape[1]
        if self.kind == "rotary":
            positions = torch.arange(t)
            q, k = apply_rotary(q, positions), apply_rotary(k, positions)
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, T, T)
        if self.kind == "alibi":
            scores = scores + alibi_bias(self.n_heads, t)
        return scores.masked_fill(~causal_mask(t), -math.inf).softmax(dim=-1), v

    def attend(self, x: Tensor) -> Tensor:
        weights, v = self.read(x)
        return self.W_o(merge_heads(weights @ v))


class AttentionModel(nn.Module):
    """A language model of attention layers alone, with one of the five kinds of position."""

    def __init__(self, vocab_size: int, n_heads: int, kind: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, D_MODEL)
        if kind == "learned":  # rows from BLOCK on exist and are never trained
            self.positions: nn.Parameter | Tensor = nn.Parameter(torch.randn(LONG, D_MODEL))
        else:
            waves = sinusoidal_positions(LONG, D_MODEL)
            self.register_buffer("positions", waves if kind == "sinusoidal" else 0 * waves)
        self.norms = nn.ModuleList(nn.LayerNorm(D_MODEL) for _ in range(N_LAYERS))
        self.layers = nn.ModuleList(
            PositionedAttention(D_MODEL, n_heads, kind) for _ in range(N_LAYERS)
        )
        self.norm, self.head = nn.LayerNorm(D_MODEL), nn.Linear(D_MODEL, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions[: ids.shape[1]]  # (B, T, D)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer.attend(norm(x))
        return self.head(self.norm(x))


def nats(model: nn.Module, ids: Tensor, length: int) -> Tensor:
    """−ln p of every character of the text's windows of `length`, (windows, length).

    Windows are spread over the text, as many as hold `JUDGED` characters.
    """
    n = (len(ids) - 1) // length
    every = max(1, n * length // JUDGED)
    x, y = (ids[k : n * length + k].view(n, length)[::every] for k in (0, 1))
    pieces = zip(x.split(4096 // length), y.split(4096 // length), strict=True)
    with torch.no_grad():
        return torch.cat([F.cross_entropy(model(a).mT, b, reduction="none") for a, b in pieces])


class Text:
    """The course's text, cut as everywhere; the last positions are judged on the held-out part."""

    def __init__(self) -> None:
        text = load_text()
        self.tokenizer = CharTokenizer(text)
        self.train, self.held_out = split(self.tokenizer.encode(text))

    def fit(self, n_heads: int, kind: str, seed: int, steps: int) -> AttentionModel:
        torch.manual_seed(seed)
        model = AttentionModel(self.tokenizer.vocab_size, n_heads, kind)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        chance = torch.Generator().manual_seed(seed)  # the same windows for every model
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = cosine_schedule(step, RATE, RATE / 20, 50, steps)
            x, y = get_batch(self.train, BLOCK, BATCH, chance)
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model.eval()


@torch.no_grad()
def look_into(model: AttentionModel, ids: Tensor) -> list[dict[str, Any]]:
    """For each head of each layer: its weights by distance, and what the model loses without it.

    The weights are a mean over queries that see at least `BLOCK` / 2 characters.
    """
    whole = nats(model, ids, BLOCK).mean().item()
    x = ids[: len(ids) // BLOCK * BLOCK].view(-1, BLOCK)[:200]  # (N,) → (B, T)
    stream, heads = model.embedding(x) + model.positions[:BLOCK], []
    for depth, (norm, layer) in enumerate(zip(model.norms, model.layers, strict=True), start=1):
        weights, _ = layer.read(norm(stream))
        average = weights.mean(dim=0)  # (H, T, T)
        stream = stream + layer.attend(norm(stream))
        for h in range(layer.n_heads):
            far = range(BLOCK // 2)
            by_distance = [average[h].diagonal(-k)[BLOCK // 2 - k :].mean().item() for k in far]
            columns = slice(h * D_MODEL // layer.n_heads, (h + 1) * D_MODEL // layer.n_heads)
            kept = layer.W_o.weight[:, columns].clone()
            layer.W_o.weight[:, columns] = 0
            without = nats(model, ids, BLOCK).mean().item()
            layer.W_o.weight[:, columns] = kept
            heads.append(
                {
                    "layer": depth,
                    "head": h + 1,
                    "weight_by_distance": [round(w, 4) for w in by_distance],
                    "nats_without": round(without - whole, 4),
                }
            )
    return heads


def by_bins(nats_by_position: Tensor) -> list[float]:
    return [
        round(nats_by_position[start - 1 : end - 1].mean().item(), 4)
        for start, end in itertools.pairwise(BINS)
    ]


# --- the studies ---------------------------------------------------------------------------------


def study_places(seeds: int, steps: int, bar: Any) -> dict[str, Any]:
    grid, parameters = [], set()
    for n_heads in HEADS:
        grid.append([])
        for n_places in PLACES:
            runs = [name_the_places(n_heads, n_places, seed, steps) for seed in range(seeds)]
            parameters |= {int(run["attention_parameters"]) for run in runs}
            grid[-1].append([round(run["right"], 4) for run in runs])
            bar.update(seeds)
    (count,) = parameters  # the split costs no parameter, or this fails
    return {
        "heads": HEADS,
        "places": PLACES,
        "right": grid,  # [heads][places][seed]
        "attention_parameters": count,
        "d_model": 32,
        "length": 16,
        "n_symbols": 64,
        "steps": steps,
    }


def study_text(text: Text, seeds: int, steps: int, bar: Any) -> tuple[dict[str, Any], ...]:
    """Heads and positions share the run with `N_HEADS` heads and learned positions."""
    heads: dict[str, Any] = {"heads": HEADS, "nats": [], "parameters": []}
    kinds: dict[str, Any] = {"kinds": KINDS, "bins": BINS, "nats_by_bin": {}, "nats_short": {}}
    for n_heads, kind in [(n, "learned") for n in HEADS] + [
        (N_HEADS, kind) for kind in KINDS if kind != "learned"
    ]:
        short, long = [], []
        for seed in range(seeds):
            model = text.fit(n_heads, kind, seed, steps)
            short.append(round(nats(model, text.held_out, BLOCK).mean().item(), 4))
            if n_heads == N_HEADS:
                long.append(by_bins(nats(model, text.held_out, LONG).mean(dim=0)))
            if (n_heads, kind, seed) == (N_HEADS, "learned", 0):
                heads["inside"] = look_into(model, text.held_out)
            bar.update(1)
        if kind == "learned":
            parameters = sum(p.numel() for p in model.layers.parameters())
            heads["nats"].append(short)
            heads["parameters"].append(parameters)
        if n_heads == N_HEADS:
            kinds["nats_short"][kind], kinds["nats_by_bin"][kind] = short, long
    kinds["nats_by_bin"] = {kind: kinds["nats_by_bin"][kind] for kind in KINDS}
    facts = {"d_model": D_MODEL, "n_layers": N_LAYERS, "block": BLOCK, "long": LONG}
    facts |= {"n_heads": N_HEADS, "batch": BATCH, "rate": RATE, "steps": steps}
    return heads | facts, kinds | facts


def measure(seeds: int, places_steps: int, text_steps: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    text = Text()
    runs = seeds * (len(HEADS) * len(PLACES) + len(HEADS) + len(KINDS) - 1)
    with tqdm(total=runs, unit="run") as bar:
        places = study_places(seeds, places_steps, bar)
        heads, positions = study_text(text, seeds, text_steps, bar)
    return {
        "command": "python benchmarks/heads_and_positions.py",
        "seeds": seeds,
        "places": places,
        "text": heads,
        "positions": positions,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": platform.processor() or platform.machine(),
    }


def write(result: dict[str, Any], path: Path) -> None:
    """Indented JSON with a list of numbers on one line."""
    text = json.dumps(result, indent=1)
    lines = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)
    path.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--places-steps", type=int, default=500)
    parser.add_argument("--text-steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    result = measure(options.seeds, options.places_steps, options.text_steps)
    write(result, options.out)
    spread = [statistics.mean(one) for one in result["text"]["nats"]]
    print(dict(zip(HEADS, spread, strict=True)), result["positions"]["nats_short"])
