# Each target makes .venv (or .venv-docs) when it is missing or when its requirements have changed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
DOCS_BIN := .venv-docs/bin
DOCS_INSTALLED := .venv-docs/installed
LIVE := build/live/why.html

.PHONY: demo test test-slow test-docs check docs format bench clean

demo: $(INSTALLED)  ## the experiment on real handwritten digits, and its report in demo/
	$(BIN)/xent why --out demo

test: $(INSTALLED)  ## all tests that take seconds, and the examples in the docstrings
	$(BIN)/pytest -n 2

test-slow: $(INSTALLED)  ## the tests that take minutes or much memory
	$(BIN)/pytest -m slow

check: $(INSTALLED)  ## lint, format, strict types; the tests have the examples in docstrings and docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(DOCS_INSTALLED) $(LIVE)  ## the documentation site, in build/site
	$(DOCS_BIN)/python docs/pages.py build/pages
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/mkdocs build --quiet

test-docs: docs $(INSTALLED)  ## every page of the site in a browser, the notebooks and the figures
	$(BIN)/pytest -m slow tests/test_site.py tests/test_notebooks.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED)  ## ours and its peers, interleaved; JSON in benchmarks/results/
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv .venv-docs demo build dist

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	touch $@

$(DOCS_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	$(DOCS_BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]' --constraint constraints.txt
	touch $@

# The reports that the site shows: made once, and again after their source changed.
$(LIVE): docs/live_reports.py $(shell find src/xent/report src/xent/why src/xent/scoring -type f ! -path '*/__pycache__/*') | $(DOCS_INSTALLED)
	$(DOCS_BIN)/python docs/live_reports.py build/live
