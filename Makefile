# Everything a contributor runs; CI runs the same (.ci/run). `make` alone lists the targets.

# The first of these that is 3.11 to 3.13 and can make environments; or `make PYTHON=/path/to/it`.
IS_USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
CANDIDATES := python3 python3.13 python3.12 python3.11
PYTHON ?= $(firstword $(foreach name,$(CANDIDATES),\
	$(shell $(name) -c '$(IS_USABLE)' >/dev/null 2>&1 && echo $(name))))

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
LAYERS ?= 8
MIX ?= queries passages

.DEFAULT_GOAL := help
.PHONY: help install check format test e2e real parity triton gpu bench perf demo clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## make .venv with what all targets need (once, some minutes)

# torch first: with it there, the ranges of other packages are met and nothing newer is fetched.
.venv/.installed: pyproject.toml constraints.txt
	@$(PIP) --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { \
			echo "error: no Python 3.11 to 3.13 with the venv module was found" >&2; \
			echo "fix: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 3; }; \
		echo "making .venv with $(PYTHON)"; $(PYTHON) -m venv --clear .venv; }
	@echo "installing packages into .venv (once, some minutes)"
	@$(PIP) install -qq -c constraints.txt torch==2.13.0
	@$(PIP) install -qq -c constraints.txt -e '.[export,onnx,tensorrt-rtx,parity,train,train-tracking,dev]'
	@touch $@

check: install ## format, lint and types, as CI checks them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## format the code and sort its imports
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

test: install ## the tests that need no GPU and no network (some minutes)
	$(PYTEST) -q -n auto --maxprocesses 8 --dist worksteal

e2e: install ## a tiny checkpoint all the way to embeddings
	$(PYTEST) -q -m e2e

real: install ## a real 135M model, fetched once (93 MB), on 200 texts
	NVEMBED_REAL_TEXTS=$${NVEMBED_REAL_TEXTS:-200} $(PYTEST) -q -s -m real

parity: install ## the parity gate on graphs of the real 135M model (fetches 93 MB once)
	$(PYTEST) -q -s -m real tests/real/test_parity_job.py

triton: install ## the model repository of runtimes/ in a real Triton server (fetches 100 MB once)
	$(PYTEST) -q -m real tests/real/test_triton.py

gpu: install ## the tests that need an NVIDIA GPU
	$(PYTEST) -q -m gpu

bench: install ## export memory, time and disk at full width; LAYERS=32 is NV-Embed whole (32 GB)
	$(BIN)/python -m benchmarks.lean_export --layers $(LAYERS)

perf: demo ## the demo's speed beside others, held against benchmarks/ratios.toml (10 minutes)
	@mkdir -p build/perf
	$(BIN)/nvembed-deploy export build/demo/checkpoint build/perf/int8-cpu --precision int8-cpu \
		--rounding nearest --overwrite
	$(BIN)/python -m nvembed_deploy.bench fp32=build/demo/artifact int8-cpu=build/perf/int8-cpu \
		--checkpoint build/demo/checkpoint \
		--against sentence-transformers sentence-transformers-best --mix $(MIX) --threads 1 \
		--ratios benchmarks/ratios.toml --json build/perf/bench.json --html build/perf/bench.html

demo: install ## a real 135M decoder to an artifact that searches (fetches 93 MB once)
	$(BIN)/python -m demo.demo

clean: ## remove build outputs and caches; keeps .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
