# setup · run · test · check · bench · smoke · faults · soak · autobahn — `make help` says what each does.
#
# Everything is installed into the checkout: Python packages in .venv, npm packages in
# clients/typescript/node_modules, a browser for tests in .runwire/browser where there is none.
# Needs Python 3.11 or newer and make; Node comes from PyPI where there is no recent one.

PYTHON ?= python3
PORT ?= 8420
# Most tests wait more than they compute.
TEST_PROCESSES ?= 4
# ONCE_MORE=1 runs what failed once more, alone: what passes then is named as FLAKY and fails nothing.
ONCE_MORE ?=

BIN := .venv/bin
TYPESCRIPT := clients/typescript
DASHBOARD := realtime/runwire_realtime/dashboard/index.html
BROWSER := .runwire/browser/chromium
PYTHON_READY := .venv/.python-ready
NODE_READY := .venv/.node-ready
NPM_READY := $(TYPESCRIPT)/node_modules/.npm-ready
OFFICIAL := tests/support/official_sdk
OFFICIAL_READY := $(OFFICIAL)/node_modules/.npm-ready
PEERS := tests/benchmarks/peers
PEERS_INSTALL := .runwire/peers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r
PEERS_READY := $(PEERS)/node_modules/.npm-ready .runwire/peers/.python-ready

# Node and npm of the wheel, if it was installed, come before the system's.
export PATH := $(CURDIR)/$(BIN):$(PATH)

# The browser of the tests: $CHROMIUM, or one on the PATH, or one we unpack here.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable)
ifeq ($(strip $(CHROMIUM)),)
ifeq ($(shell uname -sm),Linux x86_64)
CHROMIUM := $(CURDIR)/$(BROWSER)
BROWSER_READY := $(BROWSER)
endif
endif
export CHROMIUM

# The tests of faults as long as the table in docs/design/delivery.md has them.
LONG := RUNWIRE_SURVIVAL_RUNS=1000 RUNWIRE_SURVIVAL_ROUNDS=5 RUNWIRE_OUTAGE_SECONDS=10 RUNWIRE_FOREIGN_SECONDS=60 \
	RUNWIRE_EXAMPLES=random RUNWIRE_METADATA_EXAMPLES=2000 RUNWIRE_CRON_EXAMPLES=1000 RUNWIRE_MODEL_EXAMPLES=2000 RUNWIRE_MODEL_STEPS=80 RUNWIRE_MUTANTS_SEED=0 \
	RUNWIRE_ORACLE_SECONDS=120 RUNWIRE_ORACLE_CLIENTS=200 RUNWIRE_ORACLE_RUNS=1000 \
	RUNWIRE_HUBS_CLIENTS=500 RUNWIRE_HUBS_ROUNDS=3 RUNWIRE_VERSIONS_RUNS=100 RUNWIRE_STORM_RUNS=2000 RUNWIRE_RACES=1000 \
	RUNWIRE_HELD_RUNS=1000 RUNWIRE_CLAIMED_RUNS=10000 RUNWIRE_DUE_RUNS=100000 RUNWIRE_FAIR_RUNS=10000 \
	RUNWIRE_TICKS=1000 RUNWIRE_TICKS_KILLS=20 RUNWIRE_CANCEL_CHILDREN=10000 RUNWIRE_CROWD=1000 RUNWIRE_INPUT_KILLS=40 RUNWIRE_SLEEP=60 RUNWIRE_SLEEP_SECONDS=45 RUNWIRE_STALL_SECONDS=60 RUNWIRE_EVERY_OFFSET=1 RUNWIRE_LEAK_CYCLES=40

# What must hold without LISTEN as well, but for the few tests whose subject is how soon.
BEHIND_POOLER := $(foreach name,streams run_metadata outcomes triggers batches claims runs workers changes worker runtime,tests/engine/test_$(name).py) \
	$(foreach name,websocket sse api_runs api_streams api_batches mounted worker,tests/realtime/test_$(name).py) \
	--deselect tests/engine/test_worker.py::test_a_limited_queue_is_kept_and_its_next_run_starts_at_once \
	--deselect tests/realtime/test_websocket.py::test_a_revoked_token_ends_its_sockets

SOURCES := $(shell find $(TYPESCRIPT) -name node_modules -prune -o -name dist -prune -o -type f -print 2>/dev/null)

.DELETE_ON_ERROR:
.PHONY: help setup run test check bench smoke faults soak autobahn wire lock clean

help: ## Say what each target does
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST)

setup: $(PYTHON_READY) $(DASHBOARD) $(OFFICIAL_READY) $(BROWSER_READY) ## Install everything into the checkout and build the dashboard

run: $(PYTHON_READY) $(DASHBOARD) ## Start it all with the examples: make run PORT=8420
	@$(BIN)/runwire dev --port $(PORT) --data .runwire docs.examples.ask docs.examples.import_csv docs.examples.digest_folder

test: setup ## Run every test, Python and TypeScript
	$(BIN)/python -m $(if $(ONCE_MORE),tests.once_more,pytest) -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)
	npm --prefix $(TYPESCRIPT) test

check: setup ## Everything CI runs: style, types, import rules, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	npm --prefix $(TYPESCRIPT) run check
	$(MAKE) test

bench: setup $(PEERS_READY) ## Measure, as ratios against peers run in turn (half an hour)
	$(BIN)/python -m tests.benchmarks

smoke: setup $(PEERS_READY) ## Each benchmark once and short: whether it runs, not what it says
	$(BIN)/python -m tests.benchmarks --rounds 1 --short

faults: setup ## Only the tests of faults, made longer, and more of them behind PgBouncer; RUNWIRE_FAULTS_SEED=… for the same again
	$(LONG) $(BIN)/python -m pytest -m faults -rP
	RUNWIRE_CRON_EXAMPLES=3000 RUNWIRE_TEST_EMBEDDED=1 $(BIN)/python -m pytest tests/engine/test_cron.py tests/realtime/test_testing.py
	RUNWIRE_TRIES=10000 $(BIN)/python -m pytest tests/realtime/test_exactness.py
	RUNWIRE_GROWN_RUNS=60000 $(BIN)/python -m pytest tests/engine/test_growth.py
	RUNWIRE_BLOCKED_SECONDS=30 $(BIN)/python -m pytest tests/engine/test_odd_tasks.py
	RUNWIRE_INPUT_RUNS=30 RUNWIRE_LONG_STREAM=100000 $(BIN)/python -m pytest tests/engine/test_input_waits.py tests/clients/test_streams_live.py
	RUNWIRE_TEST_POOLER=1 $(BIN)/python -m pytest $(BEHIND_POOLER)

soak: setup ## 1 000 idle sockets and a steady load for RUNWIRE_SOAK_SECONDS (1800): what the hub holds
	RUNWIRE_SOAK_SECONDS=$${RUNWIRE_SOAK_SECONDS:-1800} RUNWIRE_SOAK_SOCKETS=1000 $(BIN)/python -m pytest tests/soak -rP

autobahn: setup ## All cases of Autobahn|Testsuite on server and Python client; needs a Python 2.7
	$(BIN)/python -m tests.autobahn

wire: $(PYTHON_READY) ## Write the TypeScript constants of the wire from the Python ones
	$(BIN)/python $(TYPESCRIPT)/codes.py

lock: $(PYTHON_READY) ## Resolve the Python dependencies anew: LOCK_FLAGS=--upgrade for newer ones
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) pyproject.toml --extra server --extra embedded --group test --group check --group build -o requirements.lock
	$(COMPILE) --group node -o requirements-node.lock
	$(COMPILE) $(PEERS)/requirements.in -o $(PEERS)/requirements.txt
	$(COMPILE) $(PEERS)/compiler.in -o $(PEERS)/compiler.txt

clean: ## Remove what setup and the tests made; the data of `make run` stays
	rm -rf .venv $(TYPESCRIPT)/node_modules $(OFFICIAL)/node_modules $(PEERS)/node_modules $(dir $(DASHBOARD))
	rm -rf .runwire/autobahn .runwire/bench .runwire/browser .runwire/cache .runwire/peers .runwire/test-postgres
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache .schemathesis

COMPILE = $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet $(LOCK_FLAGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Runwire needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "This Python cannot make virtual environments (on Debian: apt install python3-venv)" >&2; exit 1; }

# --no-build-isolation: what builds our package is locked like everything else.
$(PYTHON_READY): requirements.lock pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The dashboard's build needs 20.19: an older Node, or none, or one without npm, means the wheel's.
$(NODE_READY): requirements-node.lock | $(PYTHON_READY)
	node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null && npm --version >/dev/null 2>&1 \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-node.lock
	@touch $@

$(NPM_READY): $(TYPESCRIPT)/package-lock.json | $(NODE_READY)
	cd $(TYPESCRIPT) && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(OFFICIAL_READY): $(OFFICIAL)/package-lock.json | $(NODE_READY)
	cd $(OFFICIAL) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

$(PEERS)/node_modules/.npm-ready: $(PEERS)/package-lock.json | $(NODE_READY)
	-cd $(PEERS) && npm ci --no-audit --no-fund --loglevel=error && touch node_modules/.npm-ready

# A peer that cannot be installed here is named in the tables, and tried again the next time.
.runwire/peers/.python-ready: $(PEERS)/requirements.txt $(PEERS)/compiler.txt | $(PYTHON_READY)
	$(PYTHON) -m venv .runwire/peers
	-command -v cc >/dev/null || $(PEERS_INSTALL) $(PEERS)/compiler.txt
	-$(PEERS_INSTALL) $(PEERS)/requirements.txt && touch $@

$(DASHBOARD): $(NPM_READY) $(SOURCES)
	cd $(TYPESCRIPT) && npm run --silent build
	@touch $@

$(BROWSER): tests/support/chromium/package-lock.json tests/support/chromium/unpack.mjs | $(NODE_READY)
	mkdir -p $(dir $@)
	cp tests/support/chromium/package.json tests/support/chromium/package-lock.json $(dir $@)
	cd $(dir $@) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	node tests/support/chromium/unpack.mjs $(dir $@)
	rm -rf $(dir $@)node_modules
