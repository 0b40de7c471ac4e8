"""The same training run in one process, in two (DDP), and in two that share the weights (FSDP2).

    python benchmarks/two_processes.py      # writes book/_data/two_processes.json

All three are `rnn2gpt train` with one seed and one global batch; two processes, started by
`torchrun`, take half of its rows each and talk over gloo. What must come out is the same: the file
holds each run's command and output, its losses, and how far its weights end from the single
process's. Times are not compared: two processes on one busy machine say nothing about two machines.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TRAIN = "-m course.cli train --model gpt --device cpu --precision float32 --seed 0"
SIZES = "--d-model 32 --n-layers 2 --n-heads 2 --block-size 32 --batch-size 16 --warmup-steps 10"
TORCHRUN = "-m torch.distributed.run --nproc-per-node 2"
RUNS = {"one process": "", "two, DDP": TORCHRUN, "two, FSDP": TORCHRUN}


def trained(name: str, steps: int, evaluate_every: int, out: Path) -> dict[str, Any]:
    """Run the command of this name; its output, and what its log holds."""
    budget = f"--steps {steps} --evaluate-every {evaluate_every}"
    shard = "--shard" if name.endswith("FSDP") else ""
    command = " ".join(f"{RUNS[name]} {TRAIN} {SIZES} {budget} {shard} --out RUN".split())
    arguments = [str(out) if word == "RUN" else word for word in command.split()]
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"{command} failed:\n{ran.stderr}")
    with (out / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = ("train_nats", "validation_nats")
    log = [{"step": int(row["step"])} | {k: float(row[k]) for k in losses} for row in rows]
    return {
        "command": "python " + command,
        "output": ran.stdout.strip().replace(str(out), "RUN"),
        "log": log,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--evaluate-every", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("book/_data/two_processes.json"))
    options = parser.parse_args()
    result: dict[str, Any] = {
        "command": "python benchmarks/two_processes.py",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "steps": options.steps,
        "runs": {},
    }
    weights: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(RUNS):
            out = Path(folder) / str(number)
            run = trained(name, options.steps, options.evaluate_every, out)
            mine = load_file(out / "last" / "model.safetensors")
            weights = weights or mine
            run["apart"] = max((mine[k] - weights[k]).abs().max().item() for k in weights)
            result["runs"][name] = run
            print(name, run["log"][-1], f"{run['apart']:.1e} apart", flush=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
