"""Chapter 05's studies: what attention costs, and what its scale is worth."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


def script(root: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, root / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cost(root: Path) -> Any:
    return script(root, "attention")


def test_every_way_is_the_same_attention_in_values_and_gradients(cost: Any) -> None:
    torch.manual_seed(7)
    qkv = [torch.randn(1, 1, 301, 16).double().requires_grad_() for _ in range(3)]
    right = cost.explicit(*qkv)
    pull = torch.randn_like(right)
    gradients = torch.autograd.grad(right, qkv, pull)
    for name, way in cost.WAYS.items():
        output = way(*qkv)
        torch.testing.assert_close(output, right, msg=name)
        for have, want in zip(torch.autograd.grad(output, qkv, pull), gradients, strict=True):
            torch.testing.assert_close(have, want, msg=name)


def test_peak_counts_what_was_held_at_one_time(cost: Any) -> None:
    def peak(way: Any, qkv: list[Tensor]) -> int:
        return cost.peak_bytes(partial(cost.call, way, qkv), "cpu")

    x = torch.randn(100, 10)  # 4 bytes a number
    assert peak(lambda a, b, c: a @ a.T, [x, x, x]) == 40_000
    both = peak(lambda a, b, c: (a @ a.T).exp() @ b, [x, x, x])
    assert both == 80_000  # the product is given back before the 4,000 bytes of the result
    q, k, v = cost.inputs(256, training=False, device="cpu")
    assert peak(cost.explicit, [q, k, v]) >= 2 * 4 * 256**2  # two T × T at once


def test_study_measures_each_way_at_each_length(cost: Any) -> None:
    result = cost.study([32, 640], rounds=1, device="cpu")
    for name in ("forward", "training"):
        for way, row in result[name].items():
            assert all(number > 0 for column in row.values() for number in column), way
        assert result[name]["explicit"]["ratio"] == [1.0, 1.0]
        assert result[name]["fused"]["bytes"][1] < result[name]["explicit"]["bytes"][1]
    forward, training = result["forward"], result["training"]
    assert forward["blocks"]["bytes"][1] < forward["explicit"]["bytes"][1] / 1.5
    # Autograd keeps every block; only computing them again frees the memory.
    assert training["blocks"]["bytes"][1] > 0.75 * training["explicit"]["bytes"][1]
    assert training["recomputed"]["bytes"][1] < training["blocks"]["bytes"][1] / 1.5


def test_scales_change_what_is_trained(root: Path) -> None:
    by_scale = script(root, "attention_scale").study([8], [1e-2], seeds=1, steps=3)["8"]
    nats = [runs[0] for by_rate in by_scale.values() for runs in by_rate.values()]
    assert len(set(nats)) == 3 and all(2 < value < 5 for value in nats)


def test_stored_studies_name_their_command(root: Path) -> None:
    data = root / "book" / "_data"
    for name in ("attention", "attention_scale"):
        stored = data / ("attention_cost.json" if name == "attention" else f"{name}.json")
        assert json.loads(stored.read_text("utf-8"))["command"] == f"python benchmarks/{name}.py"
