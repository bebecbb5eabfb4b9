# Each target sets up everything it needs, from a bare machine with Python 3.10 or newer and a C++17 compiler.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
RUN := $(VENV)/bin/python
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard bindings/*.cpp kernels/*/*.cpp kernels/_cpu/*.h)

.PHONY: train test test-all test-oldest sanitize fuzz interpret bench readme-figures gpu lint docs dist check-dist clean

train: $(VENV)/installed  ## train the refiner on the embedded faces, quick preset
	$(RUN) -m engine.train --fused --preset quick $(ARGS)

# a process of tests for each core, each computing on one thread; a file's tests stay together and share what they build.
# threads that wait for others do not spin: the core is needed by the other processes
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(RUN) -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile \
	--no-loadscope-reorder
WORKERS ?= $(shell nproc)

test: $(VENV)/installed  ## run the tests, all but the slow sweeps
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/installed  ## run every test, as CI does
	$(PYTEST) -m "not covered" $(ARGS)

OLDEST_VENV ?= .venv-oldest
test-oldest: RUN = $(OLDEST_VENV)/bin/python
test-oldest: $(OLDEST_VENV)/installed  ## run the tests with the oldest Python and packages that pyproject.toml admits
	$(PYTEST) -m "not slow" $(ARGS)

# its own copy of the sources, so that the normal build stays; the first finding of either sanitizer ends the tests
SANITIZED := build/sanitize
# setuptools compiles with -fwrapv, which would hide overflows
SANITIZERS := -O1 -g1 -fno-omit-frame-pointer -fno-wrapv -fsanitize=address,undefined -fno-sanitize-recover=all
PRELOAD = $(foreach library,libasan.so libubsan.so libstdc++.so.6,$(shell $(CXX) -print-file-name=$(library)))

SANITIZING = LD_PRELOAD="$(PRELOAD)" PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=abort_on_error=1:print_stacktrace=1

NATIVE := setup.py $(shell find bindings kernels -name '*.cpp' -o -name '*.h')
$(SANITIZED)/built: $(VENV)/installed $(NATIVE)
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	tar -c --exclude='*.so' --exclude=__pycache__ setup.py pyproject.toml README.md LICENSE bindings kernels engine \
		| tar -x -C $(SANITIZED)
	cd $(SANITIZED) && KILN_SANITIZE="$(SANITIZERS)" $(abspath $(RUN)) setup.py --quiet build_ext --inplace
	touch $@

sanitize: $(SANITIZED)/built  ## the operators' tests under AddressSanitizer and UndefinedBehaviorSanitizer (GCC)
	tar -c --exclude='*.so' --exclude=__pycache__ kernels engine tests | tar -x -C $(SANITIZED)
	cd $(SANITIZED) && $(SANITIZING) $(abspath $(RUN)) -m pytest -p no:cacheprovider --capture=sys \
		tests/kernels/test_sanitized.py tests/kernels/test_operators.py $(ARGS)

fuzz: $(SANITIZED)/built  ## random files, models, tables and operator calls for minutes; the calls also under the sanitizers
	KILN_FUZZ=1 $(PYTEST) --dist load tests/fuzz $(ARGS)
	tar -c --exclude='*.so' --exclude=__pycache__ kernels engine tests | tar -x -C $(SANITIZED)
	cd $(SANITIZED) && KILN_FUZZ=1 $(SANITIZING) $(abspath $(RUN)) -m pytest -p no:cacheprovider --capture=sys \
		tests/fuzz/test_operators.py $(ARGS)

interpret: $(VENV)/installed  ## every sample of every GPU kernel in every dtype, interpreted, without a GPU
	KILN_INTERPRET=1 $(PYTEST) tests/kernels/test_interpreted.py tests/kernels/test_interpreted_convolution.py $(ARGS)

bench: $(VENV)/installed  ## fused against three baselines on this machine
	$(RUN) -m benchmarks $(ARGS)

RESULT ?= benchmarks/results/amd-epyc-2-cores_39cf1d3.json
readme-figures: $(VENV)/installed  ## the README's measured table and plot, from the saved result RESULT=file
	$(RUN) -m benchmarks readme $(RESULT)

gpu: $(VENV)/installed  ## everything that a GPU can show, in 40 minutes at most; results in OUT=folder
	$(RUN) -m benchmarks.gpu $(OUT) $(ARGS)

lint: $(VENV)/installed  ## formatting, lint, and the types of the public API as it is installed
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	rm -rf build/typed/engine && $(RUN) setup.py --quiet build_py --build-lib build/typed
	cd build/typed && $(abspath $(RUN)) -m mypy --config-file ../../pyproject.toml

$(VENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dali-cu13,tensorboard,eval,dev]"
	touch $@

# the Pythons that wheels are built for: each of these that is here with its C headers
HEADERS := import os, sysconfig; print(os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")))
PYTHONS ?= $(foreach version,3.10 3.11 3.12 3.13,$(if $(filter True,$(shell python$(version) -c '$(HEADERS)' 2>/dev/null)),python$(version)))

# torch for TORCH_BACKEND (cpu, cu130 ...) is in PyTorch's own index; with none it is what pip would take. It is installed by
# itself, because uv would look for Triton in that index too
TORCH_BACKEND ?= cpu
OLDEST_PYTHON = $(if $(filter file,$(origin PYTHON)),$(firstword $(PYTHONS) $(PYTHON)),$(PYTHON))
UV = $(OLDEST_VENV)/bin/uv pip
LOWEST = --resolution lowest-direct --no-deps --extra dali-cu13 --extra tensorboard --extra eval --extra test

$(OLDEST_VENV)/installed: $(SOURCES)
	$(OLDEST_PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet --constraint constraints.txt uv
	$(UV) compile --quiet --python $(OLDEST_VENV) $(LOWEST) pyproject.toml >$(OLDEST_VENV)/lowest.txt
	grep "^torch==" $(OLDEST_VENV)/lowest.txt >$(OLDEST_VENV)/torch.txt
	$(UV) install --quiet --python $(OLDEST_VENV) $(addprefix --torch-backend=,$(TORCH_BACKEND)) -r $(OLDEST_VENV)/torch.txt
	$(UV) install --quiet --python $(OLDEST_VENV) -r $(OLDEST_VENV)/lowest.txt
	$(UV) install --quiet --python $(OLDEST_VENV) --no-deps --no-build-isolation --editable .
	touch $@

docs: $(VENV)/installed  ## the documentation site with the API reference, in build/docs
	$(RUN) docs/build_site.py

dist: $(VENV)/installed  ## dist/: the sdist, and a manylinux wheel made from it for each Python here
	rm -rf dist build/wheels
	$(RUN) -m build --sdist --outdir dist .
	for python in $(PYTHONS); do \
		$(RUN) -m pip --python "$$(command -v $$python)" wheel --quiet --no-deps -w build/wheels dist/*.tar.gz || exit 1; \
	done
	PATH="$(abspath $(VENV))/bin:$$PATH" $(RUN) -m auditwheel repair --wheel-dir dist build/wheels/*.whl

WHEEL = dist/kiln_engine-*-$(shell $(PYTHON) -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-manylinux*.whl

check-dist: dist  ## the wheel in an empty environment, in an empty folder: doctor, train, refine
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m venv "$$folder/venv" \
		&& "$$folder/venv/bin/pip" install --quiet --constraint constraints.txt "$$(echo $(WHEEL))[dali-cu13]" \
		&& cd "$$folder" && PATH="$$folder/venv/bin:$$PATH" && kiln doctor \
		&& kiln data avatars faces -n 4 \
		&& kiln train --fused --steps 20 --filters 8 --batch-size 4 --resolution 32 --out run \
		&& kiln refine run faces/game refined && ls refined

clean:  ## remove what was built and installed
	rm -rf $(VENV) $(OLDEST_VENV) build dist *.egg-info engine/_native*.so
