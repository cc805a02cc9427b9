# Everything a contributor does, one word each; `make` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

BIN := $(CURDIR)/.bin
MODULES := $(patsubst %/,%,$(dir $(wildcard go.mod test/go.mod bench/go.mod)))
SCRIPTS := $(wildcard deploy/*.sh) .ci/run

BROKER ?= 3
# Where RabbitMQ is installed the brokers of tests and benchmarks are plain processes: they start
# several times faster than containers, and are reached without a proxy.
export BROKER_KIND ?= $(if $(wildcard /usr/lib/rabbitmq),plain)
FUZZTIME ?= 30s
# Most of these tests wait for something, so more run at once than there are processors.
SUITE := go test -race -count=1 -parallel 6 -timeout 20m -tags integration
SEED ?= 1
SOAK ?= 30m
# The fault suite; what it writes is about the last run of each kind. FAULTFLAGS=-batch=off
# has every call travel alone.
FAULTS = go test -count=1 -v -tags fault -timeout 0 ./fault -seed $(SEED) -out $(CURDIR)/.run/chaos $(FAULTFLAGS)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Running it

.PHONY: up down clean
up: ## broker, server and 1,000 calls; ends with the client's exit code
	@deploy/up.sh

down: ## stop all of it and leave nothing behind
	@deploy/down.sh

clean: down ## also remove images, caches and .env
	@deploy/clean.sh

## Building and checking

.PHONY: build fmt lint tools
build: ## compile both services into .run/bin
	@go build -trimpath -o .run/bin/ ./services/...

fmt: tools ## format every module
	@for m in $(MODULES); do (cd $$m && $(BIN)/golangci-lint fmt); done

lint: tools ## golangci-lint in every module, gofmt, shellcheck, actionlint
	@deploy/need.sh shellcheck
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
		[[ -z $$unformatted ]] || { echo "not formatted: $$unformatted" >&2; exit 1; }
	@for m in $(MODULES); do echo "golangci-lint: $$m" && (cd $$m && $(BIN)/golangci-lint run ./...); done
	@shellcheck -x $(SCRIPTS)
	@$(BIN)/actionlint

tools: ## install the pinned lint tools into .bin
	@deploy/tools.sh

## Testing

.PHONY: unit integration repeat interop browser observability suite fault chaos cluster cluster-short soak hostile e2e test fuzz bench bench-compare
unit: ## tests that need no broker, with the race detector
	@go test -race -count=1 ./...
	@cd bench && go test -race -count=1 ./...
	@cd test && go test -race -count=1 . ./fault/internal/...

integration: build ## tests against a private broker; BROKER=3 or 4
	@deploy/need.sh promtool
	@deploy/with-broker.sh $(BROKER) $(SUITE) ./integration/...

repeat: TIMES ?= 10
repeat: RUN ?= .
repeat: build ## the integration suite TIMES times beside a load, up to the first failure; BROKER=3 or 4, RUN=regexp
	@deploy/need.sh promtool
	@deploy/repeat.sh $(TIMES) $(BROKER) '$(value RUN)' $(SUITE)

interop: build ## a Python client and a Python server on the other side
	@deploy/need.sh pika
	@deploy/with-broker.sh $(BROKER) $(SUITE) ./interop/...

browser: build ## a headless Chromium in the management UI
	@deploy/need.sh chromium
	@deploy/with-broker.sh $(BROKER) $(SUITE) ./browser/...

observability: build ## Prometheus reads a real pair, and answers the dashboard's queries
	@deploy/need.sh promtool
	@deploy/with-broker.sh $(BROKER) $(SUITE) ./observability/...

suite: build ## the four above on one broker
	@deploy/need.sh pika chromium promtool
	@deploy/with-broker.sh $(BROKER) $(SUITE) ./integration/... ./interop/... ./browser/... ./observability/...

# Part of every test run, it may have to share its machine: a later bound.
fault: FAULTFLAGS ?= -bound 1s
fault: ## a minute and a half of faults from SEED, with batches and without
	@deploy/with-broker.sh $(BROKER) $(FAULTS) -run '^TestShort$$'

chaos: ## every fault, one after the other; half an hour
	@deploy/with-broker.sh $(BROKER) $(FAULTS) -run '^TestMatrix$$'

cluster: ## a cluster of three nodes, each of which is lost in every way; 15 minutes
	@deploy/with-cluster.sh $(BROKER) $(FAULTS) -run '^TestCluster(|Status)$$'

cluster-short: FAULTFLAGS ?= -bound 1s
cluster-short: ## the same, only the gravest losses: a minute
	@deploy/with-cluster.sh $(BROKER) $(FAULTS) -run '^TestCluster(Short|Status)$$'

soak: ## faults at random from SEED for SOAK
	@deploy/with-broker.sh $(BROKER) $(FAULTS) -run '^TestSoak$$' -soak $(SOAK)

# The broker takes messages as large as RabbitMQ 3 does by default.
hostile: export BROKER_CONF = max_message_size = 134217728
hostile: FOR ?= 5m
hostile: RUN ?= .
hostile: ## what ends or fills servers, sent for FOR to servers under 256 MiB; RUN=regexp
	@deploy/with-broker.sh $(BROKER) go test -count=1 -tags hostile -timeout 0 -parallel 3 -run 'TestHostileInputs/inputs/$(value RUN)' ./hostile -for $(FOR) -out $(CURDIR)/.run/hostile
	@cat .run/hostile/hostile-$(BROKER).md

e2e: ## what make up and make down do, from the outside
	@cd test && go test -count=1 -timeout 20m -v -tags e2e ./e2e/...

test: ## everything that must pass
	@deploy/need.sh shellcheck pika chromium promtool rabbitmq
	@$(MAKE) lint
	@$(MAKE) unit
	@$(MAKE) suite BROKER=3
	@$(MAKE) suite BROKER=4
	@$(MAKE) fault
	@$(MAKE) cluster-short
	@$(MAKE) e2e
	@echo "passed: lint, unit, integration + interop + browser + observability on RabbitMQ 3 and 4, faults, a cluster, e2e"

fuzz: ## every fuzz target of the root module for FUZZTIME each; keeps what it finds
	@go list -f '{{.ImportPath}} {{.Dir}}' ./... | while read -r path dir; do \
		cd $$dir; tests=$$(go test -list '^Fuzz' .); \
		for target in $$(grep '^Fuzz' <<<"$$tests" || true); do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) . </dev/null; \
			mkdir -p testdata/fuzz/$$target; \
			find "$$(go env GOCACHE)/fuzz/$$path/$$target" -type f -exec cp -nt testdata/fuzz/$$target {} + ; \
		done; \
	done

bench-compare: BENCHPATTERN ?= .
bench-compare: ## micro-benchmarks here against those of BASE=rev, by benchstat
	@deploy/bench-compare.sh "$(BASE)" '$(BENCHPATTERN)'

bench: ## side-by-side benchmarks, as a table
	@deploy/need.sh pika
	@DIR=bench deploy/with-broker.sh $(BROKER) go run . $(BENCHFLAGS)
