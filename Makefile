# Thin targets; the work is in `reperfuse` (see `reperfuse --help`) and in dvc.yaml.
PYTHON ?= python3
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# The demo's patients are invented: with a known key their pseudonyms are the same on every machine.
DEMO := @$(RUN) REPERFUSE_PSEUDONYM_KEY=the-patients-of-the-demo-are-invented
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint ui up down status serve bench lock

help:  ## what can be typed
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "== Setting up $(VENV) from requirements.lock: about 3 GB on disk, a few minutes, once"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "reperfuse needs Python 3.11, 3.12 or 3.13, this is %d.%d: name another with make PYTHON=python3.12 ..." % v)'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(VENV)/.installed  ## both arms on invented patients: data, ingest, dvc repro, promote, reports
	$(DEMO) reperfuse demo-data inbox
	$(DEMO) reperfuse ingest inbox/lesion --arm lesion
	$(DEMO) reperfuse ingest inbox/perfusion --arm perfusion
	$(DEMO) dvc repro
	$(DEMO) reperfuse promote lesion
	$(DEMO) reperfuse promote perfusion
	@echo "== Look at reports/lesion.html and reports/perfusion.html, and at the runs with: make ui"

test: $(VENV)/.installed  ## the tests that need no server, no GPU and no patience
	@$(RUN) python -m pytest -q

test-all: $(VENV)/.installed  ## every test: also slow, services, gpu
	@$(RUN) python -m pytest -q -m ''

lint: $(VENV)/.installed  ## ruff and mypy
	@$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy

ui: $(VENV)/.installed  ## the MLflow UI on this machine
	@$(RUN) reperfuse ui

up: $(VENV)/.installed  ## MLflow, Prefect and a worker in the background (OPTUNA=1, WORKERS=2, HOST=address)
	@$(RUN) python -m flows.serve up $(if $(WORKERS),--workers $(WORKERS)) $(if $(HOST),--host $(HOST)) $(if $(OPTUNA),--optuna $(filter-out 1,$(OPTUNA)))

down: $(VENV)/.installed  ## stop what `make up` started
	@$(RUN) python -m flows.serve down

status: $(VENV)/.installed  ## how the services are: state, address, uptime, restarts, log
	@$(RUN) python -m flows.serve status

serve: $(VENV)/.installed  ## the same services in this terminal, until Ctrl-C
	@$(RUN) python -m flows.serve

bench: $(VENV)/.installed  ## side-by-side timings against named peers
	@for name in dicom_read perfusion; do echo "== $$name"; $(RUN) python benchmarks/$$name.py || exit 1; done

lock:  ## requirements.lock anew, from pyproject.toml in a fresh environment
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet torch==2.13.0 '.[dev]'
	@build/lock/bin/python -m pip freeze --exclude reperfuse | sed 's/+cpu$$//' > requirements.lock
