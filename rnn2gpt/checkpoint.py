"""A trained model on disk: weights as safetensors, everything else as JSON, never pickle.

A model's folder holds `model.safetensors` and `config.json`: which model, its sizes, its
vocabulary, what made it and how good it is. A byte-pair vocabulary stands beside them, in
`tokenizer.json`. A weight that two layers share is stored once. `MODELS` is the one list of models
that the commands know; a new architecture is one entry in it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rnn2gpt import __version__
from rnn2gpt.attention import CharAttention, CharAttentionConfig
from rnn2gpt.bert import BertConfig, BertForMaskedLM
from rnn2gpt.data import CharTokenizer, DataError
from rnn2gpt.finetune import ClassifierConfig, build_classifier
from rnn2gpt.gpt import GPT, GPTConfig, flops_per_token
from rnn2gpt.lstm import CharLSTM, CharLSTMConfig
from rnn2gpt.modern import ModernGPT, ModernGPTConfig
from rnn2gpt.ngram import KneserNey, KneserNeyConfig
from rnn2gpt.rnn import CharRNN, CharRNNConfig
from rnn2gpt.seq2seq import CharLSTMAttention, CharLSTMAttentionConfig, Seq2Seq, Seq2SeqConfig
from rnn2gpt.tokenizer import BPETokenizer
from rnn2gpt.transformer import Transformer, TransformerConfig
from rnn2gpt.translation import PairTokenizer

Tokenizer = CharTokenizer | BPETokenizer | PairTokenizer


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A kind of network that the training loop can train.

    `learning_rate` is the peak rate that did best at the ladder's width and budget. `recurrent`
    says whether `model(ids, state)` carries a state from one block to the next; without it the
    loop calls `model(ids)` and takes the first of what it returns; such a model reads windows of
    at most its `block_size`. `tokenizer` belongs to the data that it reads: a text, or pairs (then
    `rnn2gpt.translator` runs it). `sizes` stand in for those that its config asks for and nobody
    gave. `cached` says whether it takes a `KVCache`, so that `generation.generate` can run it.
    `blocks` says that it is a stack of `model.blocks` between an embedding and a head, as a GPT is:
    then only its matrices decay, Muon can train them, and it can be sharded. The older models decay
    as a whole, as they were measured. `fills` says that its logits are of the token itself and not
    of the next one, as a BERT's are: it writes no text, and no loop here trains it.
    `flops_per_token` counts what training takes.
    """

    config: type
    build: Callable[[Any], nn.Module]
    learning_rate: float
    recurrent: bool
    tokenizer: Callable[..., Tokenizer] = CharTokenizer
    sizes: Mapping[str, int] = field(default_factory=dict)
    cached: bool = False
    blocks: bool = False
    fills: bool = False
    flops_per_token: Callable[[Any], int] | None = None

    @property
    def reads_windows(self) -> bool:
        """Whether a row of a batch is a window of text that has nothing to do with other rows."""
        return not self.recurrent and self.tokenizer is CharTokenizer

    def run(self, model: nn.Module, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, T, V) and the state to carry on with."""
        return model(ids, state) if self.recurrent else (model(ids)[0], None)

    def stream(self, model: nn.Module, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """As `run`, for text that comes piece by piece.

        What a model without a state has to carry is the text itself: its last window is read again
        with each new piece, and the logits (B, up to T, V) are those of the window.
        """
        if self.recurrent:
            return model(ids, state)
        window: Any = model.block_size
        seen = ids if state is None else torch.cat([state, ids], dim=1)
        seen = seen[:, -window:]  # (B, up to block_size)
        return model(seen)[0], seen


MODELS: dict[str, Architecture] = {
    "rnn": Architecture(
        config=CharRNNConfig,
        build=lambda config: CharRNN(config.vocab_size, config.d_model),
        learning_rate=4e-3,
        recurrent=True,
    ),
    "lstm": Architecture(
        config=CharLSTMConfig,
        build=lambda config: CharLSTM(
            config.vocab_size, config.d_model, config.n_layers, config.dropout
        ),
        learning_rate=1.6e-2,
        recurrent=True,
    ),
    "lstm-attention": Architecture(
        config=CharLSTMAttentionConfig,
        build=lambda config: CharLSTMAttention(config.vocab_size, config.d_model, config.window),
        learning_rate=1.6e-2,
        recurrent=True,
    ),
    "self-attention": Architecture(
        config=CharAttentionConfig,
        build=lambda config: CharAttention(
            config.vocab_size, config.d_model, config.n_layers, config.block_size
        ),
        learning_rate=8e-3,
        recurrent=False,
    ),
    "gpt": Architecture(
        config=GPTConfig,
        build=GPT,
        learning_rate=3e-3,
        recurrent=False,
        sizes={"n_layers": 4, "n_heads": 4, "d_model": 128},
        cached=True,
        blocks=True,
        flops_per_token=flops_per_token,
    ),
    "modern-gpt": Architecture(
        config=ModernGPTConfig,
        build=ModernGPT,
        learning_rate=4e-3,
        recurrent=False,
        sizes={"n_layers": 4, "n_heads": 4, "d_model": 128},
        cached=True,
        blocks=True,
    ),
    "bert": Architecture(  # `benchmarks/bert.py` trains it
        config=BertConfig,
        build=BertForMaskedLM,
        learning_rate=4e-3,
        recurrent=False,
        tokenizer=BPETokenizer,
        fills=True,
    ),
    "classifier": Architecture(  # of labeled texts: `rnn2gpt.classifier` trains it
        config=ClassifierConfig,
        build=build_classifier,
        learning_rate=1e-3,
        recurrent=False,
        tokenizer=BPETokenizer,
        blocks=True,
    ),
    "seq2seq": Architecture(
        config=Seq2SeqConfig,
        build=lambda config: Seq2Seq(**vars(config)),
        learning_rate=5e-3,
        recurrent=False,
        tokenizer=PairTokenizer,
    ),
    "transformer": Architecture(
        config=TransformerConfig,
        build=lambda config: Transformer(**vars(config)),
        learning_rate=2e-3,
        recurrent=False,
        tokenizer=PairTokenizer,
    ),
}
MODELS["seq2seq-plain"] = MODELS["seq2seq"]  # its config says attention=False


class CheckpointError(Exception):
    """A checkpoint cannot be read or written. The message says which, why, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load_model` read: the model (in eval mode, on the CPU), its tokenizer, the JSON."""

    model: Any
    tokenizer: Any
    info: dict[str, Any]

    @property
    def cached(self) -> bool:
        """Whether the model takes a `KVCache`."""
        return self.info["model"] in MODELS and MODELS[self.info["model"]].cached

    @property
    def fills(self) -> bool:
        """Whether the model puts back hidden tokens, as a BERT does, and so writes no text."""
        return self.info["model"] in MODELS and MODELS[self.info["model"]].fills

    def stream(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits after `ids`, and what to carry on with: the form in which `generate` asks."""
        if self.info["model"] == "ngram":
            return self.model(ids, state)
        return MODELS[self.info["model"]].stream(self.model, ids, state)


def save_model(
    folder: Path,
    name: str,
    config: Any,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    dtype: torch.dtype | None = None,
    **facts: Any,
) -> None:
    """Write a model folder: `facts` go into `config.json` beside the model's name and sizes.

    `dtype` stores floating-point weights in another precision (float16 halves the file).
    """
    info: dict[str, Any] = {"model": name, "config": asdict(config)}
    ties: dict[str, str] = {}
    if name in MODELS:
        with torch.device("meta"):
            ties = tied(MODELS[name].build(config))
    stored = {
        key: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor)
        .detach()
        .cpu()
        .contiguous()
        for key, tensor in tensors.items()
        if key not in ties
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", stored)
    if isinstance(tokenizer, BPETokenizer):
        vocabulary = json.dumps(tokenizer.to_json())
        (folder / "tokenizer.json").write_text(vocabulary + "\n", encoding="utf-8")
    else:
        info["vocabulary"] = tokenizer.vocabulary
    write_json(folder / "config.json", info | {"rnn2gpt": __version__, **facts})


def tied(model: nn.Module) -> dict[str, str]:
    """Names of parameters that share their memory with an earlier one, and that one's name."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in every if first[id(p)] != name}


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the weights of a model's folder, of whatever precision, into a model in float32.

    Raises `RuntimeError` when a weight is missing, left over, or of another shape.
    """
    weights = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
    ties = {name: weights[other] for name, other in tied(model).items() if other in weights}
    model.load_state_dict(weights | ties)


def load_model(folder: str | Path) -> Checkpoint:
    """Read a model folder, or a training run's folder: then its best model, else its last.

    Raises `CheckpointError` when there is none or it cannot be read.
    """
    folder = find_model(Path(folder))
    info = read_json(folder / "config.json")
    tensors = read_tensors(folder / "model.safetensors")
    try:
        tokenizer = _read_tokenizer(folder, info)
        if info["model"] == "ngram":
            config = KneserNeyConfig(**info["config"])
            return Checkpoint(KneserNey.from_state_dict(config, tensors), tokenizer, info)
        architecture = MODELS[info["model"]]
        model = architecture.build(architecture.config(**info["config"]))
        load_weights(model, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} does not hold a model that this version can build "
            f"({type(error).__name__}: {error}). Was it written by another version?"
        ) from error
    return Checkpoint(model.eval(), tokenizer, info)


def _read_tokenizer(folder: Path, info: dict[str, Any]) -> Tokenizer:
    kind = CharTokenizer if info["model"] == "ngram" else MODELS[info["model"]].tokenizer
    if "vocabulary" in info:
        return kind(info["vocabulary"])
    try:
        return BPETokenizer.load(folder / "tokenizer.json")
    except DataError as error:
        raise CheckpointError(str(error)) from error


def find_model(folder: Path) -> Path:
    """The folder with the weights: itself, or its `best`, or its `last`."""
    for candidate in (folder, folder / "best", folder / "last"):
        if (candidate / "config.json").is_file():
            return candidate
    raise CheckpointError(
        f"{folder} holds no model: no config.json there, nor in its best/ or last/. "
        f"Train one with `rnn2gpt train --model lstm --out {folder}`."
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint, or a `CheckpointError` that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON that a person can read."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as a file that others may read, as any file one writes (not 0600)."""
    path.write_bytes(save(tensors))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors from a safetensors file, or a `CheckpointError` that names the file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Cannot read {path}: {error}. If the file is cut short, use an older checkpoint."
        ) from error


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Write a new version of a folder beside it, then put it in its place.

    A crash leaves either the old version or the new one, never half of each.
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
