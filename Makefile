# `make demo` and `make test` set up everything they need in .venv. Threads are set: two OpenMP pools would fight.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# pip's options for torch; on Linux, "--index-url" of the CPU builds saves gigabytes (see pytorch.org).
TORCH_ARGS ?=
WEBUI ?=
export OMP_NUM_THREADS ?= 2

.PHONY: demo playground test test-webui versions fuzz mutate bench train lint clean

demo: $(VENV)/.demo
	$(RUN) -m asag demo

# The page says its address; PORT chooses another one.
PORT ?= 7870
playground: $(VENV)-gradio4/.ready
	$(VENV)-gradio4/bin/python -m asag playground --port $(PORT)

# A process a core, each with one thread; a file's tests stay together, since they share models and pages. At the end it
# says which branches of asag no test takes; what runs in a process of its own isn't counted.
TEST_PROCESSES ?= auto
test: $(VENV)/.test $(VENV)-gradio4/.ready $(VENV)-gradio3/.ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --durations 15 --cov --cov-report term

# Drives the WebUI installed in the folder WEBUI (the one that holds launch.py) over its API.
test-webui: $(VENV)/.test
	ASAG_WEBUI="$(WEBUI)" $(RUN) -m pytest tests/webui

# The core tests in the versions of torch, numpy and gradio that each WebUI pins, and in the newest, as far as their
# Pythons are there: 5 GB on Linux for each, with CUDA. NOX: options and sessions; make versions NOX="-s core-newest".
NOX ?=
versions: $(VENV)-nox/.ready
	$(VENV)-nox/bin/python -m nox $(NOX)

$(VENV)-nox/.ready: constraints.txt
	$(PYTHON) -m venv $(VENV)-nox
	$(VENV)-nox/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt nox
	touch $@

# The tests that make up their input, with 10 000 examples each; make test has 500. Then the routes against their OpenAPI
# description, and the parsers by atheris for FUZZ_SECONDS.
FUZZ_SECONDS ?= 1800
fuzz: $(VENV)/.test $(VENV)-fuzz/.ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m fuzz --hypothesis-profile fuzz --timeout 7200 --numprocesses $(TEST_PROCESSES)
	$(VENV)-fuzz/bin/python -m pytest -p no:schemathesis tests/fuzz/test_fuzz_routes.py
	OMP_NUM_THREADS=1 $(VENV)-fuzz/bin/python -m tests.fuzz.run build/corpus -max_len=600 -max_total_time=$(FUZZ_SECONDS)

# Changes the code in one place at a time and looks which changes no test notices; hours for all of it. MUTATE: modules,
# such as asag/guidance.py, and options; see python -m tests.mutation.run --help.
MUTATE ?=
mutate: $(VENV)/.test
	$(RUN) -m tests.mutation.run $(MUTATE)

# Writes JSON and a table beside it. BENCH: operator, step or hosts, and options; see python -m asag bench --help.
BENCH ?=
BENCH_JSON ?= bench/results/$(shell date +%Y-%m-%d).jsonl
bench: $(VENV)/.demo
	$(RUN) -m asag bench --json $(BENCH_JSON) $(BENCH)

train: $(VENV)/.demo
	$(RUN) -m asag train

lint: $(VENV)/.lint
	$(RUN) -m ruff check --quiet .
	$(RUN) -m ruff format --quiet --check .
	$(RUN) -m mypy --no-error-summary

clean:
	rm -rf $(VENV) $(VENV)-gradio4 $(VENV)-gradio3 $(VENV)-nox .nox demo build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage*

$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version) if sys.version_info < (3, 10) else None'
	@echo "Installing torch in $(abspath $(VENV)): 2.2 GB to download on Linux, with CUDA; 0.2 GB for the CPU build (see TORCH_ARGS)."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt $(TORCH_ARGS) torch numpy
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "Installing diffusers, matplotlib and what the demo needs in $(abspath $(VENV))."
	$(RUN) -m pip install --progress-bar off --disable-pip-version-check --constraint constraints.txt --editable '.[demo]'
	touch $@

# stable-diffusion-sdkit is the `ldm` package that AUTOMATIC1111 runs; its own pins are years old, hence --no-deps.
$(VENV)/.test: $(VENV)/.demo
	@echo "Installing what the tests need in $(abspath $(VENV))."
	$(RUN) -m pip install --progress-bar off --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps stable-diffusion-sdkit
	touch $@

# What fuzzing needs beside the tests' own packages, which it finds after its own.
$(VENV)-fuzz/.ready: $(VENV)/.test
	$(PYTHON) -m venv $(VENV)-fuzz
	$(VENV)-fuzz/bin/python -c 'import sysconfig, pathlib, sys; pathlib.Path(sysconfig.get_path("purelib"), "base.pth").write_text(sys.argv[1])' \
		"$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(VENV)-fuzz/bin/python -m pip install --progress-bar off --disable-pip-version-check --no-warn-conflicts \
		--constraint constraints.txt atheris fastapi schemathesis
	touch $@

# mypy reads the packages that the code imports.
$(VENV)/.lint: $(VENV)/.test
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt ruff mypy
	touch $@

# The gradio of the WebUIs needs older packages; torch and the rest are those of $(VENV), found after its own. Where a
# gradio can't be installed (3.41.2 needs Python 3.12 or older, 4.40.0 needs 3.13 or older), its browser tests skip.
$(VENV)-gradio%/.ready: constraints-gradio%.txt requirements-playground.txt $(VENV)/.demo
	@echo "Installing the playground in $(abspath $(VENV)-gradio$*), with the versions of $<: 0.5 GB."
	$(PYTHON) -m venv $(VENV)-gradio$*
	$(VENV)-gradio$*/bin/python -c 'import sysconfig, pathlib, sys; pathlib.Path(sysconfig.get_path("purelib"), "base.pth").write_text(sys.argv[1])' \
		"$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(VENV)-gradio$*/bin/python -m pip install --progress-bar off --disable-pip-version-check --no-warn-conflicts \
		--constraint $< --requirement requirements-playground.txt && touch $@ || echo "The playground can't be installed with $<" >&2
