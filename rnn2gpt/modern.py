"""GPT with what has changed since GPT-2, each change a switch (chapter 10).

With every switch off this is `rnn2gpt.gpt.GPT`, weight for weight. Switched on:

- `rotary`: queries and keys turn with their position; no table (Su et al. 2021, section 3.2.2);
- `rms_norm`: root mean square norms without weights (Zhang & Sennrich 2019, equation 4);
- `qk_norm`: queries and keys are normalized and one learned number for each head sets how sharp its
  softmax can be (Henry et al. 2020);
- `relu_squared`: the square of ReLU in place of GELU (So et al. 2021);
- `mixing`: attention reads each position with a learned share of the one before, channel by channel
  (So et al. 2021 convolve queries, keys and values over three tokens; this is shorter, and before
  the projections);
- `zero_init`: what writes into the stream, and the head, start at zero: blocks begin as identities;
- `tied=False`: the head is not the embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from rnn2gpt.attention import scaled_dot_product_attention
from rnn2gpt.gpt import GPTConfig
from rnn2gpt.kv_cache import KVCache
from rnn2gpt.multi_head import Keep, merge_heads, split_heads
from rnn2gpt.positions import apply_rotary
from rnn2gpt.transformer import FeedForward, LayerNorm


@dataclass(frozen=True, kw_only=True)
class ModernGPTConfig(GPTConfig):
    """A GPT's sizes, and the switches."""

    bias: bool = False
    rotary: bool = True
    rms_norm: bool = True
    qk_norm: bool = True
    relu_squared: bool = True
    mixing: bool = True
    zero_init: bool = True
    tied: bool = False


class ModernGPT(nn.Module):
    """A language model over at most `block_size` tokens, as `GPT` is."""

    def __init__(self, config: ModernGPTConfig) -> None:
        super().__init__()
        self.config, self.block_size = config, config.block_size
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        if not config.rotary:
            self.position_embedding = nn.Embedding(config.block_size, config.d_model)
        self.dropout = WindowDropout(config.dropout)
        self.blocks = nn.ModuleList(ModernBlock(config) for _ in range(config.n_layers))
        self.norm = _norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.token_embedding.weight
        self._start()

    def _start(self) -> None:
        c = self.config
        residual = 0.0 if c.zero_init else 0.02 / math.sqrt(2 * c.n_layers)
        head = 0.0 if c.zero_init and not c.tied else 0.02
        for name, parameter in self.named_parameters():
            if name.endswith(("W_o.weight", "W_2.weight")):
                nn.init.normal_(parameter, std=residual)
            elif name.startswith("head"):
                nn.init.normal_(parameter, std=head)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def cache_layers(self) -> int:
        """How many layers a `KVCache` needs: mixing keeps the blocks' inputs as well."""
        return self.config.n_layers * (2 if self.config.mixing else 1)

    def _keeps(self, cache: KVCache, layer: int) -> tuple[Keep, Keep]:
        """Where a block keeps its keys and values, and where its inputs, if it does."""
        each = self.cache_layers // self.config.n_layers
        last = each * (layer + 1) - 1
        return partial(cache.update, last), partial(cache.update, last + 1 - each)

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
        x, turns = self.token_embedding(ids), None  # (B, T, D)
        if self.config.rotary:
            turns = _turns(positions, self.config.d_model // self.config.n_heads, x.dtype)
        else:
            x = x + self.position_embedding(positions)
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, turns, None if cache is None else self._keeps(cache, layer))
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        flat = logits.flatten(0, 1), targets.flatten()  # (B·T, V) and (B·T,)
        return logits, functional.cross_entropy(*flat, ignore_index=-100)


class ModernBlock(nn.Module):
    """Pre-norm, as `TransformerBlock`. `forward(x: (B, T, D), turns=None, keeps=None)`."""

    def __init__(self, config: ModernGPTConfig) -> None:
        super().__init__()
        c = config
        self.attention = ModernAttention(c)
        activation = "relu_squared" if c.relu_squared else "gelu_tanh"
        self.feed_forward = FeedForward(c.d_model, 4 * c.d_model, activation, bias=c.bias)
        self.feed_forward.dropout = WindowDropout(c.dropout)
        self.norm_1, self.norm_2 = _norm(c), _norm(c)
        self.dropout = WindowDropout(c.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        turns: Complex[Tensor, "T D/H/2"] | None = None,
        keeps: tuple[Keep, Keep] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The stream after both layers; `keeps` add what is known of earlier tokens."""
        x = x + self.dropout(self.attention(self.norm_1(x), turns, keeps))
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


class ModernAttention(nn.Module):
    """Causal multi-head self-attention with the switches that concern it."""

    def __init__(self, config: ModernGPTConfig) -> None:
        super().__init__()
        d, n_heads, bias = config.d_model, config.n_heads, config.bias
        self.config = config
        self.W_q = nn.Linear(d, d, bias)
        self.W_k = nn.Linear(d, d, bias)
        self.W_v = nn.Linear(d, d, bias)
        self.W_o = nn.Linear(d, d, bias)
        if config.qk_norm:
            self.sharpness = nn.Parameter(torch.full((n_heads,), math.sqrt(2)))
        if config.mixing:
            self.mix = nn.Parameter(torch.zeros(d))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        turns: Complex[Tensor, "T D/H/2"] | None = None,
        keeps: tuple[Keep, Keep] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What each position reads from itself and those before it."""
        h = self.config.n_heads
        if self.config.mixing:
            x = x + self.mix * self._before(x, keeps)
        x = _autocast(x)  # once, for the three maps that read it
        q, k, v = (split_heads(W(x), h) for W in (self.W_q, self.W_k, self.W_v))  # (B, H, T, D/H)
        if self.config.qk_norm:
            q, k = self.sharpness[:, None, None] * _unit(q), _unit(k)
        if turns is not None:
            q, k = _turn(q, turns), _turn(k, turns)
        if keeps is not None:
            k, v = keeps[0](k, v)
        y, _ = scaled_dot_product_attention(q, k, v, "causal", need_weights=False)
        return self.W_o(merge_heads(y))

    def _before(
        self, x: Float[Tensor, "B T D"], keeps: tuple[Keep, Keep] | None
    ) -> Float[Tensor, "B T D"]:
        """What stood one place earlier; before the first stands nothing.

        A cache keeps inputs as if they were keys: they are as many numbers.
        """
        known = x
        if keeps is not None:
            heads = split_heads(x, self.config.n_heads)  # (B, H, T, D/H)
            known = merge_heads(keeps[1](heads, heads)[0])  # (B, S, D)
        return functional.pad(known, (0, 0, 1, -1))[:, -x.shape[1] :]


class WindowDropout(nn.Dropout):
    """Dropout of the same features at all positions of a window (Gal & Ghahramani 2016).

    Draws for each position would take a CPU a fifth of a step of the speedrun's longest run.
    """

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """In training, features at zero with probability p, the others over 1 − p."""
        if not self.training or not self.p:
            return x
        return x * functional.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.p)  # (B, 1, D)


class UnitNorm(nn.Module):
    """Each vector of the last dimension at a mean square of one; no weights, no mean taken away."""

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """x / √(mean of squares + eps)."""
        return _unit(x)


def _norm(config: ModernGPTConfig) -> nn.Module:
    return UnitNorm() if config.rms_norm else LayerNorm(config.d_model, bias=config.bias)


def _unit(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """By the length of the vector, which a CPU does in half the time of `rms_norm`."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
    return x * (mean_square + 1e-6).rsqrt()


def _autocast(x: Tensor) -> Tensor:
    """What autocast would make of it in front of a matrix product."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _turns(
    positions: Int64[Tensor, " T"], d_head: int, dtype: torch.dtype
) -> Complex[Tensor, "T d_head/2"]:
    """Rotary positions as complex numbers of size one: what `apply_rotary` makes of (1, 0)."""
    ones = torch.tensor([1.0, 0.0], dtype=dtype, device=positions.device)
    pairs = ones.repeat(len(positions), d_head // 2)  # (T, d_head)
    return torch.view_as_complex(apply_rotary(pairs, positions).unflatten(-1, (-1, 2)))


def _turn(
    x: Float[Tensor, "B H T D/H"], turns: Complex[Tensor, "T D/H/2"]
) -> Float[Tensor, "B H T D/H"]:
    """`apply_rotary` as one complex product: neighbors are real and imaginary part."""
    pairs = torch.view_as_complex(x.to(turns.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
