# primelens: everything a contributor or a visitor runs. `make` alone lists the targets.
#
# Two environments are made and kept: .venv-demo holds the runtime alone, as a user installs it (a
# built wheel, no torch); .venv holds what development needs. PYTHON chooses the interpreter.

PYTHON ?= python3
PYTEST_ARGS ?=
# A process per core; a file's tests stay together, because they share what they exported.
PYTEST_WORKERS ?= auto
DEV := .venv
DEMO := .venv-demo
BENCH_ARGS ?=
MODEL_WORK ?= .work/scenes

# The repository's folders are named like public packages (kernels, export): keep them off sys.path.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ROOMS := runtime kernels export towers tune offline bench cli
RUNTIME_FILES := $(shell find runtime kernels cli -type f -not -name '*.pyc' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format types bench default-model story-retune clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 make …   chooses the interpreter (3.11 or newer)"

demo: $(DEMO)/.installed ## caption the shipped sample pictures with the shipped model
	@$(DEMO)/bin/primelens demo

test: $(DEV)/.installed ## the fast tests, in a few minutes
	$(DEV)/bin/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile -m "not gpu and not slow" $(PYTEST_ARGS)

test-slow: $(DEV)/.installed ## the slow tests too
	$(DEV)/bin/python -m pytest -m "not gpu" $(PYTEST_ARGS)

lint: $(DEV)/.installed ## ruff: rules and format
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

format: $(DEV)/.installed ## ruff: repair what can be repaired
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

types: $(DEV)/.installed ## mypy, strict, over the package
	$(DEV)/bin/python .ci/package_tree.py .mypy_cache/tree
	MYPYPATH=.mypy_cache/tree $(DEV)/bin/python -m mypy -p primelens

bench: $(DEV)/.installed ## measure this machine (BENCH_ARGS='run default --out DIR' …)
	$(DEV)/bin/python -m primelens.bench $(BENCH_ARGS)

# All steps go on where they were stopped; the first takes hours.
default-model: $(DEV)/.installed ## train, export and measure the shipped model again (hours)
	$(DEV)/bin/python -m primelens.tune.default_model --work $(MODEL_WORK)
	$(DEV)/bin/python scripts/ship_default_model.py --work $(MODEL_WORK)
	test -d $(MODEL_WORK)/heads/tower || \
	  $(DEV)/bin/python -m primelens.export.recover default --out $(MODEL_WORK)/heads/tower
	$(DEV)/bin/python -m primelens.tune.default_heads states --work $(MODEL_WORK)/heads
	for head in answer "answer --steps 10500" rank; do \
	  $(DEV)/bin/python -m primelens.tune.default_heads $$head \
	    --work $(MODEL_WORK)/heads --tower $(MODEL_WORK)/heads/tower || exit 1; done
	$(DEV)/bin/python scripts/ship_default_heads.py --work $(MODEL_WORK)/heads

story-retune: $(DEV)/.installed ## 500 pictures encoded once, captioned by two text sides (minutes)
	$(DEV)/bin/python scripts/story_retune.py

clean: ## remove both environments and everything built
	rm -rf $(DEV) $(DEMO) build dist primelens.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(ROOMS) tests -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# Say what to do where Python is too old or comes without venv, before anything is made.
define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "primelens needs Python 3.11 or newer, and \"$(PYTHON)\" is older or absent:"; \
	echo "install one, or name it: PYTHON=/path/to/python3.12 make $(MAKECMDGOALS)"; exit 1; }
@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	echo "\"$(PYTHON)\" comes without venv or ensurepip (Debian and Ubuntu package them apart):"; \
	echo "run \"apt-get install python3-venv\", then make $(MAKECMDGOALS) again"; exit 1; }
endef

$(DEMO)/bin/python:
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(DEMO)

# build/ keeps files that were since deleted; a wheel must not carry those.
$(DEMO)/.installed: pyproject.toml constraints.txt $(RUNTIME_FILES) | $(DEMO)/bin/python
	rm -rf build/lib build/bdist.*
	$(DEMO)/bin/python -m pip install --quiet -c constraints.txt '.[cpu]'
	@touch $@

$(DEV)/bin/python:
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(DEV)

$(DEV)/.installed: pyproject.toml constraints.txt | $(DEV)/bin/python
	$(DEV)/bin/python -m pip install --quiet -c constraints.txt -e '.[cpu,dev]'
	@touch $@
