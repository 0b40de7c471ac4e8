"""Independent right answers, which every check must accept. No student is given this package."""
