"""A trained model as one file that the site's explorers run in the browser.

The file is safetensors, which JavaScript reads in a few lines; in its metadata, as JSON, are the
kind of `model`, its sizes (`config`), its tokenizer and what is known of it (`info`). A GPT's
matrices are in eight bits with one scale a row (`NAME.q`, `NAME.scale`), its vectors in float32;
the recurrent networks are in float16, as a checkpoint keeps them. `book/explorers/weights.js` reads
it, `gpt.js` and `recurrent.js` run it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from rnn2gpt.checkpoint import Checkpoint, CheckpointError, load_model, tied
from rnn2gpt.gpt import GPT
from rnn2gpt.lstm import CharLSTM
from rnn2gpt.quantization import quantize_int8
from rnn2gpt.rnn import CharRNN
from rnn2gpt.seq2seq import AdditiveAttention, Seq2Seq
from rnn2gpt.tokenizer import BPETokenizer

TOLD = ("step", "tokens", "validation_nats", "text")  # of config.json, for the reader


def export_web(folder: Path, target: Path) -> int:
    """Write the model in `folder` as a file for the browser, and return its size in bytes.

    Raises `CheckpointError` when there is no model, or it is neither the course's GPT on byte pairs
    nor one of the recurrent networks that explorers run.
    """
    loaded = load_model(folder)
    if isinstance(loaded.model, GPT) and isinstance(loaded.tokenizer, BPETokenizer):
        tensors, tokenizer = _in_eight_bits(loaded), loaded.tokenizer.to_json()
    elif _runs_recurrent(loaded.model):
        tensors = {name: tensor.half() for name, tensor in loaded.model.state_dict().items()}
        tokenizer = loaded.tokenizer.vocabulary
    else:
        raise CheckpointError(
            f"{folder} holds the model {loaded.info['model']!r}; the site runs a GPT with byte "
            f"pairs. Train one with `rnn2gpt train --model gpt --tokenizer bpe`."
        )
    metadata = {
        "model": loaded.info["model"],
        "config": loaded.info["config"],
        "tokenizer": tokenizer,
        "info": {name: loaded.info[name] for name in TOLD if name in loaded.info},
    }
    data = save(tensors, {key: json.dumps(value) for key, value in metadata.items()})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return len(data)


def _runs_recurrent(model: Any) -> bool:
    if isinstance(model, CharLSTM):
        return model.lstm.num_layers == 1
    if isinstance(model, Seq2Seq):
        return model.attention is None or isinstance(model.attention, AdditiveAttention)
    return isinstance(model, CharRNN)


def _in_eight_bits(loaded: Checkpoint) -> dict[str, Tensor]:
    ties = tied(loaded.model)
    tensors: dict[str, Tensor] = {}
    for name, tensor in loaded.model.state_dict().items():
        if name in ties:
            continue
        if tensor.dim() == 2:
            tensors[f"{name}.q"], tensors[f"{name}.scale"] = quantize_int8(tensor)
        else:
            tensors[name] = tensor.contiguous()
    return tensors
