# What a person types. Everything lives in .venv, made from requirements.lock; the tests of the 3D Slicer extension
# have an environment of their own, .venv-slicer, made from requirements-slicer.lock.

PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3.10 python3,$(if $(shell $(p) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo ok),$(p))))
VENV := .venv
BIN := $(VENV)/bin
SLICER := .venv-slicer
# pip names each package as it fetches it: minutes without a word look like a machine that hangs.
PIP := --disable-pip-version-check --no-deps

.PHONY: demo test test-main test-slicer check lint bench results clean

demo: $(VENV)/.installed
	$(BIN)/dcaf demo demo

test: test-main test-slicer

test-main: $(VENV)/.installed
	$(BIN)/python -m pytest

# The extension's tests drive the real server, which runs in the main environment.
test-slicer: $(VENV)/.installed $(SLICER)/.installed
	cd tests/slicer && QT_QPA_PLATFORM=offscreen ../../$(SLICER)/bin/python -m pytest

check: lint test

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# Every experiment of docs/results.md again: make results DATA=path/to/index.csv
results: $(VENV)/.installed
	@test -n "$(DATA)" || { echo "DATA: need the table of the images. Say make results DATA=path/to/index.csv."; exit 2; }
	$(BIN)/python -m benchmarks.results --data "$(DATA)" $(RESULTS)

$(VENV)/.installed: requirements.lock requirements-py310.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "python: need Python 3.10 to 3.12 on the PATH. Install one, or say make PYTHON=/path/to/python."; exit 2; }
	@echo "Making $(VENV) (about 7 GB with PyTorch, a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP) \
		-r $$($(BIN)/python -c 'import sys; print("requirements.lock" if sys.version_info >= (3, 11) else "requirements-py310.lock")')
	$(BIN)/python -m pip install $(PIP) --quiet --no-build-isolation -e .
	@touch $@

$(SLICER)/.installed: requirements-slicer.lock
	@test -n "$(PYTHON)" || { echo "python: need Python 3.10 to 3.12 on the PATH. Install one, or say make PYTHON=/path/to/python."; exit 2; }
	@echo "Making $(SLICER) (about 1.5 GB with slicer-core, VTK and Qt, a minute the first time) ..."
	$(PYTHON) -m venv --clear $(SLICER)
	$(SLICER)/bin/python -m pip install $(PIP) -r requirements-slicer.lock
	@touch $@

clean:
	rm -rf $(VENV) $(SLICER) build demo
