# Every target sets up what it needs: a fresh machine with Python 3.11 or newer is enough.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
OUT := demo-out

.PHONY: setup demo test check bench docs clean

setup: .venv/.done browser  ## the environment, alone

.venv/.done: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing torch and the rest; the first time takes some minutes"
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[dev]'
	@touch $@

.PHONY: browser
browser:  ## Chromium and a registry for the tests that need them; they are skipped where these cannot be had
	@{ command -v chromium && command -v docker-registry; } >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium util-linux libgomp1 docker-registry >/dev/null; } \
	  || echo "no Chromium or docker-registry: the tests that need them are skipped"

demo: .venv/.done  ## pull a model, compare it at three sizes, fit a task, write report.html
	@mkdir -p $(OUT)
	$(BIN)/sizewise pull smollm2
	$(BIN)/sizewise pull minilm
	$(BIN)/sizewise make quantize-gguf smollm2 --type F16 --name smollm2:f16
	$(BIN)/sizewise make quantize-gguf smollm2:f16 --type Q2_K --name smollm2:q2_k
	$(BIN)/sizewise compare smollm2:f16 smollm2 smollm2:q2_k --save $(OUT)/compare.json
	$(BIN)/sizewise fit examples/sentiment.toml smollm2:f16 smollm2 smollm2:q2_k --budget 220s --save $(OUT)/fit.json
	$(BIN)/sizewise report $(OUT)/fit.json $(OUT)/compare.json -o report.html

test: setup  ## all tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 40

check: .venv/.done  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.done .venv-peer/.done  ## the speed figures, each beside its peer; one JSON line each
	$(BIN)/sizewise pull smollm2
	$(BIN)/sizewise make quantize-gguf smollm2 --type F16 --name smollm2:f16
	$(BIN)/python benchmarks/start_time.py
	$(BIN)/python benchmarks/runner_overhead.py
	$(BIN)/python benchmarks/serve_overhead.py
	$(BIN)/python benchmarks/serve_concurrency.py
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/eval_lm_eval.py --peer-python .venv-peer/bin/python

.venv-peer/.done: constraints.txt
	@test -x .venv-peer/bin/python || $(PYTHON) -m venv .venv-peer
	@.venv-peer/bin/python -m pip install --quiet -c constraints.txt torch==2.13.0
	@.venv-peer/bin/python -m pip install --quiet -c constraints.txt lm-eval transformers accelerate gguf
	@touch $@

docs: .venv/.done  ## the pages that are made from the program
	$(BIN)/python scripts/docs.py

clean:  ## remove what was built; models and results in ~/.sizewise stay
	rm -rf .venv .venv-peer .cache .mypy_cache .ruff_cache .pytest_cache build *.egg-info $(OUT) report.html report.json report.md
