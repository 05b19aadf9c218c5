# Everything sets up its own environment: .venv, made once and reused until a requirements file changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# the demo: two models with their real weights, three threats with budgets that fit two CPU cores; `+` stands for a space
EVALUATE := $(BIN)/python evaluate_robustness.py --results_dir results/demo --overwrite --examples 4
DEMO_THREATS := clean Linf+--eps+0.25/255+0.5/255+1/255+--attacks+apgd-ce+apgd-t+--steps+20+--targets+3 L2+--protocol+crossing+--steps+50

.PHONY: demo test test-all lint clean
demo: $(VENV)/.ready
	$(foreach model,tf_efficientnet_lite0 tf_efficientnet_lite1,$(foreach threat,$(DEMO_THREATS),\
	$(EVALUATE) --model_name $(model) $(subst +, ,$(threat)) && )) true
	$(BIN)/python utilities.py merge --results_dir results/demo
	$(BIN)/python plotting.py --results_dir results/demo --figures_dir figures/demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q

test-all: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -m ""

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/mypy *.py

$(VENV)/.ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) figures results/demo
