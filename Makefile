# Everything runs in a virtual environment of its own; `make demo` and `make test` make it when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEXT := .venv-lm-eval-next
NEXT_VERSION := 0.5.0.dev1
# what stands between our tasks and lm-eval, run again with the next one
NEXT_TESTS := tests/slow/test_task.py tests/slow/test_registration.py tests/slow/test_cli.py tests/slow/test_public_tasks.py tests/slow/test_passk_task.py
# arithmetic on float32, run again as on a CPU without vector instructions
NUMERIC_TESTS := -m numbers tests/unit/backends tests/unit/analysis/test_pairs.py tests/contract/test_backends.py tests/contract/test_metrics.py \
  tests/golden tests/slow/test_task.py
SCALAR := NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL AVX512_SPR" ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
  OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=SSE41
FAST_TESTS := tests/unit tests/contract tests/golden
PYTEST := -m pytest -n 2 --dist worksteal

.PHONY: demo results check test coverage pythons lint docs vllm lm-eval-next clean

demo: $(READY)  ## score the miniature with the real lm_eval, print verdict and leaderboard
	$(BIN)/hesnr demo --output out/demo

results: $(READY)  ## make the committed results/ again
	$(BIN)/hesnr demo --output results

check: $(READY)  ## the fast tests: no subprocess, about a minute
	$(BIN)/python $(PYTEST) $(FAST_TESTS)

test: $(READY) $(NEXT)/.ready  ## all tests; then, side by side, some with the next lm-eval and some as on another CPU
	$(BIN)/python $(PYTEST)
	@echo "the next lm-eval and, as on a CPU without vector instructions, float32:"
	@$(NEXT)/bin/python -m pytest -o cache_dir=$(NEXT)/cache $(NEXT_TESTS) > $(NEXT)/tests.log 2>&1 & next=$$!; \
	$(SCALAR) $(BIN)/python -m pytest $(NUMERIC_TESTS); scalar=$$?; \
	wait $$next; next=$$?; cat $(NEXT)/tests.log; exit $$((next + scalar))

lint: $(READY)  ## style, types, layers and names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_names.py

docs: $(READY)  ## the documentation as a site, in build/site
	$(BIN)/python scripts/build_docs.py

coverage: $(READY)  ## which lines the fast tests run
	$(BIN)/python $(PYTEST) $(FAST_TESTS) --cov=hesnr_tasks --cov-report=term:skip-covered

pythons:  ## the unit tests with every Python that is here; EXTRAS=hf,api,report,egss for all of them
	scripts/test_pythons.sh 3.10 3.11 3.12 3.13

vllm:  ## a second environment with a real vLLM engine on CPU, for its tests (about 4 GB)
	PYTHON=$(PYTHON) scripts/make_vllm_venv.sh .venv-vllm

lm-eval-next: $(NEXT)/.ready  ## an environment that is $(VENV) with the next lm-eval on top of it

clean:
	rm -rf $(VENV) .venv-vllm $(NEXT)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(NEXT)/.ready: $(READY)
	$(PYTHON) -m venv $(NEXT)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	  > "$$($(NEXT)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth"
	$(NEXT)/bin/python -m pip install --quiet --no-deps lm-eval==$(NEXT_VERSION)
	touch $@
