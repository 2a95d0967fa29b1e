# The environment is made once, and again when pyproject.toml changes.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help compare test chaos bench lab notebooks overleaf report

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

compare: $(READY) ## train the nine cells on the embedded digits, three seeds each, and write figures and tables
	$(BIN)/python -m lib compare

test: $(READY) ## run the whole test suite, notebooks included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --doctest-modules tests lib
	store=$$(mktemp -d) && cp -r results/cifar10 $$store && \
		WORKBOOK_RESULTS=$$store OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --nbmake --nbmake-timeout=600 notebooks/*.ipynb
	WORKBOOK_RESULTS=$$(mktemp -d) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks/10_*.ipynb

chaos: $(READY) ## kill running trainings at random for up to 15 minutes and check that nothing is lost
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m chaos tests

bench: $(READY) ## time every cell against the libraries, the bare products and the notes' loop, and the explorers
	$(BIN)/python tests/bench.py
	$(BIN)/python tests/latency.py

lab: $(READY) ## open JupyterLab at the first notebook
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

notebooks: $(READY) ## run all notebooks from clean kernels with their full settings
	for notebook in notebooks/*.ipynb; do $(BIN)/jupyter nbconvert --execute --to notebook --output-dir .venv/executed $$notebook || exit; done

overleaf: $(READY) ## write results/overleaf.zip from the finished runs
	$(BIN)/python -m lib export

report: $(READY) ## write results/report.html, the interactive comparison in one file
	$(BIN)/python -m lib report
