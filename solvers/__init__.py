"""Combinatorial selection within budgets: arrays in, certified choices out."""
