"""Block-sparse kernels against the best dense layer and against sparse libraries: ``python -m benchmarks.kernels``."""
