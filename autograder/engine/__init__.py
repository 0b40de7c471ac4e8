"""The half of the check engine that decides: handles, declarations, expectations, verdicts."""
