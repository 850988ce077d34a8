"""How far networks can be pruned: the estimates of `structprune.limit` beside what retraining reaches."""
