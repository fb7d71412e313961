# Every target does its own set-up: a virtual environment in .venv, from the lock (constraints.txt), made once.
# Needs only Python 3.11 or newer with pip. A torch wheel that pip is told of (PIP_FIND_LINKS) is taken, CPU or CUDA.

PYTHON ?= python3
ARGS ?=
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv

.PHONY: help sweep plan test check mutants matrix format lock readme clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

sweep: .venv/sweep.stamp  ## run the embedded sweep to its table and report; ARGS goes to snakemake
	snakemake --cores all $(ARGS)

plan: .venv/sweep.stamp  ## show what `make sweep` would run, and why
	snakemake --cores all --dry-run $(ARGS)

test: .venv/dev.stamp  ## all tests, the linters and the end-to-end ones included; ARGS goes to pytest
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal $(ARGS)

check: .venv/dev.stamp  ## style and fast tests, for the loop while you write
	ruff check
	ruff format --check
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal -m "not slow and not e2e" $(ARGS)

mutants: .venv/dev.stamp  ## put every defect of tests/mutants into a copy of the tree and see its tests turn red
	python -m tests.mutants.run $(ARGS)

matrix: .venv/dev.stamp  ## every method on every format on every architecture, to docs/methods.md
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m tests.matrix.run $(ARGS)

format: .venv/dev.stamp  ## rewrite Python and Snakemake files in the house style
	ruff check --fix
	ruff format
	snakefmt Snakefile rules

# The lock as a conda environment. torch asks for its own CUDA packages at exact versions: named here, they would
# come to a CPU machine too.
define CONDA_HEAD
# Made from constraints.txt by `make lock`. Then, in this environment: pip install --no-deps --editable .
name: qpeft-tables
channels: [conda-forge]
dependencies:
  - python=3.11
  - pip
  - pip:
endef
export CONDA_HEAD
FROM_TORCH := cuda-|nvidia-|triton=

lock: .venv/made.stamp  ## make constraints.txt and environment.yml from the ranges in pyproject.toml; ARGS=--upgrade for newer
	python -m pip install --quiet uv==0.13.9
	env -u UV_FIND_LINKS uv pip compile --quiet --universal --python-version 3.11 --all-extras \
		--no-annotate --custom-compile-command "make lock" $(ARGS) pyproject.toml --output-file constraints.txt
	{ echo "$$CONDA_HEAD"; sed -E '/^(#|$(FROM_TORCH))/d; s/.*/      - "&"/' constraints.txt; } > environment.yml

readme: .venv/sweep.stamp  ## put the finished default sweep's table and figures into README.md and docs/results/default
	python -m pipeline table results/
	mkdir -p docs/results/default && cp results/tables/default/table.md results/tables/default/figures/*.svg docs/results/default/
	sed -i -e '/^<!-- table:/,/^<!-- end of table/{/^<!--/!d}' -e '/^<!-- table:/r '<(sed -e '/^# /d' -e '/^## /,$$d' docs/results/default/table.md) README.md

clean:  ## remove .venv and caches; results/ stays
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11 or missing: name another one, as in 'make PYTHON=python3.12 sweep'"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/sweep.stamp: pyproject.toml constraints.txt | .venv/made.stamp
	@echo "Installing the locked packages into .venv: some minutes, once"
	python -m pip install --quiet --quiet --compile --constraint constraints.txt --editable .
	@touch $@

.venv/dev.stamp: .venv/sweep.stamp
	python -m pip install --quiet --quiet --compile --constraint constraints.txt --editable '.[dev]'
	@touch $@
