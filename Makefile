# make demo    set up .venv and run a fleet here (ARGS="--devices 8 --data DIR" is handed on)
# make test    set up .venv with the development tools and run every test
# make setup   set up .venv and run nothing (EXTRAS=microphone adds the sound card)
# make check   format, lint and types
# make clean   remove .venv and the tools' caches
#
# PYTHON=python3.12 chooses the interpreter .venv is made from; CUDA=1 keeps torch's CUDA build where no driver is seen.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo setup test check clean

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that runs and is new enough: python3, or another one installed beside an old python3.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
TORCH := $(shell sed -n 's/^ *"torch==\([0-9.]*\)",$$/\1/p' pyproject.toml)
PIP := $(BIN)/python -m pip --disable-pip-version-check
PATHS := common device trainer broker streamsplit.py tests
ARGS ?=
EXTRAS ?=
PYTEST_ARGS ?=
CUDA ?=

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/.ready
	$(BIN)/streamsplit demo $(ARGS)

setup: $(VENV)/.ready
	@[ -z "$(EXTRAS)" ] || $(PIP) install --quiet --prefer-binary --editable '.[$(EXTRAS)]'

# Two workers for two cores: most tests wait for processes and sockets. One torch thread each, or they fight.
test: $(VENV)/.ready-development
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

check: $(VENV)/.ready-development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict $(PATHS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

# What stands ready is remembered in a file newer than pyproject.toml, so that a second call starts at once.
$(VENV)/.ready-development: $(VENV)/.ready
	$(PIP) install --quiet --prefer-binary --editable '.[development]'
	@touch $@

$(VENV)/.ready: pyproject.toml $(VENV)/.torch-$(TORCH)
	$(PIP) install --quiet --prefer-binary --editable .
	@$(BIN)/python -c 'import soundfile' || { echo 'soundfile finds no libsndfile: sudo apt-get install libsndfile1' >&2; exit 1; }
	$(BIN)/python -m common.torchaudio_setup
	@touch $@

# torch from the default index is a CUDA build on Linux, x86-64 and arm64 alike, with several GB of libraries that a
# machine without an NVIDIA card never uses. So there: the CPU build if pip's own settings offer one, else through uv,
# which knows where the CPU builds are; where neither is to be had, what the default index has.
$(VENV)/.torch-$(TORCH): | $(BIN)/python
	@if [ "$$(uname -s)" != Linux ] || [ -n "$(CUDA)" ] || [ -e /proc/driver/nvidia ]; then \
	  $(PIP) install --prefer-binary 'torch==$(TORCH)'; \
	elif $(PIP) install --quiet --prefer-binary 'torch==$(TORCH)+cpu' 2>/dev/null; then \
	  echo 'torch $(TORCH): the CPU build that pip is set up to find'; \
	elif $(PIP) install --quiet uv && $(BIN)/uv pip install --python $(BIN)/python --torch-backend cpu 'torch==$(TORCH)'; then \
	  echo 'torch $(TORCH): the CPU build, through uv'; \
	else \
	  echo 'No CPU build of torch could be reached: installing the default one, which brings several GB of CUDA.' >&2; \
	  $(PIP) install --prefer-binary 'torch==$(TORCH)'; \
	fi
	@touch $@

$(BIN)/python:
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c '$(NEW_ENOUGH)' || \
	  { echo 'StreamSplit needs Python 3.11 or newer on PATH; name one with make PYTHON=…' >&2; exit 1; }
	@case "$$(uname -sm)" in \
	  'Linux armv'*|'Linux i'?86) echo 'torch has no 32-bit build: install the 64-bit operating system.' >&2; exit 1;; \
	  'Darwin x86_64') echo 'torch $(TORCH) has no build for Intel Macs.' >&2; exit 1;; \
	esac
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make a virtual environment: sudo apt-get install" \
	    "python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
