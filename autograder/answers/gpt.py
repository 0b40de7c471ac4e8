"""Right answers to chapter 09, each written another way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autograder.answers.transformer import BlockByLoop

Answered = tuple[Tensor, Tensor | None]

# --- GPTConfig ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FrozenConfig:
    vocab_size: int
    block_size: int
    n_layers: int
    n_heads: int
    d_model: int
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads != 0:
            raise ValueError(f"{self.n_heads} heads do not divide {self.d_model}")


@dataclass
class OpenConfig:
    """Positional arguments too, and a property that a model may use."""

    vocab_size: int
    block_size: int
    n_layers: int
    n_heads: int
    d_model: int
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        if self.d_head * self.n_heads != self.d_model:
            raise ValueError("heads of unequal width")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


class HandwrittenConfig:
    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layers: int,
        n_heads: int,
        d_model: int,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        if divmod(d_model, n_heads)[1]:
            raise ValueError(d_model, n_heads)
        self.vocab_size, self.block_size, self.n_layers = vocab_size, block_size, n_layers
        self.n_heads, self.d_model, self.dropout, self.bias = n_heads, d_model, dropout, bias

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HandwrittenConfig) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


# --- GPT ----------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Four maps and PyTorch's fused attention, causal by its own flag."""

    def __init__(self, d_model: int, n_heads: int, bias: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.W_q, self.W_k, self.W_v, self.W_o = (
            nn.Linear(d_model, d_model, bias=bias) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, t, d_model = x.shape
        shape = batch, t, self.n_heads, d_model // self.n_heads
        q, k, v = (
            part(x).view(shape).transpose(1, 2) for part in (self.W_q, self.W_k, self.W_v)
        )  # (B, T, D) → (B, H, T, D/H)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.W_o(read.transpose(1, 2).reshape(batch, t, d_model))


class Feed(nn.Module):
    """GELU's tanh form written out."""

    def __init__(self, d_model: int, bias: bool) -> None:
        super().__init__()
        self.W_1 = nn.Linear(d_model, 4 * d_model, bias=bias)
        self.W_2 = nn.Linear(4 * d_model, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        z = self.W_1(x)
        inner = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
        return self.W_2(0.5 * z * (1 + torch.tanh(inner)))


class Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.d_model, bias=config.bias)
        self.attention = Attention(config.d_model, config.n_heads, config.bias)
        self.norm_2 = nn.LayerNorm(config.d_model, bias=config.bias)
        self.feed_forward = Feed(config.d_model, config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x)))
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


class ByLayers(nn.Module):
    """Every part its own module; the weights drawn by `apply`, the writers once more."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.block_size, config.d_model)
        self.blocks = nn.ModuleList([Layer(config) for _ in range(config.n_layers)])
        self.norm = nn.LayerNorm(config.d_model, bias=config.bias)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight
        self.dropout = nn.Dropout(config.dropout)
        self.apply(self.draw)
        blocks: list[Any] = [*self.blocks]
        for block in blocks:
            for writer in (block.attention.W_o, block.feed_forward.W_2):
                nn.init.normal_(writer.weight, std=0.02 / math.sqrt(2 * config.n_layers))

    @staticmethod
    def draw(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Answered:
        t = ids.size(1)
        if t > self.config.block_size:
            raise ValueError(f"{t} tokens, block_size {self.config.block_size}")
        where = torch.arange(t, device=ids.device)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(where))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        flat = logits.view(-1, logits.size(-1)), targets.reshape(-1)
        return logits, F.cross_entropy(*flat, ignore_index=-100)


class ByBuffer(nn.Module):
    """The head owns the table; the mask and the positions are buffers made once."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        d, t = config.d_model, config.block_size
        self.block_size, self.p = t, config.dropout
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        self.blocks = nn.ModuleList()
        for _ in range(config.n_layers):
            self.blocks.append(
                BlockByLoop(d, config.n_heads, 4 * d, self.p, True, "gelu_tanh", config.bias)
            )
        self.norm = nn.LayerNorm(d, bias=config.bias)
        self.position_embedding = nn.Embedding(t, d)
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.token_embedding.weight = self.head.weight
        self.mask: Tensor
        self.where: Tensor
        self.register_buffer("mask", torch.ones(t, t, dtype=torch.bool).tril(), persistent=False)
        self.register_buffer("where", torch.arange(t), persistent=False)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                last = name.split(".")[-2]
                if parameter.ndim == 2:
                    parameter.normal_().mul_(0.02)
                    if last in ("W_o", "W_2"):
                        parameter.div_((2 * config.n_layers) ** 0.5)
                elif name.endswith(".bias"):
                    parameter.zero_()

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Answered:
        t = ids.shape[1]
        if not t <= self.block_size:
            raise ValueError("the text is too long")
        x = self.token_embedding(ids) + self.position_embedding(self.where[:t])
        x = F.dropout(x, self.p, self.training)
        for block in self.blocks:
            x = block(x, self.mask[:t, :t])
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        real = targets != -100
        own = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]  # (B, T)
        return logits, -(own * real).sum() / real.sum()


class BySlices(nn.Module):
    """Positions by slicing, the head as a product with the table, the loss by logsumexp."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        d = config.d_model
        self.longest = config.block_size
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight
        self.position_embedding = nn.Embedding(self.longest, d)
        self.norm = nn.LayerNorm(d, bias=config.bias)
        self.blocks = nn.Sequential(*(Layer(config) for _ in range(config.n_layers)))
        self.drop = nn.Dropout(config.dropout)
        small = 0.02 * (2 * config.n_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if "norm" in name:
                continue
            if name.endswith("bias"):
                nn.init.constant_(parameter, 0.0)
            else:
                std = small if re.search(r"W_[o2]\.weight$", name) else 0.02
                nn.init.normal_(parameter, 0.0, std)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Answered:
        length = ids.shape[-1]
        if length > self.longest:
            raise ValueError(length)
        x = F.embedding(ids, self.token_embedding.weight) + self.position_embedding.weight[:length]
        y = self.norm(self.blocks(self.drop(x)))
        logits = torch.einsum("btd,vd->btv", y, self.head.weight)
        loss = None
        if targets is not None:
            keep = targets.ne(-100)
            hit = logits.gather(-1, targets.masked_fill(~keep, 0).unsqueeze(-1)).squeeze(-1)
            lost = (logits.logsumexp(-1) - hit).masked_fill(~keep, 0.0)
            loss = lost.sum() / keep.sum()
        return logits, loss


# --- count_parameters ---------------------------------------------------------------------------


def by_sum(config: Any) -> int:
    d, biased = config.d_model, 1 if config.bias else 0
    norm = d * (1 + biased)
    attention = 4 * d * (d + biased)
    feed_forward = d * (4 * d) + 4 * d * biased + (4 * d) * d + d * biased
    block = attention + feed_forward + 2 * norm
    return config.vocab_size * d + config.block_size * d + config.n_layers * block + norm


def by_polynomial(config: Any) -> int:
    """12·L·D² + (13 or 2)·L·D + (V + T)·D + (2 or 1)·D."""
    n, d = config.n_layers, config.d_model
    linear = (13 if config.bias else 2) * n + (2 if config.bias else 1)
    return (12 * n * d + linear + config.vocab_size + config.block_size) * d


def by_shapes(config: Any) -> int:
    """The shapes written down and multiplied out."""
    d = config.d_model
    matrices = [(d, d)] * 4 + [(4 * d, d), (d, 4 * d)]
    vectors = [(d,)] * 2  # the norms' weights
    if config.bias:
        vectors += [(d,)] * 2 + [shape[:1] for shape in matrices]
    block = sum(math.prod(shape) for shape in [*matrices, *vectors])
    outside = [(config.vocab_size, d), (config.block_size, d), (d,)] + [(d,)] * int(config.bias)
    return config.n_layers * block + sum(math.prod(shape) for shape in outside)


def on_meta(config: Any) -> int:
    """A model of shapes alone: no tensor on this device holds a number."""
    with torch.device("meta"):
        one = Layer(config)
        tables = nn.Embedding(config.vocab_size + config.block_size, config.d_model)
        norm = nn.LayerNorm(config.d_model, bias=config.bias)

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    return size(tables) + config.n_layers * size(one) + size(norm)


# --- flops_per_token ----------------------------------------------------------------------------


def by_formula(config: Any) -> int:
    n = by_sum(config) - config.block_size * config.d_model
    return 6 * n + 12 * config.n_layers * config.d_model * config.block_size


def by_head_widths(config: Any) -> int:
    """PaLM's 6·N + 12·L·H·Q·T, with Q the width of one head."""
    h, t = config.n_heads, config.block_size
    q = config.d_model // h
    n = by_polynomial(config) - t * h * q
    return 6 * n + 12 * config.n_layers * h * q * t


def by_passes(config: Any) -> int:
    """Forward once and backward twice, each of the products by itself."""
    d, t = config.d_model, config.block_size
    weights = by_shapes(config) - d * t
    scores, mixing = t * d, t * d  # multiplications, over all heads
    forward = 2 * (weights + config.n_layers * (scores + mixing))
    return forward + 2 * forward


# --- load_gpt2_state_dict -----------------------------------------------------------------------

SKIPPED = re.compile(r"(^|\.)(attn\.(masked_)?bias|lm_head\.weight)$")


def by_renaming(model: Any, state_dict: Mapping[str, Tensor]) -> None:
    """Names turned into ours one after the other, then one strict load."""
    table = {
        "wte": "token_embedding",
        "wpe": "position_embedding",
        "ln_f": "norm",
        "ln_1": "norm_1",
        "ln_2": "norm_2",
        "attn.c_proj": "attention.W_o",
        "mlp.c_fc": "feed_forward.W_1",
        "mlp.c_proj": "feed_forward.W_2",
    }
    ours: dict[str, Tensor] = {}
    for full, tensor in state_dict.items():
        if SKIPPED.search(full):
            continue
        name, kind = full.removeprefix("transformer.").rsplit(".", 1)
        block = re.match(r"h\.(\d+)\.(.+)", name)
        start, part = (f"blocks.{block[1]}.", block[2]) if block else ("", name)
        if part.split(".")[-1] in ("c_attn", "c_proj", "c_fc") and tensor.ndim == 2:
            tensor = tensor.transpose(0, 1)
        if part == "attn.c_attn":
            thirds = torch.chunk(tensor, 3, dim=0)
            for letter, third in zip("qkv", thirds, strict=True):
                ours[f"{start}attention.W_{letter}.{kind}"] = third
        else:
            ours[f"{start}{table.get(part, part)}.{kind}"] = tensor
    if "token_embedding.weight" in ours:
        ours["head.weight"] = ours["token_embedding.weight"]
    try:
        model.load_state_dict(ours, strict=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def by_walking(model: Any, state_dict: Mapping[str, Tensor]) -> None:
    """Module after module, each tensor copied once it was found and measured."""
    short = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    left = {name for name in short if not SKIPPED.search(name)}
    pairs: list[tuple[Tensor, Tensor]] = []

    def pair(parameter: Tensor, name: str, part: int = -1) -> None:
        if name not in short:
            raise ValueError(f"{name} is missing")
        left.discard(name)
        tensor = short[name]
        if part >= 0:
            width = parameter.shape[0]
            tensor = tensor[..., part * width : (part + 1) * width]
        if ".c_" in name and tensor.ndim == 2:
            tensor = tensor.T
        if tensor.shape != parameter.shape:
            raise ValueError(f"{name}: {tuple(tensor.shape)} for {tuple(parameter.shape)}")
        pairs.append((parameter, tensor))

    pair(model.token_embedding.weight, "wte.weight")
    pair(model.position_embedding.weight, "wpe.weight")
    for i, block in enumerate(model.blocks):
        attention, feed_forward = block.attention, block.feed_forward
        for kind in ("weight", "bias"):
            pair(getattr(block.norm_1, kind), f"h.{i}.ln_1.{kind}")
            for part, layer in enumerate((attention.W_q, attention.W_k, attention.W_v)):
                pair(getattr(layer, kind), f"h.{i}.attn.c_attn.{kind}", part)
            pair(getattr(attention.W_o, kind), f"h.{i}.attn.c_proj.{kind}")
            pair(getattr(block.norm_2, kind), f"h.{i}.ln_2.{kind}")
            pair(getattr(feed_forward.W_1, kind), f"h.{i}.mlp.c_fc.{kind}")
            pair(getattr(feed_forward.W_2, kind), f"h.{i}.mlp.c_proj.{kind}")
    for kind in ("weight", "bias"):
        pair(getattr(model.norm, kind), f"ln_f.{kind}")
    if left:
        raise ValueError(f"no place for {sorted(left)}")
    with torch.no_grad():
        for parameter, tensor in pairs:
            parameter.copy_(tensor)


def by_asking(model: Any, state_dict: Mapping[str, Tensor]) -> None:
    """From our names to theirs: each of our tensors asks where it stands."""
    theirs = {name.replace("transformer.", "", 1): w for name, w in state_dict.items()}
    asked: set[str] = set()
    filled = {}
    for name, mine in model.state_dict().items():
        where = name.replace("blocks.", "h.").replace("head.", "wte.")
        where = where.replace("token_embedding", "wte").replace("position_embedding", "wpe")
        where = re.sub(r"norm_(\d)", r"ln_\1", where).replace("norm.", "ln_f.")
        where = where.replace("attention.W_o", "attn.c_proj")
        where = where.replace("feed_forward.W_1", "mlp.c_fc")
        where = where.replace("feed_forward.W_2", "mlp.c_proj")
        third = re.search(r"attention\.W_([qkv])", where)
        if third:
            where = where.replace(third[0], "attn.c_attn")
        if where not in theirs:
            raise ValueError(f"the checkpoint has no {where}")
        asked.add(where)
        tensor = theirs[where]
        if ".c_" in where:
            tensor = tensor.mT if tensor.ndim == 2 else tensor
        if third:
            n = "qkv".index(third[1])
            tensor = tensor[n * mine.shape[0] : (n + 1) * mine.shape[0]]
        if tensor.shape != mine.shape:
            raise ValueError(f"{where} does not fit {name}")
        filled[name] = tensor
    if {name for name in theirs if not SKIPPED.search(name)} - asked:
        raise ValueError("the checkpoint holds more than the model")
    model.load_state_dict(filled)


ANSWERS = {
    "GPTConfig": [FrozenConfig, OpenConfig, HandwrittenConfig],
    "GPT": [ByLayers, ByBuffer, BySlices],
    "count_parameters": [by_sum, by_polynomial, by_shapes, on_meta],
    "flops_per_token": [by_formula, by_head_widths, by_passes],
    "load_gpt2_state_dict": [by_renaming, by_walking, by_asking],
}
