# One command for one habit; CI runs the same ones. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Threads that wait must not spin: on few cores they keep the others from running (benchmarks/results).
export OMP_WAIT_POLICY ?= passive

# The first Python that is new enough; override with `make setup PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCKER_VENV := .venv-docker
DOCKER_STAMP := $(DOCKER_VENV)/.installed
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: help setup services demo test test-unit lint types imports format reference check bench docker-python up down clean

help: ## List these commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- Installation

setup: $(STAMP) ## Make the virtual environment .venv with everything (again, when the pins change).

$(STAMP): pyproject.toml constraints.txt
	@deploy/check-python.sh "$(PYTHON)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu,dev]" -c constraints.txt
	@touch $@

services: ## Install RabbitMQ's server (Debian, as root); its own service is not started.
	@deploy/install-rabbitmq.sh

# --- Use

demo: setup services ## One job through a real RabbitMQ and S3, with live progress and a verdict.
	@$(BIN)/python -m examples.demo

up: ## Start the deployment with Docker; .env says with which worker (see .env.example).
	docker compose up --build --detach

down: ## Stop the deployment; volumes stay.
	docker compose --profile gpu --profile cpu down

# --- Development

test: setup ## The whole suite, with a real RabbitMQ and S3 (CI: must be there; else skipped if absent).
	@$(MAKE) services || test -z "$${CI:-}"
	$(BIN)/python -m pytest

test-unit: setup ## The unit tests alone: no services, about a minute.
	$(BIN)/python -m pytest tests/unit

lint: setup ## Style: ruff and its formatter, checking only.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Static types: mypy, strict.
	$(BIN)/mypy

imports: setup ## Import contracts: consumer -> pipeline -> models -> schemas.
	$(BIN)/lint-imports

format: setup ## Reformat, and mend what ruff can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: setup ## Write README.md's tables from the code.
	PYTHONPATH=. $(BIN)/python .ci/reference.py

check: lint types imports test ## All that CI runs.

bench: setup ## The rasterizer's benchmark table.
	$(BIN)/python -m benchmarks.raster

docker-python: $(DOCKER_STAMP) ## Prove the Docker image's Python pins: install, import, run the unit tests.
	$(DOCKER_VENV)/bin/python -c 'import torch, xformers, spconv.pytorch; print(torch.__version__, xformers.__version__, "spconv imports")'
	$(DOCKER_VENV)/bin/python -m pytest tests/unit

$(DOCKER_STAMP): pyproject.toml constraints-docker.txt
	@deploy/check-python.sh python3.11
	test -x $(DOCKER_VENV)/bin/python || python3.11 -m venv $(DOCKER_VENV)
	$(DOCKER_VENV)/bin/pip install --quiet --disable-pip-version-check -e ".[gpu,dev]" -c constraints-docker.txt
	@touch $@

clean: ## Remove what these commands made here.
	rm -rf $(VENV) $(DOCKER_VENV) .run out build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
