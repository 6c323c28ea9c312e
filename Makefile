# The commands of developers and CI. Each target creates its virtual environment from pinned files.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: requirements/%.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet -r requirements/build.txt -r $<
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(VENV)/.local ## Run a batch from file to results, then stop: FILE=path OUT=path make demo
	@$(BIN)/python -m lowtide.cli.demo

up: $(VENV)/.local ## Start the local stack and leave it running: PORT= DATA_DIR= CELLS= MONITORING=1 LOWTIDE_*=
	@$(BIN)/lowtide up --detach

down: $(VENV)/.local ## Stop the local stack
	@$(BIN)/lowtide down

test: $(VENV)/.dev ## Run the test suite without the slow tests
	$(BIN)/python -m pytest -m "not slow" -n logical --dist loadfile

test-slow: $(VENV)/.dev ## Run the slow tests: every process killed in turn, conformance, schemathesis
	$(BIN)/python -m pytest -m slow

azurite: $(VENV)/bin/python ## Install Microsoft's emulator of Azure's object store, for the slow tests, with npm
	npm install --silent --no-audit --no-fund --fetch-retries 8 --prefix $(VENV)/azurite azurite@3.37.0

llama: $(VENV)/llama/.installed ## Install llama.cpp, a real engine on the CPU, for the slow tests

$(VENV)/llama/.installed: requirements/llama.txt | $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)/llama
	$(VENV)/llama/bin/pip install --quiet --only-binary :all: -r $<
	@touch $@

conformance: $(VENV)/.dev ## Run the API's conformance suite against a server: URL= KEY= make conformance
	$(BIN)/python -m pytest tests/conformance --base-url "$(URL)" --api-key "$(KEY)"

check: $(VENV)/.dev ## Check lint, types, import rules, dead code, the Dockerfile, the workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/hadolint --failure-threshold style Dockerfile
	$(BIN)/actionlint -shellcheck $(BIN)/shellcheck
	$(BIN)/zizmor --offline --quiet --persona pedantic .github

house: $(VENV)/.dev ## Print the shape of the code: modules, sizes, imports, circles
	@$(BIN)/python -m bench.house

manifests: $(VENV)/.dev .venv-manifests/.installed ## Render every overlay and check it: schemas, webhooks' rules, checkov
	@$(BIN)/python -m manifests

# Checkov needs older versions of our dependencies.
.venv-manifests/.installed: requirements/manifests.txt
	$(PYTHON) -m venv .venv-manifests
	.venv-manifests/bin/pip install --quiet -r $<
	@touch $@

fmt: $(VENV)/.dev ## Format the code and apply automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: $(VENV)/.dev ## Break a whole stack at random, and check every invariant: SEED= FAULTS=
	@$(BIN)/python -m tests.chaos --seed $(or $(SEED),1) --faults $(or $(FAULTS),1000)

bench-import: $(VENV)/.local ## Print each function's cold start: import time and memory; ratios: AGAINST=checkout
	@$(BIN)/python -m bench.imports $(if $(AGAINST),--against "$(AGAINST)" --runs 10)

bench-ingest: $(VENV)/.dev ## Measure upload, validation, split and finalize against their references
	@$(BIN)/python -m bench.ingest

bench-queue: $(VENV)/.bench ## Measure requests claimed and completed per second against COPY and PGQueuer
	@$(BIN)/python -m bench.queue

bench-workers: $(VENV)/.dev ## Measure whole workers with the engine that takes no time: rate, CPU and WAL per request
	@$(BIN)/python -m bench.workers

bench-dead-rows: $(VENV)/.dev ## Measure tick, landing page and queues page after ten batches without a vacuum
	@$(BIN)/python -m bench.dead_rows

bench-job: $(VENV)/.dev ## Measure a whole job through the functions, and a worker against a bare client
	@$(BIN)/python -m bench.job

bench-cold-start: $(VENV)/.dev ## Measure the first claim from zero workers, ten times
	@$(BIN)/python -m bench.cold_start

bench-storm: $(VENV)/.dev ## Measure recovery when the leases of 200 workers expire at once
	@$(BIN)/python -m bench.storm

bench-engines: $(VENV)/.dev ## Measure an engine that is down for ten minutes, and one of four that is broken
	@$(BIN)/python -m bench.engine_faults

bench-engine-load: $(VENV)/.dev ## Measure a worker with its defaults against engines that batch, and a bare client
	@$(BIN)/python -m bench.engine_load

bench-warm: $(VENV)/.dev ## Measure a batch from POST to completed on a warm worker, beside a bare client
	@$(BIN)/python -m bench.warm_job

bench-fleets: $(VENV)/.dev ## Measure two fleets with three models in one file, while one of them is paused or broken
	@$(BIN)/python -m bench.fleets

bench-prefix: $(VENV)/.dev ## Measure the hits of an engine's prefix cache, in random order and ordered
	@$(BIN)/python -m bench.prefix

bench-spare: $(VENV)/.dev ## Simulate batch work in the spare capacity of a live service: PLOT=file
	@$(BIN)/python -m bench.spare $(if $(PLOT),--plot "$(PLOT)")

bench-cells: $(VENV)/.dev ## Simulate a thousand cells on recorded spot markets: TRACES=folder PLOT=folder SEEDS=
	@$(BIN)/python -m bench.cells $(if $(TRACES),--traces "$(TRACES)") $(if $(PLOT),--plot "$(PLOT)") \
		$(if $(SEEDS),--seeds "$(SEEDS)")

bench-front: $(VENV)/.dev ## Measure what the front adds to a read, and the rate of a 200 MB upload through it
	@$(BIN)/python -m bench.front

bench-cell-outage: $(VENV)/.dev ## Measure what the kill of one of three cells costs calls to the others
	@$(BIN)/python -m bench.cell_outage

bench-traces: $(VENV)/.dev ## Measure the cost of traces for a worker, off and on
	@$(BIN)/python -m bench.tracing

bench-portal: $(VENV)/.dev ## Measure the queries of the portal's pages at a million requests, p50 and p95
	@$(BIN)/python -m bench.portal

bench-pages: $(VENV)/.dev ## Measure what fifty open pages cost the portal and the database, against one
	@$(BIN)/python -m bench.portal_pages

bench-search: $(VENV)/.dev ## Measure searches at a million requests, p50 and p95 of every kind
	@$(BIN)/python -m bench.search

bench-retention: $(VENV)/.dev ## Measure the database with and after twenty batches, and what their end costs
	@$(BIN)/python -m bench.retention

bench-large-job: $(VENV)/.dev ## Measure one batch of 5,000,000 requests through the functions, beside twenty of 50,000
	@$(BIN)/python -m bench.large_job

bench-scheduler: $(VENV)/.dev ## Simulate the cost of deadlines on recorded spot markets: TRACES=folder
	@$(BIN)/python -m bench.scheduler $(if $(TRACES),--traces "$(TRACES)")
	@$(BIN)/python -m bench.scheduler --fleets $(if $(TRACES),--traces "$(TRACES)")

docs: $(VENV)/.dev ## Write the generated reference pages
	@$(BIN)/python -m docs.generate

monitoring: $(VENV)/.dev ## Write the dashboards and the operator's copy of the rules in monitoring/
	@$(BIN)/python -m monitoring.generate

screenshots: $(VENV)/.dev ## Take screenshots of the portal from a stack of its own: OUT=folder
	@$(BIN)/python -m docs.screenshots

HASHED := --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header --generate-hashes

pins: $(VENV)/.dev ## Resolve requirements/*.txt again from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	for extra in local dev bench; do $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
		--no-emit-index-url --no-annotate --no-header --extra $$extra \
		--output-file requirements/$$extra.txt pyproject.toml; done
	echo 'checkov>=3.3' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
		--no-emit-index-url --no-annotate --no-header --output-file requirements/manifests.txt -
	$(BIN)/uv pip compile $(HASHED) --extra image --constraint requirements/dev.txt --output-file requirements/image.txt pyproject.toml
	printf 'xllamacpp\ngguf\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
		--no-emit-index-url --no-annotate --no-header --output-file requirements/llama.txt -
	echo uv | cat requirements/build.txt - | \
		$(BIN)/uv pip compile $(HASHED) --output-file requirements/image-build.txt -

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .venv-manifests .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help demo up down test test-slow azurite llama chaos conformance check fmt house bench-import bench-ingest bench-queue bench-workers bench-dead-rows bench-job bench-cold-start bench-storm bench-engines bench-engine-load bench-warm bench-fleets bench-prefix bench-spare bench-cells bench-front bench-cell-outage bench-traces bench-portal bench-pages bench-search bench-retention bench-large-job bench-scheduler docs manifests monitoring screenshots pins clean
