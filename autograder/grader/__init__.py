"""The grader: ingest, repair, run, record, feedback, export, one module and one step each.

`grade` goes through all of them. `run` with its `Work` is the pure unit that `batch` hands to
worker processes; `sandbox` and `channel` are what it runs a student's code with.
"""
