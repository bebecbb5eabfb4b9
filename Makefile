# Each target sets up everything it needs, from a bare machine with Python 3.10 or newer and a C++17 compiler.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
RUN := $(VENV)/bin/python
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard bindings/*.cpp kernels/*/*.cpp kernels/_cpu/*.h)

.PHONY: train test bench lint clean

train: $(VENV)/installed  ## train the refiner on the embedded faces, quick preset
	$(RUN) -m engine.train --fused --preset quick $(ARGS)

test: $(VENV)/installed  ## run the tests
	$(RUN) -m pytest $(ARGS)

bench: $(VENV)/installed  ## fused against eager PyTorch on this machine
	$(RUN) -m benchmarks $(ARGS)

lint: $(VENV)/installed  ## formatting and lint
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

$(VENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dali-cu13,tensorboard,eval,dev]"
	touch $@

clean:  ## remove what was built and installed
	rm -rf $(VENV) build dist *.egg-info engine/_native*.so
