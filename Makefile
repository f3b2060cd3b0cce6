# The verbs people type. `make test` needs Rust, Python 3.11 and nothing else: it sets up the rest under target/.

CARGO ?= cargo
PYTHON ?= python3
VENV := $(CURDIR)/target/venv
SERVERS := apps/stdio-rpc/tests/requirements.txt
BENCH := $(CURDIR)/target/bench-python
# Which Python PyO3 builds for: by its own path, where python3 may be a shim.
PYO3 = PYO3_PYTHON=$(shell $(PYTHON) -c 'import sys; print(sys.executable)')

.PHONY: help run test test-rust test-python test-kernels bench bench-python check loom loom-seeds stress load proof mutants docs fmt

help: ## what there is to do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

run: ## the counter server
	$(CARGO) run --quiet --example counter_server

test: test-rust test-python test-kernels ## all tests

test-rust: $(VENV)/ready ## the crate in three shapes, the apps against real servers
	$(CARGO) test
	$(CARGO) test --all-features --test it
	$(CARGO) test --no-default-features --test it
	STDIO_RPC_PYTHON=$(VENV)/bin/python $(CARGO) test -p stdio-rpc

test-python: ## the package on each of CPython 3.11, 3.12 and 3.13 that is there (PYTHONS="3.13": on that one)
	PYTHON=$(PYTHON) .ci/python test

test-kernels: ## the Jupyter kernels in Rust and in Python, driven by real clients
	$(CARGO) test -p minikernel
	PYTHON=$(PYTHON) .ci/python kernels

$(VENV)/ready: $(SERVERS)
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $(SERVERS)
	touch $@

bench: ## the crate beside its peers in one run (ARGS="--quick --cases channel")
	$(CARGO) run --release --quiet -p bench -- $(ARGS)

bench-python: ## the package, the original and the peers in one run (ARGS="--quick": a short one)
	$(PYTHON) -m venv $(BENCH)/ours
	$(PYTHON) -m venv $(BENCH)/original
	CARGO_TARGET_DIR=$(BENCH)/build $(BENCH)/ours/bin/pip install --quiet --force-reinstall . -r bench/python/requirements.txt
	$(BENCH)/original/bin/pip install --quiet microio==0.1.4
	$(BENCH)/ours/bin/python bench/python/run.py $(ARGS)

check: ## formatting, lints, and which file may know which
	$(CARGO) fmt --all --check
	$(PYO3) $(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(PYO3) $(CARGO) clippy -p microio-python -- -D warnings
	$(CARGO) clippy --all-targets --no-default-features -- -D warnings
	.ci/layers

loom: ## the models: every interleaving, up to a bound
	RUSTFLAGS="--cfg loom" $(CARGO) test --profile loom --no-default-features --features tokio --test loom --target-dir target/loom

loom-seeds: ## bugs that are sown on purpose, each of which a model must find
	.ci/seeds

stress: ## random use from 8 threads, books that must balance, for minutes (SECONDS=10 SEED=1 ONLY=channel)
	$(CARGO) run --release --quiet -p proof --bin stress -- --seconds $(or $(SECONDS),300) \
	  $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY))

proof: ## the crate's tests under Miri and ThreadSanitizer: wants a nightly compiler (NIGHTLY=toolchain)
	.ci/proof

load: ## a million of everything: time and memory stay linear (ARGS="--quick": within a minute)
	$(CARGO) run --release --quiet -p proof --bin load -- $(ARGS)

mutants: ## breaks each function of the crate in turn: hours (SHARD=0/8: one of eight parts)
	.ci/mutants $(SHARD)

docs: ## the crate's documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --all-features

fmt: ## format everything
	$(CARGO) fmt --all
