# The commands that people and CI use. Everything runs in .venv, which is created on first use.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu.lock
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' $(LOCK))
TORCH_INDEX := https://download.pytorch.org/whl/cpu
MAKEFLAGS += --no-print-directory
# Where this is set, each of the many processes of a run or a test compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-slow coverage check check-gpu format setup lock clean

quickstart: setup ## one self-improvement round on this machine, from nothing to the table of scores
	$(BIN)/python regenesis.py run configs/quickstart.yaml

test: setup check ## lint, types and all tests that two cores finish in half an hour
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: setup ## the longer tests, with a second family of models
	$(MAKE) setup EXTRAS=bench
	$(BIN)/python -m pytest -m "slow and not gpu"

coverage: setup ## the lines and branches that no test has run, Ray's workers and subprocesses included
	$(BIN)/python -m tests.branch_coverage -m "not gpu"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Optional packages, each from its own lock: make setup EXTRAS=trackers (or "trackers bench").
EXTRAS :=
setup: $(VENV)/installed $(EXTRAS:%=$(VENV)/installed-%)

# The lock is complete and has the hash of each file, so pip resolves nothing and accepts only those
# files. PyTorch's CPU wheel comes from pip's configured find-links where there is one, otherwise
# from PyTorch's own index; both have the same file.
$(VENV)/installed: $(LOCK) commands/launcher.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if $(BIN)/pip download --quiet --no-deps --dest $(VENV)/torch-wheel "$(TORCH)" 2>/dev/null; \
	then index=""; else index="--extra-index-url $(TORCH_INDEX)"; fi; \
	$(BIN)/pip install --quiet --no-deps --require-hashes $$index --find-links $(VENV)/torch-wheel \
	  -r $(LOCK)
	rm -rf $(VENV)/torch-wheel
	install commands/launcher.sh $(BIN)/regenesis
	touch $@

$(VENV)/installed-%: requirements/%.lock $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps --require-hashes -r $<
	touch $@

# All locks from pyproject.toml. uv does not read pip's configuration: on a machine that has
# PyTorch's CPU wheel in a folder, give it as WHEELS=folder. An extra's lock has only what the CPU
# lock lacks, in compatible versions.
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" .make/uv/bin/uv pip compile --quiet \
  --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 pyproject.toml
CPU = --extra cpu --override requirements/cpu-overrides.txt --no-emit-find-links \
  --find-links $(or $(WHEELS),$(TORCH_INDEX)/torch/)
lock:
	test -x .make/uv/bin/uv || { python3 -m venv .make/uv && .make/uv/bin/pip install --quiet uv; }
	$(COMPILE) $(CPU) --extra aws --extra dev -o $(LOCK)
	$(COMPILE) --extra gpu --extra aws -o requirements/gpu.lock
	for extra in trackers bench; do \
	  $(COMPILE) $(CPU) --extra $$extra --override requirements/extras-overrides.txt \
	    --constraint $(LOCK) $$(sed -n 's/^\([^ #]*\)==.*/--no-emit-package \1/p' $(LOCK)) \
	    -o requirements/$$extra.lock || exit 1; \
	done

clean:
	rm -rf runs .mypy_cache .pytest_cache .ruff_cache

# Shows how vLLM's CUDA build resolves every shipped config on simulated cards. It needs no GPU, but a
# C compiler and 9 GB for a separate environment. For one card: make check-gpu CARDS=H100
check-gpu: .venv-gpu/installed
	.venv-gpu/bin/python -m tests.gpu.check_gpu $(CARDS)

.venv-gpu/installed: requirements/gpu.lock
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --no-deps -r requirements/gpu.lock
	touch $@
