"""``python -m benchmarks.solvers``: every family of selection problems, our solvers beside plain re-implementations."""
