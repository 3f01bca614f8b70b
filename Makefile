# make demo    from nothing to a trained, linearized model and its report
# make test    lint, format, types and tests
# make gpu     what an NVIDIA GPU does: kernels, decoding, training (GPU="--stages kernels --budget 5")
# make lint, make format, make clean

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
NATIVE := src/yeoul/infer/native
SETUP := Makefile pyproject.toml constraints.txt $(wildcard $(NATIVE)/csrc/*)

# Numeric libraries would start a thread per core in each of the test workers.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help demo test gpu lint format clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# torch goes first and alone: an unpinned wish for it would fetch the newest CUDA build, gigabytes.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Yeoul needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch into $(VENV) ..."
	@$(PIP) "$$(grep '^torch==' constraints.txt)" "$$(grep '^setuptools==' constraints.txt)"
	@touch $@

# setuptools is there by now, so the build needs no environment of its own.
$(VENV)/.demo: $(VENV)/.torch $(SETUP)
	@echo "Installing Yeoul into $(VENV) ..."
	@$(PIP) --no-build-isolation --editable '.[viz,data,gguf,serve]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch $(SETUP)
	@echo "Installing Yeoul and what its tests need into $(VENV) ..."
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/yeoul demo

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(TEST_ENV) $(BIN)/pytest --numprocesses $(WORKERS) --maxprocesses 8

# Installs nothing: the torch that is there was chosen for the driver.
gpu:
	PYTHONPATH=src $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(GPU)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info $(NATIVE)/_step*
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
