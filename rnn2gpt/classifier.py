"""How a classifier is trained, asked and judged (chapter 13).

The training loop is that of the language models. Here is only what differs: a batch is a set of
labeled texts, and the loss is that of their labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rnn2gpt.checkpoint import Checkpoint, CheckpointError, find_model, load_model, read_json
from rnn2gpt.finetune import METHODS, ClassifierConfig, choose, pretrained_weights
from rnn2gpt.gpt import GPT, GPTConfig
from rnn2gpt.pretrained import load_pretrained
from rnn2gpt.sentiment import Example, LabeledTexts
from rnn2gpt.tokenizer import BPETokenizer
from rnn2gpt.training import Trainer, TrainingConfig

# Optimizer and peak rate by method, those of `benchmarks/classification.py`, which says what chose
# them. The course's GPT was trained with Muon, and whole matrices go on with it.
OURS = {
    "head": ("adamw", 1e-2),
    "last-block": ("muon", 4e-3),
    "all": ("muon", 4e-3),
    "lora": ("adamw", 1.7e-3),
}
# For GPT-2's weights, not tried here: all weights as in Radford et al. 2018, section 4.1, low-rank
# detours as in Hu et al. 2022, table 11.
GPT2S = {
    "head": ("adamw", 1e-3),
    "last-block": ("adamw", 2e-4),
    "all": ("adamw", 6.25e-5),
    "lora": ("adamw", 2e-4),
}
FROM_SCRATCH = ("adamw", 3e-4)

Row = tuple[list[int], int]  # a text's ids and the number of its label


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TrainingConfig):
    """How to fine-tune: `batch_size` counts texts, `block_size` is where a long text is cut."""

    model: str = "classifier"
    method: str = "all"
    batch_size: int = 16
    block_size: int = 128
    learning_rate: float = 1e-3
    min_learning_rate: float = 0.0
    warmup_steps: int = 20
    evaluate_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: choose one of {', '.join(METHODS)}")


def encode(tokenizer: BPETokenizer, examples: Sequence[Example], max_tokens: int) -> list[Row]:
    """Ids and label of each text, cut after `max_tokens`. An empty text has the id of a space."""
    blank = tokenizer.encode(" ")
    return [((tokenizer.encode(text) or blank)[:max_tokens], label) for text, label in examples]


def pad_right(
    rows: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Rows of ids, padded behind to the longest, and True where the ids are real.

    >>> pad_right([[5, 6], [7]])
    (tensor([[5, 6],
            [7, 0]]), tensor([[ True,  True],
            [ True, False]]))
    """
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    ids[mask] = torch.tensor([i for row in rows for i in row])
    return ids.to(device), mask.to(device)


class ClassificationTrainer(Trainer):
    """A run on labeled texts: everything else is `Trainer`'s, checkpoints and resuming included.

    Texts of about one length share a batch, so that little is padding. The batches of an epoch come
    from its number and the seed alone.
    """

    config: ClassificationConfig

    def __init__(
        self,
        config: ClassificationConfig,
        model_config: ClassifierConfig,
        tokenizer: BPETokenizer,
        texts: LabeledTexts,
        out: str | Path | None = None,
        *,
        start: GPT | None = None,
        **others: Any,
    ) -> None:
        """`start` is the pretrained GPT; without it the classifier learns from nothing."""
        longest = min(config.block_size, model_config.block_size)
        self.rows = encode(tokenizer, texts.train, longest)
        self.held_out = encode(tokenizer, texts.validation, longest)
        self.batches = lru_cache(maxsize=2)(self._batches)

        def initialize(model: nn.Module) -> None:
            if start is not None:
                pretrained_weights(model, start)
            choose(model, config.method)  # type: ignore[arg-type]

        train, validation = (
            torch.tensor([i for ids, label in rows for i in (*ids, -1 - label)])
            for rows in (self.rows, self.held_out)
        )  # flat, as `Trainer` knows data: its fingerprint is taken of them
        text = torch.zeros(2, dtype=torch.int64)  # no text follows another here
        super().__init__(
            config, model_config, tokenizer, text, text, out, initialize=initialize, **others
        )
        self.train_ids, self.validation_ids = train, validation

    def _batches(self, epoch: int) -> list[list[int]]:
        """The places of each batch's texts: pools of 16 batches sorted by length, then mixed."""
        generator = torch.Generator().manual_seed(self.config.seed * 2**32 + epoch)
        order = torch.randperm(len(self.rows), generator=generator).tolist()
        size = min(self.config.batch_size, len(order))
        pools = [order[i : i + 16 * size] for i in range(0, len(order), 16 * size)]
        by_length = [i for pool in pools for i in sorted(pool, key=lambda i: len(self.rows[i][0]))]
        n = len(order) // size
        mixed = torch.randperm(n, generator=generator).tolist()
        return [by_length[b * size : (b + 1) * size] for b in mixed]

    def batch(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Ids and mask, and the labels, of the coming step."""
        per_epoch = len(self.batches(0))
        rows = [self.rows[i] for i in self.batches(self.step // per_epoch)[self.step % per_epoch]]
        labels = torch.tensor([label for _, label in rows])
        return pad_right([ids for ids, _ in rows], self.device), labels.to(self.device)

    def loss(self, model: nn.Module, inputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """Mean cross-entropy of the labels (B,), in nats."""
        return nn.functional.cross_entropy(model(*inputs).float(), targets)

    def validate(self) -> float:
        log_p = predict(self.model, [ids for ids, _ in self.held_out])
        labels = torch.tensor([label for _, label in self.held_out])
        return -log_p.gather(1, labels[:, None]).mean().item()

    @property
    def tokens(self) -> int:
        """How many tokens the run has trained on, about: texts read × the mean length."""
        mean = sum(len(ids) for ids, _ in self.rows) / len(self.rows)
        return round(self.step * min(self.config.batch_size, len(self.rows)) * mean)

    @property
    def bits_per_character(self) -> float:
        """Bits per label: here a label is all that is predicted."""
        return self.validation_nats / math.log(2)

    def _remedy(self) -> str:
        return "Lower --batch-size or --block-size, or train less of the model (--method lora)."


# --- asking and judging ---------------------------------------------------------------------------


@torch.no_grad()
def predict(
    model: Any, rows: Sequence[Sequence[int]], batch_size: int = 64
) -> Float[Tensor, "N C"]:
    """Log-probabilities of the labels of each row of ids, without dropout, on the CPU."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for places in _by_length(rows, batch_size):
        logits = model(*pad_right([rows[i] for i in places], device))
        for i, row in zip(places, logits.float().log_softmax(dim=-1).cpu(), strict=True):
            found[i] = row
    model.train(was_training)
    return torch.stack(found)


def _by_length(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for i in range(0, len(order), batch_size):
        yield order[i : i + batch_size]


def accuracy(log_p: Float[Tensor, "N C"], labels: Sequence[int]) -> float:
    """The share of rows whose likeliest label is the right one."""
    return (log_p.argmax(dim=1) == torch.tensor(labels)).double().mean().item()


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of 95 % of a share that was counted in n independent cases (Wilson 1927).

    >>> [round(end, 3) for end in wilson(0.8, 2000)]
    [0.782, 0.817]
    """
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


def classify(loaded: Checkpoint, texts: Sequence[str]) -> list[dict[str, float]]:
    """Each text's labels with their probabilities, the likeliest first.

    Raises `CheckpointError` when the folder holds another kind of model.
    """
    if loaded.info["model"] != "classifier":
        raise CheckpointError(
            f"The folder holds no classifier, but a model of the kind {loaded.info['model']}: make "
            f"one with `rnn2gpt finetune --task sentiment`."
        )
    config = loaded.model.gpt.config
    rows = encode(loaded.tokenizer, [(text, 0) for text in texts], loaded.info["max_tokens"])
    answers = []
    for row in predict(loaded.model, [ids for ids, _ in rows]).exp().tolist():
        named = zip(config.labels, row, strict=True)
        answers.append(dict(sorted(named, key=lambda one: -one[1])))
    return answers


def load_start(source: str | Path) -> Checkpoint:
    """The GPT to start from: a folder of the course's own, or what `load_pretrained` reads.

    Raises `CheckpointError` or `DataError` when it is neither.
    """
    try:
        folder = find_model(Path(source))
        ours = "rnn2gpt" in read_json(folder / "config.json")
    except CheckpointError:
        ours = False
    if not ours:
        return load_pretrained(str(source))
    loaded = load_model(folder)
    if not isinstance(loaded.model, GPT) or not isinstance(loaded.tokenizer, BPETokenizer):
        raise CheckpointError(
            f"{source} holds a {loaded.info['model']}; a fine-tuned model starts from a gpt that "
            f"was trained with --tokenizer bpe."
        )
    return loaded


def usual_optimizer(method: str, start: Checkpoint, from_scratch: bool) -> tuple[str, float]:
    """The optimizer for a method and its peak rate, if nobody says otherwise."""
    if from_scratch:
        return FROM_SCRATCH
    return (OURS if "rnn2gpt" in start.info else GPT2S)[method]


def classifier_config(
    gpt: GPTConfig, labels: Sequence[str], method: str, rank: int, alpha: float, dropout: float
) -> ClassifierConfig:
    """The sizes of a classifier on a GPT of these sizes."""
    sizes = vars(gpt) | {"dropout": dropout}
    return ClassifierConfig(
        **sizes, labels=list(labels), rank=rank if method == "lora" else 0, alpha=alpha
    )
