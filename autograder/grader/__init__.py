"""The grader: ingest, repair, run, record, feedback, export, one module and one step each."""
