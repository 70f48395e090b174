# Each target makes the environment that it needs when that is missing or its requirements have changed.
PYTHON ?= python3
ENVIRONMENT := $(PYTHON) packaging/environment.py
BIN := .venv/bin
DOCS_BIN := .venv-docs/bin
LIVE := build/live/why.html
EXTRAS ?= all
.DEFAULT_GOAL := help

.PHONY: help demo test test-slow test-docs test-lowest check docs format bench dist clean

help:  ## this list
	@awk -F ':.*## *' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv-demo/installed  ## the experiment on real handwritten digits, and its report in demo/
	.venv-demo/bin/xent why --out demo

test: .venv/installed  ## all tests that take seconds, and the examples in the docstrings
	$(BIN)/pytest -n 2

test-slow: .venv/installed  ## the tests that take minutes or much memory
	$(BIN)/pytest -m slow -n 2

test-lowest: .venv-lowest/installed  ## every public call, with the lowest versions that pyproject.toml admits
	.venv-lowest/bin/python packaging/smoke.py

check: .venv/installed  ## lint, format, strict types; the tests have the examples in docstrings and docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv-docs/installed $(LIVE)  ## the documentation site, in build/site
	$(DOCS_BIN)/python docs/pages.py build/pages
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/mkdocs build --quiet

test-docs: docs .venv/installed  ## every page of the site in a browser, the notebooks and the figures
	$(BIN)/pytest -m slow tests/test_site.py tests/test_notebooks.py

format: .venv/installed  ## repair what the linter can, and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/installed  ## ours and its peers, interleaved; JSON in benchmarks/results/
	$(BIN)/python benchmarks/run.py

dist: .venv-dist/installed  ## build wheel and sdist in dist/, check them, and try the wheel in an environment of its own
	.venv-dist/bin/python packaging/distribution.py

clean:  ## remove the environments and whatever else was made
	rm -rf .venv .venv-demo .venv-docs .venv-lowest .venv-dist demo build dist

.venv/installed: pyproject.toml constraints.txt
	@$(ENVIRONMENT) .venv --with-pip --constraint constraints.txt --editable '.[dev]'

.venv-demo/installed: pyproject.toml constraints.txt
	@$(ENVIRONMENT) .venv-demo --constraint constraints.txt --editable '.[cli]'

.venv-lowest/installed: pyproject.toml
	@$(ENVIRONMENT) .venv-lowest --lowest --editable '.[$(EXTRAS)]'

.venv-dist/installed: packaging/requirements.txt
	@$(ENVIRONMENT) .venv-dist --from-file packaging/requirements.txt

.venv-docs/installed: pyproject.toml constraints.txt
	@$(ENVIRONMENT) .venv-docs --constraint constraints.txt --editable '.[docs]'

# The reports that the site shows: made once, and again after their source changed.
$(LIVE): docs/live_reports.py $(shell find src/xent/report src/xent/why src/xent/scoring -type f ! -path '*/__pycache__/*') | .venv-docs/installed
	$(DOCS_BIN)/python docs/live_reports.py build/live
