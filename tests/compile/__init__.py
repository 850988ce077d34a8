"""Tests of building the smaller network."""
