"""The rooms and the arrows between them, and the files that must agree with each other."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import grimp
import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rattler import MatchSpec

# room -> what it may import of the project. `autograder` may use `rnn2gpt` in checks, as a peer
# to compare with; right answers build on earlier chapters' modules, as students' may.
ARROWS = {
    "rnn2gpt": set(),
    "autograder.child": set(),
    "autograder.engine": {"autograder.child"},
    "autograder.checks": {"autograder.child", "autograder.engine", "rnn2gpt"},
    "autograder.hidden": {"autograder.child", "autograder.engine", "autograder.checks", "rnn2gpt"},
    "autograder.answers": {"rnn2gpt"},
    "autograder.grader": {"autograder.child", "autograder.engine", "autograder.checks"},
    "course": {
        "rnn2gpt",
        "autograder.child",
        "autograder.engine",
        "autograder.checks",
        "autograder.grader",
    },
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("rnn2gpt", "autograder", "course", cache_dir=None)


def room_of(module: str) -> str:
    """The longest room name that a module stands in."""
    inside = [room for room in ARROWS if module == room or module.startswith(room + ".")]
    return max(inside, key=len, default=module)


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_point_one_way(graph, room):
    modules = [m for m in graph.modules if room_of(m) == room]
    assert modules, f"{room} is empty"
    strays = [
        f"{module} imports {target}"
        for module in modules
        for target in graph.find_modules_directly_imported_by(module)
        if room_of(target) != room and room_of(target) not in ARROWS[room]
        if target != "autograder"
    ]
    assert not strays


def imports_in(source: str) -> set[str]:
    """Modules that a piece of code imports, IPython's own lines left out."""
    plain = "\n".join("" if re.match(r"\s*[%!]", line) else line for line in source.splitlines())
    names = set()
    for node in ast.walk(ast.parse(plain)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def project_imports(path: Path) -> set[str]:
    found = set()
    for cell in jupytext.read(path).cells:
        if cell.cell_type == "code":
            found |= imports_in(cell.source)
    return {name for name in found if name.split(".")[0] in ("rnn2gpt", "autograder", "course")}


def test_pages_import_the_model_alone(root):
    for page in sorted((root / "book").glob("[0-9][0-9]_*.md")):
        strays = {n for n in project_imports(page) if not n.startswith("rnn2gpt")}
        assert not strays, f"{page.name} imports {strays}"


def test_solutions_import_the_model_and_the_checks(root):
    allowed = ("rnn2gpt", "autograder.checks", "autograder.engine.notebook")
    for source in sorted((root / "solutions").glob("*.py")):
        strays = {name for name in project_imports(source) if not name.startswith(allowed)}
        assert not strays, f"{source.name} imports {strays}"


def test_only_the_top_floor_opens_solutions(root):
    for room in ("rnn2gpt", "autograder"):
        for path in (root / room).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
            named = [s for s in strings if isinstance(s, str) and re.match(r"solutions(/|$)", s)]
            assert not named, f"{path} names {named}"


# --- requirements -------------------------------------------------------------------------------

# conda-forge's name for a package of the index, where the two differ
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "brotli": "brotli-python"}


def project_requirements(root: Path) -> list[Requirement]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        texts += extra
    return [Requirement(text) for text in texts]


def test_environment_yml_asks_for_the_same_as_pyproject(root):
    environment = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))
    entries = environment["dependencies"]
    specs = {str(MatchSpec(e).name.normalized): MatchSpec(e) for e in entries if isinstance(e, str)}
    by_pip = next((e["pip"] for e in entries if isinstance(e, dict)), [])
    pip = {Requirement(text).name: Requirement(text) for text in by_pip if text[0] != "-"}
    for wanted in project_requirements(root):
        name = CONDA_NAMES.get(wanted.name, wanted.name)
        if wanted.name in pip:
            assert pip[wanted.name].specifier == wanted.specifier, wanted
            continue
        assert name in specs, f"environment.yml lacks {wanted}"
        version = str(specs[name].version or "").replace(" ", "")
        assert set(version.split(",")) == set(str(wanted.specifier).split(",")), wanted


def test_constraints_pin_every_requirement_within_its_range(root):
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.split("==") for line in lines if line and not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in entries}
    for wanted in project_requirements(root):
        assert wanted.name in pins, f"constraints.txt lacks {wanted.name}"
        assert wanted.specifier.contains(pins[wanted.name]), wanted


def test_python_versions_agree(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "python >=3.11,<3.14" in environment["dependencies"]
    assert "VERSIONS = ((3, 11), (3, 13))" in (root / "run.py").read_text(encoding="utf-8")


def test_versions_agree(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    import rnn2gpt

    assert project["version"] == citation["version"] == rnn2gpt.__version__


def test_the_package_lists_its_modules(root):
    import rnn2gpt

    listed = re.findall(r"^\| `(\w+)`", rnn2gpt.__doc__, re.M)
    there = [path.stem for path in (root / "rnn2gpt").glob("*.py") if path.stem != "__init__"]
    assert sorted(listed) == sorted(there)


def test_nothing_names_a_machine(root):
    """No absolute path of somebody's machine in what is committed."""
    suspicious = re.compile(r"(?<![\w.:/])/(?:home|root|work|Users)/\w")
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = root / name
        if path.suffix in (".py", ".md", ".yml", ".toml", ".json", ".ipynb", ".css", ".js"):
            text = path.read_text(encoding="utf-8")
            found = suspicious.search(text)
            assert not found or "test_architecture" in name, f"{name}: {found}"
