"""One training loop for every model: budgets, schedule, checkpoints that resume exactly.

Recurrent models read the text as B endless tapes, started at B places evenly spaced around it, and
carry their state from block to block (truncated backpropagation through time, Williams & Peng
1990), as they do in use. Random windows, each begun with an empty state, train about as well on the
course's text: the two ended within 0.01 nats of each other (`benchmarks/training.py --windows`
repeats it). Other models get random windows.

Batches are a function of (seed, step) alone: a run that stops and resumes sees the same data, and
on the CPU its weights are equal to the last bit. `batch_size` is the batch of a step, however it is
worked through: in `accumulate` parts, one after another, or by several processes, each its rows.

>>> from rnn2gpt.rnn import CharRNNConfig
>>> tokenizer = CharTokenizer("hello")
>>> ids = tokenizer.encode("hello" * 50)
>>> config = TrainingConfig(model="rnn", steps=3, batch_size=2, block_size=8, device="cpu")
>>> trainer = Trainer(config, CharRNNConfig(vocab_size=4, d_model=8), tokenizer, ids, ids)
>>> trainer.run().step
3
"""

from __future__ import annotations

import hashlib
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from tqdm import tqdm

from rnn2gpt.checkpoint import (
    MODELS,
    CheckpointError,
    Tokenizer,
    load_weights,
    read_json,
    read_tensors,
    replacing,
    save_model,
    write_json,
    write_tensors,
)
from rnn2gpt.data import CharTokenizer, get_batch
from rnn2gpt.devices import autocast, explain_memory, peak_flops, pick_precision, wait_for
from rnn2gpt.distributed import ALONE, Team, as_sharded, average_gradients, shard, whole
from rnn2gpt.evaluation import count_characters, evaluate
from rnn2gpt.lstm import detach_state
from rnn2gpt.metrics import bits_per_character, cross_entropy
from rnn2gpt.ngram import KneserNey, KneserNeyConfig
from rnn2gpt.optim import (
    Muon,
    accumulate_gradients,
    cosine_schedule,
    muon_groups,
    parameter_groups,
    trapezoid_schedule,
)
from rnn2gpt.rnn import clip_grad_norm_
from rnn2gpt.run_log import RunLog
from rnn2gpt.tokenizer import BPETokenizer

SCHEDULES = {"cosine": cosine_schedule, "trapezoid": trapezoid_schedule}
# What a run may change when it resumes: its budget, and the machine that it runs on.
FREE = {"steps", "minutes", "evaluate_every", "snapshots"}
FREE |= {"device", "precision", "accumulate", "compile", "shard"}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train. The run ends at `steps` or `minutes`, whichever comes first (one is needed).

    `accumulate` works a batch through in so many parts. `compile` left None compiles where it pays,
    on CUDA, unless the model is sharded; on a CPU the compiler takes longer than it saves in a
    short run. `shard` cuts the model over the processes of `torchrun`. `snapshots` keeps so many
    half-precision copies of the model, at steps spaced evenly on a logarithmic scale.
    """

    model: str
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 32
    block_size: int = 64
    learning_rate: float = 3e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_norm: float = 1.0
    evaluate_every: int = 250
    seed: int = 0
    device: str = "auto"
    optimizer: str = "adamw"
    schedule: str = "cosine"
    precision: str = "float32"
    accumulate: int = 1
    compile: bool | None = None
    shard: bool = False
    snapshots: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model={self.model!r}: choose one of {', '.join(MODELS)}")
        if MODELS[self.model].fills:
            raise ValueError(
                f"{self.model} fills in hidden tokens; this loop trains on the next one"
            )
        if self.steps is None and self.minutes is None:
            raise ValueError("Give a budget: steps, minutes, or both")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer={self.optimizer!r}: choose adamw or muon")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}"
            )
        if self.snapshots and self.steps is None:
            raise ValueError("Snapshots need a budget in steps, to know when to be taken")
        if (self.accumulate > 1 or self.compile) and not MODELS[self.model].reads_windows:
            raise ValueError(f"{self.model} reads pairs or carries a state: no accumulate, compile")
        if (self.shard or self.optimizer == "muon") and not MODELS[self.model].blocks:
            raise ValueError(f"{self.model} is no stack of blocks: no shard, optimizer='muon'")


@dataclass(frozen=True)
class Result:
    """Where a run stands when it ends: losses are in nats per token."""

    step: int
    tokens: int
    seconds: float
    tokens_per_second: float
    validation_nats: float | None
    best_nats: float | None
    bits_per_character: float | None
    mfu: float | None
    interrupted: bool

    def to_json(self) -> dict[str, Any]:
        """The same, as JSON can hold it."""
        return asdict(self)


def seed_everything(seed: int) -> None:
    """Seed Python's and PyTorch's generators, on every device."""
    random.seed(seed)
    torch.manual_seed(seed)


def tapes(
    ids: Int64[Tensor, " N"], step: int, block_size: int, batch_size: int, offset: int = 0
) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """Block number `step` of B tapes, and its targets: row b goes on where it stopped before.

    The text is a circle, and tape b starts at offset + b·N/B, so no tape ever ends and in N/B
    characters each has read what the next one began with.

    >>> [tapes(torch.arange(10), step, block_size=2, batch_size=2)[0].tolist() for step in (0, 1)]
    [[[0, 1], [5, 6]], [[2, 3], [7, 8]]]
    """
    starts = offset + torch.arange(batch_size) * len(ids) // batch_size + step * block_size  # (B,)
    windows = ids[(starts[:, None] + torch.arange(block_size + 1)) % len(ids)]  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]


def fit_ngram(
    tokenizer: CharTokenizer | BPETokenizer,
    train_ids: Int64[Tensor, " N"],
    validation_ids: Int64[Tensor, " M"],
    order: int,
    out: Path,
    **facts: Any,
) -> dict[str, Any]:
    """Count a Kneser–Ney model and keep it in `out/best`, in the same form as a trained network."""
    began = time.perf_counter()
    config = KneserNeyConfig(vocab_size=tokenizer.vocab_size, order=order)
    model = KneserNey.fit(train_ids, config)
    nats = model.nll(validation_ids).mean().item()
    result = Result(
        step=0,
        tokens=len(train_ids),
        seconds=time.perf_counter() - began,
        tokens_per_second=len(train_ids) / (time.perf_counter() - began),
        validation_nats=nats,
        best_nats=nats,
        bits_per_character=bits_per_character(
            nats, len(validation_ids), count_characters(tokenizer, validation_ids)
        ),
        mfu=None,
        interrupted=False,
    )
    facts |= {"validation_nats": nats, "tokens": len(train_ids)}
    with replacing(out / "best") as folder:
        save_model(folder, "ngram", config, model.state_dict(), tokenizer, **facts)
    return result.to_json()


def snapshot_steps(steps: int, n: int) -> set[int]:
    """At most n steps from 0 to `steps`, both included, evenly spaced on a logarithmic scale.

    >>> sorted(snapshot_steps(1000, 5))
    [0, 1, 10, 100, 1000]
    """
    if n < 2:
        return set()
    return {0, *(round(steps ** (1 - i / max(1, n - 2))) for i in range(n - 1))}


class Objective(nn.Module):
    """A network with its loss in one module: what is compiled and what processes share."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any, Tensor], Tensor],
        precision: Callable[[], AbstractContextManager],
    ) -> None:
        super().__init__()
        self.model, self.loss, self.precision = model, loss, precision

    def forward(self, inputs: Any, targets: Tensor) -> tuple[None, Tensor]:
        """Nothing and the mean loss, in the places where a GPT returns logits and loss."""
        with self.precision():
            return None, self.loss(self.model, inputs, targets)


class Trainer:
    """One run: a model, its optimizer, its place in the text, and the folder it is kept in.

    Without `out` nothing is written. With it, `out` receives `log.csv`, `log.svg`, `best/` (the
    model with the lowest validation loss) and `last/` (all that `resume` needs). `initialize` may
    put other weights into the new model before it learns. Of a `team` of processes every one makes
    its own trainer, with the same arguments; the first one writes.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model_config: Any,
        tokenizer: Tokenizer,
        train_ids: Int64[Tensor, " N"],
        validation_ids: Int64[Tensor, " M"],
        out: str | Path | None = None,
        *,
        team: Team = ALONE,
        initialize: Callable[[nn.Module], object] = lambda model: None,
        tensorboard: bool = False,
        **facts: Any,
    ) -> None:
        self.config, self.model_config, self.tokenizer = config, model_config, tokenizer
        self.train_ids, self.validation_ids = train_ids, validation_ids
        self.out = None if out is None else Path(out)
        self.validation_characters = count_characters(tokenizer, validation_ids[1:])
        self.facts, self.team = facts, team
        self.architecture = MODELS[config.model]
        self._check_team()
        self.device = team.device(config.device)
        self.dtype = pick_precision(config.precision, self.device)
        self.log: RunLog | None = None
        if self.out is not None and team.leads:
            self.out.mkdir(parents=True, exist_ok=True)
            self.log = RunLog(self.out, tensorboard)
        seed_everything(config.seed)
        self.offset = random.randrange(len(train_ids))
        self.model = self.architecture.build(model_config)
        initialize(self.model)
        self.model.to(self.device)
        if config.shard:
            shard(self.model, self.device, team.size)
        if team.size > 1:  # each process drops out other units; alone, the generator goes on
            torch.manual_seed(config.seed * team.size + team.rank)
        self.optimizer = self._make_optimizer()
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.dtype == torch.float16
        )  # float16 has no room for small gradients: scale them up, then down again
        objective = Objective(self.model, self.loss, autocast(self.device, self.dtype))
        self.objective: Any = team.share(objective, config.shard)
        windows = self.architecture.reads_windows
        pays = self.device.type == "cuda" and windows and not config.shard
        if pays if config.compile is None else config.compile:
            self.objective = torch.compile(self.objective)
        self.state: Any = None
        self.step = 0
        self.seconds = 0.0  # of training and evaluation, over all sittings
        self.training_seconds = 0.0  # of training steps alone: throughput is read from it
        self.losses: list[Tensor] = []  # of the steps since the last evaluation
        self.validation_nats = self.best_nats = math.inf

    def _check_team(self) -> None:
        """Raises `ValueError` for what several processes cannot do, or one alone."""
        c, size = self.config, self.team.size
        if size > 1 and not self.architecture.reads_windows:
            raise ValueError(f"{c.model} trains in one process: it reads pairs or carries a state")
        if c.batch_size % (size * c.accumulate):
            parts = f"{size} processes" + (f" × accumulate={c.accumulate}" * (c.accumulate > 1))
            raise ValueError(f"{parts} do not divide batch_size={c.batch_size}")
        if c.shard and size == 1:
            raise ValueError("shard cuts a model over several processes: start them with torchrun")
        if c.shard and (c.optimizer == "muon" or c.precision == "float16"):
            raise ValueError("shard goes with optimizer adamw, and with bfloat16 or float32")

    def _make_optimizer(self) -> torch.optim.Optimizer:
        c, model = self.config, self.model
        if not self.architecture.blocks:
            return torch.optim.AdamW(
                model.parameters(), c.learning_rate, weight_decay=c.weight_decay
            )
        # The fused step is one kernel for all weights. In float16 it would itself pass over a step
        # whose gradients overflowed, after Muon's own half had been taken.
        fused = self.dtype != torch.float16
        if c.optimizer == "muon":
            return Muon(muon_groups(model, c.weight_decay), c.learning_rate, fused=fused)
        groups = parameter_groups(model, c.weight_decay)
        return torch.optim.AdamW(groups, c.learning_rate, fused=fused)

    def run(self, progress: bool = False) -> Result:
        """Train until a budget is spent or Ctrl-C is pressed, then say where the run stands.

        Raises `OutOfMemory` when a step does not fit into the device's memory.
        """
        steps = snapshot_steps(self.config.steps or 0, self.config.snapshots)
        if self.step == 0:
            self._snapshot(steps)
        began, before, stopped = time.perf_counter(), self.seconds, False
        bar = tqdm(initial=self.step, unit="step", disable=not progress)
        with bar, _interrupt_flag() as interrupted, explain_memory(self.device, self._remedy()):
            while not (self._is_over() or stopped):
                started = time.perf_counter()
                self.train_step()
                self.training_seconds += time.perf_counter() - started
                elapsed = before + time.perf_counter() - began
                self.seconds, stop = self.team.largest(elapsed, interrupted())
                stopped = bool(stop)
                bar.total = None if math.isinf(self.total_steps) else round(self.total_steps)
                bar.update()
                self._snapshot(steps)
                if self.step % self.config.evaluate_every == 0 or self._is_over():
                    row = self._evaluate()
                    (self.seconds,) = self.team.largest(before + time.perf_counter() - began)
                    bar.set_postfix_str(_summary(row))
                    self._save(row)
        if stopped:
            self._save(None)
        if self.log is not None:
            self.log.draw()
        return Result(
            step=self.step,
            tokens=self.tokens,
            seconds=self.seconds,
            tokens_per_second=self.tokens_per_second,
            validation_nats=_finite(self.validation_nats),
            best_nats=_finite(self.best_nats),
            bits_per_character=_finite(self.bits_per_character),
            mfu=self.mfu,
            interrupted=stopped,
        )

    @property
    def tokens(self) -> int:
        """How many tokens the run has trained on."""
        return self.step * self.config.batch_size * self.config.block_size

    @property
    def tokens_per_second(self) -> float:
        """The pace of the training steps, evaluations left out."""
        return self.tokens / max(self.training_seconds, 1e-9)

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization: the share of the peak that the model's own FLOPs make up.

        Chowdhery et al. 2022, section 4.1. None for models whose FLOPs are not counted.
        """
        if self.architecture.flops_per_token is None:
            return None
        flops = self.architecture.flops_per_token(self.model_config) * self.tokens_per_second
        return flops / (self.team.size * peak_flops(self.device, self.dtype))

    @property
    def bits_per_character(self) -> float:
        """The last validation loss, spread over the characters that its tokens stand for."""
        n = len(self.validation_ids) - 1  # all but the first are predicted
        return bits_per_character(self.validation_nats, n, self.validation_characters)

    @property
    def total_steps(self) -> float:
        """Where the run will end. A budget in minutes is turned into steps at the pace so far."""
        c = self.config
        total = float(c.steps) if c.steps is not None else math.inf
        if c.minutes is not None and self.step > 0:
            total = min(total, self.step * 60 * c.minutes / max(self.seconds, 1e-9))
        return total

    @property
    def learning_rate(self) -> float:
        """The rate of the coming step."""
        c = self.config
        rates = c.learning_rate, c.min_learning_rate
        return SCHEDULES[c.schedule](self.step, *rates, c.warmup_steps, self.total_steps)

    def _is_over(self) -> bool:
        c = self.config
        return (c.steps is not None and self.step >= c.steps) or (
            c.minutes is not None and self.seconds >= 60 * c.minutes
        )

    def train_step(self) -> None:
        """One batch, one update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        parts = self.config.accumulate
        loss = accumulate_gradients(
            self.objective,
            self._micro_batches(parts),
            lambda loss: self.scaler.scale(loss).backward(),
            counts=[1] * parts,  # all parts have as many targets
        )
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self.model.parameters(), self.config.max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.append(loss)
        self.step += 1

    def _micro_batches(self, parts: int) -> Iterator[tuple[Any, Tensor]]:
        """This process's share of the coming batch, in `parts`."""
        inputs, targets = self.batch()
        if parts == self.team.size == 1:
            yield inputs, targets
            return
        both = (self.team.rows(rows).tensor_split(parts) for rows in (inputs, targets))
        for i, micro_batch in enumerate(zip(*both, strict=True)):
            average_gradients(self.objective, i == parts - 1)
            yield micro_batch

    def loss(self, model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
        """Mean cross-entropy of inputs and targets (B, T), in nats; the state is carried on."""
        logits, self.state = self.architecture.run(model, inputs, detach_state(self.state))
        return cross_entropy(logits.flatten(0, 1), targets.flatten())  # (B·T, V) and (B·T,)

    def validate(self) -> float:
        """The validation loss, in nats per token."""
        return evaluate(self.architecture, self.model, self.validation_ids).mean().item()

    def batch(self) -> tuple[Any, Tensor]:
        """Inputs and targets (B, T) of the coming step."""
        c = self.config
        if self.architecture.recurrent:
            x, y = tapes(self.train_ids, self.step, c.block_size, c.batch_size, self.offset)
            return x.to(self.device), y.to(self.device)
        generator = torch.Generator().manual_seed(c.seed * 2**32 + self.step)
        return get_batch(self.train_ids, c.block_size, c.batch_size, generator, self.device)

    def _remedy(self) -> str:
        c = self.config
        if not self.architecture.reads_windows:
            return "Lower --batch-size or --d-model."
        rows = c.batch_size // (c.accumulate * self.team.size)
        return (
            f"A step holds {rows:,} × {c.block_size} tokens at once: work through it in more parts "
            f"(--accumulate {2 * c.accumulate}), or lower --batch-size, --block-size or --d-model."
        )

    def _evaluate(self) -> dict[str, float | None]:
        """One row of the log. A run that has not improved keeps its best model as it was."""
        started = time.perf_counter()
        wait_for(self.device)  # for the steps that it has not finished yet
        self.training_seconds += time.perf_counter() - started
        self.validation_nats = self.validate()
        row = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "learning_rate": self.learning_rate,
            "train_nats": self.team.mean(torch.stack(self.losses)).mean().item(),
            "validation_nats": self.validation_nats,
            "validation_bits_per_character": self.bits_per_character,
            "mfu": self.mfu,
        }
        self.losses.clear()
        return row

    # --- what is kept -------------------------------------------------------------------------

    def _save(self, row: dict[str, float | None] | None) -> None:
        """Write `last`, and `best` when this is it; `row` is the evaluation's, if there was one."""
        improved = row is not None and self.validation_nats < self.best_nats
        self.best_nats = min(self.best_nats, self.validation_nats)
        if self.out is None:
            return
        weights, tensors = self._weights(), self._tensors()  # all processes give their parts
        if not self.team.leads:
            return
        with replacing(self.out / "last") as folder:
            self._save_model(folder, weights)
            write_tensors(folder / "training.safetensors", tensors)
            write_json(folder / "training.json", self._scalars())
        if improved:
            with replacing(self.out / "best") as folder:
                self._save_model(folder, weights)
        if row is not None and self.log is not None:
            self.log.add(row)

    def _snapshot(self, steps: set[int]) -> None:
        """Keep a half-precision copy of the model, if this is one of the steps for it."""
        if self.out is None or self.step not in steps:
            return
        weights = self._weights()
        if self.team.leads:
            with replacing(self.out / "snapshots" / f"{self.step:07d}") as folder:
                self._save_model(folder, weights, torch.float16)

    def _weights(self) -> dict[str, Tensor]:
        return {name: whole(weight) for name, weight in self.model.state_dict().items()}

    def _save_model(
        self, folder: Path, weights: dict[str, Tensor], dtype: torch.dtype | None = None
    ) -> None:
        save_model(
            folder,
            self.config.model,
            self.model_config,
            weights,
            self.tokenizer,
            dtype,
            step=self.step,
            tokens=self.tokens,
            validation_nats=_finite(self.validation_nats),
            bits_per_character=_finite(self.bits_per_character),
            **self.facts,
        )

    def _scalars(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "validation_nats": _finite(self.validation_nats),
            "best_nats": _finite(self.best_nats),
            "text_sha256": self._fingerprint(),
            "scaler": self.scaler.state_dict(),
        }

    def _fingerprint(self) -> str:
        ids = torch.cat([self.train_ids, self.validation_ids, torch.tensor([len(self.train_ids)])])
        return hashlib.sha256(ids.numpy().tobytes()).hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        """The optimizer's moments, the carried state, the losses since the log, the generators."""
        tensors = {
            f"optimizer.{i}.{key}": whole(value)
            for i, moments in self.optimizer.state_dict()["state"].items()
            for key, value in moments.items()
        }
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        tensors |= {f"state.{i}": part for i, part in enumerate(parts) if part is not None}
        if self.losses:
            losses = self.team.mean(torch.stack(self.losses)).unbind()
            tensors |= {f"loss.{i}": loss for i, loss in enumerate(losses)}
        tensors["generator.cpu"] = torch.get_rng_state()
        if self.device.type != "cpu":
            tensors["generator.device"] = _accelerator(self.device).get_rng_state()
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def resume(self) -> None:
        """Take up the run in `out` where it stopped. The budgets may be new; the rest may not.

        Raises `CheckpointError` when there is no run, or it was made otherwise or of another text.
        """
        if self.out is None:
            raise CheckpointError("This run has no folder to resume from: pass `out`.")
        folder = self.out / "last"
        if not folder.is_dir():  # a crash between two renames leaves only the older version
            folder = self.out / "last.old"
        if not folder.is_dir():
            raise CheckpointError(
                f"{self.out} holds no run to resume. Leave --resume out to begin one there, or "
                f"name the folder of a run with --out."
            )
        scalars = read_json(folder / "training.json")
        now = asdict(self.config)
        since = {f.name: f.default for f in fields(self.config) if f.name not in scalars["config"]}
        saved = since | scalars["config"]  # an older version had fewer settings
        settings = (saved.keys() | now.keys()) - FREE
        if changed := sorted(name for name in settings if saved.get(name) != now.get(name)):
            was = ", ".join(f"{name}={saved.get(name)}, not {now.get(name)}" for name in changed)
            raise CheckpointError(
                f"{folder} was trained with {was}. "
                f"Resume with the same settings, or start again in another folder."
            )
        sizes = read_json(folder / "config.json")["config"]
        if sizes != asdict(self.model_config):
            raise CheckpointError(f"{folder} holds a model of other sizes: {sizes}.")
        if scalars["text_sha256"] != self._fingerprint():
            raise CheckpointError(f"{folder} was trained on another text. Resume with that one.")
        self.step, self.seconds = scalars["step"], scalars["seconds"]
        self.training_seconds = scalars["training_seconds"]
        self.validation_nats = scalars["validation_nats"] or math.inf
        self.best_nats = scalars["best_nats"] or math.inf
        self.scaler.load_state_dict(scalars.get("scaler") or self.scaler.state_dict())
        self._load(read_tensors(folder / "model.safetensors"), folder)
        if self.log is not None:
            self.log.trim(self.step)

    def _load(self, weights: dict[str, Tensor], folder: Path) -> None:
        tensors = read_tensors(folder / "training.safetensors")
        now = self.model.state_dict()
        load_weights(self.model, {k: as_sharded(w, now[k]) for k, w in weights.items()})
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".")
                p = parameters[int(i)]
                part = as_sharded(tensor, p) if tensor.shape == p.shape else tensor
                moments.setdefault(int(i), {})[key] = part
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        parts = [tensors[k].to(self.device) for k in _numbered(tensors, "state")]
        self.state = None if not parts else parts[0] if len(parts) == 1 else tuple(parts)
        self.losses = [tensors[k].to(self.device) for k in _numbered(tensors, "loss")]
        torch.set_rng_state(tensors["generator.cpu"])
        if self.device.type != "cpu" and "generator.device" in tensors:
            _accelerator(self.device).set_rng_state(tensors["generator.device"])


def _summary(row: dict[str, float | None]) -> str:
    """The evaluation in the progress bar."""
    mfu = "" if row["mfu"] is None else f", MFU {row['mfu']:.0%}"
    return (
        f"train {row['train_nats']:.3f}, validation {row['validation_nats']:.3f} nats, "
        f"{row['tokens_per_second']:,.0f} tokens/s{mfu}"
    )


def _finite(number: float) -> float | None:
    """The number, or None before the first evaluation: JSON has no infinity."""
    return number if math.isfinite(number) else None


def _numbered(tensors: dict[str, Tensor], prefix: str) -> list[str]:
    names = [name for name in tensors if name.startswith(prefix + ".")]
    return sorted(names, key=lambda name: int(name.split(".")[1]))


def _accelerator(device: torch.device) -> Any:
    return getattr(torch, device.type)  # torch.cuda or torch.mps: both get and set their generator


@contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C finish the current step; a second one stops at once.

    Signals reach the main thread only: elsewhere the flag stays down.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def handle(number: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
