# Two commands for a newcomer: `make demo` and `make test`. Everything they need they install.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test check clean

# The main job on real shop data: The Complete Journey. Report: demo-out/report.html
demo: $(VENV)/.demo
	$(BIN)/kgrank demo --shop completejourney --out demo-out

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1"

$(VENV)/.demo: pyproject.toml constraints-dev.txt | $(VENV)/bin/python
	$(PIP) install -c constraints-dev.txt -e ".[demo,zh]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints-dev.txt | $(VENV)/bin/python
	$(PIP) install -c constraints-dev.txt -e ".[ann,demo,image,onnx,tune,zh]" --group dev
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist demo-out models .pytest_cache .mypy_cache .ruff_cache .hypothesis
