"""A pretrained GPT that answers with a label: for a whole text, or for each token (chapter 13).

Radford et al. 2018, section 3.2: the vector of a text's last token has read all of it, so one new
linear map from there is all that a classifier adds. Which of the old weights may move is a choice
of its own (`freeze`, and `rnn2gpt.lora`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rnn2gpt.gpt import GPT, GPTConfig
from rnn2gpt.lora import add_lora


def pool_last_token(
    hidden: Float[Tensor, "B T D"], attention_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B D"]:
    """The vector of each row's last real token, with the padding on whichever side.

    `attention_mask` is True at real tokens; each row has one at least.

    >>> hidden = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> pool_last_token(hidden, torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    places = torch.arange(hidden.shape[1], device=hidden.device)  # (T,)
    last = torch.where(attention_mask, places, 0).argmax(dim=1, keepdim=True)  # (B, 1)
    return hidden.take_along_dim(last[..., None], dim=1).squeeze(1)  # (B, 1, D) -> (B, D)


def left_align(
    ids: Int64[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """The real tokens of each row moved to its front, in their order, and the mask that goes along.

    A GPT counts positions from the front and never looks ahead, so padding behind a text cannot
    touch it.

    >>> left_align(torch.tensor([[0, 0, 7, 8]]), torch.tensor([[False, False, True, True]]))
    (tensor([[7, 8, 0, 0]]), tensor([[ True,  True, False, False]]))
    """
    order = attention_mask.int().argsort(dim=1, descending=True, stable=True)  # (B, T)
    return ids.gather(1, order), attention_mask.gather(1, order)


def hidden_states(
    gpt: Any, ids: Int64[Tensor, "B T"], causal: bool = True
) -> Float[Tensor, "B T D"]:
    """What a GPT's head reads: the last block's output after the final norm.

    Without `causal` every token reads every other; there must be no padding then. Raises
    `ValueError` when the tokens are longer than the model's window.
    """
    t = ids.shape[1]
    if t > gpt.block_size:
        raise ValueError(f"{t} tokens are longer than block_size={gpt.block_size}")
    x = gpt.token_embedding(ids) + gpt.position_embedding.weight[:t]
    x = gpt.dropout(x)
    for block in gpt.blocks:
        x = block(x, "causal" if causal else None)
    return gpt.norm(x)


class SequenceClassifier(nn.Module):
    """A GPT, `gpt`, and a linear map `head` from its vector of the last token to the classes.

    The map starts at N(0, 0.02) and 0, as the GPT's own layers do.
    """

    def __init__(self, gpt: GPT, n_classes: int) -> None:
        super().__init__()
        self.gpt = gpt
        self.head = _head(gpt, n_classes)

    def forward(
        self, ids: Int64[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B C"]:
        """Logits of the classes; padding, where `attention_mask` is False, changes nothing."""
        ids, attention_mask = left_align(ids, attention_mask)
        return self.head(pool_last_token(hidden_states(self.gpt, ids), attention_mask))


class TokenClassifier(nn.Module):
    """A GPT and a linear map from its vector of every token to the classes: for named entities.

    As a GPT it knows only what stands before a token. With `causal=False` the same weights read
    both sides; they have to be trained for it, and the rows of a batch must be of one length.
    """

    def __init__(self, gpt: GPT, n_classes: int, causal: bool = True) -> None:
        super().__init__()
        self.gpt, self.causal = gpt, causal
        self.head = _head(gpt, n_classes)

    def forward(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Logits of the classes at every token."""
        return self.head(hidden_states(self.gpt, ids, self.causal))


def _head(gpt: GPT, n_classes: int) -> nn.Linear:
    head = nn.Linear(gpt.config.d_model, n_classes)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def freeze(model: nn.Module, except_for: Sequence[str]) -> None:
    """From now on train the parameters whose names begin with one of these, and no others.

    Names are those of `named_parameters()`. End a prefix with the dot: `gpt.blocks.1` is the
    beginning of `gpt.blocks.11.norm_1.weight`, too.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(except_for)))


METHODS = ("head", "last-block", "all", "lora")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(GPTConfig):
    """Sizes of the GPT, the names of the labels, and of the low-rank detours (none at rank 0)."""

    labels: Sequence[str]
    rank: int = 0
    alpha: float = 16.0


def build_classifier(config: ClassifierConfig) -> SequenceClassifier:
    """A classifier with new weights."""
    classifier = SequenceClassifier(GPT(config), len(config.labels))
    if config.rank:
        add_lora(classifier.gpt, config.rank, config.alpha)
    return classifier


def choose(classifier: SequenceClassifier, method: str) -> None:
    """Freeze what the method does not train; the new head is always trained.

    `head` trains it alone, `last-block` the last block and the final norm too, `all` every weight,
    and `lora` the detours, which must be there. Raises `ValueError` for another method.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}")
    last = len(classifier.gpt.blocks) - 1
    beside = {
        "head": (),
        "last-block": (f"gpt.blocks.{last}.", "gpt.norm."),
        "all": ("gpt.",),
        "lora": tuple(
            name for name, _ in classifier.named_parameters() if name.endswith((".A", ".B"))
        ),
    }[method]
    if method == "lora" and not beside:
        raise ValueError("method='lora' needs a classifier with low-rank layers: rank of 1 or more")
    freeze(classifier, ("head.", *beside))


def trained_parameters(model: nn.Module) -> int:
    """How many numbers an optimizer moves."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def pretrained_weights(classifier: nn.Module, gpt: GPT) -> None:
    """Copy a GPT's weights into the classifier's; its head and its detours stay as they are."""
    known = dict(classifier.named_parameters())
    with torch.no_grad():
        for name, weight in gpt.named_parameters():
            part, _, kind = f"gpt.{name}".rpartition(".")
            known.get(f"{part}.{kind}", known.get(f"{part}.base.{kind}")).copy_(weight)  # type: ignore[union-attr]
