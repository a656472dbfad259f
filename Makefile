PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup fit paper test stops options lint format docs notebooks texts bench leak labels clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## create .venv and install cgfedrec from the pinned constraints

# torch first and by its exact version: a range would take the newest build
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(shell grep '^torch==' constraints.txt)
	$(PIP) --editable .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) --editable '.[dev]'
	@touch $@

fit: $(INSTALLED)  ## train CGFedCo on the embedded data set
	$(BIN)/cgfedrec fit --config configs/quickstart.yaml

DATA ?= ../shared/data
paper: $(INSTALLED)  ## train the paper's CGFedRec with its published settings, on ML-100K and FilmTrust in DATA (up to half an hour each on two quiet cores)
	$(BIN)/cgfedrec fit --config configs/paper/ml-100k.yaml --data.path $(DATA)/ml-100k/ratings.csv
	$(BIN)/cgfedrec fit --config configs/paper/filmtrust.yaml --data.path $(DATA)/filmtrust/ratings.tsv

test: $(INSTALLED_DEV)  ## run all tests
	$(BIN)/python -m pytest -n 3

stops: $(INSTALLED_DEV)  ## kill runs before every single write, and see that they go on (long)
	CGFEDREC_ALL_STOPS=1 $(BIN)/python -m pytest -n 2 tests/test_stops.py tests/test_tune.py

options: $(INSTALLED_DEV)  ## try every option of every method with values of every kind (long)
	CGFEDREC_ALL_OPTIONS=1 $(BIN)/python -m pytest -n 2 tests/test_options.py

lint: $(INSTALLED_DEV)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED_DEV)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED_DEV)  ## build the documentation site into build/site, strictly
	$(BIN)/python -m tools.site

notebooks: $(INSTALLED_DEV)  ## execute the notebooks in place
	$(BIN)/python -m notebooks

texts: $(INSTALLED_DEV)  ## write the packaged help and shell completion anew, after a change of options
	$(BIN)/python -m cgfedrec.write_texts

bench: $(INSTALLED_DEV)  ## time a round against the plain way, on ML-100K (minutes)
	$(BIN)/python -m benchmarks

leak: $(INSTALLED_DEV)  ## show the leak of the field's protocol on ML-100K (minutes)
	$(BIN)/python -m benchmarks.leak

labels: $(INSTALLED_DEV)  ## compare the quickstart with its controls over five seeds (minutes)
	$(BIN)/python -m benchmarks.labels

clean:  ## remove the environment and caches, but no runs
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
