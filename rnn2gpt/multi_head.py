"""Multi-head attention: several small attentions side by side, then one linear map (chapter 06).

Vaswani et al. 2017, section 3.2.2.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from rnn2gpt.attention import Mask, scaled_dot_product_attention

Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def split_heads(x: Float[Tensor, "B T D"], n_heads: int) -> Float[Tensor, "B H T D/H"]:
    """Cut the width into `n_heads` equal parts; head h holds channels h·D/H up to (h + 1)·D/H.

    Raises `ValueError` when `n_heads` does not divide D.
    """
    batch, t, d_model = x.shape
    if d_model % n_heads:
        raise ValueError(f"A width of {d_model} cannot be split into {n_heads} equal heads")
    return x.view(batch, t, n_heads, d_model // n_heads).transpose(1, 2)  # → (B, H, T, D/H)


def merge_heads(x: Float[Tensor, "B H T D/H"]) -> Float[Tensor, "B T D"]:
    """The inverse of `split_heads`: the heads' outputs side by side."""
    return x.transpose(1, 2).flatten(2)  # (B, T, H, D/H) → (B, T, D)


class MultiHeadAttention(nn.Module):
    """`n_heads` attentions of width d_model / n_heads, each on its own part of the projections."""

    def __init__(self, d_model: int, n_heads: int, bias: bool = True) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"A width of {d_model} cannot be split into {n_heads} equal heads")
        self.n_heads = n_heads
        self.W_q = nn.Linear(d_model, d_model, bias)
        self.W_k = nn.Linear(d_model, d_model, bias)
        self.W_v = nn.Linear(d_model, d_model, bias)
        self.W_o = nn.Linear(d_model, d_model, bias)

    def forward(
        self,
        query: Float[Tensor, "B T D"],
        key: Float[Tensor, "B S D"],
        value: Float[Tensor, "B S D"],
        mask: Mask = None,
        need_weights: bool = True,
        keep: Keep | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B H T S"] | None]:
        """What the queries read from the values, and each head's weights.

        `mask` broadcasts to (B, H, T, S), True = may attend. Without `need_weights` the faster way
        is taken and the weights are None. `keep` takes the new keys and values and returns all
        those to read: a cache's `update` (chapter 11).
        """
        q = split_heads(self.W_q(query), self.n_heads)  # (B, H, T, D/H)
        k = split_heads(self.W_k(key), self.n_heads)  # (B, H, S, D/H)
        v = split_heads(self.W_v(value), self.n_heads)
        if keep is not None:
            k, v = keep(k, v)
        output, weights = scaled_dot_product_attention(q, k, v, mask, need_weights)
        return self.W_o(merge_heads(output)), weights
