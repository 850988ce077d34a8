"""Grids of measurements that run for nights: cells, the queue they wait in, rows, and pages beside a paper's tables."""
