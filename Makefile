# make demo | test | quick | lint | bench | hear | clean
#
# Each target first makes the part of .venv that it needs, or finds it made.
# PYTHON       the Python 3.11 to make .venv with (default: python3.11, else python3)
# PYTEST_ARGS  further arguments of pytest, e.g. PYTEST_ARGS="-k registry -x"
# WORKERS      processes that share the tests, a file at a time (default: 2; 0: this one)
# CHECKPOINTS, TASKS, HEAR_ARGS   of make hear; without them tools/hear.py decides

PYTHON ?=
PYTEST_ARGS ?=
WORKERS ?= 2
CHECKPOINTS ?=
TASKS ?=
HEAR_ARGS ?=
export PYTHON

# Paths are relative: the folder's own name may hold spaces.
PY := .venv/bin/python
ENV := sh tools/make_env.sh
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test quick lint bench hear env-core env-hear clean

help:
	@echo "make demo    a checkpoint under every protocol on a small HEAR task; events of one recording"
	@echo "make test    the whole test suite, stock HEAR tools included (needs a C compiler)"
	@echo "make quick   the tests that take under 3 minutes together"
	@echo "make lint    ruff: rules and format"
	@echo "make bench   speed and memory: backbones, live detection, metrics, ONNX, protocol hear, pre-training"
	@echo "make hear    stock heareval: CHECKPOINTS=\"beats.strong ...\" TASKS=\"FOLDER ...\""
	@echo "make clean   remove .venv and caches"

env-core:
	@$(ENV) core

env-hear:
	@$(ENV) hear

demo: env-core
	@$(PY) examples/demo.py

test: env-hear
	@$(PYTEST) $(PYTEST_ARGS)

quick: env-hear
	@$(PYTEST) -m "not slow and not hear" $(PYTEST_ARGS)

lint: env-core
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

# the front end is compared with torchaudio, which is on the HEAR level
bench: env-hear
	@$(PY) -m benchmarks.embed
	@$(PY) -m benchmarks.sequence_models
	@$(PY) -m benchmarks.streaming
	@$(PY) -m benchmarks.metrics
	@$(PY) -m benchmarks.export
	@$(PY) -m benchmarks.hear_protocol --bf16
	@$(PY) -m benchmarks.block_heads
	@$(PY) -m benchmarks.data_path
	@$(PY) -m benchmarks.training

hear: env-hear
	@$(PY) tools/hear.py $(if $(CHECKPOINTS),--checkpoints $(CHECKPOINTS)) $(if $(TASKS),--tasks $(TASKS)) $(HEAR_ARGS)

clean:
	rm -rf .venv .venv.new .venv.old .venv.lock build dist hear_pretrainedsed.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./.git/*" -prune -exec rm -rf {} +
