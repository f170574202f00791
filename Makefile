PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow bench lint table clean

demo: $(VENV)/base  ## install the base package and inspect pictures that it draws itself
	$(BIN)/anomalens demo --out demo

test: $(VENV)/dev lint  ## everything the tests need, then the tests
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m "slow"

bench: $(VENV)/dev  ## speed and memory, as ratios in one run
	$(BIN)/python benchmarks/all.py

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/base:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q .
	touch $@

$(VENV)/dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[dev]'
	touch $@ $(VENV)/base

clean:
	rm -rf $(VENV) demo build dist
