# A fresh machine needs Python 3.11 (with venv) and 7 GB of disk: Java and the converter come as wheels.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install compile test test-slow test-all lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python found. Fix: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else \
	  "Python %d.%d found, 3.11 needed (the tried versions need it). Fix: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[convert,dev]'
	@touch $@

compile: install
	$(BIN)/picosam2-compile student/checkpoints/picosam2.pt --target imx500 --out out/picosam2

# The fast tests: about three minutes.
test: install
	$(BIN)/python -m pytest -q -m 'not slow'

# The slow ones: the vendor's tools and whole compiles, about half an hour.
test-slow: install
	$(BIN)/python -m pytest -q -m slow --durations=15

test-all: test test-slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks.compile_time

clean:
	rm -rf out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
