"""Block pruning of the first layer of a click-rate network on Criteo's display advertisements."""
