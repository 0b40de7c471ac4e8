"""Points in the form that GitHub Classroom's graders hand to its reporter.

The reporter, https://github.com/classroom-resources/autograding-grading-reporter, reads the output
`result` of an earlier step: JSON in base64 with a status, the points that can be had, and a list of
tests with the points they earned.
"""

from __future__ import annotations

import base64
import json
from typing import Any


def as_step_output(result: dict[str, Any]) -> str:
    """A line for the file that `$GITHUB_OUTPUT` names, from what `check_notebook` gives."""
    tests = [
        {
            "name": exercise["name"],
            "status": "pass" if exercise["status"] == "right" else "fail",
            "score": exercise["points"],
            "message": exercise["message"],
        }
        for exercise in result["exercises"]
    ]
    status = "pass" if all(test["status"] == "pass" for test in tests) else "fail"
    facts = {"version": 1, "status": status, "max_score": result["max_score"], "tests": tests}
    return f"result={base64.b64encode(json.dumps(facts).encode()).decode()}\n"
