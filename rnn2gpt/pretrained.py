"""A GPT that others trained: GPT-2's weights from a folder, a file, or the Hugging Face hub.

Nothing is downloaded unless a name of the hub is given, and then only the weights and their sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from rnn2gpt.checkpoint import Checkpoint, CheckpointError, read_json, read_tensors
from rnn2gpt.data import DataError
from rnn2gpt.gpt import GPT, GPTConfig, load_gpt2_state_dict
from rnn2gpt.tokenizer import load_gpt2


def load_pretrained(source: str, dropout: float = 0.0) -> Checkpoint:
    """GPT-2's network with the weights of `source`, in eval mode, and GPT-2's tokenizer.

    `source` is a folder with `config.json` and safetensors files, one safetensors file (its heads
    are then taken to be 64 wide, as all of GPT-2's are), or a name on the hub such as `gpt2`.
    Raises `CheckpointError` when the weights cannot be read or are not a GPT-2's, `DataError` when
    what must be downloaded cannot be.
    """
    folder = Path(source)
    if not folder.exists():
        if folder.suffix or folder.is_absolute() or source.startswith("."):
            raise CheckpointError(f"There is no file or folder {source}.")
        folder = _download(source)
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no safetensors file with weights.")
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_tensors(file)
    tokenizer = load_gpt2()
    try:
        described = folder / "config.json"
        sizes = _described(read_json(described)) if folder.is_dir() else _measured(weights)
        config = GPTConfig(**sizes, dropout=dropout)
        model = GPT(config)
        load_gpt2_state_dict(model, weights)
    except (KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{source} holds no GPT-2 that fits this model: {error}.") from error
    if config.vocab_size != tokenizer.vocab_size:
        raise CheckpointError(
            f"{source} has {config.vocab_size:,} tokens, and GPT-2's tokenizer "
            f"{tokenizer.vocab_size:,}: its text could not be read."
        )
    info = {"model": "gpt", "config": vars(config), "pretrained": source}
    return Checkpoint(model.eval(), tokenizer, info)


def _described(theirs: dict[str, Any]) -> dict[str, Any]:
    """Our sizes from a Hugging Face `config.json`."""
    activation = theirs.get("activation_function", "gelu_new")
    if activation != "gelu_new":
        raise ValueError(f"its activation is {activation}, not gelu_new")
    return {
        "vocab_size": theirs["vocab_size"],
        "block_size": theirs["n_positions"],
        "n_layers": theirs["n_layer"],
        "n_heads": theirs["n_head"],
        "d_model": theirs["n_embd"],
    }


def _measured(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Our sizes from the shapes of the weights."""
    plain = {name.removeprefix("transformer."): w for name, w in weights.items()}
    vocab_size, d_model = plain["wte.weight"].shape
    return {
        "vocab_size": vocab_size,
        "block_size": len(plain["wpe.weight"]),
        "n_layers": sum(name.endswith("attn.c_attn.weight") for name in plain),
        "n_heads": d_model // 64,
        "d_model": d_model,
    }


def _download(name: str) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise DataError(
            f"To download {name} install huggingface-hub (`pip install huggingface-hub`), or name "
            f"a folder that holds the weights."
        ) from None
    try:
        patterns = ["config.json", "*.safetensors"]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's own, the network's and the disk's
        raise DataError(
            f"{name} is no file or folder here, and it could not be downloaded from the Hugging "
            f"Face hub ({type(error).__name__}). Check the name and the network, or name a folder "
            f"that holds the weights."
        ) from error
