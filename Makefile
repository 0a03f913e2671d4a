# make demo   launch a VM on the simulated platform and attest it
# make help   every target

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all
MAKEFLAGS += --no-print-directory

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# The agent is part of a measured initramfs: no symbols, no paths, no build
# stamp, so that the same source gives the same bytes.
export CGO_ENABLED := 0
LDFLAGS := -s -w -X main.version=$(VERSION)
# The library's documentation generator is not used, and would start with every
# command.
GOBUILD := go build -trimpath -buildvcs=false -tags urfave_cli_no_docs -ldflags '$(LDFLAGS)'

# Real reports, firmware and vectors that cannot be part of the repository.
# Tests that need them are skipped, by name, when this is empty.
export EVTPM_TESTDATA ?= $(abspath $(wildcard ../shared))

# More flags for go test in `make test`.
TESTFLAGS ?=

# How long each fuzz target runs.
FUZZTIME ?= 10s

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  and scripts of their own name: $(scripts)"

.PHONY: all
all: build ## build everything

.PHONY: build
build: ## bin/evtpm and bin/evtpm-agent, static
	@$(GOBUILD) -o bin/evtpm ./cmd/evtpm
	@GOOS=linux GOARCH=amd64 $(GOBUILD) -o bin/evtpm-agent ./cmd/evtpm-agent

.PHONY: demo
demo: build/demo/initrd.cpio ## set up, launch examples/demo/evtpm.yaml, attest it
	@bin/evtpm -q stop demo || true
	@bin/evtpm launch examples/demo/evtpm.yaml

# Always made anew: it takes a moment, and the same files give the same bytes.
# The module lets the power button end the VM.
.PHONY: build/demo/initrd.cpio
build/demo/initrd.cpio: setup-demo build
	@mkdir -p build/demo
	@button=$$(find build/kernel/lib/modules -name 'button.ko*'); \
	  bin/evtpm initramfs --agent bin/evtpm-agent --add "$$button:/lib/modules/$${button##*/}" -o $@

.PHONY: setup-demo setup-lint
setup-demo setup-lint: setup-%:
	@scripts/setup $*

.PHONY: test
test: ## every test, and all that they need; boots real VMs
	@scripts/test $(TESTFLAGS)

.PHONY: lint
lint: setup-lint ## gofmt, vet and golangci-lint with .golangci.yml
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	  if [ -n "$$unformatted" ]; then echo "gofmt would change:" $$unformatted >&2; exit 1; fi
	@go vet ./...
	@build/tools/golangci-lint run ./...

.PHONY: cross
cross: ## what a tenant runs builds on other systems too
	@GOOS=linux GOARCH=arm64 go build -o /dev/null ./cmd/evtpm
	@GOOS=darwin GOARCH=arm64 go build -o /dev/null ./cmd/evtpm
	@GOOS=windows GOARCH=amd64 go build -o /dev/null ./cmd/evtpm

.PHONY: bench
bench: ## every Go benchmark
	@go test -run '^$$' -bench . -benchmem ./...

.PHONY: fuzz
fuzz: ## every fuzz target in turn, FUZZTIME each (10s)
	@scripts/fuzz $(FUZZTIME)

# What `make mutate` breaks.
MUTATE ?= ./attest ./attest/evidence ./attest/kds ./wholefile

.PHONY: mutate
mutate: ## break every decision of the verifier in turn: what no test notices is printed
	@go run ./scripts/mutate $(MUTATE)

.PHONY: clean
clean: ## remove bin/ and the demo's initramfs, not what set-up fetched
	@rm -rf bin build/demo

# Each of these scripts is a target of its own name.
scripts := $(sort $(notdir $(wildcard $(addprefix scripts/,bench-* demo-* test-*))))

.PHONY: $(scripts)
$(scripts): build
	@scripts/$@
