"""What a token costs: our cached generation beside `transformers`, the cache's bytes, int8.

    python benchmarks/generation.py     # writes book/_data/generation_benchmark.json

Four studies. In each the ways take turns within a round, so that a round's ratios compare
like with like even where the machine is shared. Seconds are processor seconds of one thread on a
CPU, wall seconds on an accelerator. The weights are random: what a
token costs does not depend on them.

    generate  one text, greedy, from a prompt: ours with the cache and the weights arranged for
              writing (once, as after loading), the same with the weights as training left them,
              ours without the cache, and `transformers`' GPT2LMHeadModel.generate with the same
              weights; all must give the same tokens. A ratio is the other's seconds over the first.
    length    the next token after t tokens, with the cache and without
    batch     one matrix of GPT-2's feed-forward layer times 1, 2, 4, ... vectors: how many of them
              come for the price of one
    int8      the same matrix in float32, in int8 turned back into floats for each product, and in
              int8 through a kernel that reads it as it is (PyTorch's own, not a public function,
              with the vector in bfloat16, for which it was written); and a whole GPT generating,
              in float32 and in int8

`--study NAME` measures one of them anew and leaves the others as they are stored.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from course.ladder import machine
from rnn2gpt.checkpoint import read_json, write_json
from rnn2gpt.generation import arrange_for_writing, generate
from rnn2gpt.gpt import GPT, GPTConfig, count_parameters, gpt2_state_dict
from rnn2gpt.kv_cache import KVCache
from rnn2gpt.quantization import quantize_int8, quantize_model, size_in_bytes

OUT = Path("book/_data/generation_benchmark.json")
COMMAND = "python benchmarks/generation.py"
CONFIGS = {
    "small": GPTConfig(vocab_size=1024, block_size=128, n_layers=4, n_heads=4, d_model=128),
    "10 M": GPTConfig(vocab_size=1024, block_size=256, n_layers=6, n_heads=6, d_model=384),
    "GPT-2": GPTConfig(vocab_size=50257, block_size=1024, n_layers=12, n_heads=12, d_model=768),
}
Ways = dict[str, Callable[[], Any]]


def random_gpt(config: GPTConfig, device: str) -> GPT:
    """A GPT whose weights are large enough that its likeliest token is clear."""
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(device).eval()


def theirs(model: GPT) -> nn.Module:
    """The same weights in `transformers`' GPT-2."""
    c = model.config
    sizes = {"vocab_size": c.vocab_size, "n_positions": c.block_size, "n_embd": c.d_model}
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, n_layer=c.n_layers, n_head=c.n_heads)
    )
    missing = peer.load_state_dict(gpt2_state_dict(model), strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing  # the tied head
    return peer.to(model.head.weight.device).eval()


def seconds(way: Callable[[], Any], device: str) -> float:
    """Processor time on a CPU, where other programs run too; wall time on an accelerator."""
    if device == "cpu":
        start = time.process_time()
        way()
        return time.process_time() - start
    torch.accelerator.synchronize()
    start = time.perf_counter()
    way()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


def in_turns(ways: Ways, rounds: int, device: str, base: str) -> dict[str, dict[str, float]]:
    """Median seconds of each way, and its seconds over those of `base`: median, least, most."""
    turns = [{name: seconds(way, device) for name, way in ways.items()} for _ in range(rounds + 1)]
    rows = {}
    for name in ways:
        ratios = [turn[name] / turn[base] for turn in turns[1:]]  # the first turn warms up
        rows[name] = {
            "seconds": statistics.median(turn[name] for turn in turns[1:]),
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
        }
    return rows


def study_generate(rounds: int, device: str, prompt: int = 32) -> dict[str, Any]:
    """Greedy generation, batch 1, of each configuration."""
    result: dict[str, Any] = {}
    for name, config in CONFIGS.items():
        model, n_tokens = random_gpt(config, device), 96 if name != "GPT-2" else 64
        arranged, peer = copy.deepcopy(model), cast("Any", theirs(model))
        arrange_for_writing(arranged)
        ids = torch.randint(config.vocab_size, (1, prompt), device=device)

        def by_peer(peer: Any = peer, ids: Tensor = ids, n: int = n_tokens) -> Tensor:
            options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            return peer.generate(ids, max_new_tokens=n, **options)

        ways: Ways = {
            "cached": partial(generate, arranged, ids, n_tokens, temperature=0),
            "by_rows": partial(generate, model, ids, n_tokens, temperature=0),
            "transformers": by_peer,
            "uncached": partial(generate, model, ids, n_tokens, temperature=0, use_cache=False),
        }
        written = {way: write() for way, write in ways.items()}
        for way, text in written.items():
            assert torch.equal(written["cached"], text), (name, way)
        rows = in_turns(ways, rounds if name != "GPT-2" else min(3, rounds), device, "cached")
        for row in rows.values():
            row["tokens_per_second"] = n_tokens / row["seconds"]
        result[name] = {
            "parameters": count_parameters(config),
            "prompt": prompt,
            "tokens": n_tokens,
            "cache_bytes": KVCache.for_model(model, 1).nbytes,
            "ways": rows,
        }
    return result


@torch.no_grad()
def study_length(rounds: int, device: str) -> dict[str, Any]:
    """Seconds for the next token after t tokens, four layers of width 128."""
    config = GPTConfig(vocab_size=1024, block_size=1024, n_layers=4, n_heads=4, d_model=128)
    model = random_gpt(config, device)
    ids = torch.randint(1024, (1, 1024), device=device)
    lengths = [16, 32, 64, 128, 256, 512, 1024]
    table: dict[str, list[float]] = {"cached": [], "uncached": []}
    for t in lengths:
        cache = KVCache.for_model(model, 1)
        model(ids[:, : t - 1], cache=cache)

        def cached(t: int = t, cache: KVCache = cache) -> None:
            cache.length = t - 1
            model(ids[:, t - 1 : t], cache=cache)

        def uncached(t: int = t) -> None:
            model(ids[:, :t])

        rows = in_turns({"cached": cached, "uncached": uncached}, rounds, device, "cached")
        for way, values in table.items():
            values.append(rows[way]["seconds"])
    return {"lengths": lengths, "n_layers": 4, "d_model": 128, "seconds": table}


@torch.no_grad()
def study_batch(rounds: int, device: str) -> dict[str, Any]:
    """Seconds for W x with 1 to 256 vectors, W large enough to lie in memory, not in the cache."""
    inputs, outputs = 768, 4 * 768
    weights = [torch.randn(outputs, inputs, device=device) for _ in range(16)]  # read in turn
    sizes = [2**n for n in range(9)]
    vectors = {n: torch.randn(n, inputs, device=device) for n in sizes}

    def product(n: int) -> Callable[[], Any]:
        return lambda: [nn.functional.linear(vectors[n], weight) for weight in weights]

    ways = {str(n): product(n) for n in sizes}
    rows = in_turns(ways, rounds, device, "1")
    times = [rows[str(n)]["seconds"] / len(weights) for n in sizes]
    return {
        "inputs": inputs,
        "outputs": outputs,
        "bytes": weights[0].nbytes,
        "matrices": len(weights),
        "batch": sizes,
        "seconds": times,
        "flops_per_second": [
            2 * n * inputs * outputs / s for n, s in zip(sizes, times, strict=True)
        ],
        "bytes_per_second": [weights[0].nbytes / s for s in times],
    }


@torch.no_grad()
def study_int8(rounds: int, device: str) -> dict[str, Any]:
    """One vector through the matrices, and a whole GPT, with weights of 32 and of 8 bits."""
    inputs, outputs = 768, 4 * 768
    x = torch.randn(1, inputs, device=device)
    weights = [torch.randn(outputs, inputs, device=device) for _ in range(16)]
    small = [quantize_int8(weight) for weight in weights]
    ways: Ways = {
        "float32": lambda: [nn.functional.linear(x, weight) for weight in weights],
        "dequantized": lambda: [nn.functional.linear(x, q.float()) * s[:, 0] for q, s in small],
    }
    if device == "cpu":
        half, halves = x.bfloat16(), [(q, s[:, 0].bfloat16()) for q, s in small]
        ways["fused"] = lambda: [torch._weight_int8pack_mm(half, q, s) for q, s in halves]
        right, fused = ways["dequantized"]()[0], ways["fused"]()[0]
        assert (fused - right).norm() < 0.02 * right.norm()
    result: dict[str, Any] = {"matrix": in_turns(ways, rounds, device, "float32"), "models": {}}
    for name in ("small", "10 M"):
        model = random_gpt(CONFIGS[name], device)
        int8: Any = quantize_model(model)
        ids = torch.randint(1024, (1, 32), device=device)
        ways = {
            "float32": lambda m=model, ids=ids: generate(m, ids, 64, temperature=0),  # type: ignore[misc]
            "int8": lambda m=int8, ids=ids: generate(m, ids, 64, temperature=0),  # type: ignore[misc]
        }
        rows: dict[str, Any] = in_turns(ways, rounds, device, "float32")
        rows["float32"]["bytes"], rows["int8"]["bytes"] = map(size_in_bytes, (model, int8))
        result["models"][name] = rows
    return result


STUDIES = {
    "generate": study_generate,
    "length": study_length,
    "batch": study_batch,
    "int8": study_int8,
}


def measure(studies: list[str], rounds: int, device: str) -> dict[str, Any]:
    """The studies asked for, and what they were measured with."""
    return {
        "command": COMMAND,
        "machine": machine() if device == "cpu" else torch.cuda.get_device_name(),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rounds": rounds,
        **{name: STUDIES[name](rounds, device) for name in studies},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--study", choices=STUDIES, nargs="+", default=list(STUDIES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    stored = read_json(options.out) if set(options.study) != set(STUDIES) else {}
    stored |= measure(options.study, options.rounds, options.device)
    write_json(options.out, stored)
    for name, row in stored["generate"].items():
        for way, one in row["ways"].items():
            print(
                f"{name:>6} {way:>12}: {one['tokens_per_second']:7.1f} tokens/s, "
                f"{one['ratio']:.2f} times ours ({one['ratio_least']:.2f} to "
                f"{one['ratio_most']:.2f})"
            )
    for way, one in stored["int8"]["matrix"].items():
        print(f"matrix {way:>12}: {1e6 * one['seconds'] / 16:7.0f} µs, {one['ratio']:.2f} times")
    print(f"wrote {options.out}")
