# Everything runs in a virtual environment of its own; `make demo` and `make test` make it when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint vllm clean

demo: $(READY)  ## score the shipped ladder with the real lm_eval and print its leaderboard
	$(BIN)/hesnr demo --output results

test: $(READY)  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

vllm:  ## a second environment with a real vLLM engine on CPU, for its tests (about 4 GB)
	PYTHON=$(PYTHON) scripts/make_vllm_venv.sh .venv-vllm

clean:
	rm -rf $(VENV) .venv-vllm

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
