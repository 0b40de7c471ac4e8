"""When a page runs again: when its code, the model package or the data it may read changed.

jupyter-cache compares code alone, and Sphinx reads a page again only when its source changed. So
every page gets a cache folder of its own, named by a key over all that its code can import or
read, and Sphinx is told to read again the pages that were read under another key.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from course.fingerprint import hash_files

INPUTS = {
    "rnn2gpt": ("*.py", "*-requirements.txt"),
    "book": ("*.py", "_static/course.mplstyle", "_data/**/*"),
    ".": ("constraints.txt",),
}
KEPT = 4  # keys whose runs are kept: going back to an earlier state then costs nothing
# Shown by directives, read by no page's code.
UNREAD = {"kill_table.json", "threats.json", "grading_benchmark.json", "proof.json"}


def execution_key(root: Path) -> str:
    """The key under which executed pages are stored: a hash of everything page code may use."""
    files = (
        path
        for folder, patterns in INPUTS.items()
        for pattern in patterns
        for path in (
            (root / folder).rglob(pattern) if folder == "rnn2gpt" else (root / folder).glob(pattern)
        )
        if path.is_file() and path.name not in UNREAD
    )
    return hash_files(root, files)[:16]


def _set_key(app: Sphinx) -> None:
    app.env.execution_key = execution_key(Path(app.srcdir).parent)  # type: ignore[attr-defined]


def _outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    read_with: dict[str, str] = getattr(env, "execution_keys", {})
    return [doc for doc, key in read_with.items() if key != env.execution_key]  # type: ignore[attr-defined]


def _choose_cache(app: Sphinx, docname: str, source: list[str]) -> None:
    if "{code-cell}" not in source[0]:
        return
    env = app.env
    key: str = env.execution_key  # type: ignore[attr-defined]
    folder = Path(app.outdir).parent / ".jupyter_cache" / key / docname.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    folder.parent.touch()  # in use: `_forget_old_runs` drops what was used longest ago
    env.mystnb_config = env.mystnb_config.copy(execution_cache_path=str(folder))  # type: ignore[attr-defined]
    keys: dict[str, str] = getattr(env, "execution_keys", {})
    keys[docname] = key
    env.execution_keys = keys  # type: ignore[attr-defined]


def _purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    getattr(env, "execution_keys", {}).pop(docname, None)


def _forget_old_runs(app: Sphinx, error: Exception | None) -> None:
    folders = [p for p in (Path(app.outdir).parent / ".jupyter_cache").glob("*") if p.is_dir()]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", _set_key)
    app.connect("env-get-outdated", _outdated)
    app.connect("source-read", _choose_cache)
    app.connect("env-purge-doc", _purge)
    app.connect("build-finished", _forget_old_runs)
