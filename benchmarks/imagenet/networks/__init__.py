"""Plain definitions of the networks, whose parameters are named as the common collections of weights name theirs."""
