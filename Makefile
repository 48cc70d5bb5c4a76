# `make demo` and `make test` need python3 with venv, and make; the first of them builds .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# What proves most in a minute: each lattice beside its paths, one by one, and the rules of the house.
QUICK  := agreement align asg edge_values errors graphs house_rules infeasible lattice layouts mwer paths posing problems \
          reference single_paths

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick lint format docs bench dist clean

help:
	@echo "make demo       train on recorded speech with CTC, RNN-T and ASG, report error rates, draw a picture"
	@echo "make test       run the tests: 8 minutes on 2 cores, 12 with nothing compiled yet (PYTEST_ARGS='-k ctc' narrows them)"
	@echo "make test-quick some of them: a minute, once their kernels are compiled"
	@echo "make lint       ruff, pyright, mypy"
	@echo "make format     let ruff rewrite the sources"
	@echo "make docs       build the documentation into site/"
	@echo "make bench      measure the losses beside their peers"
	@echo "make dist       build wheel and sdist, read them, install the wheel in an empty environment"
	@echo "make clean      remove .venv and everything built"

# Installed once, and again when the requirements change.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/pathsum demo $(DEMO_ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(QUICK:%=tests/test_%.py) $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python tests/typed_pages.py pyright
	$(BIN)/python tests/typed_pages.py mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP)
	$(BIN)/pathsum bench $(BENCH_ARGS)

dist: $(STAMP)
	rm -rf dist build/empty
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) hatchling
	$(BIN)/python -m hatchling build -t sdist
	$(BIN)/python -m pip wheel --quiet $(PIP_ARGS) --no-deps --wheel-dir dist dist/pathsum-*.tar.gz
	$(BIN)/python tests/installed.py wheel dist/pathsum-*.whl
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet $(PIP_ARGS) dist/pathsum-*.whl
	cd build/empty && bin/pathsum info

clean:
	rm -rf $(VENV) site dist build .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
