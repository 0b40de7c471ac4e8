"""The Transformer: blocks of attention and feed-forward layers, encoder and decoder (chapter 07).

Vaswani et al. 2017. Where the paper normalizes after each residual sum, `norm_first=True` does it
before each layer, on the branch (Xiong et al. 2020); then the path from input to output is a plain
sum, and a last norm follows the stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rnn2gpt.attention import Mask, causal_mask
from rnn2gpt.multi_head import Keep, MultiHeadAttention
from rnn2gpt.positions import sinusoidal_positions


class LayerNorm(nn.LayerNorm):
    """(x − mean) / √(variance + eps) over the last dimension, then `weight` and `bias`.

    Ba et al. 2016, section 3. PyTorch's layer with the arguments the course uses.
    """

    def __init__(self, d_model: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(d_model, eps, bias=bias)


class RMSNorm(nn.RMSNorm):
    """x / √(mean of squares + eps) over the last dimension, then `weight`.

    Zhang & Sennrich 2019, equation 4, with the eps that implementations add.
    """

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__(d_model, eps)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu_squared": lambda x: nn.functional.relu(x).square(),
}


class FeedForward(nn.Module):
    """Two linear maps with an activation between them, on each position alone (section 3.3)."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        self.W_1 = nn.Linear(d_model, d_ff, bias)
        self.W_2 = nn.Linear(d_ff, d_model, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """W_2 · dropout(activation(W_1 · x))."""
        return self.W_2(self.dropout(self.activation(self.W_1(x))))


class TransformerBlock(nn.Module):
    """Self-attention, then feed-forward, each added to what came in: an encoder's layer.

    With a causal mask it is a GPT's layer too. `forward(x: (B, T, D), mask=None) -> (B, T, D)`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = MultiHeadAttention(d_model, n_heads, bias)
        self.feed_forward = FeedForward(d_model, d_ff, activation, dropout, bias)
        self.norm_1 = LayerNorm(d_model, bias=bias)
        self.norm_2 = LayerNorm(d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        mask: Mask = None,
        keep: Keep | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The stream after both layers; `mask` broadcasts to (B, H, T, T), True = may attend.

        `keep` adds the keys and values of earlier tokens, as in `MultiHeadAttention`.
        """

        def attend(y: Tensor) -> Tensor:
            return self.dropout(self.attention(y, y, y, mask, need_weights=False, keep=keep)[0])

        def feed(y: Tensor) -> Tensor:
            return self.dropout(self.feed_forward(y))

        if self.norm_first:
            x = x + attend(self.norm_1(x))
            return x + feed(self.norm_2(x))
        x = self.norm_1(x + attend(x))
        return self.norm_2(x + feed(x))


class DecoderBlock(nn.Module):
    """A block that also reads an encoder: self-attention, cross-attention, feed-forward."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attention = MultiHeadAttention(d_model, n_heads, bias)
        self.cross_attention = MultiHeadAttention(d_model, n_heads, bias)
        self.feed_forward = FeedForward(d_model, d_ff, activation, dropout, bias)
        self.norm_1 = LayerNorm(d_model, bias=bias)
        self.norm_2 = LayerNorm(d_model, bias=bias)
        self.norm_3 = LayerNorm(d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        memory: Float[Tensor, "B S D"],
        self_mask: Bool[Tensor, "*mask"] | None = None,
        memory_mask: Bool[Tensor, "*mask"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The stream after the three layers. The cross-attention's keys and values are `memory`."""

        def attend(y: Tensor) -> Tensor:
            return self.dropout(self.self_attention(y, y, y, self_mask, need_weights=False)[0])

        def read(y: Tensor) -> Tensor:
            read = self.cross_attention(y, memory, memory, memory_mask, need_weights=False)[0]
            return self.dropout(read)

        def feed(y: Tensor) -> Tensor:
            return self.dropout(self.feed_forward(y))

        if self.norm_first:
            x = x + attend(self.norm_1(x))
            x = x + read(self.norm_2(x))
            return x + feed(self.norm_3(x))
        x = self.norm_1(x + attend(x))
        x = self.norm_2(x + read(x))
        return self.norm_3(x + feed(x))


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a `Transformer`, as its constructor takes them."""

    source_vocab: int
    target_vocab: int
    d_model: int
    n_heads: int
    d_ff: int
    n_layers: int
    max_len: int
    pad_id: int
    dropout: float = 0.0


class Transformer(nn.Module):
    """Encoder and decoder, pre-norm, with sinusoidal positions and embeddings scaled by √D.

    Section 3.4 scales the embeddings so that the positions do not drown them. Padding is told by
    `pad_id`: no query reads a padded source position. Padding after a target is hidden from what
    stands before it by the causal mask already.
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        d_model: int,
        n_heads: int,
        d_ff: int,
        n_layers: int,
        max_len: int,
        pad_id: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pad_id, self.max_len, self.scale = pad_id, max_len, math.sqrt(d_model)
        self.source_embedding = nn.Embedding(source_vocab, d_model)
        self.target_embedding = nn.Embedding(target_vocab, d_model)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=1 / self.scale)
        self.positions: Tensor
        self.register_buffer(
            "positions", sinusoidal_positions(max_len, d_model), persistent=False
        )  # (max_len, D)
        self.encoder = nn.ModuleList(
            TransformerBlock(d_model, n_heads, d_ff, dropout) for _ in range(n_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderBlock(d_model, n_heads, d_ff, dropout) for _ in range(n_layers)
        )
        self.encoder_norm, self.decoder_norm = LayerNorm(d_model), LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(d_model, target_vocab)

    def encode(
        self, source: Int64[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B 1 1 S"]]:
        """The source as the decoder reads it, and the mask of its real positions.

        Raises `ValueError` when S is longer than `max_len`.
        """
        memory_mask = (source != self.pad_id)[:, None, None]  # (B, S) → (B, 1, 1, S)
        x = self._embed(source, self.source_embedding)
        for block in self.encoder:
            x = block(x, memory_mask)
        return self.encoder_norm(x), memory_mask

    def decode(
        self,
        target_in: Int64[Tensor, "B T"],
        memory: Float[Tensor, "B S D"],
        memory_mask: Bool[Tensor, "B 1 1 S"],
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each of `target_in`.

        Raises `ValueError` when T is longer than `max_len`.
        """
        x = self._embed(target_in, self.target_embedding)
        self_mask = causal_mask(target_in.shape[1], device=target_in.device)  # (T, T)
        for block in self.decoder:
            x = block(x, memory, self_mask, memory_mask)
        return self.head(self.decoder_norm(x))

    def forward(
        self, source: Int64[Tensor, "B S"], target_in: Int64[Tensor, "B T"]
    ) -> Float[Tensor, "B T V"]:
        """Logits of every target token, given the source and the target tokens before it."""
        return self.decode(target_in, *self.encode(source))

    def _embed(self, ids: Int64[Tensor, "B T"], embedding: nn.Embedding) -> Float[Tensor, "B T D"]:
        t = ids.shape[1]
        if t > self.max_len:
            raise ValueError(f"{t} tokens are longer than max_len={self.max_len}")
        return self.dropout(self.scale * embedding(ids) + self.positions[:t])


def label_smoothed_cross_entropy(
    logits: Float[Tensor, "B T V"], targets: Int64[Tensor, "B T"], smoothing: float, pad_id: int
) -> Float[Tensor, ""]:
    """Cross-entropy in nats against 1 − ε at the target and ε/V everywhere, ε = `smoothing`.

    Szegedy et al. 2016, section 7. Mean over the targets that are not `pad_id`; 0 if there is none.
    """
    flat = logits.flatten(0, -2), targets.flatten()  # (B·T, V) and (B·T,)
    total = nn.functional.cross_entropy(
        *flat, ignore_index=pad_id, label_smoothing=smoothing, reduction="sum"
    )
    return total / (targets != pad_id).sum().clamp(min=1)
