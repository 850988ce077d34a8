"""Measurements that can be repeated: `python -m benchmarks.<name>` from the checkout; `results/` holds their tables."""
