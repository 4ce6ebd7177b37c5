# Two commands on a bare machine: `make demo`, `make test`. Each makes what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test check docs bench clean

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.base  ## slim the embedded default and write demo/report.html
	$(BIN)/lightformers demo

test: $(VENV)/.dev  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

export NO_MKDOCS_2_WARNING := 1

check: $(VENV)/.dev  ## lint, format, types, import contracts, generated pages, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_docs.py --check
	$(BIN)/mkdocs build --strict --quiet

docs: $(VENV)/.dev  ## the documentation in site/
	$(BIN)/python scripts/generate_docs.py
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev  ## slim beside what a careful user gets without it
	$(BIN)/python benchmarks/slim_vs_peers.py

clean:
	rm -rf $(VENV) build site demo
