"""`rnn2gpt`, the one console command. Each verb is a thin call into the room that does the work.

The verbs stand by room: `models` (train, generate, ...), `finetuning` (finetune, classify, ...),
`capstone` (assemble), `grading` (grade, check, ...) and `book` (build, release, ...). Imports stand
inside the verbs, so that `rnn2gpt --help` answers at once and a student's bundle, which lacks the
instructor's rooms, still offers the verbs it can serve.
"""

from course.cli import book, capstone, finetuning, grading, models
from course.cli.group import main

__all__ = ["book", "capstone", "finetuning", "grading", "main", "models"]
