# Every target sets up what it needs by itself; see scripts/setup.sh.
export PATH := $(CURDIR)/.tools/bin:$(HOME)/.cargo/bin:$(PATH)

# Where the optimised programs are. Always built as one workspace: building one program alone would choose other features of
# shared dependencies, and compile them again.
BIN := $(or $(CARGO_TARGET_DIR),target)/release

.DEFAULT_GOAL := help
.PHONY: help build demo up down test e2e e2e-node torture bench bench-operator manifests lint fmt clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

build: ## Build everything, optimised
	@scripts/setup.sh rust
	cargo build --release --workspace

demo: build ## Load a ledger on this machine, watch it scale out and in, count every event
	@scripts/setup.sh postgres
	@scripts/demo.sh

up: build ## Run config/samples on this machine until Ctrl-C; UP_ARGS="--api-listen 127.0.0.1:8100" for other ports
	@scripts/setup.sh postgres
	@$(BIN)/certeus-operator local -f config/samples $(UP_ARGS)

down: build ## Stop what `make up` runs and clean up what a killed one left
	@$(BIN)/certeus-operator down

test: ## Run all tests
	@scripts/setup.sh rust postgres faketime go controlplane helm
	cargo test --workspace --no-fail-fast

e2e: ## Run the tests against a real Kubernetes control plane; E2E_ARGS="reconcile --nocapture" for some of them
	@scripts/setup.sh rust postgres go controlplane helm
	cargo build -p certeus-dataplane -p certeus-operator
	cargo test -p certeus-e2e --test kubernetes --test helm -- $(E2E_ARGS)

e2e-node: build ## Run it in containers on a real node, as root: kubelet, containerd, kube-proxy; "E2E_ARGS=keep" to look around
	@scripts/setup.sh rust postgres go controlplane helm node
	@e2e/node/run.sh $(E2E_ARGS)

torture: build ## Break everything at length; TORTURE_ARGS="run pod-kill --seed 7" for some of it, "list" for what there is
	@scripts/setup.sh postgres faketime
	@$(BIN)/certeus-torture $(or $(TORTURE_ARGS),run)

bench: build ## Print the benchmark figures; BENCH_ARGS=--quick for a short run
	@scripts/setup.sh postgres
	@$(BIN)/certeus-bench $(BENCH_ARGS)

bench-operator: build ## Measure the operator with 1, 100 and 1,000 LedgerClusters; BENCH_ARGS="--clusters 10" for others
	@scripts/setup.sh go
	@$(BIN)/certeus-bench-operator $(BENCH_ARGS)

manifests: ## Write what follows from crds and chart: the chart's copies of the definitions, the manifests in config
	@scripts/setup.sh go helm
	@scripts/manifests.sh

lint: ## Check format, lints, dependencies and shell scripts
	@scripts/setup.sh rust deny shellcheck promtool
	@scripts/lint.sh

fmt: ## Format the code
	@scripts/setup.sh rust
	cargo fmt --all

clean: ## Remove what was built
	@scripts/setup.sh rust
	cargo clean
