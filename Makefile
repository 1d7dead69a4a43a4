# One task list, for people and CI alike. `make help` says what each does.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= report

.PHONY: help install report figures test lint bench accuracy clean

help:        ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: .venv/installed  ## .venv with everything the report and the tests need

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[report,attacks,dev]"
	@touch $@

report: install  ## the report on the built-in example, in OUT (default: report/)
	$(BIN)/isoresponse report --out $(OUT)

figures: install  ## the figures of the essay, computed, in figures/
	$(BIN)/isoresponse figures --out figures

test: install  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: install  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## the tables of docs/design/measurements.md
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/exact.py

RESULTS := benchmarks/results
accuracy: install  ## docs/accuracy.md from its benchmarks; DATA: folder with mnist, cifar10, photos (20 min)
	$(BIN)/python benchmarks/curvature_exact.py --out $(RESULTS)/curvature_exact.json
	$(BIN)/python benchmarks/coverage.py --out $(RESULTS)/coverage.json
	$(BIN)/python benchmarks/surface_speed.py --out $(RESULTS)/surface_speed.json
	$(BIN)/python benchmarks/curvature_speed.py $(if $(DATA),--data $(DATA)) --out $(RESULTS)/curvature_speed.json
	$(BIN)/python benchmarks/page.py

clean:       ## remove what was built here
	rm -rf .venv report figures build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
