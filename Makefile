# Two commands do everything: `make demo` and `make test`.  Both set up what they need.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := $(VENV)/.installed-demo

.PHONY: help demo test lint clean

help:            ## say what can be made
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

demo: $(DEMO)    ## watch a training worker hang, be reaped, and its job finish
	$(BIN)/filetimer run --workers 2 --max-restarts 1 -- $(BIN)/python python/examples/train_digits.py

test: $(STAMP)   ## set up and run all tests
	$(BIN)/python -m pytest

lint: $(STAMP)   ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:           ## remove what was made
	rm -rf $(VENV) build dist python/*.egg-info .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

$(DEMO): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@
