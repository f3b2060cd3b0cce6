# The verbs people type. `make test` needs Rust, Python 3.11 and nothing else: it sets up the rest under target/.

CARGO ?= cargo
PYTHON ?= python3
VENV := $(CURDIR)/target/venv
SERVERS := apps/stdio-rpc/tests/requirements.txt

.PHONY: help run test check loom docs fmt

help: ## what there is to do
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

run: ## the counter server
	$(CARGO) run --quiet --example counter_server

test: $(VENV)/ready ## all tests: the crate in three shapes, the apps against real servers
	$(CARGO) test
	$(CARGO) test --all-features --test it
	$(CARGO) test --no-default-features --test it
	STDIO_RPC_PYTHON=$(VENV)/bin/python $(CARGO) test -p stdio-rpc

$(VENV)/ready: $(SERVERS)
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $(SERVERS)
	touch $@

check: ## formatting, lints, and which file may know which
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	$(CARGO) clippy --all-targets --no-default-features -- -D warnings
	.ci/layers

loom: ## the models: every interleaving, up to a bound
	RUSTFLAGS="--cfg loom" $(CARGO) test --release --no-default-features --test loom --target-dir target/loom

docs: ## the crate's documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --all-features

fmt: ## format everything
	$(CARGO) fmt --all
