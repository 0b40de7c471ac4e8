"""Declaring exercises: assignments, graded objects, cases and named misconceptions.

    LANGUAGE_MODELS = Assignment("01-language-models", page="01_language_models", ...)
    bigram_counts = LANGUAGE_MODELS.exercise("bigram_counts", points=2)

    @bigram_counts.case("counts each adjacent pair")
    def _(student, rng):
        ids = rng.integers(0, 5, 40)
        expect(student(ids, 5)).equals(pairs_by_hand(ids))

    @bigram_counts.misconception(
        did="Your table is transposed: entry [i, j] counts how often i follows j.",
        causes="The model then predicts the character before, not the one after.",
        see="counting-pairs",
    )
    def transposed(ids, vocab_size): ...

A case is a function of a handle and a source of random inputs. It returns when the object is
right and raises `Mismatch` (through `expect`) when it is not.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from autograder.engine.handle import Handle


class Rng:
    """Random inputs for one case, the same for the same seed on every machine."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(shape, generator=self._generator, dtype=torch.float64).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """int64 numbers in [low, high)."""
        return torch.randint(low, high, shape, generator=self._generator)

    def integer(self, low: int, high: int) -> int:
        """One Python int in [low, high)."""
        return int(self.integers(low, high))

    def permutation(self, n: int) -> torch.Tensor:
        """The numbers 0 to n − 1 in random order."""
        return torch.randperm(n, generator=self._generator)

    def like(self, shapes: dict[str, tuple[int, ...]], scale: float = 0.5) -> dict[str, Any]:
        """Random weights for the named shapes, as `Handle.load` takes them."""
        return {name: scale * self.normal(*shape) for name, shape in shapes.items()}

    def strided(self, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Standard normal numbers that do not lie contiguously in memory (two dimensions up)."""
        flipped = self.normal(*shape[:-2], shape[-1], shape[-2], dtype=dtype)
        return flipped.transpose(-1, -2)  # (..., n, m) in memory, read as (..., m, n)


Case = Callable[[Handle, Rng], None]


@dataclass(frozen=True)
class CaseSpec:
    """One case. A guard is a property that wrong answers may share: it earns only beside right
    values, so a function that returns zeros is not paid for leaving its inputs alone."""

    title: str
    run: Case
    visible: bool
    guard: bool
    weight: float
    hint: str  # what a student may be told when a hidden case fails


@dataclass(frozen=True)
class Misconception:
    """A wrong implementation with a name: what the student did, what it causes, where to read."""

    name: str
    did: str
    causes: str
    page: str
    anchor: str
    section: str
    implementation: Any

    @property
    def message(self) -> str:
        """The sentence that the page, the notebook and the grader all show."""
        return f"{self.did} {self.causes} See “{self.section}”."


@dataclass(frozen=True)
class HandedIn:
    """A file that comes with a notebook, or the reason why it could not be read."""

    data: bytes | None = None
    problem: str = ""


@dataclass
class Exercise:
    """One graded object: a function or a class that the student writes.

    With `on_files` it is no object but files beside the notebook, which that function judges, in
    the check's own process. It may believe nothing that is in them.
    """

    name: str
    points: float
    assignment: Assignment
    forbidden: tuple[str, ...] = ()  # PyTorch functions and classes one must not lean on here
    needs: tuple[str, ...] = ()  # other names of the student's that this object uses
    hints: tuple[str, ...] = ()  # a question, a direction, a shape or formula
    seconds: float = 10.0  # for one request, in the grader
    on_files: Callable[[Exercise, Mapping[str, HandedIn]], Any] | None = None
    cases: list[CaseSpec] = field(default_factory=list)
    misconceptions: list[Misconception] = field(default_factory=list)
    replays: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # judge's

    def case(
        self, title: str, *, guard: bool = False, weight: float = 1.0
    ) -> Callable[[Case], Case]:
        """Declare a case that the notebook shows and the grader runs."""
        return self._case(title, visible=True, guard=guard, weight=weight, hint="")

    def hidden(
        self, title: str, *, hint: str, guard: bool = False, weight: float = 1.0
    ) -> Callable[[Case], Case]:
        """Declare a case that only the grader runs; a failing student reads `hint` alone."""
        return self._case(title, visible=False, guard=guard, weight=weight, hint=hint)

    def redraw(self) -> None:
        """Repeat every visible case on inputs drawn from the instructor's secret seed.

        Guards are left out: what they watch does not depend on the numbers.
        """
        for spec in [spec for spec in self.cases if spec.visible and not spec.guard]:
            hint = f"“{spec.title}”, tried on other inputs, fails."
            again = self._case(f"{spec.title} (other inputs)", False, False, spec.weight, hint)
            again(spec.run)

    def _case(
        self, title: str, visible: bool, guard: bool, weight: float, hint: str
    ) -> Callable[[Case], Case]:
        if any(spec.title == title for spec in self.cases):
            raise ValueError(f"{self.name} already has a case “{title}”")

        def register(run: Case) -> Case:
            self.cases.append(CaseSpec(title, run, visible, guard, weight, hint))
            return run

        return register

    def misconception(
        self, *, did: str, causes: str, see: str, name: str = ""
    ) -> Callable[[Any], Any]:
        """Declare a wrong implementation; `see` is a section's anchor on the chapter's page."""
        if see not in self.assignment.sections:
            raise ValueError(f"{self.name}: {self.assignment.page} declares no section {see!r}")

        def register(implementation: Any) -> Any:
            title = name or implementation.__name__
            page, section = self.assignment.page, self.assignment.sections[see]
            self.misconceptions.append(
                Misconception(title, did, causes, page, see, section, implementation)
            )
            return implementation

        return register

    def check(self, student: Any, **helpers: Any) -> Any:
        """Check `student` in this process and show the verdict: what a notebook's cell calls."""
        from autograder.engine.notebook import check

        return check(self, student, helpers)


@dataclass
class Assignment:
    """One chapter's exercises."""

    name: str  # 05-self-attention
    notebook: str  # self_attention
    page: str  # 05_self_attention
    sections: dict[str, str]  # anchors on the page that messages point at, and their headings
    minutes: int = 60  # what the notebook takes a student, by its author's estimate
    modules: tuple[str, ...] = ()  # of rnn2gpt, what a submission may import while it is graded
    files: Mapping[str, int] = field(default_factory=dict)  # beside the notebook: name, most bytes
    exercises: list[Exercise] = field(default_factory=list)

    def exercise(self, name: str, *, points: float, **more: Any) -> Exercise:
        """Declare a graded object."""
        made = Exercise(name=name, points=points, assignment=self, **more)
        self.exercises.append(made)
        return made


def files_beside(folder: Path, assignment: Assignment) -> dict[str, HandedIn]:
    """The assignment's files that lie in a folder, none read further than it may be long."""
    found = dict[str, HandedIn]()
    for name, most in assignment.files.items():
        path = folder / name
        if not path.is_file():
            continue
        if path.stat().st_size > most:
            found[name] = HandedIn(problem=too_large(name, most))
        else:
            found[name] = HandedIn(path.read_bytes())
    return found


def too_large(name: str, most: int) -> str:
    """Why a file was not read."""
    return f"{name} is larger than the {most:,} bytes it may have, so it was not read."


def seed_for(exercise: Exercise, case: CaseSpec, secret: bytes) -> int:
    """Visible cases draw the same inputs everywhere; hidden ones depend on the secret."""
    name = f"{exercise.assignment.name}/{exercise.name}/{case.title}".encode()
    digest = hashlib.sha256(name) if case.visible else hmac.new(secret, name, hashlib.sha256)
    return int.from_bytes(digest.digest()[:7], "big")
