# `make demo` and `make test` need Python 3.11 or newer and make; both build their own environment.
#   PYTHON=python3.12 make test      another interpreter
#   VENV=/tmp/abi make test          another place for the environment
#   PYTEST_ARGS="-k mesh" make pytest

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin
STAMP := $(VENV)/.abi-installed

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint types pytest smoke thorough clean

help: ## show this list
	@echo "abi-jax: a JAX runtime that trains, serves and remembers"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r a b; do printf '%-14s %s\n' "$$a" "$$b"; done

demo: $(STAMP) ## train three personas on a simulated 8-device mesh and hear them answer (up to 10 minutes)
	@echo "== demo: train three personas on 8 simulated devices, then ask each of them"
	$(BIN)/abi demo

# What the demo trains is what is served: it ends with its figure.
runs/demo/demo.png: | $(STAMP)
	@echo "== no model yet: training the demo's, up to 10 minutes; later starts take seconds"
	$(BIN)/abi demo

serve: $(STAMP) runs/demo/demo.png ## the assistant on http://127.0.0.1:8000, for a browser and any OpenAI client
	$(BIN)/abi serve configs/serve/local.yaml

test: lint types pytest ## everything that must pass: ruff, mypy, pytest
	@echo "== all checks passed"

lint: $(STAMP) ## ruff: rules and formatting
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	@echo "== mypy"
	$(BIN)/mypy

pytest: $(STAMP) ## the whole test suite, on 8 simulated CPU devices
	@echo "== pytest, compiling quickly but where tests are marked to be optimized"
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

smoke: $(STAMP) ## the quick tests only
	@echo "== pytest, smoke tests only"
	$(BIN)/python -m pytest -m smoke $(PYTEST_ARGS)

thorough: $(STAMP) ## the test suite with every mesh, every crash, and what else is much like another case
	@echo "== pytest, thorough"
	$(BIN)/python -m pytest --thorough $(PYTEST_ARGS)

clean: ## remove caches and build output; the environment stays
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

# Made again only when pyproject.toml changes; the package itself is installed in place.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "$(PYTHON) is Python %d.%d; abi-jax needs 3.11 or newer: make PYTHON=python3.12 ..." % v[:2])'
	@test -x $(BIN)/python || { echo "== making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "== installing abi-jax and its test tools into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $(STAMP)
