"""The checks of the exercises and the grader that runs them.

- `child`   the half that runs beside a student's code: protocol, worker, fake device
- `engine`  the other half: handles, declarations of exercises, expectations, verdicts
- `checks`  visible cases and named misconceptions, one module per chapter
- `hidden`  cases that only the grader runs
- `answers` independent right answers, which every check must accept
- `grader`  ingest, repair, run, record, feedback, export
"""
