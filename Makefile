# `make` alone lists the targets. Go, git and make are all that has to be there; a C compiler is
# used for the race detector where there is one, and the aws CLI is installed where that is possible.

SHELL      := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
UNIT     = $(shell go list ./... 2>/dev/null | grep -v '/integration')
# The race detector needs cgo and a C compiler.
RACE    := $(shell command -v gcc >/dev/null 2>&1 || command -v cc >/dev/null 2>&1 && echo -race)
TIME    ?= 10s
SEEDS   ?= 1000000
RUNS    ?= 1000
CUTS    ?= 300
DATA    ?= data

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

.PHONY: build
build: ## build bin/ostraka, one static binary
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ostraka ./cmd/ostraka

.PHONY: run
run: build ## build, and serve S3 on 127.0.0.1:9000 from ./data/d1 … ./data/d4
	mkdir -p $(DATA)/d1 $(DATA)/d2 $(DATA)/d3 $(DATA)/d4
	exec bin/ostraka server '$(DATA)/d{1...4}'

.PHONY: cluster
cluster: build ## build, and run five nodes in three zones and two gateways on 127.0.0.1 … 127.0.0.7 until Ctrl-C, in ./data/cluster
	@exec deploy/cluster bin/ostraka $(DATA)/cluster

.PHONY: test
test: ## unit tests, a short simulation and real clients: what has to pass before a commit
	.ci/stage 'unit and race' 6 $(MAKE) --no-print-directory race
	.ci/stage 'simulation' 4 $(MAKE) --no-print-directory sim-short
	.ci/stage 'clients, faults' 10 $(MAKE) --no-print-directory clients

.PHONY: unit
unit: ## unit tests without the race detector
	go test $(UNIT)

.PHONY: race
race: ## unit tests under the race detector (without it where there is no C compiler); the simulations are apart
	@[ -n '$(RACE)' ] || echo 'NOT RUN: the race detector, because there is no C compiler; the tests run without it'
	go test -short $(RACE) -timeout 20m -skip '^TestSim' $(UNIT)

.PHONY: sim-short
sim-short: ## both simulations over a slice of seeds, and the mutations that have to be caught, as in CI
	go test $(RACE) -count=1 -run '^TestSim' ./metadata ./sim

.PHONY: sim
sim: ## the simulations at length: SEEDS schedules of the register (default a million), then RUNS of the whole store, and of a cluster
	go test -count=1 -timeout 0 -v -run '^TestSim' ./metadata -args -seeds $(SEEDS)
	go test -count=1 -timeout 0 -v -run '^TestSim' ./sim -args -runs $(RUNS)
	go test -count=1 -timeout 0 -v -run '^TestSimCluster$$' ./sim -args -cluster -runs $(RUNS)

.PHONY: fuzz
fuzz: ## every fuzz target for TIME each (default 10s)
	@for p in $(UNIT); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "== $$p $$f"; .ci/fuzz $$p $$f $(TIME) || exit 1; \
	  done; \
	done

.PHONY: fuzz-short
fuzz-short: ## every fuzz target for two seconds, as in CI
	@$(MAKE) --no-print-directory fuzz TIME=2s

.PHONY: lint
lint: ## gofmt, vet, staticcheck, the import table, known vulnerabilities
	.ci/lint $(STATICCHECK) $(GOVULNCHECK)

.PHONY: clients
clients: build ## minio-go, aws-sdk-go-v2, the aws CLI, a slice of every fault and of the power cuts against the binary
	@.ci/tool aws awscli 'the aws CLI cases'
	@.ci/tool strace strace 'the faults that strace injects'
	@.ci/tool ss iproute2 'the nodes in network namespaces'
	go test -count=1 -parallel 6 -timeout 20m ./integration/... -args -ostraka $(CURDIR)/bin/ostraka $(CLIENTS)

.PHONY: integration
integration: build ## the same at full length: 1 GiB and 5 GiB objects, 10,000 parts, 100 kills
	@.ci/tool aws awscli 'the aws CLI cases'
	@.ci/tool strace strace 'the faults that strace injects'
	@.ci/tool ss iproute2 'the nodes in network namespaces'
	go test -count=1 -timeout 12h -v ./integration/... -args -ostraka $(CURDIR)/bin/ostraka -long $(CLIENTS)

# Of package integration, what injects a fault.
FAULTS := ^Test(Fault|Flood|Killed|Drive|StartWith|Shards|MoreShards|RecordStore|Identity|WhatCannotServe)

.PHONY: faults
faults: build ## every fault against the real process at full length; needs root and strace
	@.ci/tool strace strace 'the faults that strace injects'
	@.ci/tool ss iproute2 'the nodes in network namespaces'
	go test -count=1 -timeout 12h -v -run '$(FAULTS)' ./integration -args -ostraka $(CURDIR)/bin/ostraka -long -require-faults

.PHONY: cluster-faults
cluster-faults: build ## kill, stop and cut off nodes in network namespaces of their own, at full length, and follow docs/cluster.md; needs root and ip
	@.ci/tool aws awscli 'the pages that are followed as written'
	@.ci/tool ss iproute2 'the nodes in network namespaces'
	go test -count=1 -timeout 12h -v -run '^TestFaultCluster|AsWritten$$' ./integration -args -ostraka $(CURDIR)/bin/ostraka -long -require-faults

.PHONY: powercut
powercut: build ## cut the power CUTS times (default 300) under load, of this server or POWERCUT='-server …'; needs root
	go build -o bin/powercut ./integration/powercut
	bin/powercut -ostraka bin/ostraka -cuts $(CUTS) -v $(POWERCUT)

.PHONY: bench
bench: build ## stage benchmarks, then server CPU per operation, its ratio to the floor of this machine, and that of a cluster
	go test -run '^$$' -bench . -benchtime 200ms $(UNIT)
	go run ./integration/bench -ostraka $(CURDIR)/bin/ostraka -- $(BENCH)
	go run ./integration/bench -ostraka $(CURDIR)/bin/ostraka -cluster

.PHONY: clean
clean: ## remove what was built (not ./data)
	rm -rf bin
