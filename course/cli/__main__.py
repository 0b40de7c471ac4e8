"""`python -m course.cli`, for `torchrun` and for `run.py`."""

from course.cli import main

main()
