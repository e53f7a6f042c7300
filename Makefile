# Two commands on a fresh machine with Python 3.11 and pip: `make run` and `make test`. Each sets itself up.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup run test soak check format bench lock clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.dev ## make the virtual environment with everything pinned

run: $(VENV)/.runtime ## start Omni on http://127.0.0.1:8882 (sandbox when nothing is configured)
	@$(BIN)/omni serve

test: $(VENV)/.dev ## run all tests
	@BIN=$(BIN) tools/chromium-for-tests
	$(PYTEST) -n 2 --dist loadfile --durations 20 $(ARGS)

soak: $(VENV)/.dev ## the fault suite with its full numbers: 100 kills per database, outages of minutes
	OMNI_SOAK=1 $(PYTEST) tests/faults -n 2 --dist loadfile -rP $(ARGS)

check: $(VENV)/.dev ## linters, types, layers, spelling, rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python tools/house_rules.py

format: $(VENV)/.dev ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## measure, with the budget beside each figure
	$(BIN)/python -m benchmarks

lock: ## renew the pinned requirements (needs uv)
	uv pip compile pyproject.toml requirements/build.in --python-version 3.11 --universal --upgrade \
		--generate-hashes --no-emit-index-url --no-header -o requirements/runtime.txt
	uv pip compile pyproject.toml requirements/build.in --group dev --python-version 3.11 --universal --upgrade \
		--generate-hashes --no-emit-index-url --no-header -o requirements/dev.txt

clean: ## remove the virtual environment and caches, never the data
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Omni needs Python 3.11 or newer; found $$($(PYTHON) --version 2>&1). Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@
