"""Cases that only the grader runs. No student is ever given this package."""
