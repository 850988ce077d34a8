"""Tests of structprune.regularizers."""
