# Everything is installed into .venv; no target needs anything but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install isolation demo test test-quick test-slow test-cluster test-pods soak soak-short parity lint docs clean compiled

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Use make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev,test]'
	@touch $@

# A job would resume the records of an earlier demo, so they are moved away.
demo: install
	@rm -rf runs/demo.before; [ ! -d runs/demo ] || mv runs/demo runs/demo.before
	$(BIN)/python -m launch.evaluate --config=configs/tiny_reasoner.py --workdir=runs/demo \
		--config.limit=80 --config.num_particles=8
	$(BIN)/python -m launch.report --workdir=runs/demo
	@echo
	@echo "Try next:"
	@echo '  $(BIN)/python -m launch.generate --prompt="Mia packs 147 boxes with 23 pens each. Then Mia buys 38 more bags with 64 each. How many pens is that?"'
	@echo '  $(BIN)/python -m launch.evaluate --config=configs/tiny_reasoner.py --workdir=runs/more --config.limit=100 --config.num_particles=16'

# Most of the time goes into compiling programs that run for milliseconds, so they are compiled with
# few optimizations, and each in one process only.
PYTEST := JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: install
	$(PYTEST) -m "not slow and not pods and not cluster and not compiled"

# Those that compile little, for every small change. New files join them if the whole stays under two
# minutes on two cores.
QUICK := tests/core tests/smc tests/results tests/tasks tests/report tests/docs \
	tests/targets/test_power.py tests/targets/test_stop_rules.py tests/samplers/test_power_smc.py \
	tests/models/test_base.py $(wildcard tests/test_*.py)

test-quick: install
	$(PYTEST) -m "not slow and not pods and not cluster and not compiled" $(QUICK) \
		--ignore=tests/smc/test_resampling_oracles.py

# The long statistical proofs.
test-slow: install
	$(BIN)/python -m pytest -n 2 -m slow

# Runs under a real mpirun and a real SLURM on this machine alone, where they are installed (Debian:
# openmpi-bin, slurm-wlm, munge); no other target needs them.
test-cluster: install
	$(BIN)/python -m pytest -n 0 -rs -m "cluster and not pods" tests/cluster

# Further runs on many devices and by several processes, for which CI has no time.
test-pods: install
	$(BIN)/python -m pytest -n 0 -rs -m pods

# A job that is interrupted at random moments must end with what an undisturbed one has. It prints the
# seed of the moments; SOAK="--kills=20 --seed=7" repeats them. The short form interrupts it once in
# each way.
SOAK ?= --kills=20

soak: install
	$(BIN)/python -m tests.soak $(SOAK)

soak-short: install
	$(BIN)/python -m tests.soak --kills=5 --samplers=smc,mh --limit=10 --seeds="(0,1)"

# Compares with PyTorch, live: the reference implementation of every model family, and the baseline of
# the speed benchmark. (python -m tests.parity.make_golden rewrites what make test compares with.)
parity: install
	$(BIN)/pip install --quiet --editable '.[dev,test,torch]'
	$(BIN)/python -m tests.parity.make_golden --check
	$(BIN)/python -m pytest -n 2 tests/parity tests/benchmarks/test_torch_baseline.py

# The programs compiled for accelerators that are not there. What compiles for one changes JAX's default
# backend, so it is installed beside .venv, whose packages the new environment sees: .venv-tpu, .venv-cuda.
COMPILED_TARGETS ?= v5e h200
COMPILED_LAYERS ?= 2

compiled: .venv-tpu/installed .venv-cuda/installed
	PSMC_COMPILED_TPU=.venv-tpu/bin/python PSMC_COMPILED_CUDA=.venv-cuda/bin/python \
	PSMC_COMPILED_TARGETS="$(COMPILED_TARGETS)" PSMC_COMPILED_LAYERS=$(COMPILED_LAYERS) \
		$(BIN)/python -m pytest -n 0 -rs -m compiled tests/benchmarks

.venv-%/installed: .venv/installed
	$(BIN)/python -m venv --without-pip .venv-$*
	$(BIN)/python -c 'import site, sys; print(*site.getsitepackages(), sep="\n")' > \
		"$$(.venv-$*/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth"
	@$(BIN)/pip --python .venv-$*/bin/python install --quiet --editable '.[compiled-$*]' || \
		{ echo "The libraries that compile for $* cannot be installed; make compiled needs them (the extra compiled-$* in setup.cfg)."; exit 1; }
	@touch $@

# Whether code that models write can be isolated here; if not, the tests of that are skipped.
isolation: install
	$(BIN)/python -c 'from jax_power_smc.grading import isolation; isolation.check("bubblewrap")'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy jax_power_smc launch

# The Markdown reads without it; this fills the tables from docs/records and builds site/.
docs: install
	$(BIN)/pip install --quiet --editable '.[dev,test,docs]'
	$(BIN)/python docs/tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-tpu .venv-cuda runs site build *.egg-info .pytest_cache .mypy_cache .ruff_cache
