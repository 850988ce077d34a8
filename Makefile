# `make demo` and `make test` do everything on a fresh machine with Python and make.
#   PYTHON   the interpreter to build the environment with (3.11 or newer)
#   VENV     where the environment lives
PYTHON ?= python3
VENV ?= .venv

.PHONY: help demo test test-slow setup check clean

help:
	@echo "make demo       set up, then prune a small network trained on scikit-learn's digits and print the report"
	@echo "make test       set up, then lint, check types and run the tests"
	@echo "make test-slow  set up, then run the tests that take minutes"
	@echo "make setup      set up an environment for development, benchmarks included"
	@echo "make clean      remove the environment and the caches"

demo:
	@$(PYTHON) tools/set_up.py --venv "$(VENV)"
	@"$(VENV)/bin/structprune" demo

test: check
	@"$(VENV)/bin/python" -m pytest -q -n 2 --dist worksteal

test-slow:
	@$(PYTHON) tools/set_up.py --venv "$(VENV)" dev bench
	@"$(VENV)/bin/python" -m pytest -q -m slow

check:
	@$(PYTHON) tools/set_up.py --venv "$(VENV)" dev
	@"$(VENV)/bin/python" -m ruff check
	@"$(VENV)/bin/python" -m mypy

setup:
	@$(PYTHON) tools/set_up.py --venv "$(VENV)" dev bench

clean:
	rm -rf "$(VENV)" build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
