# Two commands for newcomers: `make demo [IMAGE=photo.jpg]` and `make test`. Both set up .venv by themselves.
#
# A stamp file is written only after its step succeeded, so an interrupted run is repeated, and a finished one costs
# nothing the next time. COMFYUI_PATH, when set, is the ComfyUI to use; otherwise a pinned one is fetched.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
COMFYUI_VERSION ?= 0.30.0
COMFYUI_PATH ?=
IMAGE ?=
export COMFYUI_PATH

# A test environment may pin what the pack itself must not: ComfyUI asks for any torch, and these three fit together.
TORCH := torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0

ifeq ($(strip $(COMFYUI_PATH)),)
COMFYUI := .comfyui/$(COMFYUI_VERSION)
else
COMFYUI := $(COMFYUI_PATH)
endif

PYTEST := $(PY) -m pytest -q

.PHONY: help setup demo lint test soak matrix bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo [IMAGE=photo.jpg]   depth and normals of a photo and of a drawn scene, into out/demo/"
	@echo "make test                     everything the pack promises"
	@echo "make test-core                one room of the tests: $(ROOMS)"
	@echo "make lint                     ruff"
	@echo "make soak [CHECKS=names]      hard knocks for hours, and docs/reliability.md; Linux"
	@echo "make matrix                   every ComfyUI in use, every Python here, and docs/compatibility.md; hours"
	@echo "make bench [REFERENCE=path]   measure, and write docs/benchmarks.md (half an hour on two cores)"

setup: $(VENV)/.packages

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.created Makefile
	$(PIP) $(TORCH)
	@touch $@

$(COMFYUI)/main.py: | $(VENV)/.created
	$(PY) tools/comfyui.py --version $(COMFYUI_VERSION)

# The extras are read out of pyproject.toml instead of installing the project: ComfyUI never installs it either.
$(VENV)/.packages: $(VENV)/.torch $(COMFYUI)/main.py pyproject.toml
	$(PIP) $(TORCH) -r $(COMFYUI)/requirements.txt
	$(PY) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	    print(*p["dependencies"], *p["optional-dependencies"]["train"], *p["optional-dependencies"]["dev"], sep="\n")' \
	    > $(VENV)/requirements.txt
	$(PIP) $(TORCH) -r $(VENV)/requirements.txt
	@touch $@

demo: setup
	$(PY) -m tools.demo $(if $(IMAGE),--image "$(IMAGE)")

lint: setup
	$(VENV)/bin/ruff check .

# One pytest for each room, because importing ComfyUI changes a process: tests/core must run without it.
ROOMS := core train nodes workflows

test: lint
	@failed=""; \
	for room in $(ROOMS); do \
	    echo "== tests/$$room"; \
	    $(PYTEST) tests/$$room || failed="$$failed $$room"; \
	done; \
	if [ -n "$$failed" ]; then echo "FAILED:$$failed"; exit 1; fi

test-%: setup
	$(PYTEST) tests/$*

# CHECKS, when set, is some of: fuzz properties shared names offline disks kills interruptions endurance control plans.
soak: setup
	$(PY) -m tools.soak --write $(if $(CHECKS),--checks $(CHECKS))

# Goes on where it was stopped.
matrix: setup
	$(PY) -m tools.matrix

# REFERENCE, when set, is a checkout of the reference implementation to measure against.
bench: setup
	$(PY) -m benchmarks.macs --write
	$(PY) -m benchmarks.cost --write
	$(PY) -m benchmarks.cpu --write $(if $(REFERENCE),--reference "$(REFERENCE)")
	$(PY) -m benchmarks.loading --write
	$(PY) -m benchmarks.gpu --write

clean:
	rm -rf out .pytest_cache .ruff_cache .hypothesis
