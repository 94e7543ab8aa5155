# make run    environment, installation, the main job: three checks of one port
# make test   environment, installation, lint, types, tests
# make quick  the same without the slow tests
# make corpus the planted defects that `make test` leaves out (many minutes)
# make docs   the documentation as a site, in out/site
# make ports  what crosscheck says of ports that nobody here wrote (installs KerasHub)
# Everything lives in .venv; nothing is installed twice.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Its interpreter runs the kernels for a GPU. No dependency: a CUDA build of PyTorch brings the one
# that it asks for. From 3.7 on it aborts in a process that has loaded TensorFlow 2.21.
TRITON := triton==3.6.0

export TF_CPP_MIN_LOG_LEVEL ?= 3
export CUDA_VISIBLE_DEVICES ?= -1

.DEFAULT_GOAL := help
.PHONY: help run test quick lint corpus defects docs ports clean

help:
	@sed -n '1,7s/^# //p' Makefile

# PyTorch first and by its exact version: a range would admit a newer build with gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "crosscheck needs Python 3.11 or newer; set PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@$(BIN)/python -c 'import triton' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(TRITON) || \
	  echo "no Triton for this system: tests of the kernels for a GPU will be skipped"
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/python scripts/main_job.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

quick: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

corpus: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m corpus

defects: $(STAMP)
	$(BIN)/python scripts/planted_defects.py

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Without its dependencies: those bring TensorFlow with CUDA and a tokenizer library, and a backbone
# with given token ids needs neither.
ports: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  keras-hub==0.32.0 kagglehub==1.0.2 kagglesdk==0.1.28 sentencepiece==0.2.3
	$(BIN)/python -m pytest tests/ports

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache out
