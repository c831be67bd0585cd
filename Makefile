# `make pretrain` and `make test` set everything up on a fresh machine; nothing else needs to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes of `make test`, each with one thread.
JOBS ?= 2
RUN := runs/small

.PHONY: setup pretrain test lint format clean help

help:
	@echo "make pretrain   set up, then pretrain a small GraphMERT on the standard library of $(PYTHON) (10 to 20 minutes on two cores)"
	@echo "make test       set up, then run the tests (under 10 minutes on two cores)"
	@echo "make lint       set up, then ruff"
	@echo "make clean      remove the virtual environment and the run"

setup: $(VENV)/installed

$(VENV)/installed: requirements-dev.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "GraphMERT needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version); try make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

pretrain: setup
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/python run_pretraining.py configs/small.yaml --output_dir $(RUN) --resume auto

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(RUN) *.egg-info build
