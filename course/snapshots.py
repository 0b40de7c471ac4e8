"""What a model looked like as it learned: a run's snapshots as one small JSON, its end as a model.

    rnn2gpt train --model gpt … --snapshots 14 --out runs/small-gpt
    python -m course.snapshots runs/small-gpt

The second command writes `book/_data/models/small-gpt/` (the last weights in half precision, with a
model card) and `book/_data/training_snapshots.json` (for each snapshot: losses, a sample, one
attention head, the places of some tokens' embeddings), which the site can scrub through.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from rnn2gpt.checkpoint import MODELS, Checkpoint, load_model, read_json, save_model
from rnn2gpt.data import CORPORA, load_text, split
from rnn2gpt.evaluation import count_characters, evaluate
from rnn2gpt.generation import generate
from rnn2gpt.gpt import GPT
from rnn2gpt.metrics import bits_per_character

MODEL = Path("book/_data/models/small-gpt")
OUT = Path("book/_data/training_snapshots.json")
LADDER = Path("book/_data/ladder.json")
COMMAND = (
    "OMP_NUM_THREADS=1 rnn2gpt train --model gpt --data all-plays --tokenizer bpe --vocab-size 1024"
    " --d-model 128 --n-layers 4 --n-heads 4 --block-size 128 --batch-size 16 --steps 2000"
    " --optimizer muon --learning-rate 8e-3 --schedule trapezoid --snapshots 14 --device cpu"
    " --out runs/small-gpt"
)
SENTENCE = "Now is the winter of our discontent\nMade glorious summer by this sun of York;"
PROMPT, SAMPLE_TOKENS = "KING RICHARD:\n", 100
JUDGED = 20_000  # tokens of each part that a snapshot is judged on
SHOWN = 60  # tokens whose embeddings are placed


def parts(loaded: Checkpoint) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " M"]]:
    """The ids of the training and the held-out part of the text that the run read."""
    train, held_out = split(load_text(loaded.info["text"]))
    encode = loaded.tokenizer.encode
    return torch.as_tensor(encode(train)), torch.as_tensor(encode(held_out))


# --- the snapshots --------------------------------------------------------------------------------


def read_snapshots(run: Path) -> dict[str, Any]:
    """All that the site shows of a run's snapshots, in the order of their steps."""
    folders = sorted((run / "snapshots").iterdir())
    last = load_model(folders[-1])
    train, held_out = (ids[: JUDGED + 1] for ids in parts(last))
    sentence = torch.tensor(last.tokenizer.encode(SENTENCE))  # (T,)
    layer, head = one_back_head(last.model, sentence)
    shown = frequent_words(last, train)
    rows = last.model.token_embedding.weight.detach()[shown]  # (n, D)
    axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:2].T  # (D, 2)
    return {
        "command": f"{COMMAND}; python -m course.snapshots runs/small-gpt",
        "judged_tokens": JUDGED,
        "prompt": PROMPT,
        "sentence": [_text(last, i) for i in sentence.tolist()],
        "head": {"layer": layer, "head": head},
        "words": [_text(last, i) for i in shown.tolist()],
        "snapshots": [
            describe(load_model(folder), train, held_out, sentence, (layer, head), shown, axes)
            for folder in tqdm(folders, "snapshots")
        ],
    }


@torch.no_grad()
def describe(
    loaded: Checkpoint,
    train: Int64[Tensor, " N"],
    held_out: Int64[Tensor, " N"],
    sentence: Int64[Tensor, " T"],
    place: tuple[int, int],
    shown: Int64[Tensor, " n"],
    axes: Float[Tensor, "D 2"],
) -> dict[str, Any]:
    """One snapshot. All are projected on the same `axes`, so that a word can be followed."""
    model, tokenizer = loaded.model, loaded.tokenizer
    train_nats, nats = (
        evaluate(MODELS["gpt"], model, ids).mean().item() for ids in (train, held_out)
    )
    prompt = torch.tensor([tokenizer.encode(PROMPT)])
    chance = torch.Generator().manual_seed(0)
    written = generate(model, prompt, SAMPLE_TOKENS, temperature=0.8, generator=chance)
    weights = attention_weights(model, sentence, place[0])[place[1]]  # (T, T)
    rows = model.token_embedding.weight[shown]
    places = (rows - rows.mean(0)) @ axes  # (n, 2)
    characters = count_characters(tokenizer, held_out[1:])
    return {
        "step": loaded.info["step"],
        "tokens": loaded.info["tokens"],
        "train_nats": round(train_nats, 4),
        "validation_nats": round(nats, 4),
        "bits_per_character": round(bits_per_character(nats, len(held_out) - 1, characters), 4),
        "sample": tokenizer.decode(written[0].tolist())[len(PROMPT) :],
        "attention": [
            [round(w, 3) for w in row[: t + 1]] for t, row in enumerate(weights.tolist())
        ],
        "places": [[round(x, 4) for x in row] for row in places.tolist()],
    }


@torch.no_grad()
def attention_weights(model: GPT, ids: Int64[Tensor, " T"], layer: int) -> Float[Tensor, "H T T"]:
    """The weights of all heads of one layer, row t being what position t reads."""
    x = model.token_embedding(ids[None]) + model.position_embedding(torch.arange(len(ids)))
    blocks: Any = list(model.blocks)[: layer + 1]
    *before, block = blocks
    for earlier in before:
        x = earlier(x, "causal")
    y = block.norm_1(x)
    return block.attention(y, y, y, "causal")[1][0]


def one_back_head(model: GPT, ids: Int64[Tensor, " T"]) -> tuple[int, int]:
    """Layer and number of the head that reads the token just before most of all heads."""
    found = {
        (layer, head): weights.diagonal(-1).mean().item()
        for layer in range(model.config.n_layers)
        for head, weights in enumerate(attention_weights(model, ids, layer))
    }
    return max(found, key=lambda place: found[place])


def frequent_words(loaded: Checkpoint, ids: Int64[Tensor, " N"]) -> Int64[Tensor, " n"]:
    """The most frequent tokens that are a space and a word of two letters or more."""
    order = ids.bincount(minlength=loaded.tokenizer.vocab_size).argsort(descending=True)
    texts = {i: _text(loaded, i) for i in order.tolist()}
    words = [i for i, text in texts.items() if text[0] == " " and text[1:].isalpha() and text[2:]]
    return torch.tensor(words[:SHOWN])


def _text(loaded: Checkpoint, i: int) -> str:
    return loaded.tokenizer.decode([i])


# --- the model ------------------------------------------------------------------------------------


def export_model(run: Path, folder: Path) -> dict[str, Any]:
    """Write the run's last weights in half precision, judged as they are after the rounding."""
    last, training = load_model(run / "last"), read_json(run / "last" / "training.json")
    weights = {name: w.half().float() for name, w in last.model.state_dict().items()}
    last.model.load_state_dict(weights)
    held_out = parts(last)[1]
    nats = evaluate(MODELS["gpt"], last.model, held_out).mean().item()
    characters = count_characters(last.tokenizer, held_out[1:])
    facts = {
        "command": COMMAND,
        "text": last.info["text"],
        "seed": training["config"]["seed"],
        "step": last.info["step"],
        "tokens": last.info["tokens"],
        "validation_nats": nats,
        "bits_per_character": bits_per_character(nats, len(held_out) - 1, characters),
    }
    save_model(folder, "gpt", last.model.config, weights, last.tokenizer, torch.float16, **facts)
    parameters = sum(p.numel() for p in last.model.parameters())
    (folder / "README.md").write_text(card(facts, parameters, characters), encoding="utf-8")
    return facts


def card(facts: dict[str, Any], parameters: int, characters: int) -> str:
    """The model card, in Markdown; Kneser–Ney's numbers are the ladder's on the same text."""
    corpus, curve = CORPORA[facts["text"]], read_json(LADDER)["data_curve"]
    counting = {
        name.split("@")[0].rsplit("-", 1)[-1]: entry["nats"]
        for name, entry in curve.items()
        if name.startswith("kneser-ney") and name.endswith("@1")
    }
    order = min(counting, key=lambda n: counting[n])
    counted = bits_per_character(counting[order], 1, 1)
    command = COMMAND.replace(" --", " \\\n    --")
    return f"""# The small GPT

A GPT with GPT-2's layout and {parameters:,} parameters: 4 layers of 4 heads, width 128, learned
positions, a window of 128 tokens. It is the model that the chapters on generation, fine-tuning and
interpretability start from. The weights are stored in half precision (`model.safetensors`), its
sizes in `config.json`, its vocabulary in `tokenizer.json`.

```python
from rnn2gpt.checkpoint import load_model
loaded = load_model("book/_data/models/small-gpt")   # .model, .tokenizer, .info
```

## Data

Shakespeare's plays as `rnn2gpt data` builds them (`{facts["text"]}`, {corpus.characters:,}
characters, sha256 `{corpus.sha256[:12]}…`). The first nine tenths were trained on; the vocabulary
of 1,024 byte pairs was learned from them too. The last tenth, plays that the model never read,
judges it.

## Training

{facts["step"]:,} steps, {facts["tokens"]:,} tokens, seed {facts["seed"]}, by one command:

```bash
{command}
```

A step takes 0.41 s of processor time on one core of a 2.5 GHz Xeon with AVX-512, the run some 14
minutes. The same command gives the same weights on the same machine and version of PyTorch.

## How good it is

| on the held-out tenth | nats per token | bits per character |
|---|---|---|
| this model, with half a window or more to read | {facts["validation_nats"]:.4f} | \
{facts["bits_per_character"]:.4f} |
| Kneser–Ney, {order}-grams of characters, counted on the same text | – | {counted:.4f} |

A sweep over the whole held-out part, each token predicted once, with the rounded weights as they
are stored here. Nats per token depend on the vocabulary; bits per character, over {characters:,}
characters, can be compared.

## What it cannot do

It writes lines that look like Shakespeare's and mean nothing: names, verse and spelling are mostly
right, sense ends after a few words. It knows no facts, answers no questions, and sees at most 128
tokens, some 300 characters. It was trained on plays of four hundred years ago, with their views of
people; what it writes repeats them.
"""


def main() -> None:
    """Export the model and its snapshots from the run's folder that the command line names."""
    run = Path(sys.argv[1])
    facts = export_model(run, MODEL)
    OUT.write_text(json.dumps(read_snapshots(run), ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        f"{MODEL}: {facts['validation_nats']:.4f} nats per token, "
        f"{facts['bits_per_character']:.4f} bits per character. {OUT}: {OUT.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    main()
