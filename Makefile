# HPK: a private Kubernetes on Slurm, for an ordinary user.
# `make` prints what can be made. Everything that takes long is kept in
# $(HPK_CACHE), so second runs take minutes, not tens of minutes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

HPK_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/hpk
SITE_DIR ?= /var/tmp/hpk-site
CARGO_TARGET_DIR ?= $(HPK_CACHE)/cargo-target
# release, or dev for quick rounds while developing
PROFILE ?= release
# where `make install` puts HPK
PREFIX ?= $(HOME)/.local
# A folder with an official Kubernetes release's programs, instead of building them
KUBERNETES_BIN ?=
export HPK_CACHE SITE_DIR CARGO_TARGET_DIR
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin
# Every progress line, of whichever script, counts from here.
export PHASE_START := $(or $(PHASE_START),$(shell date +%s))

phase = . images/lib.sh && phase
STATIC := x86_64-unknown-linux-gnu
CARGO_BUILD = cargo build --quiet --locked --profile $(PROFILE)

.PHONY: help
help: ## this list
	@echo "make TARGET, with"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/' | expand -t 18
	@echo
	@echo "SITE_DIR=$(SITE_DIR)  where the site lives"
	@echo "HPK_CACHE=$(HPK_CACHE)  where products are kept"
	@echo "PROFILE=$(PROFILE)  KUBERNETES_BIN=$(KUBERNETES_BIN)"
	@echo
	@echo "Start with: make demo"

.PHONY: demo
demo: site-up ## from a bare Debian machine to pods on Slurm: build, bring up, show examples
	@tests/demo.sh

.PHONY: test
test: lint deny unit e2e ## all that a newcomer needs to see green: format, lints, licences, unit tests, cases on the site, some faults
	@$(phase) "a short fault campaign"
	@tests/chaos/chaos.py --short --seconds 30 --seed 1
	@$(phase) "all tests passed"

.PHONY: tools
tools:
	@. images/lib.sh && need cc gcc && need make make
	@command -v cargo >/dev/null || { echo "Rust 1.95 or later is needed: https://rustup.rs"; exit 1; }
	@[ -n "$(KUBERNETES_BIN)" ] || command -v go >/dev/null || \
	  { echo "Go 1.26 or later is needed: https://go.dev/dl (or KUBERNETES_BIN=folder of a Kubernetes release)"; exit 1; }
	@# Cargo goes by times of files: what another checkout left would seem fresh beside older files of this one.
	@mkdir -p $(CARGO_TARGET_DIR)
	@[ "$$(cat $(CARGO_TARGET_DIR)/checkout 2>/dev/null)" = "$(CURDIR)" ] || \
	  { rm -rf $(CARGO_TARGET_DIR)/{,*/}{debug,release}/.fingerprint/hpk* && echo "$(CURDIR)" > $(CARGO_TARGET_DIR)/checkout; }

.PHONY: build
build: tools ## HPK's programs; hpk-pause and hpk-netns are static
	@$(phase) "building hpk and hpk-kubelet ($(PROFILE))"
	@$(CARGO_BUILD) -p hpk -p hpk-kubelet
	@$(phase) "building hpk-pause and hpk-netns (static)"
	@$(CARGO_BUILD) -p hpk-pause -p hpk-netns --target $(STATIC) \
	  --config 'target.$(STATIC).rustflags=["-C","target-feature=+crt-static"]'

.PHONY: control-plane
control-plane: tools ## Kubernetes, etcd and CoreDNS, from pinned Go modules, as one Apptainer image
	@$(phase) "control plane"
	@images/control-plane/build.sh $(if $(KUBERNETES_BIN),--kubernetes-bin $(KUBERNETES_BIN)) > $(HPK_CACHE)/control-plane.out
	@tail -n 1 $(HPK_CACHE)/control-plane.out

.PHONY: images
images: ## the example images busybox:1, toolbox:1 and mpi:1, as OCI layouts
	@images/busybox/build.sh
	@images/toolbox/build.sh
	@images/mpi/build.sh

.PHONY: rootfs
rootfs: ## the nodes' root filesystem: Debian 13 with Slurm and Apptainer
	@tests/site/rootfs.sh

.PHONY: site
site: ## the bare site: Slurm, registry, users, without HPK
	@tests/site/up.sh

.PHONY: install
install: build control-plane ## HPK for you, below PREFIX (default ~/.local), no root needed
	@images/install.sh $(PREFIX)
	@$(phase) "HPK is in $(PREFIX); with $(PREFIX)/bin in your PATH: hpk doctor, then hpk up"

.PHONY: dist
dist: tools ## the one file that a site needs, for x86_64 and glibc 2.17 or later (docs/guide/release.md)
	@images/dist/build.sh

.PHONY: dist-try
dist-try: dist rootfs site ## that file, tried by bob on the site, who has no tool chain: from the archive to a running pod
	@tests/dist/try.sh "$$(ls $(HPK_CACHE)/dist/hpk-*-x86_64.tar.zst)"

.PHONY: site-up
site-up: tools ## the site, and HPK in it as alice: node Ready
	@$(phase) "bringing up the site in $(SITE_DIR)"
	@# Downloads and compilers side by side; each product has its own lock.
	@$(MAKE) -j2 rootfs build control-plane images >/dev/null
	@$(MAKE) site
	@tests/site/install.sh
	@tests/site/hpk-up.sh
	@$(phase) "ready: tests/site/sx login -u alice kubectl get nodes"

.PHONY: site-down
site-down: ## ends HPK and the site; their state stays
	@tests/site/hpk-down.sh
	@tests/site/down.sh

.PHONY: unit
unit: tools ## unit and property tests, no site needed
	@. images/lib.sh && need docker-registry docker-registry && need busybox busybox-static && need newuidmap uidmap && need mksquashfs squashfs-tools
	@$(phase) "unit tests"
	@cargo test --quiet --locked --workspace --exclude hpk-e2e

.PHONY: e2e
e2e: site-up ## the end-to-end cases on the site
	@install -D -m 755 "$$(tests/kubectl-older/build.sh | tail -n 1)" $(SITE_DIR)/home/alice/.local/bin/kubectl-older
	@$(phase) "end-to-end cases"
	@cargo test --locked -p hpk-e2e -- --test-threads=$(or $(E2E_THREADS),4)

# Not optimised: what is looked at is whether it works.
.PHONY: fast
fast: export PROFILE := dev
fast: export SITE_DIR := $(SITE_DIR)-fast
fast: tools ## the inner loop, without the site: unit tests, and the end-to-end cases that are not about Slurm
	@$(MAKE) unit
	@[ "$$(id -u)" != 0 ] || $(MAKE) -j2 rootfs build control-plane images >/dev/null
	@tests/fast.sh

.PHONY: fuzz
fuzz: tools ## coverage-guided fuzzing of all that reads what strangers write, and of the supervisor's decisions (SECONDS_EACH=60)
	@. images/lib.sh && need c++ g++
	@CARGO_TARGET_DIR= tests/fuzz/run.sh $(or $(SECONDS_EACH),60)

.PHONY: long
long: site-up ## the cases that take minutes: back-off over six restarts, no control plane for two minutes, time limits
	@o=$$(tests/mpi-operator/build.sh | tail -n 1) && \
	  install -D -m 755 $$o/mpi-operator $(SITE_DIR)/home/alice/.local/bin/mpi-operator && \
	  install -D -m 644 $$o/mpijobs.yaml $(SITE_DIR)/home/alice/.local/share/mpi-operator/mpijobs.yaml
	@images/push.sh postgres
	@$(phase) "long end-to-end cases"
	@cargo test --locked -p hpk-e2e -- --ignored --test-threads=1 --nocapture

# The calls alone are taken away: what else an old kernel lacks is in docs/guide/install.md.
.PHONY: old-kernel
old-kernel: export SITE_DIR := $(SITE_DIR)-4.18
old-kernel: tools ## the end-to-end cases on a site without the system calls that came after Linux 4.18
	@tests/site/up.sh --old-kernel enosys --no-images
	@$(MAKE) e2e

.PHONY: apps
apps: site-up ## applications of others: built from their Go modules, installed, and tried (APPS="argo jobset lws")
	@for app in $(or $(APPS),argo jobset lws); do tests/apps.sh $$app; done
	@$(phase) "cases with applications"
	@cargo test --locked -p hpk-e2e --features apps $(foreach app,$(or $(APPS),argo jobset lws),--test $(app)) -- --test-threads=1

.PHONY: chaos
chaos: site-up ## a fault campaign: parts of the cluster are killed, stopped and cut off under pods (CHAOS_SECONDS=1800 SEED=n)
	@tests/chaos/chaos.py --seconds $(or $(CHAOS_SECONDS),1800) $(if $(SEED),--seed $(SEED)) --out $(SITE_DIR)/chaos.json

.PHONY: conformance
conformance: site-up ## upstream Kubernetes' own end-to-end tests (hours; SET=node FOCUS=regex)
	@tests/conformance/run.sh $(or $(SET),node) $(if $(FOCUS),--focus '$(FOCUS)')

.PHONY: bench
bench: site-up ## measurements, as ratios taken in one run
	@bench/run.sh

.PHONY: lint
lint: tools ## formatting and lints of Rust, shell scripts and Python programs
	@$(phase) "format and lints"
	@tests/lint.sh
	@cargo fmt --all --check
	@cargo clippy --quiet --locked --workspace --all-targets --features hpk-e2e/apps -- -D warnings

# The database of advisories is not asked: it is not reached from everywhere.
.PHONY: deny
deny: tools ## licences, bans and sources of all crates, by cargo-deny (built once, kept in HPK_CACHE)
	@bin=$$(tests/cargo-deny.sh | tail -n 1) && $(phase) "licences, bans and sources of crates" && \
	  "$$bin" --offline check licenses bans sources

.PHONY: clean
clean: site-down ## ends the site and removes its state; the cache stays (rm -r $(HPK_CACHE))
	@tests/site/down.sh --wipe
