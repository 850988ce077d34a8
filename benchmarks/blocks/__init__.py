"""Block pruning while training: every method on the same small tasks, with the same epochs."""
