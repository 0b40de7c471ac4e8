"""GPT: a stack of causal Transformer blocks that predicts the next token (chapter 09).

Radford et al. 2018, 2019: pre-norm blocks with the tanh form of GELU, learned positions, and one
table for the embedding and the head. GPT-2's published weights fit this model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rnn2gpt.kv_cache import KVCache
from rnn2gpt.transformer import LayerNorm, TransformerBlock


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a `GPT`. The feed-forward layers are 4 · d_model wide; `bias` is for all layers.

    Raises `ValueError` when `n_heads` does not divide `d_model`.
    """

    vocab_size: int
    block_size: int
    n_layers: int
    n_heads: int
    d_model: int
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} cannot be split into n_heads={self.n_heads} equal heads"
            )


class GPT(nn.Module):
    """A language model over at most `block_size` tokens.

    Weights start as N(0, 0.02), biases at 0; the two matrices of each block that write into the
    residual stream are smaller by √(2 · n_layers), because as many of them are summed (Radford et
    al. 2019, section 2.3).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config, self.block_size = config, config.block_size
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.block_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config.d_model,
                config.n_heads,
                4 * config.d_model,
                config.dropout,
                norm_first=True,
                activation="gelu_tanh",
                bias=config.bias,
            )
            for _ in range(config.n_layers)
        )
        self.norm = LayerNorm(config.d_model, bias=config.bias)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight
        self._start()

    def _start(self) -> None:
        residual = 0.02 / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                writes = name.endswith(("W_o.weight", "W_2.weight"))
                nn.init.normal_(parameter, std=residual if writes else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        ids: Int64[Tensor, "B T"],
        targets: Int64[Tensor, "B T"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Tensor, "B T V"], Float[Tensor, ""] | None]:
        """Logits of the token after each of `ids`, and their mean loss in nats against `targets`.

        Targets of −100 do not count. With a `cache`, `ids` go on after the tokens that it holds.
        Raises `ValueError` when the tokens are longer than `block_size`.
        """
        past = 0 if cache is None else cache.length
        t = ids.shape[1]
        if past + t > self.block_size:
            raise ValueError(f"{past + t} tokens are longer than block_size={self.block_size}")
        positions = torch.arange(past, past + t, device=ids.device)  # (T,)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))
        for layer, block in enumerate(self.blocks):
            x = block(x, "causal", None if cache is None else partial(cache.update, layer))
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        flat = logits.flatten(0, 1), targets.flatten()  # (B·T, V) and (B·T,)
        return logits, nn.functional.cross_entropy(*flat, ignore_index=-100)


def count_parameters(config: GPTConfig) -> int:
    """How many numbers a `GPT` learns, in closed form; the tied table counts once.

    >>> gpt2 = dict(vocab_size=50257, block_size=1024, n_layers=12, n_heads=12, d_model=768)
    >>> count_parameters(GPTConfig(**gpt2))
    124439808
    """
    d, bias = config.d_model, int(config.bias)
    attention = 4 * (d * d + bias * d)
    feed_forward = 2 * 4 * d * d + bias * (4 * d + d)
    norm = d + bias * d
    block = attention + feed_forward + 2 * norm
    return (config.vocab_size + config.block_size) * d + config.n_layers * block + norm


def flops_per_token(config: GPTConfig) -> int:
    """Training FLOPs for a token: 6 N + 12 · n_layers · d_model · block_size.

    N leaves the position embeddings out (Chowdhery et al. 2022, appendix B); the token table
    counts, since as the head it multiplies.
    """
    multiplied = count_parameters(config) - config.block_size * config.d_model
    return 6 * multiplied + 12 * config.n_layers * config.d_model * config.block_size


def gpt2_layout(n_layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """GPT-2's name of each part and ours, which are three where GPT-2 makes q, k and v at once."""
    yield "wte", ("token_embedding",)
    yield "wpe", ("position_embedding",)
    for i in range(n_layers):
        theirs, ours = f"h.{i}", f"blocks.{i}"
        yield f"{theirs}.ln_1", (f"{ours}.norm_1",)
        yield f"{theirs}.attn.c_attn", tuple(f"{ours}.attention.W_{name}" for name in "qkv")
        yield f"{theirs}.attn.c_proj", (f"{ours}.attention.W_o",)
        yield f"{theirs}.ln_2", (f"{ours}.norm_2",)
        yield f"{theirs}.mlp.c_fc", (f"{ours}.feed_forward.W_1",)
        yield f"{theirs}.mlp.c_proj", (f"{ours}.feed_forward.W_2",)
    yield "ln_f", ("norm",)


def _turn(theirs: str, tensor: Tensor) -> Tensor:
    """GPT-2 keeps a linear map's matrix as (in, out), where `nn.Linear` has (out, in)."""
    return tensor.t() if theirs.rsplit(".", 1)[-1].startswith("c_") else tensor


def gpt2_state_dict(model: Any) -> dict[str, Tensor]:
    """The weights of `model` in GPT-2's layout, under the names that Hugging Face gives them.

    `model` is a `GPT`, or a module with its config and its parameters' names. The tied head is left
    out, as in the files there. A model without biases has none here either.
    """
    ours, theirs = model.state_dict(), {}
    for name, parts in gpt2_layout(model.config.n_layers):
        for kind in ("weight", "bias"):
            tensors = [ours[f"{part}.{kind}"] for part in parts if f"{part}.{kind}" in ours]
            if tensors:
                whole = _turn(name, torch.cat(tensors))  # 3 × (D, D) → (3D, D) → (D, 3D)
                theirs[f"transformer.{name}.{kind}"] = whole.contiguous()
    return theirs


def load_gpt2_state_dict(model: GPT, state_dict: Mapping[str, Tensor]) -> None:
    """Copy weights in GPT-2's layout, as Hugging Face stores them, into `model`.

    There a linear map is a matrix (in, out), the transpose of ours, and one matrix makes q, k and
    v. Names may start with `transformer.`. Raises `ValueError` for a weight that is missing, has no
    place here, or has another shape.
    """
    left = {name.removeprefix("transformer."): w for name, w in state_dict.items()}
    left = {name: w for name, w in left.items() if not name.endswith((".attn.bias", "masked_bias"))}
    head = left.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, left.get("wte.weight", head)):
        raise ValueError("lm_head.weight differs from wte.weight: this model ties the two")
    known, ours = model.state_dict(), dict[str, Tensor]()
    for name, parts in gpt2_layout(model.config.n_layers):
        for kind in ("weight", "bias"):
            if f"{parts[0]}.{kind}" in known:
                if f"{name}.{kind}" not in left:
                    raise ValueError(f"The weights lack {name}.{kind}: are they a GPT-2's?")
                whole = _turn(name, left.pop(f"{name}.{kind}"))  # (D, 3D) → (3D, D)
                split = zip(parts, whole.tensor_split(len(parts)), strict=True)
                ours |= {f"{part}.{kind}": tensor for part, tensor in split}
    if left:
        raise ValueError(f"No place in this model for {', '.join(sorted(left)[:3])}")
    ours["head.weight"] = ours["token_embedding.weight"]
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ValueError(f"The weights do not fit {model.config}: {error}") from None
