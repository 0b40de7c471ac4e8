"""BERT: a Transformer encoder that reads both sides and fills in what was hidden (chapter 12).

Devlin et al. 2019. Post-norm blocks with the exact GELU, learned positions, a vector for each of
two segments, and a head that shares its table with the token embedding. Published weights fit this
model (`load_bert_state_dict`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rnn2gpt.transformer import LayerNorm, TransformerBlock


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of a `BertForMaskedLM`. The feed-forward layers are 4 · d_model wide.

    `block_size` is the most tokens it reads at a time. Raises `ValueError` when `n_heads` does not
    divide `d_model`.
    """

    vocab_size: int
    block_size: int
    n_layers: int
    n_heads: int
    d_model: int
    n_token_types: int = 2
    dropout: float = 0.0
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} cannot be split into n_heads={self.n_heads} equal heads"
            )


def mask_tokens(
    ids: Int64[Tensor, "*shape"],
    mask_id: int,
    vocab_size: int,
    special_ids: Iterable[int],
    p: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Int64[Tensor, "*shape"], Int64[Tensor, "*shape"]]:
    """Hide tokens for a model to find: the inputs it gets, and labels (−100 where none is asked).

    Each token is chosen with probability `p`, by itself. Of the chosen ones 80 % become `mask_id`,
    10 % a random ordinary token and 10 % stay (Devlin et al. 2019, section 3.1). Special tokens are
    never chosen and never drawn; `mask_id` is one of them.

    >>> inputs, labels = mask_tokens(torch.tensor([4, 7, 5]), 3, 9, special_ids=(3, 4), p=1.0)
    >>> labels
    tensor([-100,    7,    5])
    """
    special = torch.tensor(sorted({*special_ids, mask_id}))
    ordinary = torch.arange(vocab_size)
    ordinary = ordinary[~torch.isin(ordinary, special)]

    def drawn() -> Tensor:  # on the CPU, where the generator lives
        return torch.rand(ids.shape, generator=generator).to(ids.device)

    chosen = (drawn() < p) & ~torch.isin(ids, special.to(ids.device))
    labels = ids.where(chosen, -100)
    fate = drawn()  # of a chosen token: masked below 0.8, replaced below 0.9
    other = ordinary[torch.randint(len(ordinary), ids.shape, generator=generator)]
    inputs = ids.where(~chosen | (fate >= 0.8), mask_id)
    return torch.where(chosen & (fate >= 0.8) & (fate < 0.9), other.to(ids.device), inputs), labels


class BertForMaskedLM(nn.Module):
    """The encoder, and the head that tells which token stood where.

    Dropout falls on the embeddings, on what each layer adds, and on the feed-forward layers' hidden
    values; BERT has it on the attention weights in place of these. Weights start as BERT's N(0,
    0.02) at its width of 768, and wider by √(768/D) in a narrower model: a masked token learns only
    through attention, which at a small width would pass on next to nothing. Biases start at 0.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config, self.block_size, d_model = config, config.block_size, config.d_model
        self.token_embedding = nn.Embedding(config.vocab_size, d_model)
        self.position_embedding = nn.Embedding(config.block_size, d_model)
        self.type_embedding = nn.Embedding(config.n_token_types, d_model)
        self.embedding_norm = LayerNorm(d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                d_model,
                config.n_heads,
                4 * d_model,
                config.dropout,
                norm_first=False,
                activation="gelu",
            )
            for _ in range(config.n_layers)
        )
        self.dense = nn.Linear(d_model, d_model)
        self.norm = LayerNorm(d_model)
        self.decoder = nn.Linear(d_model, config.vocab_size)
        self.decoder.weight = self.token_embedding.weight
        std = 0.02 * math.sqrt(768 / d_model)
        for part in self.modules():
            if isinstance(part, LayerNorm):
                part.eps = config.norm_eps
            elif isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)

    def encode(
        self,
        ids: Int64[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"] | None = None,
        token_types: Int64[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """One vector for each token, made from all the tokens that `attention_mask` lets be read.

        Raises `ValueError` when T is longer than `block_size`.
        """
        t = ids.shape[1]
        if t > self.block_size:
            raise ValueError(f"{t} tokens are longer than block_size={self.block_size}")
        token_types = torch.zeros_like(ids) if token_types is None else token_types
        x = self.token_embedding(ids) + self.type_embedding(token_types)
        x = x + self.position_embedding.weight[:t]  # (T, D), the same for every row
        x = self.dropout(self.embedding_norm(x))
        mask = None if attention_mask is None else attention_mask[:, None, None]  # (B, 1, 1, T)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def predict(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits of the token at each of the given vectors: in training, those that were chosen."""
        return self.decoder(self.norm(nn.functional.gelu(self.dense(hidden))))

    def forward(
        self,
        ids: Int64[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"] | None = None,
        token_types: Int64[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token at each position itself, not of the one after it.

        `attention_mask` is True at real tokens (all, if None) and `token_types` says which segment
        a token is of (0, if None). Raises `ValueError` when T is longer than `block_size`.
        """
        return self.predict(self.encode(ids, attention_mask, token_types))


@torch.no_grad()
def pseudo_log_likelihood(
    model: Callable[[Int64[Tensor, "B T"]], Float[Tensor, "B T V"]],
    ids: Int64[Tensor, " T"],
    mask_id: int,
) -> float:
    """Σ log p(token t | all the others), each hidden in a copy of its own (Salazar et al. 2020).

    In nats; T rows go through the model. It is no log-probability of the text: over all texts of
    one length its exponentials do not sum to 1.
    """
    t = torch.arange(len(ids), device=ids.device)
    rows = ids.repeat(len(ids), 1)  # (T, T): row i hides token i
    rows[t, t] = mask_id
    log_p = model(rows)[t, t].log_softmax(dim=-1)  # (T, T, V) → (T, V)
    return log_p[t, ids].sum().item()


def load_bert_state_dict(model: BertForMaskedLM, state_dict: Mapping[str, Tensor]) -> None:
    """Copy weights in BERT's layout, as Hugging Face stores a `BertForMaskedLM`, into `model`.

    The pooler and the next-sentence head have no place here and are left out. Raises `ValueError`
    for a weight that is missing, has no place, or has another shape.
    """
    embeddings, head = "bert.embeddings.", "cls.predictions."
    names = {
        "token_embedding": f"{embeddings}word_embeddings",
        "position_embedding": f"{embeddings}position_embeddings",
        "type_embedding": f"{embeddings}token_type_embeddings",
        "embedding_norm": f"{embeddings}LayerNorm",
        "dense": f"{head}transform.dense",
        "norm": f"{head}transform.LayerNorm",
    }
    for i in range(model.config.n_layers):
        ours, theirs = f"blocks.{i}.", f"bert.encoder.layer.{i}."
        names |= {
            f"{ours}attention.W_q": f"{theirs}attention.self.query",
            f"{ours}attention.W_k": f"{theirs}attention.self.key",
            f"{ours}attention.W_v": f"{theirs}attention.self.value",
            f"{ours}attention.W_o": f"{theirs}attention.output.dense",
            f"{ours}norm_1": f"{theirs}attention.output.LayerNorm",
            f"{ours}feed_forward.W_1": f"{theirs}intermediate.dense",
            f"{ours}feed_forward.W_2": f"{theirs}output.dense",
            f"{ours}norm_2": f"{theirs}output.LayerNorm",
        }
    unused = (
        "bert.pooler.",
        "cls.seq_relationship.",
        f"{embeddings}position_ids",
        f"{head}decoder.",
    )
    left = {name: w for name, w in state_dict.items() if not name.startswith(unused)}
    found = {}
    for name in model.state_dict():
        part, _, kind = name.rpartition(".")
        if part == "decoder":  # the tied table, and a bias that is kept under a name of its own
            theirs = f"{names['token_embedding']}.weight" if kind == "weight" else f"{head}bias"
        else:
            theirs = f"{names[part]}.{kind}"
        if theirs not in state_dict:
            raise ValueError(f"The weights lack {theirs}: are they a BERT of this size?")
        found[name] = state_dict[theirs]
        left.pop(theirs, None)
    if left:
        raise ValueError(f"No place in this model for {', '.join(sorted(left)[:3])}")
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"The weights do not fit {model.config}: {error}") from None
