"""A trained GPT as one file that the site's explorers run in the browser.

The file is safetensors, which JavaScript reads in a few lines: matrices in eight bits with one
scale a row (`NAME.q`, `NAME.scale`), vectors in float32, and in its metadata, as JSON, the sizes
(`config`), the tokenizer and what is known of the model (`info`). `book/explorers/gpt.js` reads it.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from rnn2gpt.checkpoint import CheckpointError, load_model, tied
from rnn2gpt.gpt import GPT
from rnn2gpt.quantization import quantize_int8
from rnn2gpt.tokenizer import BPETokenizer

TOLD = ("step", "tokens", "validation_nats", "text")  # of config.json, for the reader


def export_web(folder: Path, target: Path) -> int:
    """Write the model in `folder` as a file for the browser, and return its size in bytes.

    Raises `CheckpointError` when there is no model, or it is not the course's GPT on byte pairs.
    """
    loaded = load_model(folder)
    if not (isinstance(loaded.model, GPT) and isinstance(loaded.tokenizer, BPETokenizer)):
        raise CheckpointError(
            f"{folder} holds the model {loaded.info['model']!r}; the site runs a GPT with byte "
            f"pairs. Train one with `rnn2gpt train --model gpt --tokenizer bpe`."
        )
    metadata = {
        "config": loaded.info["config"],
        "tokenizer": loaded.tokenizer.to_json(),
        "info": {name: loaded.info[name] for name in TOLD if name in loaded.info},
    }
    ties = tied(loaded.model)
    tensors: dict[str, Tensor] = {}
    for name, tensor in loaded.model.state_dict().items():
        if name in ties:
            continue
        if tensor.dim() == 2:
            tensors[f"{name}.q"], tensors[f"{name}.scale"] = quantize_int8(tensor)
        else:
            tensors[name] = tensor.contiguous()
    data = save(tensors, {key: json.dumps(value) for key, value in metadata.items()})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return len(data)
