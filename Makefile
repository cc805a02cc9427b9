# The tasks of a contributor, one target each; `make` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# One target after the other, except for the stages of make test.
ifneq ($(MAKECMDGOALS),stages)
.NOTPARALLEL:
endif
MAKEFLAGS += --no-print-directory

BIN := $(CURDIR)/.bin
# Every module. `go` and the linter stop at the border of a module, so targets enter each one.
MODULES := $(patsubst %/,%,$(dir $(wildcard go.mod pkg/*/go.mod test/go.mod test/*/go.mod bench/go.mod)))
# The modules that users build or import.
SHIPPED := $(filter-out test test/% bench,$(MODULES))
SERVICES := ./services/rpc-client ./services/rpc-server ./services/rpc-certificates ./services/rpc-definitions
SCRIPTS := $(wildcard deploy/*.sh docs/interop/*.sh) .ci/run

BROKER ?= 3
# If RabbitMQ is installed, the brokers of tests and benchmarks are plain processes, which start
# several times faster than containers and are reached without a proxy.
export BROKER_KIND ?= $(if $(wildcard /usr/lib/rabbitmq),plain)
FUZZTIME ?= 30s
# Compiled in lint, because CI runs on none of these.
PLATFORMS := linux/arm64 darwin/arm64 windows/amd64
# Most of these tests spend their time waiting, so more tests than processors run at once.
SUITE := go test -race -count=1 -parallel 6 -timeout 20m -tags integration
# The cases that RabbitMQ and the broker in memory of the unit tests must answer alike; the
# command starts in the directory test.
CONFORMANCE = cd ../pkg/amqpx && $(SUITE) ./internal/brokertest/...
SEED ?= 1
SOAK ?= 30m
# The fault suite; its output describes the last run of each kind. FAULTFLAGS=-batch=off
# switches batches off.
FAULTS = go test -count=1 -v -tags fault -timeout 0 ./fault -seed $(SEED) -out $(CURDIR)/.run/chaos $(FAULTFLAGS)
# The end-to-end tests that make test leaves out for the time that they take.
E2E_MORE := ^Test(Swarm|ImagesAreReproducible|MakeUpCluster|ProductionOverlayWithTLSRuns)$$

# The stages of make test that run two at a time, in the order of their starts. Most of e2e and of
# the suites is waiting, for containers, brokers and reconnects, so e2e, the longest, runs beside the
# stages that compute, and then beside a suite.
STAGES := e2e lint unit module-short suite-3 suite-4
# The stages that compute leave the processors to the stages whose tests have time limits.
stage-lint stage-unit stage-module-short: NICE := nice -n 5

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Running it

.PHONY: up up-cluster roll-cluster upgrade-check down clean
up: ## start a broker and a server, and make 1,000 calls; exits with the client's exit code
	@deploy/up.sh

up-cluster: export CLUSTER = yes
up-cluster: ## like up, with a cluster of three nodes and quorum queues; SERVERS=4 starts four servers
	@deploy/up.sh

roll-cluster: ## restart the nodes of up-cluster one after the other; RABBITMQ_IMAGE=… or RABBITMQ_VERSION=4 upgrades them
	@deploy/roll-cluster.sh

upgrade-check: ## tell whether that image may start on the data of the nodes of up-cluster
	@deploy/roll-cluster.sh check

down: ## stop all services and brokers of this clone, and remove their data
	@deploy/down.sh

clean: down ## also remove images, caches and .env
	@deploy/clean.sh

## Building and checking

.PHONY: build fmt lint cross vuln api alerts notices sbom images pin tools module
build: ## compile the services into .run/bin, without cgo, as in the images
	@CGO_ENABLED=0 go build -trimpath -o .run/bin/ ./services/...

fmt: tools ## format every module
	@for m in $(MODULES); do (cd $$m && $(BIN)/golangci-lint fmt); done

lint: tools cross ## run golangci-lint in every module, gofmt, shellcheck and actionlint; compile for other systems
	@deploy/need.sh shellcheck
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
		[[ -z $$unformatted ]] || { echo "not formatted: $$unformatted" >&2; exit 1; }
	@for m in $(MODULES); do echo "golangci-lint: $$m" && (cd $$m && $(BIN)/golangci-lint run --allow-parallel-runners ./...); done
	@shellcheck -x $(SCRIPTS)
	@$(BIN)/actionlint

# go list -export compiles and, unlike go build, does not link.
cross: ## compile what users build for other systems; for linux/386, with 32-bit integers, also its tests
	@for p in $(PLATFORMS); do echo "compile: $$p" && export GOOS=$${p%/*} GOARCH=$${p#*/} && \
		for m in $(SHIPPED); do (cd $$m && go list -export ./... >/dev/null); done; done
	@echo "vet: linux/386" && for m in $(SHIPPED); do (cd $$m && GOOS=linux GOARCH=386 go vet ./...); done

# Not part of lint or test: it needs https://vuln.go.dev, and its result changes without a commit.
vuln: tools ## look for known vulnerabilities in what users build; needs access to the database
	@for m in $(SHIPPED); do echo "govulncheck: $$m" && (cd $$m && $(BIN)/govulncheck ./...); done

api: ## write the exported API of the libraries into their testdata/api.txt, which a unit test compares
	@go test -count=1 -run '^TestExportedAPI$$' ./internal/api -update

notices: ## write THIRD_PARTY_NOTICES, the licences of all modules in the services, which a unit test compares
	@go run ./internal/supply/cmd/supply notices $(SERVICES) >THIRD_PARTY_NOTICES.new
	@mv THIRD_PARTY_NOTICES.new THIRD_PARTY_NOTICES

sbom: build ## write the SBOM of each service, CycloneDX, into .run/sbom; the images contain theirs
	@mkdir -p .run/sbom && for s in $(notdir $(SERVICES)); do \
		go run ./internal/supply/cmd/supply sbom -image $$s -version "$$(git describe --tags --always --dirty)" .run/bin/$$s >.run/sbom/$$s.cdx.json; done
	@ls .run/sbom/*

images: ## build the images reproducibly: the same commit gives the same image IDs; needs a Docker engine
	@deploy/release-images.sh

pin: ## write the digests of the builder's and the broker's image into .env; needs a registry
	@deploy/pin.sh

alerts: ## write the alerts of compose/observability into the overlay of Kubernetes, which a unit test compares
	@cd test/kubernetes && go test -count=1 -run '^TestPrometheusRule$$' . -update

module: ## rename the Go modules to MODULE=github.com/you/rabbitmq-rpc, so that others can import them
	@deploy/module.sh '$(MODULE)'

tools: ## install the pinned tools into .bin
	@deploy/tools.sh

## Testing

.PHONY: unit module-short module-check integration repeat interop browser observability suite suite-3 suite-4 fault chaos cluster cluster-short soak hostile e2e e2e-cluster e2e-more test stages $(STAGES:%=stage-%) fuzz bench bench-compare
# Two turns, because a benchmark may hang only in its second.
unit: ## run the tests that need no broker, and two turns of each benchmark, with the race detector
	@for m in $(filter-out test test/%,$(MODULES)); do (cd $$m && go test -race -count=1 -timeout 20m -bench . -benchtime 2x ./...); done
	@deploy/need.sh erlc
	@cd test && go test -race -count=1 . ./fault/internal/...
	@cd test/kubernetes && go test -count=1 ./...

module-short: ## rename a copy of the modules, build it, and import the library from it
	@deploy/module-check.sh short

module-check: ## like module-short, also with go mod tidy, go vet and the unit tests
	@deploy/module-check.sh all

integration: build ## run the integration tests against a private broker; BROKER=3 or 4
	@deploy/need.sh promtool redis
	@deploy/with-broker.sh $(BROKER) bash -c '$(SUITE) ./integration/... && $(CONFORMANCE)'

repeat: TIMES ?= 10
repeat: RUN ?= .
repeat: build ## run the integration tests TIMES times under CPU load, until the first failure; BROKER=3 or 4, RUN=regexp
	@deploy/need.sh promtool redis
	@deploy/repeat.sh $(TIMES) $(BROKER) '$(value RUN)' $(SUITE)

interop: build ## run the tests with programs in other languages, all of docs/interop; BROKER=3 or 4
	@deploy/need.sh languages
	@deploy/with-broker.sh $(BROKER) $(SUITE) ./interop -languages

browser: build ## run the tests of the management UI with a headless Chromium
	@deploy/need.sh chromium
	@deploy/with-broker.sh $(BROKER) $(SUITE) ./browser/...

observability: build ## run the tests with Prometheus, which scrapes a client and a server and answers the dashboard's queries
	@deploy/need.sh promtool
	@deploy/with-broker.sh $(BROKER) $(SUITE) ./observability/...

# Of the programs in other languages it runs those that need no packages but pika, curl and jq.
suite: build ## run integration, interop, browser and observability on one broker
	@deploy/need.sh pika curl jq chromium promtool redis
	@deploy/with-broker.sh $(BROKER) bash -c '$(SUITE) ./integration/... ./interop/... ./browser/... ./observability/... && $(CONFORMANCE)'

suite-3 suite-4: suite-%:
	@$(MAKE) suite BROKER=$*

# fault is part of every test run and may share its machine, hence a later bound.
fault: FAULTFLAGS ?= -bound 1s
fault: ## inject faults from SEED for three minutes, with and without batches
	@deploy/need.sh redis
	@deploy/with-broker.sh $(BROKER) $(FAULTS) -run '^Test(Short|Proxy)$$'

chaos: ## inject every fault, one after the other; half an hour
	@deploy/need.sh redis
	@deploy/with-broker.sh $(BROKER) $(FAULTS) -run '^TestMatrix$$'

cluster: ## fail each node of a cluster of three in every way; 20 minutes
	@deploy/need.sh redis
	@deploy/with-cluster.sh $(BROKER) $(FAULTS) -run '^TestCluster(|Status|StreamsWait|SlowQueue|Drain|ReturnHome)$$'

cluster-short: FAULTFLAGS ?= -bound 1s
cluster-short: ## like cluster, with two killed nodes; four minutes
	@deploy/need.sh redis
	@deploy/with-cluster.sh $(BROKER) $(FAULTS) -run '^TestCluster(Short|Status|StreamsWait)$$'

soak: ## inject random faults from SEED for the time SOAK
	@deploy/need.sh redis
	@deploy/with-broker.sh $(BROKER) $(FAULTS) -run '^TestSoak$$' -soak $(SOAK)

# The broker accepts messages up to RabbitMQ 3's default maximum.
hostile: export BROKER_CONF = max_message_size = 134217728
hostile: FOR ?= 5m
hostile: RUN ?= .
hostile: ## send inputs that crash or fill servers to servers limited to 256 MiB, each for the time FOR; RUN=regexp
	@deploy/with-broker.sh $(BROKER) go test -count=1 -tags hostile -timeout 0 -parallel 3 -run 'TestHostileInputs/inputs/$(value RUN)' ./hostile -for $(FOR) -out $(CURDIR)/.run/hostile
	@cat .run/hostile/hostile-$(BROKER).md

e2e: ## test make up, make down and the overlay for production from the outside
	@cd test && go test -count=1 -timeout 40m -v -tags e2e -skip '^TestRollCluster$$|$(E2E_MORE)' ./e2e/...

e2e-cluster: export BROKER := $(BROKER)
e2e-cluster: ## test make roll-cluster under load from the outside; BROKER=3 or 4; a quarter of an hour
	@cd test && go test -count=1 -timeout 40m -v -tags e2e -run '^TestRollCluster$$' ./e2e

e2e-more: ## test make images, make up-cluster, the overlays tls and production together, and the stack on a swarm of one node; needs a Docker engine
	@cd test && go test -count=1 -timeout 60m -v -tags e2e -run '$(E2E_MORE)' ./e2e/...

# The fault suites bound how long after its deadline a call may return: they run alone.
test: ## run every check that must pass
	@deploy/need.sh shellcheck pika curl jq chromium promtool rabbitmq redis
	@rm -rf .run/stages
	@$(MAKE) -j2 stages || { echo "failed: $$(paste -sd' ' .run/stages/failed)"; exit 1; }
	@deploy/stage.sh fault make fault
	@deploy/stage.sh cluster-short make cluster-short
	@echo "passed: lint, unit, module path, integration + interop + browser + observability on RabbitMQ 3 and 4, faults, a cluster, e2e"

# After a failed stage none starts; the other one that runs ends by itself, and so leaves nothing behind.
stages: $(STAGES:%=stage-%)

# Without the flags of this make, of which -j would reach each make that a test runs. (And not with
# the variable MAKE, because make -n would run such a line.)
$(STAGES:%=stage-%): stage-%:
	@MAKEFLAGS=--no-print-directory $(NICE) deploy/stage.sh $* make $*

fuzz: ## run every fuzz target for FUZZTIME each; keeps the inputs found
	@for m in $(filter-out test test/%,$(MODULES)); do (cd $$m && go list -f '{{.ImportPath}} {{.Dir}}' ./...); done | while read -r path dir; do \
		cd $$dir; tests=$$(go test -list '^Fuzz' .); \
		for target in $$(grep '^Fuzz' <<<"$$tests" || true); do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) . </dev/null; \
			mkdir -p testdata/fuzz/$$target; \
			find "$$(go env GOCACHE)/fuzz/$$path/$$target" -type f -exec cp -nt testdata/fuzz/$$target {} + ; \
		done; \
	done

bench-compare: BENCHPATTERN ?= .
bench-compare: ## compare the micro-benchmarks with the revision BASE=rev, by benchstat
	@deploy/bench-compare.sh "$(BASE)" '$(BENCHPATTERN)'

bench: ## run the benchmarks side by side, and print a table
	@deploy/need.sh pika
	@DIR=bench deploy/with-broker.sh $(BROKER) go run . $(BENCHFLAGS)
