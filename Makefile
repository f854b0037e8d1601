# Each target can be run on a fresh machine: what is missing is installed first.

TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dstack-vpc/bin
export PATH := $(TOOLS):$(HOME)/.cargo/bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-builtin examples screenshots bench bench-reconcile edits soak soak-streams shipped shipped-reconcile bench-registry bench-vpn fuzz kills faults properties run fmt lint ci image image-test picture clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Tests of whole machines that are about what a front does, and not about nginx.
EITHER_FRONT := addresses:: callers:: cost:: drift:: edits:: front:: identity:: peers:: rollout:: secrets:: smuggling:: \
	tcp:: traffic:: volume:: upgrade:: observe::ids:: observe::metrics lifecycle::a_crash lifecycle::a_killed_supervisord \
	lifecycle::an_edit lifecycle::killed_programs lifecycle::sigterm lifecycle::started lifecycle::status \
	lifecycle::two_machines bad_input::a_second bad_input::a_taken children::a_stranger previews::plan

setup: ## install nginx, supervisord, headscale, tailscale, etcd, databases and Chromium where they are missing
	@scripts/setup

build: ## build the release binary
	cargo build --locked --release

demo: ## two machines, a call, a live edit, what gets refused, and a VPN (FRONT=builtin: without nginx)
	@scripts/setup --demo
	@echo 'demo: building dstack-vpc (some minutes the first time)' >&2
	@cargo build --locked --bin dstack-vpc --example demo
	@cargo run --locked --quiet --example demo

test: setup ## run every test, with all of these for real
	cargo test --locked
	FRONT=builtin cargo test --locked --test streams
	FRONT=builtin cargo test --locked --test e2e -- $(EITHER_FRONT)

test-builtin: setup ## run every test of whole machines with the built-in front
	FRONT=builtin cargo test --locked --test e2e --test streams --test vpn --test kills
	FRONT=builtin cargo test --locked --test examples -- --include-ignored

examples: setup ## run everything in examples/, the etcd cluster of three machines too
	cargo test --locked --test examples -- --include-ignored

screenshots: setup ## take the pictures of the status page that docs/ shows
	cargo test --locked --quiet --test e2e -- --ignored page::screenshots

bench-reconcile: shipped-reconcile ## measure edits beside consul-template and confd, into docs/ (15 minutes)
	@cargo bench --locked --quiet --profile dev --bench reconcile

edits: shipped-reconcile ## make EDITS (10000) edits in a row and fail when memory, descriptors or disk grow
	@cargo bench --locked --quiet --profile dev --bench reconcile -- edits

bench-vpn: setup ## measure how long joining the VPN takes
	@cargo test --locked --quiet --test vpn -- --ignored --nocapture joining_takes

bench: shipped ## measure the mesh against nginx, haproxy and ghostunnel, into docs/ (half an hour; BENCH=quick for 5 minutes)
	@cargo bench --locked --quiet --profile dev --bench mesh

soak: shipped ## load the mesh for 10 minutes (or SOAK_MINUTES) and fail when it grows
	@cargo bench --locked --quiet --profile dev --bench mesh -- soak

shipped: MEASURED := --bench
shipped-reconcile: MEASURED := --bench-reconcile
shipped shipped-reconcile:
	@scripts/setup $(MEASURED)
	@echo 'building dstack-vpc as it ships (some minutes the first time)' >&2
	@cargo build --locked --profile dist --bin dstack-vpc

bench-registry: setup ## measure the registry at up to a million nodes, in both stores (some minutes)
	@cargo bench --locked --bench registry

fuzz: ## look for inputs that break a parser: FUZZ_SECONDS (600) for each target
	@scripts/fuzz

soak-streams: setup ## ten minutes of WebSockets, slow readers and traffic under constant change
	cargo test --locked --test streams -- --ignored --nocapture

kills: setup ## kill processes at random moments of edits, under traffic: KILLS (500), SEED
	KILLS=$(or $(KILLS),500) cargo test --locked --test kills -- --nocapture

faults: ## let every step of a reconcile go wrong, in every way, and every pair of two (some minutes)
	FAULTS=all cargo test --locked --test faults -- --nocapture

properties: ## what holds for any vpc.toml, tried with PROPTEST_CASES (2000) generated ones (some minutes)
	PROPTEST_CASES=$(or $(PROPTEST_CASES),2000) cargo test --locked --lib -- desired::properties
	PROPTEST_CASES=$(or $(PROPTEST_CASES),2000) cargo test --locked --test faults -- properties minimal

run: ## run the program: make run ARGS='check --help'
	@cargo run --locked --quiet --bin dstack-vpc -- $(ARGS)

fmt: ## format the code
	cargo fmt --all

lint: ## check format and lints, as CI does
	cargo fmt --all --check
	cargo clippy --locked --all-targets --all-features -- -D warnings

ci: ## everything CI runs
	@.ci/run

image: ## build the container image, the same for the same commit (half an hour the first time; NO_CACHE=1)
	@scripts/image

image-test: ## run containers of that image in every role and talk to them (some minutes; as root)
	@scripts/setup --image-test
	cargo test --locked --features image-test --test image

picture: setup ## record the picture in the README anew, from a real session
	@cargo test --locked --test documents -- --ignored record

clean: ## remove build output (what setup installed stays)
	cargo clean
