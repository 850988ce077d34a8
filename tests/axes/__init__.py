"""Tests of tracing and of the algebra of axes."""
