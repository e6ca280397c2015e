.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check afternoon bench compiled wheels format openapi web manifests site lock image clean

help: ## what can be done here
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

# The stamps make a second run start at once; a changed pin or pyproject.toml installs again.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-stamp: requirements.txt requirements-build.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --require-hashes -r requirements-build.txt -r requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev-stamp: requirements-dev.txt $(VENV)/.run-stamp
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.run-stamp ## deliver events from the embedded broker to local endpoints, and check every one
	$(BIN)/dispatcher demo $(ARGS)

test: $(VENV)/.dev-stamp ## every test, on a real Apache Kafka where Java and Maven are there
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev-stamp ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

afternoon: $(VENV)/.dev-stamp ## play docs/afternoon.md for real: install, watch, upgrade, scale; needs Java, Maven, PostgreSQL, Prometheus
	$(BIN)/python -m tests.afternoon $(ARGS)

bench: $(VENV)/.dev-stamp ## transport, end to end and micro-benchmarks beside wrk; needs nginx, wrk, Java, Maven, matplotlib
	$(BIN)/python -m benchmarks $(ARGS)

compiled: $(VENV)/.dev-stamp ## a wheel with the hot path compiled to C, in dist/; needs a C compiler
	DISPATCHER_COMPILE=1 $(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

wheels: $(VENV)/.dev-stamp ## build and test the compiled wheel of each Python that is named in pyproject.toml; needs them, and a C compiler
	DISPATCHER_TEST_WHEELS=$(or $(PYTHONS),1) $(BIN)/python -m pytest tests/wheels -s $(ARGS)

format: $(VENV)/.dev-stamp ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: $(VENV)/.run-stamp ## write docs/openapi.json anew, after a change of the API
	$(BIN)/python -m dispatcher.api.openapi > docs/openapi.json.new
	mv docs/openapi.json.new docs/openapi.json

web/node_modules/.stamp: web/package-lock.json web/.npmrc
	cd web && npm ci --no-progress
	@touch $@

web: web/node_modules/.stamp ## build console and portal into dispatcher/web, after a change in web/; needs Node 20.19 or newer
	cd web && npm run --silent types && npm run --silent check && npm run --silent test && npm run --silent build

manifests: $(VENV)/.dev-stamp ## write config/kubernetes anew, after a change of the Helm chart; needs Go
	$(BIN)/python -m tests.helm.render

site: $(VENV)/.dev-stamp ## the documentation as pages with a search, in dist/site
	$(BIN)/python docs/site/build.py dist/site

lock: ## pin requirements*.txt anew, with hashes
	./requirements-lock.sh

image: ## build the container image
	docker build -t webhook-dispatcher .

clean: ## remove what the other targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache tests/kafka/target web/node_modules
