"""What `rnn2gpt assemble` makes of the course's own solutions with one mistake put in.

    python benchmarks/capstone.py        # about ten seconds

Writes book/_data/capstone.json: whose the parts of each chapter are, why not, what parity found.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from pathlib import Path

import torch

from autograder.checks import CHAPTERS, load
from course.assemble import assemble
from course.release import exercise_of
from course.sample_class import Member, notebook_of

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "book" / "_data" / "capstone.json"
MISTAKE = ("correction=0", "correction=1")  # in chapter 07's norm: divides by D − 1


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for chapter in CHAPTERS:
            task = load(chapter)
            text = json.dumps(notebook_of(ROOT, task, Member("student", chapter)))
            path = Path(folder) / f"{chapter}.ipynb"
            path.write_text(text.replace(*MISTAKE), encoding="utf-8")
        start = time.process_time()
        release = lambda task: exercise_of(ROOT, task).read_bytes()  # noqa: E731
        made = assemble([Path(folder)], Path(folder) / "my_gpt", release)
        seconds = time.process_time() - start
    names = dict.fromkeys(part.chapter for part in made.parts)
    by_chapter = {name: [p for p in made.parts if p.chapter == name] for name in names}
    stored = {
        "command": "python benchmarks/capstone.py",
        "mistake": MISTAKE,
        "seconds": round(seconds, 1),
        "parts": len(made.parts),
        "chapters": [
            {"name": name, "yours": sum(p.by == "you" for p in parts), "of": len(parts)}
            for name, parts in by_chapter.items()
        ],
        "not_yours": [
            {"chapter": p.chapter, "name": p.name, "by": p.by, "reason": p.reason}
            for p in made.parts
            if p.by != "you"
        ],
        "notes": made.notes,
        "parity": made.parity,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    OUT.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{OUT}: {stored['parts']} parts, {len(stored['not_yours'])} not the student's")


if __name__ == "__main__":
    main()
