# Every target that a person types. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: ## set up what is missing and serve on PORT (8000)
	@echo "presage: starting in $(CURDIR)"
	@$(MAKE) --no-print-directory .venv/runtime
	@LOG_FORMAT=$${LOG_FORMAT:-console} WORKERS=$${WORKERS:-auto} exec $(BIN)/python -m app serve --train-if-empty --migrate

# What waits for servers, and what computes, side by side.
SERVERS := tests/e2e
.PHONY: test test-servers test-code
test: .venv/dev ## run every test that needs nothing but wheels, half of them beside the other half
	@$(MAKE) --no-print-directory --jobs=2 --keep-going test-servers test-code
# Line by line, each with the half that it comes from.
test-servers test-code: SHELL := bash
test-servers:
	@set -o pipefail; PYTHONUNBUFFERED=1 $(BIN)/python -m pytest -m "not system" $(SERVERS) 2>&1 | sed -u 's/^/servers: /'
test-code:
	@set -o pipefail; PYTHONUNBUFFERED=1 $(BIN)/python -m pytest -m "not system" $(addprefix --ignore=,$(SERVERS)) 2>&1 | sed -u 's/^/code: /'

.PHONY: test-system
test-system: .venv/dev ## install Debian packages (as root) and run the tests that need them
	tests/system/install.sh
	$(BIN)/python -m pytest -m system

.PHONY: check
check: .venv/dev ## check format, lint, types, import contracts and generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/yamllint --strict docker-compose.yml deploy
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/python -m app.cli.reference --check docs/settings.md

.PHONY: fix
fix: .venv/dev ## format, mend what the linter can mend, and regenerate the generated docs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m app.cli.reference docs/settings.md

.PHONY: bench
bench: .venv/dev ## measure this service beside its peers: half an hour, two quiet cores; DATA=FILE for texts of your own
	$(BIN)/python -m benchmarks $(if $(DATA),--data $(DATA))

.PHONY: bench-quick
bench-quick: .venv/dev ## the same in two minutes, with the peers that are installed
	$(BIN)/python -m benchmarks --quick $(if $(DATA),--data $(DATA))

.PHONY: migrate
migrate: .venv/runtime ## bring the database at DATABASE_URL to the newest schema
	$(BIN)/python -m app migrate

.PHONY: train
train: .venv/runtime ## make the demo models that models/ lacks
	$(BIN)/python -m app train

.PHONY: requirements
requirements: .venv/dev ## pin what pyproject.toml asks for, with hashes
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --upgrade pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --upgrade pyproject.toml --group dev -c requirements.txt -o requirements-dev.txt

.PHONY: clean
clean: ## remove the virtual environment and caches; models stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Stamps: a virtual environment is as new as the file it was made from.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"presage: needs Python 3.11 to 3.13, and {sys.executable} is {sys.version.split()[0]}; try: make PYTHON=python3.12 ...")'
	@echo "presage: making a virtual environment in .venv"
	@$(PYTHON) -m venv .venv

.venv/runtime: requirements.txt | .venv/bin/python
	@echo "presage: installing the pinned dependencies (about half a minute, once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt | .venv/bin/python
	@echo "presage: installing what checks and tests need (a minute, once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@ .venv/runtime
