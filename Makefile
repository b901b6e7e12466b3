# train, test and lint each make .venv first if it is missing or if pyproject.toml changed. pip's own configuration
# (index, proxy, cache, links) is the user's: nothing here overrides it.

# Of python3's version the fastest on this machine: pyenv's default build takes half as long again as a distribution's.
PYTHON ?= $(eval PYTHON := $(or $(shell python3 benchmarks/python_choice.py),python3))$(PYTHON)
EXTRA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
LAYERS ?= unit bench ray serve chaos e2e
# Test processes of a layer; those that count replicas or kill nodes have the machine to themselves.
PROCESSES ?= 2
ALONE := serve chaos

BIN := .venv/bin
STAMP := .venv/.filled-$(EXTRA)
CONFIG := configs/train/$(if $(SMOKE),smoke,main).yaml
OUT ?= runs/$(if $(SMOKE),smoke,main)$(if $(SEED),-seed$(SEED))
OPTIONS := --config $(CONFIG) --output-dir $(OUT) $(if $(SEED),--seed $(SEED)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help venv assets train test test-unit lint format clean

help:
	@echo "make train [SMOKE=1] [SEED=n] [OUT=folder] [ARGS='--set grpo.num_steps=40']   train, evaluate, write the report"
	@echo "make test [LAYERS='unit ray']   all layers of tests; make test-unit   the first one"
	@echo "make lint   ruff and pyright;   make format   ruff's fixes;   make assets   download the real images and weights"

venv: $(STAMP)

# One pip command: the resolver must see the engine's exact torch together with everything else.
$(STAMP): pyproject.toml medvista_ray/torchvision_shim.py
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, %d.%d was found: make PYTHON=python3.11" % v)'
# One that another interpreter made cannot be filled again: it is made anew.
	clear=; who='import sys; print(sys.base_prefix, sys.version)'; [ "$$($(BIN)/python -c "$$who" 2>&1)" = "$$($(PYTHON) -c "$$who")" ] \
		|| clear=--clear; $(PYTHON) -m venv $$clear .venv
	$(BIN)/python -m pip install --editable ".[$(EXTRA),dev]"
	$(BIN)/python -m medvista_ray.torchvision_shim
# The CPU engine asks for torchaudio and torchcodec, which are CUDA builds and break transformers' import; nothing here hears.
	$(BIN)/python -c "import torchaudio" 2>/dev/null || $(BIN)/python -m pip uninstall --yes torchaudio torchcodec
	$(BIN)/python -c "import torch, torchvision, transformers.image_processing_utils"
	@touch $@

assets: $(STAMP)
	$(BIN)/medvista-ray assets fetch

train: assets
	$(BIN)/python -m medvista_ray.train $(OPTIONS)
	$(BIN)/medvista-ray summary $(OUT)

# A process per layer, the fastest first: what one leaves behind cannot reach the next, and a slip shows early.
test: assets
	@set -e; begin=$$(date +%s); \
	for layer in $(LAYERS); do \
		ls tests/$$layer/test_*.py >/dev/null 2>&1 || continue; \
		echo "== $$layer"; start=$$(date +%s); \
		case " $(ALONE) " in *" $$layer "*) processes=0 ;; *) processes=$(PROCESSES) ;; esac; \
		$(BIN)/python -m pytest tests/$$layer --durations=5 --numprocesses=$$processes --dist=loadfile --no-loadscope-reorder; \
		echo "== $$layer: $$(( $$(date +%s) - start )) s"; \
	done; \
	echo "== all layers: $$(( $$(date +%s) - begin )) s"

test-unit:
	@$(MAKE) --no-print-directory test LAYERS=unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
