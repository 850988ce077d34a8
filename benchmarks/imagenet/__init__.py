"""Block pruning of image classifiers on ImageNet."""
