# Everything from a fresh clone on. Needs Python 3.11 or newer, make and git; `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -c constraints.txt
NOTEBOOKS := $(wildcard tutorials/*.ipynb)

# Jupyter refuses to run as root unless told to, and looks for a browser that a server or a container does not have.
LAB_FLAGS := --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/tutorials/00_start_here.ipynb
ifeq ($(shell id -u),0)
LAB_FLAGS += --allow-root
endif
ifeq ($(shell uname -s)$(DISPLAY)$(WAYLAND_DISPLAY),Linux)
LAB_FLAGS += --no-browser
endif

# A notebook is committed with what a reader needs and without what changes from run to run.
EXECUTE := --execute --ExecutePreprocessor.timeout=600 --ExecutePreprocessor.store_widget_state=False \
	--ExecutePreprocessor.record_timing=False \
	--Exporter.preprocessors=kdlab.classroom.publish.WithoutWidgetViews \
	--Exporter.preprocessors=nbconvert.preprocessors.CoalesceStreamsPreprocessor

# macOS has no timeout command; there nbval's limit on each cell is the only one.
LIMIT := $(if $(shell command -v timeout 2>/dev/null),timeout 2400)

# Threads that wait for each other sleep instead of spinning: beside any other load (a browser, say) a training step is
# many times faster so. On an idle machine it is nearly as fast, or takes up to 1.7 times as long where threads wake late.
export OMP_WAIT_POLICY := PASSIVE

# A notebook checks shapes while it imports, and what is imported so has compiled files of its own. Where none may be written,
# each kernel compiles scipy and others anew, for ten seconds and more.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup lab test test-gpu course notebooks docs bench clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.lab  ## make .venv with the tested versions and kdlab in it

lab: setup  ## open the course in JupyterLab
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/jupyter-lab $(LAB_FLAGS)

# A process for each core, with one thread each, or they would wait for each other. All of a file's tests, and all cells of
# a notebook, run in one process. The browser's tests and the notebooks share one cache: what two of them train is trained
# once.
PARALLEL := TQDM_DISABLE=1 OMP_NUM_THREADS=1 $(LIMIT) $(BIN)/python -m pytest -n auto --maxprocesses 4

NOTEBOOK_TESTS := -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout 600 tutorials

test: $(VENV)/.test  ## check everything: style, types, unit tests, widgets in a browser, every notebook
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PARALLEL) --dist loadfile --ignore tests/browser tests
	$(PARALLEL) --dist loadfile --no-loadscope-reorder --timeout 1500 tests/browser
	$(PARALLEL) --dist loadscope $(NOTEBOOK_TESTS)

# A process at a time, for one GPU. What is only of the CPU (equal bits, threads) is in `make test`.
test-gpu: $(VENV)/.test  ## on a CUDA GPU: losses, networks and training against the CPU, and every notebook
	$(BIN)/python -c "import torch; torch.cuda.is_available() or exit('make test-gpu wants a CUDA GPU: kdlab doctor says what PyTorch finds')"
	$(BIN)/python -m pytest tests/devices tests/yolo/test_yolo_on_devices.py
	TQDM_DISABLE=1 $(BIN)/python -m pytest $(NOTEBOOK_TESTS)

# Links between chapters then lead to the pages, and those out of the course still to the repository's files.
course: setup  ## execute all notebooks and write them as web pages to build/course
	TQDM_DISABLE=1 $(BIN)/jupyter-nbconvert --to html $(EXECUTE) --HTMLExporter.embed_images=True \
		--output-dir build/course $(NOTEBOOKS)
	sed -i.bak -e 's|href="\([0-9][0-9]_[a-z0-9_]*\)\.ipynb|href="\1.html|g' -e 's|href="\.\./|href="../../|g' \
		build/course/*.html
	rm build/course/*.bak

notebooks: setup  ## execute all notebooks in place, ready to commit
	TQDM_DISABLE=1 $(BIN)/jupyter-nbconvert --to notebook --inplace $(EXECUTE) $(NOTEBOOKS)

docs: $(VENV)/.test  ## write the library's reference as web pages to build/docs
	$(BIN)/python -m sphinx -b html docs build/docs

# On an idle machine, with the threads as PyTorch has them by default.
bench: $(VENV)/.test  ## measure the speed
	$(BIN)/python -m pip install --quiet --no-deps torchdistill==1.1.5  # only to be compared with
	env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/response.py
	env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/losses.py
	env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/segmentation.py
	env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/restoration.py
	env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/detection.py
	env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/dehazing.py

clean:  ## remove build/ and the tools' caches; .venv, runs/ and trained checkpoints stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find kdlab tests benchmarks tutorials -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || { echo "kdlab needs Python 3.11 or newer; no '$(PYTHON)' was found." \
		"Install one, or name yours: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kdlab needs Python 3.11 or newer;" \
		"'$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name a newer one: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lab: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) -e ".[lab]"
	@touch $@

# What tests need holds what the lab needs: one installation stamps both.
$(VENV)/.test: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) -e ".[lab,yolo,test]"
	@touch $(VENV)/.lab $@
