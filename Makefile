# make run    serve examples/models, until Ctrl-C
# make test   run the tests, WORKERS=3 at a time; PYTEST_ARGS='-k word' for some of them
# make lint   ruff, mypy, import-linter
# make bench  compare with a Triton server; BENCH_ARGS='--list' and so on
# make docs   write the pages that are made from the code
# PYTHON=python3.12 chooses the interpreter of .venv; ARGS='--http :8000' goes to `sluice serve`

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# One more than CI has cores: tests wait as long as they work.
WORKERS ?= 3
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(p))) python3)

# $(call debian,COMMAND,PACKAGE): installs what is missing where that is possible
debian = command -v $(1) >/dev/null || { \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { \
		apt-get install -qq -y --no-install-recommends $(2) >/dev/null 2>&1 || \
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends $(2); } \
	} >/dev/null; } || echo "$(1) is missing, what needs it is skipped; type: apt-get install $(2)" >&2

.PHONY: run test lint bench docs clean
.DEFAULT_GOAL := run

# In a terminal the gateway gets a process group of its own: Ctrl-C reaches it and not make, which
# would end with an error where the gateway ends with 0.
run: $(VENV)/.run
	@if [ -t 0 ]; then set -m; $(BIN)/sluice serve examples/models $(ARGS); \
	else exec $(BIN)/sluice serve examples/models $(ARGS); fi

test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.test
	@$(call debian,h2load,nghttp2-client)
	@$(call debian,promtool,prometheus)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	@$(call debian,h2load,nghttp2-client)
	$(BIN)/python -m loadtests.compare $(BENCH_ARGS)

docs: $(VENV)/.run
	$(BIN)/python -m gateway.cli.docs > docs/cli.md
	$(BIN)/python -m gateway.config_docs > docs/configuration.md

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The environment is made once; a stamp for each set of extras makes the next run instant.
$(BIN)/python:
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "Sluicegate needs Python 3.11 or newer, and '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2>/dev/null || echo missing);" \
			"type: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.run: EXTRAS = onnx,image
$(VENV)/.test: EXTRAS = onnx,torch,image,test
$(VENV)/.dev: EXTRAS = onnx,torch,image,test,dev
$(VENV)/.bench: EXTRAS = onnx,bench
# Beside it, what else the tests need: pip keeps one core busy. Most modules of these many packages
# are never imported, and compiling all of them would take longer than anything else here.
$(VENV)/.test: BESIDE = $(BIN)/python tests/support/environments.py
$(VENV)/.test: PIP += --no-compile
$(VENV)/.%: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing sluicegate[$(EXTRAS)] into $(VENV) ..."
	@$(or $(BESIDE),:) & $(PIP) --editable '.[$(EXTRAS)]'; status=$$?; wait; exit $$status
	@touch $@
