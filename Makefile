.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/ready  ## .venv with pinned dependencies
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## train the fashion classifier on drawn samples, in about two minutes
	$(BIN)/python run.py experiment=fashion_mtl sample=true

test: setup  ## all tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: setup  ## the slow tests
	$(BIN)/python -m pytest -m slow

lint: setup  ## format and lint, as a check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup  ## types
	$(BIN)/mypy

check: lint types test  ## what CI runs

format: setup  ## format and lint, mended in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## every benchmark, one after the other
	for f in $(filter-out %/memory.py %/rounds.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$f || exit 1; done

clean:  ## everything that can be made again, but no data and no runs
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info

.PHONY: help setup demo test test-slow lint types check format bench clean
