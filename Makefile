# Two commands are enough: `make demo` and `make test`. Both need Python 3.11 to 3.13 and nothing else.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
NIGHT ?=
FLAGS ?=

.PHONY: demo test check lint bench lock clean

demo: $(VENV)/.run  ## the main job end to end; NIGHT=file.tar.gz for real packets, FLAGS="--oracle --exit"
	$(BIN)/raybroker demo $(if $(NIGHT),--night $(NIGHT)) $(FLAGS)

test: lint  ## everything that must hold
	$(BIN)/python -m pytest -n 3 --dist loadfile --ignore=tests/chaos --ignore=tests/soak
	$(BIN)/python -m pytest tests/chaos tests/soak

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev  ## alerts per second and CPU seconds per alert, by stage
	$(BIN)/python -m tests.benchmarks.end_to_end

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "raybroker needs Python 3.11, 3.12 or 3.13; install one, or: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.run: requirements.lock pyproject.toml | $(BIN)/uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements-dev.lock
	touch $@

lock: $(BIN)/uv  ## resolve the newest versions that pyproject.toml allows, for all platforms
	$(BIN)/uv pip compile pyproject.toml --extra features --upgrade $(LOCK) -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra features --extra dev -c requirements.lock $(LOCK) -o requirements-dev.lock

LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
