# `make help` lists the targets. Nothing is installed outside $(VENV). Another Python:
#     make VENV=.venv3.9 PYTHON=python3.9
# Some of the tests, without coverage:
#     make test TESTS=tests/test_tenant.py ARGS='-k phone'

PYTHON = python3
VENV = .venv
TESTS =
ARGS =
PARALLEL = -n 4 --dist worksteal
COVERAGE = $(if $(TESTS)$(ARGS),,--cov)

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Each of these files says that something has been installed.
DEMO_TOOLS = $(VENV)/.demo-tools
ALL_TOOLS = $(VENV)/.all-tools

.PHONY: all demo test lint format bench dist clean help

all: lint test ## lint and test: what plain make does

demo: $(DEMO_TOOLS) ## see the program at work on a simulated Duo tenant
	@$(BIN)/python -m tests.tools.demo

test: $(ALL_TOOLS) ## run the tests; all of them have to cover the whole program
	@echo "Running the tests: all of them take about a minute"
	@$(BIN)/python -m pytest $(strip $(PARALLEL) $(COVERAGE) $(ARGS) $(TESTS))

lint: $(ALL_TOOLS) ## check style, format and types
	@echo "Checking style and format"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check
	@echo "Checking types"
	@$(BIN)/mypy

format: $(ALL_TOOLS) ## mend style and format, as far as ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(ALL_TOOLS) ## measure the program side by side with the one before it
	$(BIN)/python -m tests.tools.bench $(ARGS)

dist: $(ALL_TOOLS) ## build a wheel into dist/, check it, install and run it
	rm -rf build dist
	$(BIN)/python -m build --wheel --quiet
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m venv build/try
	build/try/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	build/try/bin/duo_phone_cleanup --version
	rm -rf build

clean: ## remove all that was generated, .venv too
	rm -rf $(VENV) .ci-cache build dist *.egg-info htmlcov .coverage .coverage.*
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache __pycache__
	rm -rf tests/__pycache__ tests/*/__pycache__

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1@\2/p' $(MAKEFILE_LIST) | \
	    awk -F@ '{ printf "%-12s %s\n", $$1, $$2 }'

$(VENV)/.made:
	@echo "Making a virtual environment: $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(DEMO_TOOLS): $(VENV)/.made requirements.txt
	@echo "Installing what the program needs, and the simulated tenant"
	@$(PIP) -r requirements.txt -c tests/requirements.txt trustme
	@touch $@

$(ALL_TOOLS): $(DEMO_TOOLS) tests/requirements.txt
	@echo "Installing the tools of tests/requirements.txt: about a minute, the first time"
	@$(PIP) -r requirements.txt -r tests/requirements.txt
	@touch $@
