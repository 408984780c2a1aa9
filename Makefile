# make demo | test | lint | format | clean.  Settings: make demo DEMO_FOLDER=/tmp/demo, make test TESTS=tests/tasks WORKERS=1
VENV := .venv
PYTHON ?= $(shell for name in python3.11 python3.12 python3 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$name && break; done)
TESTS ?= tests
WORKERS ?= 2
DEMO_FOLDER ?= runs/demo
DEMO := $(VENV)/bin/adir run -m experiment=demo results=$(DEMO_FOLDER)

.PHONY: demo test lint format clean

demo: $(VENV)/installed
	@$(DEMO)
	@$(VENV)/bin/adir sheet $(DEMO_FOLDER) >/dev/null
	@$(VENV)/bin/adir leaderboard $(DEMO_FOLDER)
	@echo "Look at: $(abspath $(DEMO_FOLDER))/comparison.png  (every image: $(abspath $(DEMO_FOLDER))/cells)"

test: $(VENV)/installed
	@$(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal $(TESTS)

lint: $(VENV)/installed
	@$(VENV)/bin/ruff check --quiet --output-format=concise .
	@$(VENV)/bin/ruff format --check --quiet --output-format=concise . || { echo "make format mends that" >&2; exit 1; }
	@$(VENV)/bin/mypy --no-error-summary

format: $(VENV)/installed
	@$(VENV)/bin/ruff check --quiet --fix .
	@$(VENV)/bin/ruff format --quiet .

clean:
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist

# The stamp says that the environment holds what these two files ask for; a failed installation leaves none.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(if $(PYTHON),,echo "ADIR needs Python 3.11 or newer and found none: install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1;) \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "ADIR needs Python 3.11 or newer; $(PYTHON) is older or missing: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing torch and the rest into $(VENV): about 5 minutes and 7 GB on disk, once."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
