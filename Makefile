# The README's commands. Each makes .venv when it is missing or out of date; the second time they start at once.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# The environment of this repository alone: a PYTHONPATH or user site-packages would decide which versions are tested.
export PYTHONNOUSERSITE := 1
export PYTHONPATH :=

.PHONY: demo test bench matrix format clean

# Of the two examples that show most this is understood sooner: real text, one curve, and its LLC itself announces a jump
# and a boundary; the in-context one needs an idea of what an induction head is.
demo: .venv/.installed
	$(BIN)/python examples/language_model.py $(ARGS)

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

bench: .venv/.installed
	TQDM_DISABLE=1 $(BIN)/python -m tests.benchmarks $(ARGS)  # no bars of the peers

matrix: .venv/.installed
	$(BIN)/python -m tests.passivity $(ARGS)

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed; say which: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache runs lightning_logs wandb
