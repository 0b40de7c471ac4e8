"""One training loop for every model: budgets, schedule, checkpoints that resume exactly.

Recurrent models read the text as B endless tapes, started at B places evenly spaced around it, and
carry their state from block to block (truncated backpropagation through time, Williams & Peng
1990), as they do in use. Random windows, each begun with an empty state, train about as well on the
course's text: the two ended within 0.01 nats of each other (`benchmarks/training.py --windows`
repeats it). Other models get random windows.

Batches are a function of (seed, step) alone: a run that stops and resumes sees the same data, and
on the CPU its weights are equal to the last bit.

>>> from rnn2gpt.rnn import CharRNNConfig
>>> tokenizer = CharTokenizer("hello")
>>> ids = tokenizer.encode("hello" * 50)
>>> config = TrainingConfig(model="rnn", steps=3, batch_size=2, block_size=8, device="cpu")
>>> trainer = Trainer(config, CharRNNConfig(vocab_size=4, d_model=8), tokenizer, ids, ids)
>>> trainer.run().step
3
"""

from __future__ import annotations

import csv
import hashlib
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rnn2gpt.checkpoint import (
    MODELS,
    Architecture,
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
from rnn2gpt.lstm import detach_state
from rnn2gpt.metrics import bits_per_character, cross_entropy
from rnn2gpt.ngram import KneserNey, KneserNeyConfig
from rnn2gpt.rnn import clip_grad_norm_
from rnn2gpt.tokenizer import BPETokenizer
from rnn2gpt.translation import PairTokenizer


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train. The run ends at `steps` or `minutes`, whichever comes first (one is needed)."""

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

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model={self.model!r}: choose one of {', '.join(MODELS)}")
        if self.steps is None and self.minutes is None:
            raise ValueError("Give a budget: steps, minutes, or both")


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
    interrupted: bool

    def to_json(self) -> dict[str, Any]:
        """The same, as JSON can hold it."""
        return asdict(self)


def pick_device(name: str = "auto") -> torch.device:
    """The named device; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises `ValueError` when the machine lacks the device that is asked for.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, here in available.items() if here))
    kind = name.split(":")[0]
    if not available.get(kind, False):
        here = ", ".join(kind for kind, ready in available.items() if ready)
        raise ValueError(f"device={name!r} is not available here. Choose auto or one of: {here}")
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Seed Python's and PyTorch's generators, on every device."""
    random.seed(seed)
    torch.manual_seed(seed)


def cosine_schedule(
    step: int, max_lr: float, min_lr: float, warmup_steps: int, total_steps: float
) -> float:
    """The learning rate of a step: a linear rise, then half a cosine down to `min_lr`.

    Loshchilov & Hutter 2017, equation 5, without restarts. `max_lr` is reached at
    step = warmup_steps, `min_lr` at step = total_steps and after.

    >>> [cosine_schedule(step, 1.0, 0.0, 1, 5) for step in (0, 1, 3, 5, 6)]
    [0.5, 1.0, 0.5, 0.0, 0.0]
    """
    if step < warmup_steps:
        return max_lr * (step + 1) / (warmup_steps + 1)
    if step >= total_steps:
        return min_lr
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + (max_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * done))


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


@torch.no_grad()
def evaluate(
    architecture: Architecture,
    model: nn.Module,
    ids: Int64[Tensor, " N"],
    block_size: int = 256,
    n_streams: int = 16,
) -> Float[Tensor, " N-1"]:
    """−ln p of every id but the first: a full sweep, each id predicted exactly once.

    The text is cut into `n_streams` runs that go side by side. A recurrent model carries its state
    along its run; each run starts from an empty state. Any other model reads windows of its own
    `block_size` that overlap by half. The mean is the loss in nats per token.
    """
    device = next(model.parameters()).device
    if not architecture.recurrent:
        return _evaluate_windows(architecture, model, ids, device)
    n_streams = max(1, min(n_streams, (len(ids) - 1) // block_size))
    length = -(-(len(ids) - 1) // n_streams)  # rounded up: the last run may be shorter
    at = torch.arange(n_streams * length).view(n_streams, length)  # (S, L)
    x, y = (ids[torch.minimum(at + k, torch.tensor(len(ids) - 1))] for k in (0, 1))
    was_training, state, losses = model.training, None, []
    model.eval()
    for start in range(0, length, block_size):
        block = slice(start, start + block_size)
        logits, state = architecture.run(model, x[:, block].to(device), state)
        nll = nn.functional.cross_entropy(
            logits.transpose(1, 2), y[:, block].to(device), reduction="none"
        )  # (S, V, T) and (S, T) → (S, T)
        losses.append(nll.cpu())
    model.train(was_training)
    return torch.cat(losses, dim=1).flatten()[: len(ids) - 1].double()


def _evaluate_windows(
    architecture: Architecture, model: Any, ids: Int64[Tensor, " N"], device: torch.device
) -> Float[Tensor, " N-1"]:
    """Each id is predicted in the first window that holds it, half a window or more from its start.

    Only the ids of the very first window have less to read, as they have at the start of any text.
    """
    n = len(ids) - 1
    window = min(model.block_size, n)
    starts = [*range(0, n - window, max(1, window // 2)), n - window]
    at = torch.tensor(starts)[:, None] + torch.arange(window)  # (W, T)
    was_training, losses = model.training, []
    model.eval()
    for rows in at.split(64):
        logits, _ = architecture.run(model, ids[rows].to(device), None)
        nll = nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[rows + 1].to(device), reduction="none"
        )  # (W, V, T) and (W, T) → (W, T)
        losses.append(nll.cpu())
    model.train(was_training)
    result, done = torch.empty(n, dtype=torch.float64), 0
    for start, nll in zip(starts, torch.cat(losses), strict=True):
        result[done : start + window] = nll[done - start :]
        done = start + window
    return result


def count_characters(tokenizer: Tokenizer, ids: Int64[Tensor, " N"]) -> int:
    """How many characters the ids stand for: what bits per character are counted in.

    Pairs have no text of their own; there a token stands for one.
    """
    if isinstance(tokenizer, PairTokenizer):
        return len(ids)
    return len(tokenizer.decode(ids.tolist()))


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
        interrupted=False,
    )
    facts |= {"validation_nats": nats, "tokens": len(train_ids)}
    with replacing(out / "best") as folder:
        save_model(folder, "ngram", config, model.state_dict(), tokenizer, **facts)
    return result.to_json()


class Trainer:
    """One run: a model, its optimizer, its place in the text, and the folder it is kept in.

    Without `out` nothing is written. With it, `out` receives `log.csv`, `best/` (the model with
    the lowest validation loss) and `last/` (all that `resume` needs).
    """

    def __init__(
        self,
        config: TrainingConfig,
        model_config: Any,
        tokenizer: Tokenizer,
        train_ids: Int64[Tensor, " N"],
        validation_ids: Int64[Tensor, " M"],
        out: str | Path | None = None,
        **facts: Any,
    ) -> None:
        self.config, self.model_config, self.tokenizer = config, model_config, tokenizer
        self.train_ids, self.validation_ids = train_ids, validation_ids
        self.out = None if out is None else Path(out)
        self.validation_characters = count_characters(tokenizer, validation_ids[1:])
        self.facts = facts
        self.architecture = MODELS[config.model]
        self.device = pick_device(config.device)
        seed_everything(config.seed)
        self.offset = random.randrange(len(train_ids))
        self.model = self.architecture.build(model_config).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.state: Any = None
        self.step = 0
        self.seconds = 0.0  # of training and evaluation, over all sittings
        self.training_seconds = 0.0  # of training steps alone: throughput is read from it
        self.losses: list[Tensor] = []  # of the steps since the last evaluation
        self.validation_nats = self.best_nats = math.inf

    def run(self, progress: bool = False) -> Result:
        """Train until a budget is spent or Ctrl-C is pressed, then say where the run stands."""
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
        began, before = time.perf_counter(), self.seconds
        bar = tqdm(
            total=self.config.steps, initial=self.step, unit="step", disable=not progress
        )  # without `steps` the bar counts and shows the rate, but has no end
        with bar, _interrupt_flag() as interrupted:
            while not (self._is_over() or interrupted()):
                started = time.perf_counter()
                self.train_step()
                self.training_seconds += time.perf_counter() - started
                self.seconds = before + time.perf_counter() - began
                bar.update()
                if self.step % self.config.evaluate_every == 0 or self._is_over():
                    row = self._evaluate()
                    self.seconds = before + time.perf_counter() - began
                    bar.set_postfix_str(
                        f"train {row['train_nats']:.3f}, validation {row['validation_nats']:.3f} "
                        f"nats, {row['tokens_per_second']:,.0f} tokens/s"
                    )
                    self._save(row)
            stopped = interrupted()
        if stopped:
            self._save(None)
        return Result(
            step=self.step,
            tokens=self.tokens,
            seconds=self.seconds,
            tokens_per_second=self.tokens / max(self.training_seconds, 1e-9),
            validation_nats=_finite(self.validation_nats),
            best_nats=_finite(self.best_nats),
            bits_per_character=_finite(self.bits_per_character),
            interrupted=stopped,
        )

    @property
    def tokens(self) -> int:
        """How many tokens the run has trained on."""
        return self.step * self.config.batch_size * self.config.block_size

    @property
    def bits_per_character(self) -> float:
        """The last validation loss, spread over the characters that its tokens stand for."""
        n = len(self.validation_ids) - 1  # all but the first are predicted
        return bits_per_character(self.validation_nats, n, self.validation_characters)

    @property
    def learning_rate(self) -> float:
        """The rate of the coming step. A budget in minutes is turned into steps at this pace."""
        c = self.config
        total = float(c.steps) if c.steps is not None else math.inf
        if c.minutes is not None and self.step > 0:
            total = min(total, self.step * 60 * c.minutes / max(self.seconds, 1e-9))
        return cosine_schedule(
            self.step, c.learning_rate, c.min_learning_rate, c.warmup_steps, total
        )

    def _is_over(self) -> bool:
        c = self.config
        return (c.steps is not None and self.step >= c.steps) or (
            c.minutes is not None and self.seconds >= 60 * c.minutes
        )

    def train_step(self) -> None:
        """One batch, one update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.model.parameters(), self.config.max_norm)
        self.optimizer.step()
        self.losses.append(loss.detach())
        self.step += 1

    def loss(self) -> Tensor:
        """The coming step's mean cross-entropy, in nats; the state is carried on."""
        x, y = self.batch()
        logits, self.state = self.architecture.run(self.model, x, detach_state(self.state))
        return cross_entropy(logits.flatten(0, 1), y.flatten())  # (B·T, V) and (B·T,)

    def validate(self) -> float:
        """The validation loss, in nats per token."""
        return evaluate(self.architecture, self.model, self.validation_ids).mean().item()

    def batch(self) -> tuple[Tensor, Tensor]:
        """x and y (B, T) of the coming step."""
        c = self.config
        if self.architecture.recurrent:
            x, y = tapes(self.train_ids, self.step, c.block_size, c.batch_size, self.offset)
            return x.to(self.device), y.to(self.device)
        generator = torch.Generator().manual_seed(c.seed * 2**32 + self.step)
        return get_batch(self.train_ids, c.block_size, c.batch_size, generator, self.device)

    def _evaluate(self) -> dict[str, float]:
        """One row of the log. A run that has not improved keeps its best model as it was."""
        self.validation_nats = self.validate()
        row = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / max(self.training_seconds, 1e-9), 1),
            "learning_rate": self.learning_rate,
            "train_nats": torch.stack(self.losses).mean().item(),
            "validation_nats": self.validation_nats,
            "validation_bits_per_character": self.bits_per_character,
        }
        self.losses.clear()
        return row

    # --- what is kept -------------------------------------------------------------------------

    def _save(self, row: dict[str, float] | None) -> None:
        """Write `last`, and `best` when this is it; `row` is the evaluation's, if there was one."""
        improved = row is not None and self.validation_nats < self.best_nats
        self.best_nats = min(self.best_nats, self.validation_nats)
        if self.out is None:
            return
        with replacing(self.out / "last") as folder:
            self._save_model(folder)
            write_tensors(folder / "training.safetensors", self._tensors())
            write_json(folder / "training.json", self._scalars())
        if improved:
            with replacing(self.out / "best") as folder:
                self._save_model(folder)
        if row is not None:
            with (self.out / "log.csv").open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)

    def _save_model(self, folder: Path) -> None:
        save_model(
            folder,
            self.config.model,
            self.model_config,
            self.model.state_dict(),
            self.tokenizer,
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
        }

    def _fingerprint(self) -> str:
        ids = torch.cat([self.train_ids, self.validation_ids, torch.tensor([len(self.train_ids)])])
        return hashlib.sha256(ids.numpy().tobytes()).hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        """The optimizer's moments, the carried state, the losses since the log, the generators."""
        tensors = {
            f"optimizer.{i}.{key}": value
            for i, parameter in enumerate(self.optimizer.state_dict()["state"].values())
            for key, value in parameter.items()
        }
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        tensors |= {f"state.{i}": part for i, part in enumerate(parts) if part is not None}
        tensors |= {f"loss.{i}": loss for i, loss in enumerate(self.losses)}
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
        scalars = read_json(folder / "training.json")
        saved, now = scalars["config"], asdict(self.config)
        settings = (saved.keys() | now.keys()) - {"steps", "minutes", "device"}
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
        self._load(read_tensors(folder / "model.safetensors"), folder)
        self._trim_log()

    def _load(self, weights: dict[str, Tensor], folder: Path) -> None:
        tensors = read_tensors(folder / "training.safetensors")
        load_weights(self.model, weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".")
                moments.setdefault(int(i), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        parts = [tensors[k].to(self.device) for k in _numbered(tensors, "state")]
        self.state = None if not parts else parts[0] if len(parts) == 1 else tuple(parts)
        self.losses = [tensors[k].to(self.device) for k in _numbered(tensors, "loss")]
        torch.set_rng_state(tensors["generator.cpu"])
        if self.device.type != "cpu" and "generator.device" in tensors:
            _accelerator(self.device).set_rng_state(tensors["generator.device"])

    def _trim_log(self) -> None:
        """Drop rows later than the checkpoint: they will be written again."""
        assert self.out is not None
        path = self.out / "log.csv"
        if not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row["step"]) <= self.step]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, reader.fieldnames or [])
            writer.writeheader()
            writer.writerows(rows)


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
