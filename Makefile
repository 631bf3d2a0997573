# Two commands, from a fresh clone: `make demo` asks the bundled model about a picture; `make test`
# runs the four gates. Both do their own set-up in .venv/ and are quick the second time.
#
# Needs Python >= 3.10 (with venv), a C++ compiler and make. CMake is not needed: the build of
# llama-cpp-python fetches its own. Which index pip uses is up to pip's own configuration.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
SETTINGS := pyproject.toml constraints.txt

# llama.cpp compiles for minutes on one core; where Ninja is missing, make would take just one.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(CORES)

.PHONY: help demo test lint format clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    set up, then: llava ask docs/example.png \"what is unusual here?\""
	@echo "make test    set up, then: ruff, mypy, import-linter, pytest"
	@echo "make lint    the same without pytest"
	@echo "make format  rewrite the code as ruff formats it"
	@echo "make clean   remove .venv and the tools' caches"

demo: $(VENV)/.base
	$(BIN)/llava ask docs/example.png "what is unusual here?"

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.all
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "llava needs Python 3.10 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# A stamp per kind of install, older than the settings when these changed. The fuller one makes both.
$(VENV)/.base: $(SETTINGS) | $(BIN)/python
	@echo "Installing into $(VENV). The first time compiles llama.cpp, which takes some minutes."
	$(PIP) -e .
	@touch $@

$(VENV)/.all: $(SETTINGS) | $(BIN)/python
	@echo "Installing into $(VENV). The first time compiles llama.cpp, which takes some minutes."
	$(PIP) -e '.[all,dev]'
	@touch $(VENV)/.base $@
