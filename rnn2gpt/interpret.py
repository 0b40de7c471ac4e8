"""Looking inside a GPT: its stream, its attention, single heads switched off (chapter 15).

Everything here works on a `rnn2gpt.gpt.GPT` with any weights, GPT-2's among them, and on any
device. The logit lens is nostalgebraist's (2020), the induction score Olsson et al.'s (2022), the
control task Hewitt & Liang's (2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rnn2gpt.gpt import GPT

Head = tuple[int, int]  # layer, head


def residual_stream(model: GPT, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "L+1 B T D"]:
    """The vectors between the blocks: what the embeddings make, then what each block leaves.

    Raises `ValueError` when the tokens are longer than the model's window.
    """
    t = ids.shape[1]
    if t > model.block_size:
        raise ValueError(f"{t} tokens are longer than block_size={model.block_size}")
    x = model.token_embedding(ids) + model.position_embedding.weight[:t]  # (B, T, D)
    stream = [x]
    for block in model.blocks:
        x = block(x, "causal")
        stream.append(x)
    return torch.stack(stream)


def logit_lens(model: GPT, ids: Int64[Tensor, " T"]) -> Float[Tensor, "L T V"]:
    """The logits that the model would give if it stopped after each of its blocks.

    The stream after a block goes through the model's own last norm and head. The last layer's are
    the model's logits.
    """
    after = residual_stream(model, ids[None])[1:, 0]  # (L, T, D)
    return model.head(model.norm(after))


def attention_weights(model: GPT, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "L B H T T"]:
    """How much each position reads from each other one, in every head of every layer."""
    stream = residual_stream(model, ids)
    maps = []
    blocks: Any = model.blocks
    for block, x in zip(blocks, stream, strict=False):  # the stream as the block meets it
        y = block.norm_1(x)
        maps.append(block.attention(y, y, y, "causal", need_weights=True)[1])
    return torch.stack(maps)


def induction_score(weights: Float[Tensor, "H T T"], period: int) -> Float[Tensor, " H"]:
    """How much each head reads the token that followed the last time, in a text that repeats.

    The mean of `weights[:, i, i − period + 1]` over the i that have been there before, i ≥ period.
    Raises `ValueError` when the text does not get so far.

    >>> weights = torch.zeros(1, 4, 4)
    >>> weights[0, 2, 1], weights[0, 3, 2] = 1.0, 0.5  # "a b a b": after the second a, look at b
    >>> induction_score(weights, period=2)
    tensor([0.7500])
    """
    if not 1 <= period < weights.shape[-1]:
        raise ValueError(f"period={period} is no repetition in {weights.shape[-1]} positions")
    return weights.diagonal(1 - period, dim1=-2, dim2=-1)[:, 1:].mean(dim=-1)


def repeated(
    n: int, period: int, length: int, vocab_size: int, generator: torch.Generator | None = None
) -> Int64[Tensor, "n length"]:
    """`n` rows of random tokens that start again after `period` of them."""
    once = torch.randint(vocab_size, (n, period), generator=generator)
    return once.repeat(1, -(-length // period))[:, :length]


def _output_projections(model: GPT) -> list[nn.Module]:
    """The map of each layer that mixes the heads' outputs into the stream."""
    return [model.get_submodule(f"blocks.{i}.attention.W_o") for i in range(len(model.blocks))]


@contextmanager
def ablate_heads(model: GPT, heads: Iterable[Head]) -> Iterator[GPT]:
    """Within the block, the (layer, head) pairs hand zeros to their layer's output projection.

    The model is as it was afterwards, also when an error ends the block. Raises `ValueError` for a
    head that the model does not have.

        with ablate_heads(model, [(2, 0), (2, 3)]):
            logits, _ = model(ids)
    """
    with replace_heads(model, {head: None for head in heads}):
        yield model


@contextmanager
def replace_heads(model: GPT, heads: Mapping[Head, Float[Tensor, " D/H"] | None]) -> Iterator[GPT]:
    """As `ablate_heads`, with a vector of one's own instead of zeros: a head's mean output, say."""
    n_heads, width = model.config.n_heads, model.config.d_model // model.config.n_heads
    for layer, head in heads:
        if not (0 <= layer < len(model.blocks) and 0 <= head < n_heads):
            raise ValueError(f"There is no head {head} in layer {layer}")

    def put(layer: int, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        parts = args[0].unflatten(-1, (n_heads, width)).clone()  # (B, T, D) → (B, T, H, D/H)
        for (where, head), vector in heads.items():
            if where == layer:
                parts[..., head, :] = 0.0 if vector is None else vector
        return (parts.flatten(-2),)

    hooks = [
        projection.register_forward_pre_hook(partial(put, layer))
        for layer, projection in enumerate(_output_projections(model))
        if any(where == layer for where, _ in heads)
    ]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def mean_head_outputs(model: GPT, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "L H D/H"]:
    """What each head hands to its output projection, averaged over all tokens of `ids`."""
    seen: list[Tensor] = []
    hooks = [
        projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for projection in _output_projections(model)
    ]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    heads = model.config.n_heads
    return torch.stack(seen).mean(dim=(1, 2)).unflatten(-1, (heads, -1))  # (L, D) → (L, H, D/H)


class Probe(nn.Module):
    """A classifier on vectors that stay as they are: a linear map, or one with a hidden layer."""

    mean: Tensor
    scale: Tensor

    def __init__(self, d_model: int, n_classes: int, hidden: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_model))
        self.register_buffer("scale", torch.ones(d_model))
        sizes = [d_model, hidden, n_classes] if hidden else [d_model, n_classes]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(sizes):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Logits of the classes; each feature is first brought to mean 0 and variance 1."""
        return self.layers((x - self.mean) / self.scale)

    def fit(
        self, x: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], decay: float = 1e-3
    ) -> Probe:
        """Minimize cross-entropy + `decay` · ‖weights‖² / 2 on all of the data with L-BFGS."""
        self.mean, self.scale = x.mean(dim=0), x.std(dim=0) + 1e-6
        optimizer = torch.optim.LBFGS(
            self.parameters(), max_iter=100, line_search_fn="strong_wolfe"
        )
        matrices = [p for p in self.parameters() if p.dim() == 2]

        def loss() -> Tensor:
            optimizer.zero_grad()
            size = sum(matrix.square().sum() for matrix in matrices)
            total = nn.functional.cross_entropy(self(x), labels) + decay / 2 * size
            total.backward()
            return total

        with torch.enable_grad():
            optimizer.step(loss)
        return self

    @torch.no_grad()
    def accuracy(self, x: Float[Tensor, "N D"], labels: Int64[Tensor, " N"]) -> float:
        """The share of right answers."""
        return (self(x).argmax(dim=-1) == labels).double().mean().item()


def control_labels(
    ids: Int64[Tensor, "*shape"],
    vocab_size: int,
    shares: Float[Tensor, " C"],
    generator: torch.Generator | None = None,
) -> Int64[Tensor, "*shape"]:
    """Labels that mean nothing: each token of the vocabulary draws one, for good, by `shares`.

    A probe can learn them only by heart, token by token (Hewitt & Liang 2019, section 2).
    """
    drawn = torch.multinomial(shares, vocab_size, replacement=True, generator=generator)
    return drawn.to(ids.device)[ids]
