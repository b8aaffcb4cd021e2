# Everything runs in .venv, which is made once and again only when pyproject.toml changes.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint chaos chromium pictures clean

demo: $(VENV)/ready
	$(BIN)/mergefront demo

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest

# A hundred kills, an hour or so; the summary stands at the end and in DIR/summary.json.
chaos: $(VENV)/ready-dev
	$(BIN)/python tests/chaos/chaos.py --kills 100 --dir $(shell mktemp -u -d -t chaos-XXXXXX)

# For the browser tests and the pictures; nothing where there is one, or no apt-get.
chromium:
	if ! command -v chromium && command -v apt-get; then apt-get update -qq && apt-get install -y -qq chromium; fi

# The pictures of the README, of a demo's study.
pictures: $(VENV)/ready-dev chromium
	$(BIN)/mergefront demo
	$(BIN)/python docs/pictures/take.py demo/report.html docs/pictures/report.png

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile; fi  # its package is built for x86-64 alone

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

clean:
	rm -rf $(VENV) demo mergefront.db* *.egg-info
