# What the README's commands do. `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
PYTEST := tools/pytest.sh $(BIN)/python
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder
# From jax 0.12 on kernels of Mosaic GPU are interpreted.
PYTEST_INTERPRETING := tools/pytest.sh .venv-3.12-jax-0.12/bin/python

.DEFAULT_GOAL := help
.PHONY: help env demo recipe lint check test test-slow notebooks clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
	@echo 'PYTHON=... chooses the interpreter of $(VENV); default: the first Python >= 3.11 found.'

env:  ## make .venv and install; does nothing if that is done and setup.py unchanged
	@tools/environment.sh $(VENV)

demo: env  ## R1 on real text, then the R1-Zero recipe with one seed; reports under runs/
	@$(BIN)/python -m experiments.demo

recipe: env  ## R1-Zero with three seeds and every arm; reports and table under runs/zero
	@$(BIN)/python -m experiments.recipe --root=runs/zero --seeds=0,1,2 --arms=all

lint: env  ## lint, and types of sources and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/notebooks.py --types

check: lint  ## lint, types, fast tests: what every commit passes
	HYPOTHESIS_PROFILE=few $(PYTEST) $(BY_FILE) -m 'not deep and not slow' -k 'not without_jit'

test: env  ## all tests but the slow ones
	$(PYTEST) $(BY_FILE) -m 'not slow'

test-slow: env  ## kills, mutants, and the fast tests on Python 3.11 and 3.12, jax 0.10 to 0.12
	$(PYTEST) $(BY_FILE) -m slow --ignore=tests/mutants --ignore=tests/training/processes_test.py
	$(PYTEST) -m slow tests/mutants tests/training/processes_test.py
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	    || tools/test_on_python.sh 3.11 0.10.2
	tools/test_on_python.sh 3.12 0.11.2
	tools/test_on_python.sh 3.12 '0.12.*'
	$(PYTEST_INTERPRETING) -n 2 -m deep tests/ops/grouped -k 'fused_test or hopper'

notebooks: env  ## execute the notebooks from top to bottom, keeping what they show
	$(BIN)/python tools/notebooks.py

clean:  ## remove environments and caches, not runs/
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
