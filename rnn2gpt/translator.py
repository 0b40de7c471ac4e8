"""A model that translates: how it is trained, asked and judged (chapters 04 and 07).

The training loop is that of the language models. Here are only what differs: a batch is a set of
pairs, and the loss is that of the targets given their sources. Every decoder, recurrent or not, is
seen as one function from the target so far to the logits of what comes next (`conditioned`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor, nn

from rnn2gpt.generation import beam_search
from rnn2gpt.seq2seq import Seq2Seq, Seq2SeqConfig, sequence_cross_entropy, shift_right, source_mask
from rnn2gpt.training import Trainer, TrainingConfig
from rnn2gpt.transformer import TransformerConfig, label_smoothed_cross_entropy
from rnn2gpt.translation import BOS, EOS, PAD, PairTokenizer, Splits, pad, pad_pairs


def conditioned(
    model: nn.Module, source: Int64[Tensor, "B S"], lengths: Int64[Tensor, " B"]
) -> Callable[[Int64[Tensor, "n T"]], Float[Tensor, "n T V"]]:
    """The model as a function of the target alone: the source is encoded once.

    With one source (B = 1) any number n of targets may be asked for together, else n = B.
    """
    if isinstance(model, Seq2Seq):
        memory, state = model.encode(source, lengths)
        mask = source_mask(source, lengths)

        def decode(target_in: Tensor) -> Tensor:
            n = len(target_in)
            start = state.expand(n, -1).contiguous()
            return model.decode(target_in, start, memory.expand(n, -1, -1), mask.expand(n, -1))[0]

        return decode
    network: Any = model  # a Transformer, or what has its two halves
    memory, memory_mask = network.encode(source)
    return lambda target_in: network.decode(
        target_in,
        memory.expand(len(target_in), -1, -1),
        memory_mask.expand(len(target_in), -1, -1, -1),
    )


# --- asking ---------------------------------------------------------------------------------------


@torch.no_grad()
def translate(
    model: nn.Module,
    tokenizer: PairTokenizer,
    texts: Sequence[str],
    beam_size: int = 1,
    max_len: int = 64,
    length_penalty: float = 1.0,
) -> list[str]:
    """The model's translation of each text; a beam of 1 is greedy decoding, all texts at once.

    Put the model in `eval()` first. Raises `ValueError` for a text with tokens that are not in the
    source's vocabulary.
    """
    if not texts:
        return []
    device = next(model.parameters()).device
    rows = [tokenizer.source.encode(text) for text in texts]
    if beam_size == 1:
        source, lengths = pad(rows)
        outputs = _greedy(model, source.to(device), lengths, max_len)
    else:
        outputs = [_beam(model, row, beam_size, max_len, length_penalty) for row in rows]
    return [tokenizer.target.decode(ids) for ids in outputs]


def _greedy(
    model: nn.Module, source: Int64[Tensor, "B S"], lengths: Int64[Tensor, " B"], max_len: int
) -> list[list[int]]:
    if isinstance(model, Seq2Seq):  # its state spares it from reading the target again
        return model.greedy_decode(source, lengths, max_len, BOS, EOS)
    decode = conditioned(model, source, lengths)
    ids = torch.full((len(source), 1), BOS, device=source.device)
    while ids.shape[1] <= max_len and not (ids == EOS).any(dim=1).all():
        ids = torch.cat([ids, decode(ids)[:, -1:].argmax(dim=-1)], dim=1)  # (B, T + 1)
    rows = ids[:, 1:].tolist()
    return [row[: row.index(EOS)] if EOS in row else row for row in rows]


def _beam(
    model: nn.Module, row: list[int], beam_size: int, max_len: int, length_penalty: float
) -> list[int]:
    device = next(model.parameters()).device
    source, lengths = pad([row])
    decode = conditioned(model, source.to(device), lengths)

    def score_next(prefixes: list[list[int]]) -> Float[Tensor, "n V"]:
        return decode(torch.tensor(prefixes, device=device))[:, -1].log_softmax(dim=-1)

    return beam_search(score_next, BOS, EOS, beam_size, max_len, length_penalty)[0]


@torch.no_grad()
def alignment(
    model: Seq2Seq, tokenizer: PairTokenizer, source_text: str, target_text: str | None = None
) -> tuple[list[str], list[str], Float[Tensor, "T S"]]:
    """Source tokens, target tokens (with EOS), and where each target token's weight fell.

    Without `target_text` the target is the model's own. Raises `ValueError` for a model without
    attention.
    """
    if model.attention is None:
        raise ValueError("This model has no attention: there are no weights to show.")
    if target_text is None:
        target_text = translate(model, tokenizer, [source_text])[0]
    source, lengths, target = pad_pairs(tokenizer.encode([(source_text, target_text)]))
    device = next(model.parameters()).device
    source, target = source.to(device), target.to(device)
    memory, state = model.encode(source, lengths)
    mask = source_mask(source, lengths)
    weights = model.decode(shift_right(target, BOS), state, memory, mask)[2]
    assert weights is not None
    tokens = [tokenizer.target.tokens[i] for i in target[0].tolist()]
    return tokenizer.source.split(source_text), tokens, weights[0].cpu()


# --- judging --------------------------------------------------------------------------------------


def exact_match(outputs: Sequence[str], references: Sequence[str]) -> float:
    """The share of outputs that equal their references.

    >>> exact_match(["十二", "十三"], ["十二", "三十"])
    0.5
    """
    hits = sum(output == reference for output, reference in zip(outputs, references, strict=True))
    return hits / len(references)


def bleu(outputs: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus, 0 to 100 (Papineni et al. 2002), as sacreBLEU computes it (Post 2018).

    Its tokenizer `zh` takes each Chinese character for a word.
    """
    return BLEU(tokenize="zh").corpus_score(list(outputs), [list(references)]).score


def chrf(outputs: Sequence[str], references: Sequence[str]) -> float:
    """chrF of a corpus, 0 to 100: F2 of character n-grams up to 6 (Popović 2015), by sacreBLEU."""
    return CHRF().corpus_score(list(outputs), [list(references)]).score


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(TrainingConfig):
    """How to train on pairs: `batch_size` counts pairs, `block_size` has no meaning here."""

    batch_size: int = 64
    evaluate_every: int = 100
    label_smoothing: float = 0.0


def model_config(
    name: str, tokenizer: PairTokenizer, d_model: int | None = None, dropout: float = 0.1
) -> Seq2SeqConfig | TransformerConfig:
    """Sizes for pairs with these vocabularies; `dropout` is the Transformer's."""
    sizes = {"source_vocab": len(tokenizer.source), "target_vocab": len(tokenizer.target)}
    if name != "transformer":
        return Seq2SeqConfig(**sizes, d_model=d_model or 64, attention=name == "seq2seq")
    width = d_model or 64
    return TransformerConfig(
        **sizes,
        d_model=width,
        n_heads=4,
        d_ff=4 * width,  # as in Vaswani et al. 2017, table 3
        n_layers=2,
        max_len=256,
        pad_id=PAD,
        dropout=dropout,
    )


class TranslationTrainer(Trainer):
    """A run on pairs: everything else is `Trainer`'s, checkpoints and resuming included.

    An epoch is a permutation that the seed and its number give, and the batches go through the
    epochs without a gap, so a batch is still a function of (seed, step) alone.
    """

    config: TranslationConfig

    def __init__(
        self,
        config: TranslationConfig,
        model_config: Any,
        tokenizer: PairTokenizer,
        splits: Splits,
        out: str | Path | None = None,
        **others: Any,
    ) -> None:
        self.pairs = tokenizer.encode(splits["train"])
        self.held_out = tokenizer.encode(splits["validation"])
        self.target_lengths = torch.tensor([len(target) for _, target in self.pairs])
        self.order = lru_cache(maxsize=2)(self._order)
        train, validation = (
            torch.tensor([i for source, target in pairs for i in (*source, EOS, *target)])
            for pairs in (self.pairs, self.held_out)
        )  # flat, as `Trainer` knows data: its fingerprint is taken of them
        super().__init__(config, model_config, tokenizer, train, validation, out, **others)

    def _order(self, epoch: int) -> Int64[Tensor, " N"]:
        generator = torch.Generator().manual_seed(self.config.seed * 2**32 + epoch)
        return torch.randperm(len(self.pairs), generator=generator)

    @property
    def tokens(self) -> int:
        """How many target tokens, EOS included, the run has trained on."""
        epochs, rest = divmod(self.step * self.config.batch_size, len(self.pairs))
        begun = self.target_lengths[self.order(epochs)[:rest]].sum()
        return epochs * int(self.target_lengths.sum()) + int(begun)

    def batch(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Source with its lengths, and target, of the coming step."""
        source, lengths, target = self.pair_batch()
        return (source, lengths), target

    def pair_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """source (B, S), its lengths (B,) and target (B, T) of the coming step."""
        first, n = self.step * self.config.batch_size, len(self.pairs)
        places = range(first, first + self.config.batch_size)
        source, lengths, target = pad_pairs([self.pairs[self.order(i // n)[i % n]] for i in places])
        return source.to(self.device), lengths, target.to(self.device)

    def loss(self, model: nn.Module, inputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """Mean smoothed cross-entropy of the targets, given `inputs`: sources and lengths."""
        logits = conditioned(model, *inputs)(shift_right(targets, BOS))
        return label_smoothed_cross_entropy(logits, targets, self.config.label_smoothing, PAD)

    def validate(self) -> float:
        return held_out_nats(self.model, self.held_out)


@torch.no_grad()
def held_out_nats(
    model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int = 100
) -> float:
    """Mean −ln p of the pairs' target tokens (EOS included), given sources and earlier tokens."""
    device = next(model.parameters()).device
    was_training, total, count = model.training, 0.0, 0
    model.eval()
    for start in range(0, len(pairs), batch_size):
        source, lengths, target = pad_pairs(pairs[start : start + batch_size])
        source, target = source.to(device), target.to(device)
        n = int((target != PAD).sum())
        logits = conditioned(model, source, lengths)(shift_right(target, BOS))
        total, count = total + n * sequence_cross_entropy(logits, target, PAD).item(), count + n
    model.train(was_training)
    return total / count
