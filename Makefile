# make test, make demo, make lint, make bench: set up .venv when there is none, build, run.
# make gpu-check, make gpu-bench: on a CUDA machine; use the Python there if its torch sees the GPU.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.vq-installed
TESTS ?= tests
# What takes longest is left out: `make test MARKS=slow` runs that, and .ci/run does.
MARKS ?= not slow
# Two test processes on one thread each do not fight for the cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# Without a GPU the CUDA kernels are compiled to see that they compile: one target is enough.
ifeq ($(VQ_CUDA_ARCHS)$(shell nvidia-smi -L 2>/dev/null),)
  export VQ_CUDA_ARCHS := 90a-real
endif

# They take most of a build: a demo and a bench without a GPU go without them, unless they are there already.
ifeq ($(VQ_CUDA)$(shell nvidia-smi -L 2>/dev/null),)
  ifeq ($(shell grep -qs VQ_CUDA=0 vq_kernels/_build_info.json || ls vq_kernels/_C*.so 2>/dev/null),)
demo bench: export VQ_CUDA := 0
  endif
endif

.DEFAULT_GOAL := help
.PHONY: help venv install build test lint format demo bench info gpu-check gpu-bench clean

help:
	@echo "make test | demo | lint | bench | info | build | gpu-check | gpu-bench | format | clean"

$(PY):
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

venv: $(PY)

install: $(STAMP)

# Compiles what changed since the last time, in place.
build: $(STAMP)
	@$(PY) setup.py --quiet build_ext --inplace

test: build
	$(TEST_ENV) $(PY) -m pytest $(TESTS) -m '$(MARKS)' -n 2 --dist loadfile --no-loadscope-reorder --durations 15

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

demo: build
	$(PY) -m models.demo

bench: build
	$(PY) -m benchmarks

info: build
	$(PY) -m vq_kernels.info

# A torch that sees the GPU is used as it is, without network: only the native module is built, in place.
gpu-check gpu-bench:
	@set -e; python=$(PYTHON); \
	if ! $$python -c 'import pybind11, pytest, torch; assert torch.cuda.is_available()' 2>/dev/null; then \
	  $(MAKE) install; python=$(PY); \
	fi; \
	$$python setup.py --quiet build_ext --inplace; \
	$$python -m vq_kernels.info; \
	$$python -m benchmarks.$(subst -,.,$@)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	rm -f vq_kernels/_C*.so vq_kernels/_build_info.json
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
