# Two commands are enough: `make course` runs the course, `make test` checks it. `make help` lists all.
PYTHON ?= python3
# Test files and notebooks at once. They share the cores: each process, and each notebook's kernel,
# computes with (cores / JOBS) threads, which it is told through OMP_NUM_THREADS.
JOBS ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_BOOK := .venv/.installed-book
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

SHARE = $$($(BIN)/python -c 'from course_utils.profiles import threads as t; \
	print(max(1, t() // $(JOBS)))')

# Everything needed is fetched beforehand: no library may ask the model hub for anything.
export HF_HUB_OFFLINE := 1
# A kernel named python3 in the home folder must not shadow the one in .venv.
export JUPYTER_PREFER_ENV_PATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Settings of pip that lead past .venv, or leave out what must be there. A 0 in a variable also
# overrides a configuration file; the others can only be taken out of the environment.
export PIP_USER := 0
export PIP_NO_DEPS := 0
export PIP_DRY_RUN := 0
export PIP_REQUIRE_HASHES := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_NO_BUILD_ISOLATION
unexport PIP_PLATFORM PIP_PYTHON_VERSION PIP_IMPLEMENTATION PIP_ABI

# A virtual environment holds its folder's absolute name, in its scripts and in what it imports:
# a clone that was copied or moved would run another clone's code. There, .venv is made anew.
MOVED := $(shell made_for="$$(sed -n 's/^command = .* -m venv //p' .venv/pyvenv.cfg 2>/dev/null)"; \
	[ -z "$$made_for" ] || [ "$$made_for" = "$$(pwd -P)/.venv" ] || echo moved)

.DEFAULT_GOAL := help
.PHONY: help install course test lint unit notebooks lab bench book clean
.PHONY: moved

help:
	@echo "make course   set up, fetch the models and data, run every notebook, write a report"
	@echo "make test     set up, then lint, unit tests, and every notebook's output compared"
	@echo "make install  only the set-up: .venv with the versions of constraints.txt"
	@echo "make lab      JupyterLab on the notebooks"
	@echo "make bench    timings against the production libraries"
	@echo "make book     the course as a web site in build/book"
	@echo "make clean    remove what the other targets made, except .venv and the model cache"

course: $(INSTALLED)
	@$(BIN)/course fetch </dev/null
	@$(BIN)/course run --profile cpu --resume </dev/null

install: $(INSTALLED)

test: lint unit notebooks

lint: $(INSTALLED)
	@echo "ruff and actionlint"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/actionlint .github/workflows/*.yml

unit: $(INSTALLED)
	@$(BIN)/course fetch </dev/null
	@OMP_NUM_THREADS=$(SHARE) \
		$(BIN)/python -m pytest --quiet --numprocesses $(JOBS) --dist loadfile </dev/null

notebooks: $(INSTALLED)
	@$(BIN)/course fetch </dev/null
	@$(BIN)/course check --jobs $(JOBS) </dev/null

lab: $(INSTALLED)
	@$(BIN)/course fetch
	@OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} $(BIN)/jupyter lab --notebook-dir notebooks

bench: $(INSTALLED)
	@$(BIN)/course fetch </dev/null
	@$(BIN)/python -m pytest tests/benchmarks --quiet --capture=no </dev/null

book: $(INSTALLED_BOOK)
	@rm -rf build/book build/book-source
	@mkdir -p build/book-source
	@cp -R docs/. course_utils notebooks build/book-source/
	@$(BIN)/python -m sphinx -W -q -b html build/book-source build/book </dev/null
	@echo "build/book/index.html"

clean:
	rm -rf build dist runs .pytest_cache .ruff_cache .hypothesis .benchmarks
	find course_utils tests notebooks -name __pycache__ -o -name .ipynb_checkpoints \
		| xargs rm -rf

moved:
	@echo "This clone was copied or moved since .venv was made: it is made anew"
	@rm -rf .venv

$(BIN)/python: $(MOVED)
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) was not found. Install Python 3.11 or newer, or name one:" \
			"make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); the course needs Python 3.11 or newer." \
			"Name one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module. Install it (Debian, Ubuntu: apt install" \
			"python3-venv) or name another Python: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

$(INSTALLED): pyproject.toml constraints.txt $(MOVED) | $(BIN)/python
	@echo "Installing into .venv (the first time this takes some minutes)"
	@$(PIP) --editable '.[dev]' </dev/null
	@touch $@

$(INSTALLED_BOOK): $(INSTALLED)
	@$(PIP) --editable '.[dev,book]' </dev/null
	@touch $@
