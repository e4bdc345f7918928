# The two commands of a newcomer are `make quickstart` and `make test`; each sets up what it needs.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export CLOUDAI_HOME ?= $(CURDIR)/.cloudai

.PHONY: quickstart test test-all bench docs lint clean

quickstart: $(VENV)/.quickstart
	$(BIN)/python recipes/quickstart.py

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: $(VENV)/.dev lint
	$(BIN)/python -m pytest

bench: $(VENV)/.bench
	$(BIN)/python recipes/benchmarks/overhead.py

docs: $(VENV)/.dev
	$(BIN)/python -m pytest tests/docs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(CLOUDAI_HOME) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# What is installed depends on these two files alone; the marker is newer than them when it is up to date.
$(VENV)/.quickstart: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,serve]" scikit-learn
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.quickstart

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	touch $@
