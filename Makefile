# Needs make and Python 3.11 or newer; everything else goes into .venv beside this file.
# All paths are relative, so that a checkout whose path contains spaces works.

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check --no-input

# Looked up only when .venv has to be made.
PYTHON = $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$python && break; done)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test test-long clients check lint format bench bench-peers docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.demo ## set everything up and run the demo
	$(BIN)/loopline demo

test: lint check ## set everything up, lint, and run every test but the long ones

test-long: $(VENV)/.test ## the kills, soaks and second brokers
	$(PY) -m pytest -m long

clients: $(VENV)/.test ## install other people's clients, which some tests drive, into .clients
	$(PY) -m tests.clients

check: $(VENV)/.test
	$(PY) -m pytest -m "not long" --durations=25

lint: $(VENV)/.test ## ruff and mypy, changing nothing
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: $(VENV)/.test ## sort imports and format
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

bench: $(VENV)/.test ## measure, and tabulate; BENCH="serving --quick" for a part of it
	$(PY) -m tests.bench $(BENCH)

bench-peers: $(VENV)/.test ## install the peers to compare with, each in an environment of its own
	$(PY) -m tests.bench.peers $(PEERS)

docs: $(VENV)/.docs ## build the pages into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

wheel: $(VENV)/.test ## build a wheel into dist/
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove what was built, but not data
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One stamp for each set of extras, so that nothing is installed twice.
$(VENV)/.%: pyproject.toml | $(PY)
	@echo "Installing loopline[$*] into $(VENV); the first time takes a minute or two."
	$(PIP) install --editable '.[$*]'
	@touch $@

$(PY):
	@if [ -z "$(PYTHON)" ]; then \
		echo "Loopline needs Python 3.11 or newer; none was found. Install it, or name it:" >&2; \
		echo "    make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no ensurepip, which a virtual environment needs. On Debian and Ubuntu:" >&2; \
		echo "    apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
