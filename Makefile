# Each target makes .venv when it is missing or when its requirements have changed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-slow check format bench clean

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

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED)  ## ours and its peers, interleaved; JSON in benchmarks/results/
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv demo build dist

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	touch $@
