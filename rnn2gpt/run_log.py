"""What a run writes about itself: `log.csv`, its curves in `log.svg`, TensorBoard's files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any


class RunLog:
    """One row for each evaluation, in a run's folder.

    Raises `ValueError` when `tensorboard` is asked for and the package is not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self.folder, self.path = folder, folder / "log.csv"
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError(
                    "TensorBoard is not installed here: `pip install tensorboard`, or leave "
                    "--tensorboard out. log.csv and log.svg hold the same numbers."
                ) from None
            self.board = SummaryWriter(folder / "tensorboard")

    def rows(self) -> list[dict[str, str]]:
        """What was written so far."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def add(self, row: dict[str, float | None]) -> None:
        """Append an evaluation; "step" is among its names."""
        rows = self.rows()
        if rows and rows[0].keys() != row.keys():  # begun by a version with other columns
            self._write(rows, list(row))
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        if self.board is not None:
            for name, value in row.items():
                if value is not None:
                    self.board.add_scalar(name, value, row["step"])
            self.board.flush()

    def trim(self, step: int) -> None:
        """Drop the rows after `step`: they will be written again."""
        if rows := self.rows():
            self._write([row for row in rows if int(row["step"]) <= step], list(rows[0]))

    def _write(self, rows: list[dict[str, str]], names: list[str]) -> None:
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def draw(self) -> None:
        """Write `log.svg`: both losses against the tokens read."""
        rows = self.rows()
        if not rows:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        tokens = [int(row["tokens"]) for row in rows]
        for name in ("train", "validation"):
            axes.plot(tokens, [float(row[f"{name}_nats"]) for row in rows], label=name, marker=".")
        axes.set(xlabel="tokens read", ylabel="loss (nats per token)")
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(self.folder / "log.svg", metadata={"Date": None})
