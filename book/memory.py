"""What the memory lab opens with: one text, read by the trained RNN and LSTM (chapters 02 and 03).

The lab's script makes the same for any text once the reader has loaded the networks
(`book/explorers/recurrent.js`); here PyTorch does, in double precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnn2gpt.checkpoint import load_model

MODELS = Path("_data", "models")
TEXT = "I have done nothing but in care of thee,\nOf thee, my dear one, thee, my daughter, who\n"


def opening(text: str = TEXT) -> dict[str, Any]:
    """What `figures.publish` hands to the lab; the last character of `text` is to be predicted."""
    names = ("rnn", "lstm")
    size = sum((MODELS / name / "model.safetensors").stat().st_size for name in names)
    return {"text": text, "bytes": size, "networks": [_read(name, text) for name in names]}


def _read(name: str, text: str) -> dict[str, Any]:
    loaded = load_model(MODELS / name)
    model, ids = loaded.model.double(), loaded.tokenizer.encode(text)[None]  # (1, T + 1)
    core = getattr(model, name)
    x = model.embedding(ids[:, :-1])  # (1, T, D)
    x.retain_grad()
    h = core(x)[0]  # (1, T, H)
    loss = torch.nn.functional.cross_entropy(model.head(h[:, -1]), ids[:, -1])
    loss.backward()
    with torch.no_grad():
        unit, rows = (_gates if name == "lstm" else _slopes)(core, x[0], h[0])
    gradients = [parameter.grad for parameter in model.parameters()]
    return {
        "name": name.upper(),
        "units": h.shape[-1],
        "nats": _short(loss),
        "lags": [_short(size) for size in x.grad[0].norm(dim=1).flip(0)],
        "norm": _short(torch.nn.utils.get_total_norm(gradients)),
        "unit": unit,
        "rows": [[row, [_short(value) for value in values]] for row, values in rows.items()],
    }


def _slopes(core: Any, x: Tensor, h: Tensor) -> tuple[int, dict[str, Tensor]]:
    """The unit that is least flat, its state, and what each step lets through of the gradient."""
    slope = 1 - h**2  # (T, H)
    unit = int(slope.mean(0).argmax())
    return unit, {"mean 1 − h²": slope.mean(1), "1 − h²": slope[:, unit], "h": h[:, unit]}


def _gates(core: Any, x: Tensor, h: Tensor) -> tuple[int, dict[str, Tensor]]:
    """The unit that keeps best among those that also let go, with its gates and its state."""
    W, U, b, d = core.parameters()
    before = torch.cat([torch.zeros_like(h[:1]), h[:-1]])
    sums = (x @ W.T + b + before @ U.T + d).chunk(4, dim=1)  # (T, 4H) → four of (T, H)
    i, f, g, o = (a.tanh() if k == 2 else a.sigmoid() for k, a in enumerate(sums))
    c = torch.zeros_like(h)
    for t in range(len(h)):
        c[t] = f[t] * (c[t - 1] if t else 0) + i[t] * g[t]
    lets_go = f[2:].amin(0) < 0.1  # not only at the start, where there is nothing yet
    unit = int(torch.where(lets_go, f.mean(0), 0).argmax())
    own = {"f": f, "i": i, "g": g, "o": o, "c": c, "h": h}
    return unit, {"mean f": f.mean(1)} | {row: values[:, unit] for row, values in own.items()}


def _short(value: Tensor) -> float:
    return float(f"{value.item():.5g}")
