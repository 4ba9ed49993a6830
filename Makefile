# Few targets, each one line of real work. PYTHON makes the environment; everything else runs inside it.
PYTHON ?= python3
BIN := .venv/bin

FRESH := $(CURDIR)/results/fresh
SHOWN := resnet50-mini
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --durations 25
NBVAL := -p no:cacheprovider --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 600

.PHONY: install demo test test-slow test-slurm fuzz lint lock notebooks figures clean

install: .venv/installed  ## make .venv from the lock

.venv/installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --requirement requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --editable .
	$(BIN)/uv pip install --quiet --no-deps lightly==1.6.0  # what the losses of pretraining are tested against; its own needs are many, and not ours
	touch $@

demo: install  ## the whole benchmark on phantoms, offline
	$(BIN)/fpbench run demo --jobs 2

test: install lint  ## the demo, then the tests and the committed notebooks against it: minutes
	rm -rf $(FRESH) && FPBENCH_RESULTS=$(FRESH) $(BIN)/fpbench run demo --jobs 2
	FPBENCH_RESULTS=$(FRESH) $(BIN)/python -m pytest $(PARALLEL) $(NBVAL) -m "not slow" tests notebooks/*.ipynb

test-slow: install  ## what takes longer: a real Slurm, the real sample's study, the wheel in environments of its own
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) test-slurm; else echo "Slurm is left out: starting one needs root"; fi
	$(BIN)/python -m pytest $(PARALLEL) -p no:cacheprovider -m slow tests

test-slurm: install  ## the grid through a real Slurm that is started here; needs root, and says so
	$(BIN)/python -m pytest -s -p no:cacheprovider tests/slurm/grid.py

notebooks: install  ## execute the demos anew and rewrite the committed notebooks, their reference and figures/
	rm -rf $(FRESH) && FPBENCH_RESULTS=$(FRESH) $(BIN)/fpbench run demo --jobs 2
	FPBENCH_RESULTS=$(FRESH) $(BIN)/fpbench run demo-brain --jobs 2
	FPBENCH_RESULTS=$(FRESH) $(BIN)/fpbench run demo-quality --jobs 2
	FPBENCH_RESULTS=$(FRESH) $(BIN)/python tools/notebooks.py
	$(MAKE) figures

figures:  ## rewrite figures/ from the last `make notebooks`
	rm -f figures/*.png && cp $(addprefix $(FRESH)/demo/figures/, 0[2389]_*.png 07_[!e]*.png 06_[sp]*.png 0[4-6]_*$(SHOWN)*.png) figures/

fuzz: install  ## ten minutes of damaged and made-up files for the readers; SECONDS=60 make fuzz for one
	$(BIN)/python tests/fuzz.py $(or $(SECONDS),600)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lock:  ## resolve requirements.lock anew, for Linux and macOS
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra all --group dev --no-emit-index-url --no-annotate --no-header -o requirements.lock pyproject.toml

clean:
	rm -rf .venv results
