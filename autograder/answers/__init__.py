"""Independent right answers, which every check must accept. No student is given this package.

Each module holds `ANSWERS`, from a graded name to its answers. The first answer of each is the
one that the kill table plants generic mistakes in, so choose one that the made-up device can follow
(no shapes that depend on data).
"""
