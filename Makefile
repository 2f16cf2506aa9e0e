# `make demo` and `make test` set up everything they need in .venv. Threads are set: two OpenMP pools would fight.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# pip's options for torch; on Linux, "--index-url" of the CPU builds saves gigabytes (see pytorch.org).
TORCH_ARGS ?=
WEBUI ?=
export OMP_NUM_THREADS ?= 2

.PHONY: demo test test-webui bench train lint clean

demo: $(VENV)/.demo
	$(RUN) -m asag demo

test: $(VENV)/.test
	$(RUN) -m pytest

# Drives the WebUI installed in the folder WEBUI (the one that holds launch.py) over its API.
test-webui: $(VENV)/.test
	ASAG_WEBUI="$(abspath $(WEBUI))" $(RUN) -m pytest tests/webui

# Writes JSON and a table beside it. BENCH: operator, step or hosts, and options; see python -m asag bench --help.
BENCH ?=
BENCH_JSON ?= bench/results/$(shell date +%Y-%m-%d).jsonl
bench: $(VENV)/.demo
	$(RUN) -m asag bench --json $(BENCH_JSON) $(BENCH)

train: $(VENV)/.demo
	$(RUN) -m asag train

lint: $(VENV)/.test
	$(RUN) -m pip install --quiet --constraint constraints.txt ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .hypothesis

$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(TORCH_ARGS) torch numpy
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo]'
	touch $@

# stable-diffusion-sdkit is the `ldm` package that AUTOMATIC1111 runs; its own pins are years old, hence --no-deps.
$(VENV)/.test: $(VENV)/.demo
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps stable-diffusion-sdkit
	touch $@
