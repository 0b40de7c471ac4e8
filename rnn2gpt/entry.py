"""An entry to the leaderboard: a small GPT as two files, read with suspicion, scored (chapter 17).

`weights.safetensors` holds the parameters and `config.json` the sizes of a `GPT` over the 64
characters of the nine plays. Whoever scores an entry trusts nothing in it: sizes are bounded before
anything is built, names, dtypes and shapes are compared before a tensor is read, nothing is ever
unpickled, and the loss is computed anew, with our model, on text that the model was not to see.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rnn2gpt.checkpoint import MODELS
from rnn2gpt.data import CORPORA, CharTokenizer, load_text, split
from rnn2gpt.evaluation import evaluate
from rnn2gpt.gpt import GPT, GPTConfig, count_parameters

TEXT = "nine-plays"
WEIGHTS, CONFIG = "weights.safetensors", "config.json"
MAX_PARAMETERS = 1_000_000
MAX_HEADER = 100_000  # bytes in which safetensors names its tensors
FILES = {WEIGHTS: 4 * MAX_PARAMETERS + MAX_HEADER + 8, CONFIG: 4_096}  # bytes at most
LIMITS = {"block_size": 256, "n_layers": 16, "n_heads": 16, "d_model": 512}  # each at least 1
HELD_OUT = 8_192  # characters to predict: the first of the text held out
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class EntryError(ValueError):
    """Files that are no entry. The message says why, for the person who handed them in."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What an entry is worth: its loss on the held-out text, and its size."""

    nats_per_character: float
    parameters: int

    @property
    def bits_per_character(self) -> float:
        return self.nats_per_character / math.log(2)


def pack_entry(model: Any) -> tuple[bytes, str]:
    """The two files of an entry: what goes into `weights.safetensors` and `config.json`.

    `model` is a `GPT` or a module with its config and its parameters' names. The tied table stands
    once, as `token_embedding.weight`; all is stored in float32. Raises `ValueError` when a weight
    is not finite.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    own.pop("head.weight", None)
    weights = {name: p.detach().to("cpu", torch.float32).contiguous() for name, p in own.items()}
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite: this run diverged")
    config = {field.name: getattr(model.config, field.name) for field in fields(GPTConfig)}
    return save(weights), json.dumps(config)


def write_entry(model: Any, folder: Path) -> None:
    """Write an entry's two files into `folder`, which is made if it is not there."""
    weights, config = pack_entry(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / CONFIG).write_text(config + "\n", encoding="utf-8")


def read_entry(weights: bytes, config: bytes | str) -> GPT:
    """The model of an entry, in evaluation mode. Raises `EntryError`."""
    sizes = _read_config(config)
    model = GPT(sizes)  # as large as its sizes may be, which are bounded
    named = dict(model.named_parameters())
    tensors = _read_weights(weights, {name: tuple(p.shape) for name, p in named.items()})
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[name])
    return model.eval()


def _read_config(config: bytes | str) -> GPTConfig:
    if len(config) > FILES[CONFIG]:
        raise EntryError(f"{CONFIG} is larger than {FILES[CONFIG]:,} bytes.")
    try:
        sizes = json.loads(config)
    except (ValueError, RecursionError):
        raise EntryError(f"{CONFIG} is not JSON.") from None
    if not isinstance(sizes, dict):
        raise EntryError(f"{CONFIG} holds no JSON object.")
    known = {field.name for field in fields(GPTConfig)}
    for name in sorted(known - {"dropout", "bias"} - sizes.keys()):
        raise EntryError(f"{CONFIG} lacks {name}.")
    for name in sorted(map(str, sizes.keys() - known)):
        raise EntryError(f"{CONFIG} holds {name[:40]!r}, which is no field of a GPTConfig.")
    for name, most in (LIMITS | {"vocab_size": CORPORA[TEXT].vocabulary}).items():
        if type(sizes[name]) is not int or not 1 <= sizes[name] <= most:
            raise EntryError(f"{CONFIG}: {name} must be a whole number from 1 to {most}.")
    if sizes["vocab_size"] != CORPORA[TEXT].vocabulary:
        most = CORPORA[TEXT].vocabulary
        raise EntryError(f"{CONFIG}: vocab_size must be {most}, the characters of the nine plays.")
    if type(sizes.get("bias", True)) is not bool:
        raise EntryError(f"{CONFIG}: bias must be true or false.")
    dropout = sizes.get("dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise EntryError(f"{CONFIG}: dropout must be a number from 0 up to, not with, 1.")
    try:
        made = GPTConfig(**sizes)
    except ValueError as error:
        raise EntryError(f"{CONFIG}: {error}.") from None
    if count_parameters(made) > MAX_PARAMETERS:
        raise EntryError(
            f"The model has {count_parameters(made):,} parameters; an entry may have"
            f" {MAX_PARAMETERS:,}."
        )
    return made


def _read_weights(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors, once their names, dtypes and shapes are known to be those of `shapes`."""
    if len(data) > FILES[WEIGHTS]:
        raise EntryError(f"{WEIGHTS} is larger than {FILES[WEIGHTS]:,} bytes.")
    if is_pickle(data):
        raise EntryError(
            f"{WEIGHTS} is in PyTorch's own format, a pickle, which can run code when it is opened"
            " and is never opened here. Write it with safetensors."
        )
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(MAX_HEADER, len(data) - 8):
        raise EntryError(f"{WEIGHTS} is no whole safetensors file.")
    try:
        header = json.loads(data[8 : 8 + size])
        described = {str(n): spec for n, spec in header.items() if n != "__metadata__"}
        found = {name: tuple(spec["shape"]) for name, spec in described.items()}
        dtypes = {name: str(spec["dtype"]) for name, spec in described.items()}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise EntryError(f"{WEIGHTS} is no safetensors file: its header is broken.") from None
    _compare(found, shapes)
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise EntryError(f"{WEIGHTS}: {name} is of dtype {dtype[:20]}; store float32.")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise EntryError(f"{WEIGHTS} cannot be read: {str(error)[:200]}.") from None
    _compare({name: tuple(tensor.shape) for name, tensor in tensors.items()}, shapes)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values() or not tensor.isfinite().all():
            raise EntryError(f"{WEIGHTS}: {name} holds numbers that are not finite.")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _compare(found: Mapping[str, tuple[Any, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(shapes.keys() - found.keys()):
        raise EntryError(f"{WEIGHTS} lacks {name}, which {CONFIG} asks for.")
    for name in sorted(found.keys() - shapes.keys()):
        twice = " The tied table stands once, as token_embedding.weight." if "head" in name else ""
        raise EntryError(f"{WEIGHTS} holds {name[:60]!r}, which {CONFIG} has no place for.{twice}")
    for name, shape in shapes.items():
        if found[name] != shape:
            raise EntryError(f"{WEIGHTS}: {name} must have the shape {shape} by {CONFIG}.")


def is_pickle(data: bytes) -> bool:
    """Whether these bytes are what `torch.save` or `pickle` writes, and no safetensors file.

    The latter begins with a length of eight bytes, which may be any, and then with a brace.
    """
    return data[8:9] != b"{" and data.startswith((b"PK\x03\x04", b"\x80"))


@functools.cache
def held_out(characters: int = HELD_OUT) -> Int64[Tensor, " N"]:
    """The ids on which entries are scored: the beginning of the nine plays' held-out part."""
    text = load_text(TEXT)
    return split(CharTokenizer(text).encode(text))[1][: characters + 1]


def score_entry(weights: bytes, config: bytes | str) -> Score:
    """The loss that an entry's weights have, computed here. Raises `EntryError`.

    Its cost is bounded by the limits above, whatever the numbers in the files are.
    """
    model = read_entry(weights, config)
    with _flushed():
        loss = evaluate(MODELS["gpt"], model, held_out()).mean().item()
    if not math.isfinite(loss):
        raise EntryError("The weights overflow: their loss on the held-out text is not finite.")
    return Score(nats_per_character=loss, parameters=count_parameters(model.config))


@contextmanager
def _flushed() -> Iterator[None]:
    """Numbers too small for full speed count as 0: weights of 1e-40 would cost a hundredfold."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
