# One way in for people, for CI and for the README. `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo demo-smoke shards test test-slow test-exhaustive test-slurm check format size clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is newer than what it was made of, or the install runs again.
$(VENV)/.installed: setup.cfg constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else f"Python {v[0]}.{v[1]} found; 3.10 to 3.12 needed (img2dataset): make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,queries,export,s3,tensorboard,wandb,dev]'
	@touch $@

install: $(VENV)/.installed ## .venv with pinned dependencies

demo: RECIPE := demo
demo: install ## queries -> search -> crawl -> shards -> training on 2 ranks -> evaluation -> report (6 minutes on 2 cores)
	$(run_demo)

demo-smoke: RECIPE := demo_smoke
demo-smoke: install ## the same flow at a tiny size (2 minutes)
	$(run_demo)

# Nothing of an earlier run is left: no number can come from it. Two ranks on CPU wherever it runs.
define run_demo
rm -rf runs/$@
$(BIN)/python -m data_tools.demo recipe=$(RECIPE) out_dir=runs/$@/data
CUDA_VISIBLE_DEVICES= $(BIN)/python -m pipeline.train experiment=$(RECIPE)
endef

shards: install ## the data half for your own list: make shards QUERIES=my_queries.txt OUT=data/mine SOURCE=commons CONTACT=you@example.org [ARGS='...']
	@test -n "$(QUERIES)" -a -n "$(OUT)" || { echo "usage: make shards QUERIES=my_queries.txt OUT=data/mine [SOURCE=commons|pool|commons,pool] [CONTACT=you@example.org] [ARGS='more overrides']" >&2; exit 2; }
	$(BIN)/python -m data_tools.build 'queries.path=$(QUERIES)' 'out_dir=$(OUT)' 'source=[$(or $(SOURCE),commons)]' 'sources.contact=$(CONTACT)' $(ARGS)

CODE := pipeline data_tools slurm tests

# Files go whole to one of two workers: their fixtures are made once.
IN_TWO := --numprocesses 2 --dist loadfile

test: install ## the default tests (5 minutes on 2 cores)
	$(BIN)/python -m pytest $(IN_TWO)

test-slow: install ## tests marked slow: kills, resumes, README commands, compilation of kernels (20 minutes on 2 cores)
	$(BIN)/python -m pytest -m "slow and not exhaustive" $(IN_TWO) --durations 30 --durations-min 10

test-exhaustive: install ## whole matrices of which test-slow runs a part (4 minutes on 2 cores)
	$(BIN)/python -m pytest -m exhaustive $(IN_TWO)

test-slurm: install ## tests on a real two-node Slurm that they start themselves (Debian, root)
	$(BIN)/python -m pytest -m slurm

check: install ## ruff (rules and format), mypy, import contracts
	$(BIN)/ruff check --quiet $(CODE)
	$(BIN)/ruff format --check --quiet $(CODE)
	$(BIN)/mypy pipeline data_tools slurm
	$(BIN)/lint-imports

format: install ## ruff: sorted imports, other safe fixes, format
	$(BIN)/ruff check --fix --quiet $(CODE)
	$(BIN)/ruff format --quiet $(CODE)

size: ## files above 400 lines, functions above 60, number of files
	@$(PYTHON) tests/size.py

clean: ## remove runs and caches, not .venv
	rm -rf runs .cache build .pytest_cache .mypy_cache .hypothesis .import_linter_cache .ruff_cache
