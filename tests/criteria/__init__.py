"""Tests of structprune.criteria."""
