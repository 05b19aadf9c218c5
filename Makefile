# Everything runs in .venv. make builds it from the lock files, and updates it when they change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# PyPI's torch brings CUDA 13 to every Linux. For one without a GPU, in a fresh clone:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# for a driver older than 580, and for a V100 or P100, with cu128 and cu126 in the place of cpu.
TORCH_INDEX ?=
TORCH := $(shell grep -E '^torch(vision)?==' requirements.txt)

# The demo: two models with their real weights, three threats with budgets that fit two CPU cores.
# `make demo DEVICE=cpu` leaves a GPU alone that torch cannot use.
DEVICE ?= auto
EVALUATE := $(BIN)/python evaluate_robustness.py --results_dir results/demo --overwrite \
    --device $(DEVICE)
LINF := Linf --eps 0.25/255 0.5/255 1/255 --attacks apgd-ce apgd-t --steps 20 --targets 3 \
    --examples 4
L2 := L2 --protocol crossing --steps 50 --examples 4

.PHONY: demo figures test test-all test-htcondor test-slurm test-page lint lock clean

demo: $(VENV)/.ready
	$(EVALUATE) --model_name tf_efficientnet_lite0 clean
	$(EVALUATE) --model_name tf_efficientnet_lite0 $(LINF)
	$(EVALUATE) --model_name tf_efficientnet_lite0 $(L2)
	$(EVALUATE) --model_name tf_efficientnet_lite1 clean
	$(EVALUATE) --model_name tf_efficientnet_lite1 $(LINF)
	$(EVALUATE) --model_name tf_efficientnet_lite1 $(L2)
	$(BIN)/python utilities.py merge --results_dir results/demo
	$(BIN)/python plotting.py --results_dir results/demo --figures_dir figures/demo

# Draws the figures of a results folder, in an environment of its own without torch:
#   make figures RESULTS=results/mine FIGURES=figures/mine
RESULTS ?= results/sample
FIGURES ?= figures/sample
figures: $(VENV)-figures/.ready
	$(VENV)-figures/bin/python plotting.py --results_dir $(RESULTS) --figures_dir $(FIGURES)

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q --cov --cov-report=term --cov-fail-under=90

test-all: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -m "" --durations=30

# Run the tests of a scheduler in a real pool: Debian's build of it, unpacked into .venv. Where it
# cannot be installed, the tests are skipped and give the reason.
test-htcondor: $(VENV)/.ready-dev
	tests/pool/test.sh condor $(VENV) tests/cluster/test_htcondor.py

test-slurm: $(VENV)/.ready-dev
	tests/pool/test.sh slurm $(VENV) tests/cluster/test_slurm.py

# Tests the HTML page in Debian's Chromium, unpacked into .venv; without one they are skipped.
test-page: $(VENV)/.ready-dev
	-tests/browser/install.sh $(VENV)/browser
	$(BIN)/python -m pytest -q -rs --reruns 2 tests/plots/test_report_page.py

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/hadolint Dockerfile

# Run this after a change of a requirements file. It keeps the versions that the locks already name
# where they still fit; delete the locks first to get the newest ones.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --annotation-style line --custom-compile-command "make lock"

lock: $(BIN)/python
	$(PIP) uv==0.13.9
	$(COMPILE) requirements.txt --output-file locks/requirements.txt
	$(COMPILE) requirements-figures.txt --constraints locks/requirements.txt \
	    --output-file locks/requirements-figures.txt
	$(COMPILE) requirements-dev.txt --constraints locks/requirements.txt \
	    --output-file locks/requirements-dev.txt
	$(COMPILE) requirements.txt requirements-htcondor.txt --constraints locks/requirements.txt \
	    --excludes locks/base-image.txt --output-file locks/requirements-docker.txt
	$(COMPILE) requirements-brainscore.txt requirements-htcondor.txt \
	    --excludes locks/base-image.txt --output-file locks/requirements-brainscore.txt

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# The second command of each installs nothing. It fails where a lock misses a pin: run `make lock`.
$(VENV)/.ready: requirements.txt locks/requirements.txt | $(BIN)/python
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) $(TORCH))
	$(PIP) --require-hashes -r locks/requirements$(if $(TORCH_INDEX),-docker).txt
	$(PIP) --no-index -r requirements.txt
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt requirements-htcondor.txt \
    locks/requirements-dev.txt
	$(PIP) --require-hashes -r locks/requirements-dev.txt
	$(PIP) --no-index -r requirements-dev.txt
	touch $@

$(VENV)-figures/.ready: requirements-figures.txt locks/requirements-figures.txt
	$(PYTHON) -m venv $(VENV)-figures
	$(VENV)-figures/bin/python -m pip install --quiet --require-hashes \
	    -r locks/requirements-figures.txt
	$(VENV)-figures/bin/python -m pip install --quiet --no-index -r requirements-figures.txt
	touch $@

# Keeps the figures that are committed.
clean:
	rm -rf $(VENV) $(VENV)-figures figures/demo results/demo
	test ! -e .git || git clean -fdXq figures
