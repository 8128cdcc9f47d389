# Everything a person needs, from a fresh clone: `make demo`, `make test`. Each target does its own set-up.

VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench django chaos clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with everything development needs

$(READY): pyproject.toml scripts/setup
	@scripts/setup $(VENV)

demo: $(READY) ## a Django shop with its background work, checked at the end; elsewhere: make demo BROKER=redis://…
	@$(BIN)/python examples/shop/demo.py --broker "$(BROKER)"

test: $(READY) ## style, types, imports, and all tests with the short fault runs
	@scripts/check
	@scripts/servers
	@scripts/test

check: $(READY) ## style, types and the direction of imports
	@scripts/check

bench: $(READY) ## speed, beside its peers, on every engine (some minutes)
	@scripts/bench

django: $(READY) ## the tests with a Django project, on Django 6 (needs Python 3.12)
	@scripts/servers
	@scripts/test-django6

chaos: $(READY) ## the long fault runs
	@scripts/chaos

clean: ## remove what the other targets made
	rm -rf $(VENV) .venvs .bench demo-output dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
