"""What permuted blocks are compared with: orders that are drawn, and orders that sort rows and columns by weight."""

from __future__ import annotations

import numpy as np

from solvers.permutation import BlockMatrix, PermutedBlocks, PermutedResult

__all__ = ["given_order", "random_orders", "sorted_orders", "unstructured_value"]


def given_order(matrix: BlockMatrix) -> PermutedResult:
    """The heaviest blocks of the matrix as it is."""
    return PermutedBlocks(turns=0).solve(matrix)


def random_orders(matrix: BlockMatrix, count: int = 200, seed: int = 0) -> PermutedResult:
    """The best of ``count`` drawn pairs of orders, each with its heaviest blocks."""
    return PermutedBlocks(restarts=count, turns=0, seed=seed).solve(matrix)


def sorted_orders(matrix: BlockMatrix) -> PermutedResult:
    """Rows and columns by their sums, heaviest first."""
    orders = [np.argsort(-matrix.values.sum(axis=1 - side), kind="stable") for side in range(2)]
    return PermutedBlocks(turns=0).solve(matrix, start=orders)


def unstructured_value(matrix: BlockMatrix, entries: int) -> float:
    """What the ``entries`` best single entries keep: more than any blocks of as many entries can."""
    return float(np.sort(matrix.values, axis=None)[matrix.values.size - entries :].sum())
