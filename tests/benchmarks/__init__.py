"""Facts of the benchmarks: their tables, their data, and that they run."""
