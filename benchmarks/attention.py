"""What attention costs as the text grows: explicit, in blocks, and fused, side by side.

    python benchmarks/attention.py          # writes book/_data/attention_cost.json

Four ways to the same output, one head of width 64, no mask, float32, one thread:

    explicit    the T × T scores, their softmax, the product with the values
    blocks      online_softmax_attention, block by block over the keys
    recomputed  the same for one block of queries at a time; backward computes each block again
    fused       torch.nn.functional.scaled_dot_product_attention, a FlashAttention kernel

Each way runs in turn within a round, so a round's ratios compare like with like even where the
machine is shared; the stored ratios are medians over rounds. Times are processor seconds on a CPU.
Memory is the largest number of bytes that PyTorch's allocator had handed out at one moment of the
call and not taken back, inputs not counted: results, what is kept for the backward pass, gradients
and the kernels' scratch. What the process holds beside that is not in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own notes; read at import

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from course.ladder import machine
from rnn2gpt.attention import online_softmax_attention, scaled_dot_product_attention

WIDTH, BLOCK = 64, 128
OUT = Path("book/_data/attention_cost.json")
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v)[0]


def blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return online_softmax_attention(q, k, v, BLOCK)


def recomputed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rabe & Staats 2021: blocks of queries too, and nothing of a block kept for the way back."""
    pieces: list[Tensor] = [
        checkpoint(online_softmax_attention, piece, k, v, BLOCK, use_reentrant=False)
        for piece in q.split(BLOCK, dim=-2)
    ]
    return torch.cat(pieces, dim=-2)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, need_weights=False)[0]


WAYS: dict[str, Attention] = {
    "explicit": explicit,
    "blocks": blocks,
    "recomputed": recomputed,
    "fused": fused,
}


def inputs(length: int, training: bool, device: str) -> list[Tensor]:
    """q, k, v of shape (1, 1, T, d): batch and heads are 1."""
    torch.manual_seed(length)
    shape = (1, 1, length, WIDTH)
    return [torch.randn(shape, device=device, requires_grad=training) for _ in range(3)]


def call(way: Attention, qkv: list[Tensor]) -> None:
    """Forward, and backward where the inputs ask for gradients."""
    output = way(*qkv)
    if output.requires_grad:
        output.sum().backward()
    for tensor in qkv:
        tensor.grad = None


def seconds(function: Callable[[], object], device: str) -> float:
    """Processor time on a CPU, where other programs run too; wall time on an accelerator."""
    if device == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.accelerator.synchronize()
    start = time.perf_counter()
    function()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """The most that the allocator had given out at one time during the call."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()  # what is given back during the call would count against it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()  # negative when memory is given back
            peak = max(peak, live)
    return peak


def study(lengths: list[int], rounds: int, device: str) -> dict[str, Any]:
    """Median seconds, median ratio of seconds to explicit, and peak bytes, by way and length."""
    result: dict[str, Any] = {}
    for name, training in (("forward", False), ("training", True)):
        table: dict[str, dict[str, list[float]]] = {
            way: {"seconds": [], "ratio": [], "bytes": []} for way in WAYS
        }
        for length in lengths:
            qkv = inputs(length, training, device)
            calls = {way: partial(call, function, qkv) for way, function in WAYS.items()}
            turns = [
                {way: seconds(function, device) for way, function in calls.items()}
                for _ in range(rounds + 1)
            ][1:]  # the first turn warms up
            for way, function in calls.items():
                row = table[way]
                row["seconds"].append(round(statistics.median(t[way] for t in turns), 6))
                ratios = [t[way] / t["explicit"] for t in turns]
                row["ratio"].append(round(statistics.median(ratios), 4))
                row["bytes"].append(peak_bytes(function, device))
        result[name] = table
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2**n for n in range(7, 14)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stored = {
        "command": "python benchmarks/attention.py",
        "machine": machine(),
        "device": options.device,
        "torch": torch.__version__,
        "width": WIDTH,
        "block": BLOCK,
        "rounds": options.rounds,
        "lengths": options.lengths,
        **study(options.lengths, options.rounds, options.device),
    }
    options.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")
