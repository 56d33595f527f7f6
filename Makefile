PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Each run remembers by itself what failed, so that it can be tried again.
PYTEST = $(BIN)/python -m pytest -rs -o cache_dir=.pytest_cache/$@

.PHONY: setup run test test-compiled check interop crash chaos soak sim bench pb lock \
	test-parts test-processes test-compiled-parts test-compiled-processes

$(VENV)/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	KVORUM_COMPILE=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The hot modules, compiled in place; without a C compiler they run from source, as in the tests.
$(VENV)/.compiled: $(VENV)/.ready setup.py $(shell find src/kvorum -name '*.py')
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

setup: $(VENV)/.compiled

run: setup
	$(BIN)/kvorum

# Two halves side by side: the tests of processes and clusters mostly wait.
JOBS ?= 2
SIDE_BY_SIDE = $(MAKE) --no-print-directory --keep-going --output-sync=target -j$(JOBS)
PROCESSES := $(addprefix tests/,bench bootstrap cli cluster crash differential)

# On the sources, as they are.
test: $(VENV)/.ready
	$(SIDE_BY_SIDE) test-processes test-parts

test-processes: $(VENV)/.ready
	KVORUM_PLAIN=1 $(PYTEST) $(PROCESSES)

test-parts: $(VENV)/.ready
	KVORUM_PLAIN=1 $(PYTEST) $(addprefix --ignore=,$(PROCESSES) tests/interop tests/chaos)

# On the compiled modules: the tests of what they are part of, but for those that reach into one,
# and for those of the tests' own means.
test-compiled: setup
	$(SIDE_BY_SIDE) test-compiled-processes test-compiled-parts

test-compiled-processes: setup
	$(PYTEST) -m "not plain" $(addprefix tests/,cluster crash differential) \
		--ignore=tests/crash/test_checks.py --ignore=tests/differential/test_planted.py

test-compiled-parts: setup
	$(PYTEST) -m "not plain" \
		$(addprefix tests/,compiled api backend embed h2 lease mvcc peer raft server wal)

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Other people's clients and binaries against members; members on a network that fails.
interop: setup
	$(PYTEST) tests/interop tests/chaos

# Kills and failpoints, over and over: CYCLES=200 for a closing run.
CYCLES ?= 50
crash: setup
	$(BIN)/python -m pytest tests/crash --crash-cycles $(CYCLES) --crash-long

# Three members on a network of namespaces, which wants root: kills, pauses, partitions, loss.
MINUTES ?= 10
chaos: setup
	$(BIN)/python -m pytest tests/chaos tests/interop/test_mixed.py -rs -s --interop-long \
		--chaos-seconds $$(($(MINUTES) * 60))

soak: setup
	$(BIN)/python -m bench.soak --minutes $(MINUTES)

# Simulated clusters, on all cores: SEED=n to begin with that seed. `python -m sim --bugs` plants bugs.
SEEDS ?= 200
sim: setup
	$(BIN)/python -m sim --seeds $(SEEDS) $(if $(SEED),--seed $(SEED))

# ARGS="--million", ARGS="--only put*": see bench/README.md.
bench: setup
	$(BIN)/python -m bench $(ARGS)

pb: setup
	$(BIN)/python tools/build_pb.py

lock: setup
	$(BIN)/python -m pip freeze --exclude-editable > requirements.lock
