# Every target makes its own virtual environment. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
OLDEST := .venv-oldest
OLDEST_TRANSFORMERS := 5.17.0
WORKERS ?= 2
BIN := $(VENV)/bin
# One thread per worker: on small machines two threads in each of two workers fight for the cores.
run_tests = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n $(WORKERS) --dist worksteal -q tests
quick := -m "not slow"

.PHONY: help install demo test test-all test-oldest lint bench bench-gpu docs clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## make the virtual environment with the pinned packages

demo: $(VENV)/.installed  ## reduce, distil, compare, report: out/demo/report.html (minutes, no download)
	$(BIN)/pumer demo

test: $(VENV)/.installed  ## run the tests
	$(call run_tests,$(VENV)) $(quick)

test-all: $(VENV)/.installed  ## the slow ones as well: fuzzing, every export
	$(call run_tests,$(VENV))

test-oldest: $(OLDEST)/.installed  ## the same tests on the oldest supported transformers
	$(call run_tests,$(OLDEST)) $(quick)

# The pinned set, but for transformers itself and the hub client that its old versions ask for.
$(OLDEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	sed -e '/^huggingface_hub==/d' -e 's/^transformers==.*/transformers==$(OLDEST_TRANSFORMERS)/' \
	    constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -q -c $(OLDEST)/constraints.txt -e '.[dev]'
	@touch $@

lint: $(VENV)/.installed  ## style, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed  ## speed and memory on this CPU: benchmarks/results/
	$(BIN)/python -m benchmarks.full_size

bench-gpu: $(VENV)/.installed  ## speed, memory and kernel launches on one GPU, 8 minutes: benchmarks/results/gpu/
	$(BIN)/python -m benchmarks.gpu

docs: $(VENV)/.installed  ## the documentation as a site: site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

clean:  ## remove environments, caches and outputs
	rm -rf $(VENV) $(OLDEST) out site build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
