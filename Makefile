# Every verb makes what it needs. Needs Python 3.11 or newer, git and make; choose another Python with
#     make test PYTHON=python3.13

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
WORKERS ?= 4

.PHONY: help demo up test crash gates lint types imports schemas fresh sizes format check clean
.DEFAULT_GOAL := help

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{printf "%-16s %s\n", $$1, $$2}'

demo: $(VENV)/.ready ## Tell the whole story on the terminal, from a signed bundle to a finished run
	@$(BIN)/python -m cli.demo

up: $(VENV)/.ready ## The same, left running
	@$(BIN)/python -m cli.demo --up

test: $(VENV)/.ready-dev ## Run the tests, the databases they need included
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal

crash: $(VENV)/.ready-dev ## Kill processes at every single write of every kind of run
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal tests/e2e/crash tests/integration/controller/test_killed.py --every-write

gates: $(VENV)/.ready-dev ## Ask and answer at every place where a question can stand, with processes that die in between
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal tests/gates --every-gate

lint: $(VENV)/.ready-dev ## Check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev ## Check types, strictly
	@$(BIN)/mypy

imports: $(VENV)/.ready-dev ## Check who imports whom
	@$(BIN)/lint-imports --no-logo

schemas: $(VENV)/.ready ## Write schemas/ anew from the code
	@$(BIN)/kneo spec schema --output schemas

.PHONY: conformance interop
interop: $(VENV)/.ready-dev ## Let openssl, Sigstore's verifier and the published tool check what we sign (needs node, Python 3.12)
	@$(BIN)/pytest -rs tests/conformance/trust tests/unit/trust/test_export.py --other-tools

conformance: $(VENV)/.ready-dev ## Let the published clients work with a live service (needs Python 3.12)
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
extras: $(VENV)/.ready-dev ## Install Kneo with each extra and with none, and work with it (needs a package index)
	@$(BIN)/pytest -rs tests/conformance/extras --fresh-environments

.PHONY: temporal
temporal: $(VENV)/.ready-dev ## Let a real Temporal server hand runs to workers that are killed (installs its server into your cache)
	@$(BIN)/pytest -rs tests/e2e/temporal --temporal

.PHONY: reference fuzz bench-lint bench-reconcile bench-inbox
reference: $(VENV)/.ready-dev ## Write docs/reference/ anew from the code
	@$(BIN)/python tests/guards/reference_pages.py

fresh: schemas reference ## Check that what is generated in the repository is what the code describes
	@test -z "$$(git status --porcelain -- schemas docs/reference)" || { git --no-pager diff --stat -- schemas docs/reference; \
		echo "What is generated is not what the code describes: commit what 'make schemas reference' has written."; exit 1; }

sizes: $(VENV)/.ready ## Report what outgrew the sizes to feel comfortable in
	@$(BIN)/python tests/guards/sizes.py

check: lint types imports fresh test ## Everything a change has to pass

SECONDS ?= 60
SEED ?= 0

fuzz: $(VENV)/.ready-dev ## Feed spoiled files to everything that reads specs, for SECONDS
	@$(BIN)/python tests/fuzz/fuzz_spec.py --seconds $(SECONDS) --seed $(SEED)

ONLY ?=

.PHONY: hunt
hunt: $(VENV)/.ready-dev ## Run random cases against independent models, for SECONDS each (ONLY=name for one hunt)
	@PYTHONPATH=tests $(BIN)/python -m hunt.run --seconds $(SECONDS) --seed $(SEED) --only "$(ONLY)"

.PHONY: schemathesis
schemathesis: $(VENV)/.ready-dev ## Ask a live service everything it describes and forbids, as each role, for SECONDS each
	@$(BIN)/python tests/schemathesis/contract_hunt.py --seconds $(SECONDS) --seed $(SEED)

bench-lint: $(VENV)/.ready-dev ## Measure what checking specs costs, and how that grows
	@$(BIN)/python -m benchmarks.lint

bench-reconcile: $(VENV)/.ready-dev ## Measure what a commit costs the controller, beside the least it could cost
	@$(BIN)/python -m benchmarks.reconcile

.PHONY: bench-engine
bench-engine: $(VENV)/.ready-dev ## Measure what runs cost, side by side with other systems
	@$(BIN)/python -m benchmarks.engine

bench-inbox: $(VENV)/.ready-dev ## Measure how quick an inbox of a hundred thousand open questions is, on both databases
	@$(BIN)/python -m benchmarks.inbox

format: $(VENV)/.ready-dev ## Put the code into shape
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

clean: ## Forget the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis .demo

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.11 or newer, or say make PYTHON=/path/to/python."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: say make PYTHON=python3.11 (or newer)."; exit 1; }
	@echo "Making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.ready: pyproject.toml | $(VENV)/bin/python
	@echo "Installing Kneo into $(VENV)"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml $(VENV)/.ready
	@echo "Installing the tools for tests and checks"
	@$(PIP) install --editable '.[dev]'
	@touch $@
