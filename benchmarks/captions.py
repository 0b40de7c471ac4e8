"""A GPT that reads pictures: captions of drawn shapes, with pairs that it never saw in training.

    python benchmarks/captions.py      # writes book/_data/captions.json, about a minute and a half

Small `Captioner`s learn from shapes drawn on the spot, in two worlds: one of four colors and four
shapes, and one of eight and six, three models in each. Four pairs of color and shape, the same in
both worlds, are left out of training. Then each writes captions of fresh pictures: of familiar
things, of the new pairs, and of the familiar ones again with the picture taken away (gray) or
exchanged for another one. Last, it is shown the new pairs and asked for the shape behind the words
"a" and a color: the true one, and one with which the shape was seen in training. What differs
between the two is the words.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from rnn2gpt.gpt import GPTConfig
from rnn2gpt.training import cosine_schedule
from rnn2gpt.vision import (
    COLORS,
    SHAPES,
    SIDE,
    START,
    WORDS,
    Captioner,
    Scene,
    as_batch,
    draw_scenes,
    encode_words,
)

NEW = [("red", "circle"), ("green", "square"), ("blue", "triangle"), ("yellow", "cross")]
WORLDS = {
    f"{n_colors} colors, {n_shapes} shapes": [
        pair
        for pair in itertools.product(list(COLORS)[:n_colors], SHAPES[:n_shapes])
        if pair not in NEW
    ]
    for n_colors, n_shapes in ((4, 4), (8, 6))
}
CONFIG = GPTConfig(vocab_size=len(WORDS), block_size=22, n_layers=2, n_heads=4, d_model=64)
ROWS, RATE, TESTED = 32, 2e-3, 400
Pictured = tuple[Scene, np.ndarray]


def train(
    known: list[tuple[str, str]], seed: int, steps: int
) -> tuple[Captioner, list[dict[str, float]], float]:
    """A trained model, its loss (mean over 50 steps, nats a word), and the seconds it took."""
    torch.manual_seed(seed)
    rng, start = np.random.default_rng(seed), time.process_time()
    model, losses, curve = Captioner(CONFIG), [], []
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = cosine_schedule(step, RATE, 0.0, 100, steps)
        images, ids, targets = as_batch(draw_scenes(ROWS, known, rng))
        loss = cross_entropy(model(images, ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            curve.append({"step": step + 1, "nats": round(float(np.mean(losses[-50:])), 4)})
    return model.eval(), curve, time.process_time() - start


def judged(model: Captioner, scenes: list[Pictured], images: torch.Tensor) -> dict[str, Any]:
    """How many captions are right, whole and part by part, and the commonest wrong ones."""
    wrong: Counter[tuple[str, str]] = Counter()
    right = {"caption": 0, "color": 0, "shape": 0}
    for (scene, _), written in zip(scenes, model.caption(images), strict=True):
        right["caption"] += written == scene.caption
        right["color"] += scene.color in written.split()
        right["shape"] += scene.shape in written.split()
        if written != scene.caption:
            wrong[scene.caption, written] += 1
    shares = {name: round(count / len(scenes), 4) for name, count in right.items()}
    commonest = [[*pair, count] for pair, count in wrong.most_common(4)]
    return {"n": len(scenes), **shares, "wrong": commonest}


@torch.no_grad()
def shape_behind(model: Captioner, scenes: list[Pictured], colors: dict[str, str]) -> float:
    """How often the shape is named right behind the words "a" and `colors[its color]`."""
    prefix = [[START, *encode_words(f"a {colors[scene.color]}")] for scene, _ in scenes]
    logits = model(as_batch(scenes)[0], torch.tensor(prefix))[:, -1]
    said = [WORDS[i] for i in logits.argmax(-1).tolist()]
    right = [word == scene.shape for word, (scene, _) in zip(said, scenes, strict=True)]
    return round(float(np.mean(right)), 4)


def run(world: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one model and judge it; the pictures of the test are the same for every seed."""
    known = WORLDS[world]
    model, curve, seconds = train(known, seed, steps)
    rng = np.random.default_rng(1000)
    familiar = draw_scenes(TESTED, known, rng)
    images = as_batch(familiar)[0]
    new = draw_scenes(TESTED, NEW, rng)
    tests = {
        "familiar things": judged(model, familiar, images),
        "new pairs": judged(model, new, as_batch(new)[0]),
        "picture taken away": judged(model, familiar, torch.full_like(images, 0.92)),
        "another picture": judged(model, familiar, images.roll(1, 0)),
    }
    colors = [color for color, _ in NEW]
    others = dict(zip(colors, colors[1:] + colors[:1], strict=True))
    shown = [*familiar[:3], *new[:6]]
    written = model.caption(as_batch(shown)[0])
    return {
        "world": world,
        "seed": seed,
        "pairs": len(known),
        "cpu_seconds": round(seconds, 1),
        "curve": curve,
        "tests": tests,
        "new shape behind its own color": shape_behind(
            model, new, dict(zip(colors, colors, strict=True))
        ),
        "new shape behind another color": shape_behind(model, new, others),
        "examples": [
            {
                "caption": scene.caption,
                "written": text,
                "picture": (picture.clip(0, 1) * 255).round().astype(int).tolist(),
            }
            for (scene, picture), text in zip(shown, written, strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=850)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--out", type=Path, default=Path("book/_data/captions.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for world, seed in itertools.product(options.worlds, options.seeds):
        one = run(world, seed, options.steps)
        stored = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {}
        runs = {(old["world"], old["seed"]): old for old in stored.get("runs", [])}
        runs[world, seed] = one
        if seed:  # the pictures of one seed are enough
            del one["examples"]
        shares = {name: test["caption"] for name, test in one["tests"].items()}
        print(world, seed, shares, one["new shape behind another color"], flush=True)
        result = {
            "command": "python benchmarks/captions.py",
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "machine": f"{platform.machine()}, {os.cpu_count()} processors, one thread",
            "steps": options.steps,
            "rows": ROWS,
            "side": SIDE,
            "parameters": sum(p.numel() for p in Captioner(CONFIG).parameters()),
            "new": [" ".join(pair) for pair in NEW],
            "runs": [runs[key] for key in sorted(runs)],
        }
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
