"""Pictures for a GPT: patches become vectors that stand in front of the text (chapter 16).

A picture is cut into patches, and one linear map makes a vector of each (Dosovitskiy et al. 2021,
section 3.1). To the blocks they are tokens like any others. The pictures here are drawn on the
spot: a colored shape, and a caption that says what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rnn2gpt.gpt import GPT, GPTConfig

COLORS = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.65, 0.25),
    "blue": (0.15, 0.30, 0.85),
    "yellow": (0.95, 0.80, 0.15),
    "black": (0.10, 0.10, 0.10),
    "purple": (0.55, 0.20, 0.70),
    "orange": (0.95, 0.50, 0.10),
    "cyan": (0.30, 0.80, 0.90),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
WORDS = ("<start>", "<end>", "a", *COLORS, *SHAPES)
START, END = 0, 1
SIDE = 16  # pixels


def encode_words(text: str) -> list[int]:
    """The ids of a caption's words; a word that is not in `WORDS` is a `ValueError`."""
    return [WORDS.index(word) for word in text.split()]


def decode_words(ids: Sequence[int]) -> str:
    """The words of a caption, up to its end."""
    ids = list(ids)
    return " ".join(WORDS[i] for i in (ids[: ids.index(END)] if END in ids else ids))


def draw_shape(
    canvas: np.ndarray, shape: str, color: str, row: float, column: float, size: float
) -> None:
    """Paint one shape into `canvas` (3, side, side), `size` pixels from its center to its edge."""
    y, x = np.mgrid[: canvas.shape[1], : canvas.shape[2]]
    y, x = (y - row) / size, (x - column) / size  # the shape lies in −1 … 1
    box = (abs(x) <= 1) & (abs(y) <= 1)
    inside = {
        "circle": x**2 + y**2 <= 1,
        "square": box,
        "triangle": box & (abs(x) <= (y + 1) / 2),
        "cross": box & ((abs(x) <= 0.36) | (abs(y) <= 0.36)),
        "diamond": abs(x) + abs(y) <= 1,
        "ring": (x**2 + y**2 <= 1) & (x**2 + y**2 > 0.3),
    }[shape]
    canvas[:, inside] = np.array(COLORS[color])[:, None]


@dataclass(frozen=True)
class Scene:
    """A colored shape."""

    color: str
    shape: str

    @property
    def caption(self) -> str:
        return f"a {self.color} {self.shape}"

    def draw(self, rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
        """A picture (3, side, side) of it on gray, moved and sized at random."""
        canvas = np.full((3, side, side), 0.92) + rng.normal(0, 0.02, (3, side, side))
        size = rng.uniform(0.25, 0.35) * side
        row, column = rng.uniform(size, side - 1 - size, 2)
        draw_shape(canvas, self.shape, self.color, row, column, size)
        return canvas


def draw_scenes(
    n: int, allowed: Sequence[tuple[str, str]], rng: np.random.Generator
) -> list[tuple[Scene, np.ndarray]]:
    """n scenes drawn from the pairs of color and shape that are allowed, each with a picture."""
    scenes = [Scene(*allowed[i]) for i in rng.integers(len(allowed), size=n)]
    return [(scene, scene.draw(rng)) for scene in scenes]


def as_batch(
    scenes: Sequence[tuple[Scene, np.ndarray]],
) -> tuple[Float[Tensor, "B 3 side side"], Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """Pictures, the captions' words behind START, and the words to predict (−100 behind END)."""
    captions = [encode_words(scene.caption) for scene, _ in scenes]
    t = max(map(len, captions)) + 1
    ids, targets = torch.full((len(scenes), t), END), torch.full((len(scenes), t), -100)
    for row, caption in enumerate(captions):
        ids[row, : len(caption) + 1] = torch.tensor([START, *caption])
        targets[row, : len(caption) + 1] = torch.tensor([*caption, END])
    pictures = np.stack([picture for _, picture in scenes])
    return torch.tensor(pictures, dtype=torch.float32), ids, targets


def patches(images: Float[Tensor, "B C H W"], size: int) -> Float[Tensor, "B N P"]:
    """Squares of size × size pixels, row by row, each as one list of C · size² numbers.

    >>> patches(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 1]
    tensor([2., 3., 6., 7.])
    """
    cut = images.unfold(2, size, size).unfold(3, size, size)  # (B, C, H/p, W/p, p, p)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class Captioner(nn.Module):
    """A GPT that reads a picture before it writes: N vectors of patches, then the words.

    `config.block_size` holds both. The one new part is `W_patch`.
    """

    def __init__(
        self, config: GPTConfig, image_size: int = SIDE, patch_size: int = 4, channels: int = 3
    ) -> None:
        super().__init__()
        self.gpt, self.patch_size = GPT(config), patch_size
        self.n_patches = (image_size // patch_size) ** 2
        if self.n_patches >= config.block_size:
            raise ValueError(f"{self.n_patches} patches leave no room in {config.block_size}")
        self.W_patch = nn.Linear(channels * patch_size**2, config.d_model)

    def forward(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B T"]
    ) -> Float[Tensor, "B T V"]:
        """Logits of the word after each of `ids`, given the picture and the words before."""
        seen = self.W_patch(patches(images, self.patch_size))  # (B, N, D)
        x = torch.cat([seen, self.gpt.token_embedding(ids)], dim=1)  # (B, N + T, D)
        positions = torch.arange(x.shape[1], device=ids.device)
        x = x + self.gpt.position_embedding(positions)
        for block in self.gpt.blocks:
            x = block(x, "causal")
        return self.gpt.head(self.gpt.norm(x[:, seen.shape[1] :]))

    @torch.no_grad()
    def caption(self, images: Float[Tensor, "B C H W"], max_words: int = 5) -> list[str]:
        """The likeliest word again and again, until each picture's caption has its end."""
        ids = torch.full((len(images), 1), START, device=images.device)
        while ids.shape[1] <= max_words:
            ids = torch.cat([ids, self(images, ids)[:, -1:].argmax(-1)], dim=1)
            if bool((ids == END).any(dim=1).all()):
                break
        return [decode_words(row) for row in ids[:, 1:].tolist()]
