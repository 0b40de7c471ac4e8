"""Stand-ins for classes of the package whose module holds an answer of the same chapter.

A case may need one of our models beside the student's code, while the model's module must not be
there. What it then needs is less than the model: the sizes, and the parameters under their names.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """What `rnn2gpt.gpt.GPTConfig` holds."""

    vocab_size: int
    block_size: int
    n_layers: int
    n_heads: int
    d_model: int
    dropout: float = 0.0
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """What `rnn2gpt.bert.BertConfig` holds of what a student's model reads."""

    vocab_size: int
    block_size: int
    n_layers: int
    n_heads: int
    d_model: int
    n_token_types: int = 2
    dropout: float = 0.0


class GPTWeights(nn.Module):
    """The parameters of `rnn2gpt.gpt.GPT`, with its names, its shapes and its tie, to load into."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d_model, bias = config.d_model, config.bias

        def block() -> nn.Module:
            names = ("W_q", "W_k", "W_v", "W_o")
            return _Parts(
                attention=_Parts(**{name: nn.Linear(d_model, d_model, bias) for name in names}),
                feed_forward=_Parts(
                    W_1=nn.Linear(d_model, 4 * d_model, bias),
                    W_2=nn.Linear(4 * d_model, d_model, bias),
                ),
                norm_1=nn.LayerNorm(d_model, bias=bias),
                norm_2=nn.LayerNorm(d_model, bias=bias),
            )

        self.config, self.block_size = config, config.block_size
        self.token_embedding = nn.Embedding(config.vocab_size, d_model)
        self.position_embedding = nn.Embedding(config.block_size, d_model)
        self.blocks = nn.ModuleList(block() for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(d_model, bias=bias)
        self.head = nn.Linear(d_model, config.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight


class _Parts(nn.Module):
    """Named modules and nothing else."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
