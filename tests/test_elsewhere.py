"""What other systems run: Gradescope, GitHub Classroom, and the exchange of nbgrader."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import submissions as s
import yaml
from click.testing import CliRunner

from autograder.checks import CHAPTERS, load
from autograder.grader.classroom import as_step_output
from autograder.grader.grade import Plan, grade
from autograder.grader.gradescope import SETTINGS, as_results, grade_one
from course import sample_class
from course.cli import main
from course.elsewhere import assignment_called, write_gradescope, write_workflow

TASK = s.assignment()
NAMES = [exercise.name for exercise in TASK.exercises]
FIRST, HERE = NAMES[0], TASK.name
FULL = sum(exercise.points for exercise in TASK.exercises)

# --- Gradescope ------------------------------

# "Autograder specifications", section "Output format" and the sections on visibility, status and
# formatting after it: https://gradescope-autograders.readthedocs.io/en/latest/specs/
# Of the optional keys those that are documented there; none else may stand in the file.
VISIBILITY = {"enum": ["hidden", "after_due_date", "after_published", "visible"]}
FORMAT = {"enum": ["text", "html", "simple_format", "md", "ansi"]}
TEST = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "score": {"type": "number"},
        "max_score": {"type": "number"},
        "status": {"enum": ["passed", "failed"]},
        "name": {"type": "string"},
        "name_format": FORMAT,
        "number": {"type": "string"},
        "output": {"type": "string"},
        "output_format": FORMAT,
        "tags": {"type": "array", "items": {"type": "string"}},
        "visibility": VISIBILITY,
        "extra_data": {"type": "object"},
    },
    "dependentRequired": {"max_score": ["score"]},
}
RESULTS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "score": {"type": "number"},
        "execution_time": {"type": "number"},
        "output": {"type": "string"},
        "output_format": FORMAT,
        "test_output_format": FORMAT,
        "test_name_format": FORMAT,
        "visibility": VISIBILITY,
        "stdout_visibility": VISIBILITY,
        "extra_data": {"type": "object"},
        "tests": {"type": "array", "items": TEST},
        "leaderboard": {"type": "array"},
    },
    # a score at the top, or one at each test
    "anyOf": [
        {"required": ["score"]},
        {"required": ["tests"], "properties": {"tests": {"items": {"required": ["score"]}}}},
    ],
}


def test_the_schema_refuses_what_gradescope_would():
    jsonschema.Draft202012Validator.check_schema(RESULTS)
    for wrong in (
        {},
        {"tests": [{"name": "no score"}]},
        {"score": "4"},
        {"score": 4, "visibility": "secret"},
        {"score": 4, "tests": [{"status": "right"}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, RESULTS)


@pytest.fixture(scope="module")
def autograder(root, tmp_path_factory) -> Path:
    """The zip, unpacked as Gradescope does it; the virtual environment is the one of the tests."""
    place = tmp_path_factory.mktemp("gradescope")
    packed = write_gradescope(root, TASK, s.SECRET, "https://example.org/book", place / "a.zip")
    shutil.unpack_archive(packed, place / "source")
    with zipfile.ZipFile(packed) as archive:
        for name in ("setup.sh", "run_autograder"):
            assert archive.getinfo(name).external_attr >> 16 == 0o755
    shutil.copy(place / "source" / "run_autograder", place)
    (place / "run_autograder").chmod(0o755)
    (place / "venv").symlink_to(sys.prefix)
    return place


def test_the_zip_holds_what_this_assignment_needs_and_no_more(root, autograder, tmp_path):
    source = autograder / "source"
    names = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {"setup.sh", "run_autograder", "constraints.txt", SETTINGS} <= names
    assert f"autograder/hidden/{s.NOTEBOOK}.py" in names
    others = {f"autograder/hidden/{notebook}.py" for notebook in CHAPTERS} - {
        f"autograder/hidden/{s.NOTEBOOK}.py"
    }
    assert not names & others
    assert not any(name.startswith(("autograder/answers", "solutions", "course")) for name in names)
    settings = (source / SETTINGS).read_text()
    assert s.SECRET.hex() not in settings and s.SECRET.decode() not in settings
    again = write_gradescope(root, TASK, s.SECRET, "https://example.org/book", tmp_path / "b.zip")
    assert again.read_bytes() == (autograder / "a.zip").read_bytes()
    for script in ("setup.sh", "run_autograder"):
        subprocess.run(["bash", "-n", str(source / script)], check=True)
    wanted = (source / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch") for line in wanted)
    assert any(line.startswith("jinja2") for line in wanted)


def ran(autograder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    """`results.json` after `run_autograder` met these files, in an environment that is bare."""
    for folder in ("submission", "results"):
        shutil.rmtree(autograder / folder, ignore_errors=True)
        (autograder / folder).mkdir()
    for name, data in files.items():
        path = autograder / "submission" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    tools = autograder / "bin"  # as in a container that may not make namespaces: no bubblewrap
    if not tools.exists():
        tools.mkdir()
        (tools / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    environment = {"PATH": str(tools), "AUTOGRADER_ROOT": str(autograder)}
    done = subprocess.run(
        [str(autograder / "run_autograder")],
        cwd=autograder, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((autograder / "results" / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(results, RESULTS)
    assert [test["name"] for test in results["tests"]] == NAMES
    assert sum(test["max_score"] for test in results["tests"]) == FULL
    assert results["stdout_visibility"] == "hidden"
    assert results["extra_data"]["isolation"] == "process"
    return results


def score(results: dict[str, Any]) -> float:
    return sum(test["score"] for test in results["tests"])


@pytest.mark.slow
@pytest.mark.xdist_group("gradescope")
def test_gradescope_gets_results_for_whatever_was_handed_in(autograder):
    solved = ran(autograder, {"homework/final (2).ipynb": s.as_bytes(s.solved())})
    assert score(solved) == FULL and {test["status"] for test in solved["tests"]} == {"passed"}
    nothing = ran(autograder, {f"{s.NOTEBOOK}.ipynb": s.as_bytes(s.unsolved())})
    assert score(nothing) == 0 and "A hint: " in nothing["tests"][0]["output"]
    broken = ran(autograder, {f"{s.NOTEBOOK}.ipynb": s.as_bytes(s.solved())[:3000]})
    assert score(broken) == 0 and "cut off" in broken["output"]


@pytest.mark.slow
@pytest.mark.xdist_group("gradescope")
def test_the_packed_sources_grade_not_those_of_this_checkout(autograder):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(autograder / "source")}
    said = subprocess.run(
        [autograder / "venv" / "bin" / "python", "-c", "import autograder as a; print(a.__file__)"],
        cwd=autograder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(said.stdout.strip()).is_relative_to(autograder / "source")


def test_an_upload_without_a_notebook_is_told_so(tmp_path):
    (tmp_path / "readme.txt").write_text("see my other upload")
    row = grade_one(tmp_path, TASK, s.release(), s.SECRET)
    results = as_results(row, TASK)
    jsonschema.validate(results, RESULTS)
    assert score(results) == 0 and "no notebook" in results["output"]


def test_of_hidden_cases_gradescope_shows_what_the_feedback_page_shows():
    """The hint of their author, how many pass, and neither name nor numbers."""
    row = s.result_of(s.solved(**{FIRST: f"def {FIRST}(*a): return 1"}))
    row |= {"student": "x", "assignment": HERE, "notebook": s.NOTEBOOK}
    results = as_results(row, TASK, "https://example.org/book")
    jsonschema.validate(results, RESULTS)
    output = results["tests"][0]["output"]
    visible = {case["name"] for case in row["exercises"][0]["cases"] if case["visible"]}
    hidden = [case for case in row["exercises"][0]["cases"] if not case["visible"]]
    assert hidden and "further cases pass" in output
    for case in hidden:
        plain = case["name"].removesuffix(" (other inputs)")
        assert plain in visible or case["name"] not in output
    wrong = s.result_of(s.solved(**{FIRST: sample_class.mistaken(TASK, FIRST, "transposed")}))
    wrong |= {"student": "x", "assignment": HERE, "notebook": s.NOTEBOOK}
    mistake = next(m for m in TASK.exercises[0].misconceptions if m.name == "transposed")
    told = as_results(wrong, TASK, "https://example.org/book")["tests"][0]["output"]
    assert told.startswith(f"{mistake.did} {mistake.causes}")
    assert f"https://example.org/book/{TASK.page}.html#" in told


def test_the_commands_write_where_they_are_told(root, tmp_path):
    seed, target = tmp_path / "seed", tmp_path / "out" / "made.zip"
    arguments = ["gradescope", HERE, "--out", str(target), "--seed-file", str(seed)]
    said = CliRunner().invoke(main, arguments)
    assert said.exit_code == 0 and said.output.strip() == str(target) and zipfile.is_zipfile(target)
    said = CliRunner().invoke(main, ["classroom", HERE, "--out", str(tmp_path)])
    assert said.exit_code == 0 and Path(said.output.strip()).is_file()
    for verb in ("gradescope", "classroom"):
        said = CliRunner().invoke(main, [verb, "99-none", "--out", str(tmp_path / "no")])
        assert said.exit_code == 1 and HERE in said.output and not (tmp_path / "no").exists()


# --- GitHub Classroom ------------------------------


def workflow(folder: Path, chapter: str = s.NOTEBOOK) -> dict[str, Any]:
    path = write_workflow(s.ROOT, load(chapter), folder)
    assert path == folder / ".github" / "workflows" / "classroom.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_workflow_checks_the_visible_cases_and_reports(chapter, tmp_path):
    jobs = workflow(tmp_path, chapter)["jobs"]
    assert list(jobs) == ["run-autograding-tests"]  # the name that the reporter looks for
    steps = jobs["run-autograding-tests"]["steps"]
    commands = "\n".join(step["run"] for step in steps if "run" in step)
    assert commands.count("--constraint constraints.txt") == 2
    assert "rnn2gpt grade" not in commands and "hidden" not in commands
    check = next(step for step in steps if step.get("id") == "check")
    notebook = check["run"].split()[2]
    assert (s.ROOT / notebook).is_file()
    report = steps[-1]
    assert report["uses"] == "classroom-resources/autograding-grading-reporter@v1"
    assert report["env"] == {"CHECK_RESULTS": "${{ steps.check.outputs.result }}"}
    assert report["with"] == {"runners": check["id"]}


@pytest.mark.slow
def test_the_workflows_command_runs_and_hands_on_the_points(tmp_path):
    (check,) = (
        step
        for step in workflow(tmp_path)["jobs"]["run-autograding-tests"]["steps"]
        if step.get("id") == "check"
    )
    notebook = tmp_path / check["run"].split()[2]
    notebook.parent.mkdir(parents=True)
    wrong = sample_class.mistaken(TASK, FIRST, "transposed")
    notebook.write_bytes(s.as_bytes(s.solved(**{FIRST: wrong})))
    output = tmp_path / "output"
    output.write_text("earlier=1\n")
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", check["run"]], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PATH": tools, "GITHUB_OUTPUT": str(output)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = output.read_text().splitlines()
    name, _, packed = second.partition("=")
    told = json.loads(base64.b64decode(packed))
    cost = next(e.points for e in TASK.exercises if e.name == FIRST)
    assert (first, name, told["status"]) == ("earlier=1", "result", "fail")
    assert told["max_score"] == FULL
    assert FULL - cost <= sum(test["score"] for test in told["tests"]) < FULL
    assert [test["name"] for test in told["tests"] if test["status"] == "fail"] == [FIRST]


def test_a_notebook_all_right_passes():
    exercise = {"name": "f", "status": "right", "points": 2.0, "message": "é"}
    line = as_step_output({"max_score": 2.0, "exercises": [exercise]})
    told = json.loads(base64.b64decode(line.partition("=")[2]))
    assert line.count("\n") == 1 and told["status"] == "pass" and told["tests"][0]["score"] == 2


# --- nbgrader's exchange, as JupyterHub uses it ------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="nbgrader's exchange is for POSIX systems")
def test_what_the_exchange_collects_is_graded(root, tmp_path):
    """release_assignment, fetch_assignment, submit and collect, as stock commands."""
    course, home, exchange = (tmp_path / name for name in ("course", "home", "exchange"))
    for folder in (course, home, exchange):
        folder.mkdir()
    exchange.chmod(0o777)
    shutil.copy(root / "nbgrader_config.py", course)
    shutil.copytree(root / "exercises" / HERE, course / "exercises" / HERE)
    commands = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([commands, os.environ["PATH"]]),
        "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / ".jupyter"), "USER": "ada",
        "NB_USER": "ada", "JUPYTERHUB_USER": "ada",
    }  # fmt: skip

    def nbgrader(folder: Path, *arguments: str) -> str:
        options = ("--course", "rnn2gpt", f"--Exchange.root={exchange}")
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *arguments, *options],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    nbgrader(course, "release_assignment", HERE)
    nbgrader(home, "fetch_assignment", HERE)
    notebook = home / HERE / f"{s.NOTEBOOK}.ipynb"
    assert notebook.read_bytes() == s.release()
    notebook.write_bytes(s.as_bytes(s.solved()))
    nbgrader(home, "submit", HERE)
    nbgrader(course, "collect", HERE)
    (collected,) = (course / "submitted").glob(f"*/{HERE}/{s.NOTEBOOK}.ipynb")
    assert collected.read_bytes() == notebook.read_bytes()
    stamp = (collected.parent / "timestamp.txt").read_text()
    plan = Plan(root / "exercises", course, s.SECRET, trust=True, jobs=1)
    (row,) = grade(course / "submitted", plan)
    assert (row["student"], row["score"]) == (collected.parent.parent.name, FULL)
    assert row["submitted"][:16] == stamp.strip()[:16].replace(" ", "T")
    assert (course / "autograded" / row["student"] / HERE / f"{s.NOTEBOOK}.ipynb").is_file()
    page = course / "feedback" / row["student"] / HERE / f"{s.NOTEBOOK}.html"
    for name in ("timestamp.txt", "submission_secret.txt"):  # what the exchange knows it by
        shutil.copy(collected.parent / name, page.parent)
    nbgrader(course, "release_feedback", HERE)
    nbgrader(home, "fetch_feedback", HERE)
    (fetched,) = (home / HERE / "feedback").rglob(f"{s.NOTEBOOK}.html")
    assert fetched.read_bytes() == page.read_bytes()


def test_the_assignment_of_a_name():
    assert assignment_called(HERE).notebook == s.NOTEBOOK
