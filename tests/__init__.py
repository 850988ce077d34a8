"""Tests of solvers and structprune; the folders mirror the packages."""
