"""Answers that are built alike: the same code under other names.

Each answer's syntax tree is written as a sequence of node kinds, operators and constants, names
left out, and cut into overlapping pieces, of which a winnowed selection is its fingerprint
(S. Schleimer, D. S. Wilkerson and A. Aiken, "Winnowing: local algorithms for document
fingerprinting", SIGMOD 2003, section 3). Pieces that many students share say nothing, since an
exercise leads to them; two students are named where most of what is left is the same.
"""

from __future__ import annotations

import ast
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

PIECE = 12  # nodes in one piece
WINDOW = 4  # pieces, of which the least is kept
COMMON = 0.1  # of a class that shares a piece: it is then nobody's own
MIN_COMMON = 3  # so many students share what is nobody's own, however small the class
MIN_PIECES = 8  # of one's own, below which nothing can be said
ALIKE = 0.8  # of two students' own pieces that are the same

Piece = tuple[str, int]  # exercise, hash


@dataclass(frozen=True)
class Pair:
    """Two students whose answers are built alike."""

    students: tuple[str, str]
    share: float  # of both students' own pieces
    pieces: int  # that they have in common
    exercises: tuple[str, ...]


def alike(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """The pairs of one assignment's rows, the most alike first."""
    prints = {row["student"]: set(_fingerprint(row["work"])) for row in rows if row["work"]}
    shared = Counter(piece for pieces in prints.values() for piece in pieces)
    bound = max(MIN_COMMON, COMMON * len(prints))
    own = {who: {p for p in pieces if shared[p] <= bound} for who, pieces in prints.items()}
    owners: dict[Piece, list[str]] = {}
    for who, pieces in own.items():
        for piece in pieces:
            owners.setdefault(piece, []).append(who)
    common = Counter(pair for who in owners.values() for pair in combinations(sorted(who), 2))
    found = []
    for (one, other), count in common.items():
        share = count / len(own[one] | own[other])
        if count >= MIN_PIECES and share >= ALIKE:
            names = tuple(sorted({name for name, _ in own[one] & own[other]}))
            found.append(Pair((one, other), share, count, names))
    return sorted(found, key=lambda pair: (-pair.share, -pair.pieces, pair.students))


def _fingerprint(work: dict[str, Any]) -> Iterator[Piece]:
    for cell in work["cells"]:
        nodes = list(_nodes(cell["source"]))
        places = range(len(nodes) - PIECE + 1)
        hashes = [zlib.crc32(" ".join(nodes[i : i + PIECE]).encode()) for i in places]
        name = cell["name"] if cell["answer"] else ""
        for i in range(len(hashes) - WINDOW + 1):
            yield name, min(hashes[i : i + WINDOW])


def _nodes(source: str) -> Iterator[str]:
    """Kinds of nodes in reading order, docstrings and annotations left out."""
    try:
        waiting: list[ast.AST] = [ast.parse(source)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if isinstance(node, (ast.expr_context, ast.Load)):
            continue
        value = repr(node.value) if isinstance(node, ast.Constant) else ""
        method = node.attr if isinstance(node, ast.Attribute) else ""
        yield f"{type(node).__name__}{value}{method}"
        children = [
            child
            for field, child in _children(node)
            if field not in ("annotation", "returns", "type_comment")
        ]
        waiting += reversed(children)


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield field, child
