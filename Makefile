# `make demo` and `make test` do all their set-up themselves; a second call reinstalls nothing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test quick test-deep lint check bench install clean

demo: install  ## source-only and DANN on real images, in both frameworks, side by side
	$(BIN)/grl demo

test: install  ## everything but the deep runs; what measures time runs alone, afterwards
	OMP_NUM_THREADS=1 $(PYTEST) -n auto -m "not slow_timing"
	$(PYTEST) -m slow_timing

quick: install  ## at the desk: the layer, the check, and the tests of the tests, with few examples each
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=quick $(PYTEST) -n auto -m "not slow_timing" tests/layer tests/check tests/meta

test-deep: install  ## at least 100,000 examples of the properties, then every slow case of all else; hours
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=deep $(PYTEST) -n auto --timeout 7200 tests/layer/test_same_bits.py
	OMP_NUM_THREADS=1 GRL_DEEP=1 $(PYTEST) -n auto -m "not slow_timing" --timeout 7200

lint: install  ## ruff, mypy over everything, pyright over the examples of the public types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright

check: install  ## every layer form under every transformation
	$(BIN)/grl check

bench: install  ## the quick benchmarks
	$(BIN)/python -m benchmarks --quick

install: $(INSTALLED)  ## the virtual environment .venv with one tested set of versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "grl needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[all,peers,dev]"
	touch $@

clean:  ## forget everything that was installed or produced
	rm -rf .venv runs dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
