"""Tests of structprune.limit."""
