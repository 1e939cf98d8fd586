# Every target creates what it needs. Requires Python 3.11 or newer, git and make; choose another Python with
#     make test PYTHON=python3.13

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
WORKERS ?= 4
BROWSER := $(or $(KNEO_TEST_BROWSER),$(shell command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable || command -v microsoft-edge))

# Processes start by the hundred in the tests: none of them should have to compile what another one has compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo up test test-all databases crash gates lint types imports schemas fresh sizes format check clean
.DEFAULT_GOAL := help

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{printf "%-16s %s\n", $$1, $$2}'

demo: $(VENV)/.ready-models ## Run the demo: an agent that refunds, asks finance, is evaluated, refused and proved (MODEL=ollama/NAME: with your model)
	@$(BIN)/python -m examples.demo $(if $(MODEL),--model $(MODEL))

up: $(VENV)/.ready-models ## Run the demo and leave the server running
	@$(BIN)/python -m examples.demo --up

.PHONY: console-pictures
console-pictures: $(VENV)/.ready-models $(VENV)/.ready-browser ## Take the pictures of the console in README.md from the demo
	@$(BIN)/python -m examples.console_pictures

READY_TESTS = $(VENV)/.ready-dev $(if $(BROWSER),$(VENV)/.ready-browser)
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist worksteal

# Its cases seldom wait, and each worker reads all tests first.
test: WORKERS = 3
test: $(READY_TESTS) ## Run the short tier of the tests, in five minutes on two cores
	@$(PYTEST) --tier short

test-all: $(READY_TESTS) ## Run all tests, which a change has to pass (AGAIN=yes: those that fail once more, alone)
	@$(PYTEST) --tier all $(if $(AGAIN),|| { [ $$? = 1 ] && $(BIN)/pytest --last-failed --last-failed-no-failures=none -x -rp; })

.PHONY: durations
durations: $(READY_TESTS) ## Record how long each test takes, which decides what the short tier has (FILES=tests/unit for some)
	@$(PYTEST) --record-durations $(FILES)

crash: $(VENV)/.ready-dev ## Kill processes at every write of every kind of run
	@$(PYTEST) tests/e2e/crash tests/integration/controller/test_killed.py \
		tests/integration/controller/test_canary_killed.py tests/integration/agents/test_model_quota.py tests/soak --every-write

databases: $(VENV)/.ready-dev ## Run on both databases what `make test-all` runs on one of them
	@$(PYTEST) tests/conformance tests/e2e tests/gates tests/integration/agents tests/integration/controller tests/integration/notify tests/integration/service --every-database

gates: $(VENV)/.ready-dev ## Open and decide a task at every gate position, with killed processes
	@$(PYTEST) tests/gates --every-gate

lint: $(VENV)/.ready-dev ## Check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev ## Check types, strictly
	@$(BIN)/mypy

imports: $(VENV)/.ready-dev ## Check import contracts
	@$(BIN)/lint-imports --no-logo

schemas: $(VENV)/.ready ## Generate schemas/
	@$(BIN)/kneo spec schema --output schemas

.PHONY: conformance interop
interop: $(VENV)/.ready-dev ## Verify signatures with openssl, Sigstore and the published tool (needs node, Python 3.12)
	@$(BIN)/pytest -rs tests/conformance/trust tests/unit/trust/test_export.py --other-tools

conformance: $(VENV)/.ready-dev ## Run the published clients against a live service (needs Python 3.12)
	@$(BIN)/pytest -rs tests/conformance/clients --published-clients

.PHONY: example example-renew
TRUST_ROOT = $(shell sed -n 's/.*kneo up --repo . --trust-root \(sha256:[0-9a-f]*\).*/\1/p' README.md)
example: $(VENV)/.ready ## Lint, verify and plan this repository's own specs, bundles and environments
	@for spec in specs/*.yaml; do $(BIN)/kneo spec lint "$$spec" || exit 1; done
	@for bundle in bundles/*/*.dsse.json; do KNEO_SERV_TRUST_ROOT=$(TRUST_ROOT) $(BIN)/kneo spec bundle verify "$$bundle" || exit 1; done
	@KNEO_SERV_TRUST_ROOT=$(TRUST_ROOT) $(BIN)/kneo plan --repo . --ref HEAD

example-renew: $(VENV)/.ready-dev ## Sign this repository's own example with new keys, which are thrown away
	@$(BIN)/python tests/guards/example_repository.py

.PHONY: extras
extras: $(VENV)/.ready-dev ## Install Kneo with each extra and with none, and use it (needs a package index)
	@$(BIN)/pytest -rs tests/conformance/extras --fresh-environments

.PHONY: deploy-check lock image
deploy-check: $(VENV)/.ready-deploy ## Check the files of deploy/ with the programs that read them (needs a package index)
	@$(BIN)/pytest -rs tests/deploy
	@$(PIP) install --dry-run --no-deps --require-hashes --only-binary :all: --ignore-installed --requirement deploy/image/requirements.lock
	@echo "Every package of the lock can be installed, and has its hash."

lock: $(VENV)/.ready-deploy ## Lock the packages of the image in deploy/image/requirements.lock
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra deploy --extra models --extra a2a --python-version 3.12 --universal \
		--generate-hashes --no-header --no-annotate --upgrade --output-file deploy/image/requirements.lock

.PHONY: chart
chart: $(VENV)/.ready-deploy ## Render the Helm chart into deploy/kubernetes/base
	@cp deploy/observability/alerts.yaml deploy/observability/dashboard.json deploy/helm/kneo/files/
	@$(BIN)/python scripts/render_chart.py

CONTAINER ?= $(shell command -v docker || command -v podman)
IMAGE ?= kneo:local
image: $(VENV)/.ready-deploy ## Build the container image from this commit, with docker or podman (IMAGE=name:tag)
	@rm -f deploy/image/kneo-*.whl
	@$(BIN)/uv build --quiet --wheel --out-dir deploy/image .
	@$(CONTAINER) build --file deploy/image/Containerfile --tag $(IMAGE) deploy/image

.PHONY: temporal
temporal: $(VENV)/.ready-dev ## Dispatch runs through a real Temporal server to workers that are killed (installs the server into your cache)
	@$(BIN)/pytest -rs tests/e2e/temporal --temporal

.PHONY: docs
docs: $(VENV)/.ready-docs ## Build the documentation site into site/, without a network connection
	@$(BIN)/python tests/guards/docs_site.py

.PHONY: reference fuzz bench-lint bench-reconcile bench-inbox
reference: $(VENV)/.ready-dev ## Generate docs/reference/
	@$(BIN)/python tests/guards/reference_pages.py

.PHONY: invisible
invisible: $(VENV)/.ready ## Generate kneo/invisible.py with a newer node; needs node
	@$(BIN)/python scripts/generate_invisible.py

fresh: schemas reference ## Check that generated files are up to date
	@test -z "$$(git status --porcelain -- schemas docs/reference)" || { git --no-pager diff --stat -- schemas docs/reference; \
		echo "Generated files are out of date: commit the changes of 'make schemas reference'."; exit 1; }

sizes: $(VENV)/.ready ## Report code size, repeated class names and large modules
	@$(BIN)/python tests/guards/sizes.py

.PHONY: walks
walks: $(VENV)/.ready-dev ## Report the files that a commit, an agent step, a gated call and a decision enter
	@$(BIN)/python tests/guards/walks.py

check: lint types imports fresh test-all ## Run all checks and tests of a change

SECONDS ?= 60
SEED ?= 0

fuzz: $(VENV)/.ready-dev ## Feed malformed files to every spec reader, for SECONDS
	@PYTHONPATH=tests $(BIN)/python -m fuzz.fuzz_spec --seconds $(SECONDS) --seed $(SEED)

ONLY ?=

.PHONY: hunt
hunt: $(VENV)/.ready-dev ## Run random cases against independent models, for SECONDS each (ONLY=name for one hunt)
	@PYTHONPATH=tests:tests/support $(BIN)/python -m hunt.run --seconds $(SECONDS) --seed $(SEED) --only "$(ONLY)"

RATE ?= 0

.PHONY: soak
soak: SECONDS = 120
soak: $(VENV)/.ready-dev ## Put services, workers and controllers under load and faults, for SECONDS, and check that nothing is lost or done twice (RATE=runs per second)
	@PYTHONPATH=tests:tests/support $(BIN)/python -m soak.run --seconds $(SECONDS) --rate $(RATE)

.PHONY: soak-stops
soak-stops: SECONDS = 600
soak-stops: RATE = 3
soak-stops: $(VENV)/.ready-dev ## Stop processes at random for 5 or 20 seconds under load, and check that nothing is done twice
	@PYTHONPATH=tests:tests/support $(BIN)/python -m soak.run --only-stops --seconds $(SECONDS) --rate $(RATE)

FROM ?=

.PHONY: upgrade-check
upgrade-check: $(VENV)/.ready-dev ## Upgrade PostgreSQL databases in use from earlier versions, and go back where that is promised (FROM=commit; needs the Git history)
	@PYTHONPATH=tests:tests/support $(BIN)/python -m upgrade.run $(if $(FROM),--from $(FROM))

.PHONY: schemathesis
schemathesis: $(VENV)/.ready-dev ## Send every request that OpenAPI describes or forbids, as each role, for SECONDS each
	@$(BIN)/python tests/schemathesis/contract_hunt.py --seconds $(SECONDS) --seed $(SEED)

bench-lint: $(VENV)/.ready-dev ## Measure checking specs
	@$(BIN)/python -m benchmarks.lint

bench-reconcile: $(VENV)/.ready-dev ## Measure reconciling a commit, compared with the least possible work
	@$(BIN)/python -m benchmarks.reconcile

.PHONY: bench-engine
bench-engine: $(VENV)/.ready-dev ## Measure runs, side by side with other systems
	@$(BIN)/python -m benchmarks.engine

.PHONY: bench-agents
bench-agents: $(VENV)/.ready-dev ## Measure turns of agents, side by side with other libraries
	@$(BIN)/python -m benchmarks.agents

bench-inbox: $(VENV)/.ready-dev ## Measure an inbox of 100,000 open tasks, on both databases
	@$(BIN)/python -m benchmarks.inbox

.PHONY: bench-canaries
bench-canaries: $(VENV)/.ready-dev ## Measure starts with a canary, reconciliations with 1,000 statements, settlements and trials
	@$(BIN)/python -m benchmarks.canaries

.PHONY: bench-console
bench-console: $(VENV)/.ready-dev ## Measure the pages of the console with 10,000 runs and 2,000 open tasks, on both databases
	@$(BIN)/python -m benchmarks.console

.PHONY: bench-fleet
bench-fleet: $(VENV)/.ready-dev ## Measure what runs and idle processes of the deployed form cost, in pairs with the commit BASE
	@$(BIN)/python -m benchmarks.fleet $(if $(BASE),--base $(BASE) --rounds 3)

.PHONY: bench-streams
bench-streams: $(VENV)/.ready-dev ## Measure decisions with 200 slow clients of streams and 100 refused sign-ins a second
	@$(BIN)/python -m benchmarks.streams

RUNS ?= 2000000

.PHONY: bench-scale
bench-scale: $(VENV)/.ready-dev ## Measure a database of RUNS runs: statements with and without their indexes, lists of callers of few environments, a full queue
	@$(BIN)/python -m benchmarks.scale --runs $(RUNS)
	@$(BIN)/python -m benchmarks.scale.access --runs $(RUNS)
	@$(BIN)/python -m benchmarks.scale.fair

.PHONY: bench-retention
bench-retention: $(VENV)/.ready-dev ## Measure how fast retention deletes old runs on PostgreSQL
	@$(BIN)/python -m benchmarks.scale.retention

format: $(VENV)/.ready-dev ## Format the code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

clean: ## Remove the environment and all caches
	rm -rf $(VENV) build site .cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis .demo

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.11 or newer, or set make PYTHON=/path/to/python."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: use make PYTHON=python3.11 (or newer)."; exit 1; }
	@echo "Creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.ready: pyproject.toml | $(VENV)/bin/python
	@echo "Installing Kneo into $(VENV)"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.ready-models: pyproject.toml | $(VENV)/bin/python
	@echo "Installing Kneo into $(VENV), with the libraries of OpenAI, which compatible servers need too, and of MCP"
	@$(PIP) install --editable '.[openai,mcp]'
	@touch $(VENV)/.ready $@

$(VENV)/.ready-dev: pyproject.toml $(VENV)/.ready
	@echo "Installing the tools for tests and checks"
	@$(PIP) install --editable '.[dev]'
	@touch $@

$(VENV)/.ready-docs: pyproject.toml $(VENV)/.ready-dev
	@echo "Installing the generator of the documentation site"
	@$(PIP) install --editable '.[docs]'
	@touch $@

$(VENV)/.ready-deploy: pyproject.toml $(VENV)/.ready-dev
	@echo "Installing the programs that check the files of deploy/"
	@$(PIP) install --editable '.[deploy-check]'
	@touch $@

$(VENV)/.ready-browser: pyproject.toml $(VENV)/.ready-dev
	@echo "Installing Playwright, because this machine has a browser"
	@$(PIP) install --editable '.[browser]'
	@touch $@
