# The verbs of this project: demo, test, check, format, soak, fidelity, bench, setup.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CODE := api benchmarks einlayers einsearch examples migrations search service tests workers

# One thread per process: every worker is one core's worth of work, and two pools of threads on one core only fight.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1

.PHONY: demo test check format soak fidelity bench setup clean

demo: $(READY)  ## start the embedded service, run a first search on real text, show the best structures
	$(BIN)/einsearch demo examples/first_search.json

test: $(READY)  ## the tests, against SQLite, Postgres where its binaries are, and a real local Ray
	@# One process more than there are cores here: a third of the time of the tests is waiting for processes.
	$(BIN)/python -m pytest --numprocesses 3 --dist loadscope --no-loadscope-reorder

check: $(READY)  ## format, lint, types, import contracts, migrations
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/lint-imports
	$(BIN)/python -m service.migrate check
	$(BIN)/mypy
	$(BIN)/mypy examples/*.py

format: $(READY)
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

soak: $(READY)  ## hundreds of faults over many short searches, on SQLite and Postgres; writes docs/reliability.md
	$(BIN)/python -m tests.faults.soak --faults 200 --seed 0 --database sqlite
	$(BIN)/python -m tests.faults.soak --faults 200 --seed 0 --database postgres

fidelity: $(READY)  ## measure how far the proxies can be trusted; takes an hour or two, goes on where it was interrupted
	$(BIN)/python -m benchmarks.fidelity

bench: $(READY)  ## measure, print ratios
	$(BIN)/python -m benchmarks.scheduling
	$(BIN)/python -m benchmarks.service answers
	$(BIN)/python -m benchmarks.service crowd --minutes 1
	$(BIN)/python -m benchmarks.layers --widths 256 1024 --tokens 1024
	$(BIN)/python -m benchmarks.moe
	$(BIN)/python -m benchmarks.proxies --quick

setup: $(READY)  ## the virtual environment, at the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "einsearch needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# Compiled afterwards, by all cores: pip has one do it, and some of Ray's processes never keep what they compile.
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages have files for other versions of Python
	@touch $@

clean:  ## remove the environment and the caches; the database in .einsearch stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
