# Few targets, each one line of real work. PYTHON makes the environment; everything else runs inside it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install test lint lock clean

install: .venv/installed  ## make .venv from the lock

.venv/installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --requirement requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

test: install lint  ## everything that CI runs
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

lock:  ## resolve requirements.lock anew, for Linux and macOS
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group dev --no-emit-index-url --no-annotate --no-header -o requirements.lock pyproject.toml

clean:
	rm -rf .venv results
