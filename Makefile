# Everything a fresh clone needs: Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# A run of the tests starts hundreds of processes: modules are compiled once, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help cpu demo test quick lint docs bench soak requirements clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mimbench needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

cpu:  ## .venv for machines without a GPU: torch for the CPU, no CUDA, no development tools (about 1.5 GB); WHEELS=DIR offline
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	@$(BIN)/uv pip install --quiet --compile-bytecode $(if $(WHEELS),--find-links $(WHEELS),--torch-backend cpu) \
		--constraint requirements.txt --python $(BIN)/python --editable . || { echo "make cpu: torch and torchvision for the CPU are in PyTorch's own package index. Where it cannot be reached, put their wheels in a folder and run \`make cpu WHEELS=FOLDER\`" >&2; exit 1; }
	@$(BIN)/python -c 'import torch; assert torch.version.cuda is None, f"make cpu: torch {torch.__version__} is not for the CPU"'
	@touch $(VENV)/.installed

demo: $(VENV)/.installed  ## pretrain, evaluate and report on this machine, in minutes
	$(BIN)/mimbench demo

test: $(VENV)/.installed  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

quick: $(VENV)/.installed  ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

lint: $(VENV)/.installed  ## ruff, mypy and codespell, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

docs: $(VENV)/.installed  ## the pages of docs/ as a site, in build/docs
	$(BIN)/mkdocs build --strict --quiet
	@echo build/docs/index.html

# not a measurement of their own, or with data, an encoder, a SLURM or a GPU to name
NOT_ALONE := asha crossmae_plain det_overfit gpu gpu_attention gpu_peer gpu_rates measure seg_overfit
BENCHMARKS := $(filter-out $(NOT_ALONE:%=benchmarks/%.py),$(sort $(wildcard benchmarks/*.py)))

bench: $(VENV)/.installed  ## side-by-side measurements of benchmarks/, with their floors (an hour or two; wants an idle machine)
	@failed=; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; done; \
		[ -z "$$failed" ] || { echo "failed or below a floor:$$failed" >&2; exit 1; }

soak: $(VENV)/.installed  ## every published recipe on the lowest and the newest allowed torch, timm, Pillow, numpy
	$(BIN)/python tests/soak/versions.py

requirements: $(VENV)/.installed  ## compile requirements.txt from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate --no-header --no-emit-index-url \
		--output-file requirements.txt pyproject.toml

clean:  ## remove the virtual environment and caches (runs stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
