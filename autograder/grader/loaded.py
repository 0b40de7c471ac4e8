"""What is the same for every worker process: importing this loads it, for all that are forked."""

from __future__ import annotations

import gc

import torch

from autograder.checks import CHAPTERS, load
from autograder.grader.run import run

__all__ = ["run"]

torch.set_num_threads(1)
for chapter in CHAPTERS:
    load(chapter)
gc.collect()
gc.freeze()  # PyTorch's hundred thousands of objects stay; no collection looks at them again
