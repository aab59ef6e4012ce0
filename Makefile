# Every task a developer or CI runs. `make` prints them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MODULES := events projections services
BIN := $(CURDIR)/bin
TOOLS := $(BIN)/tools
export PATH := $(TOOLS):$(PATH)

.PHONY: help
help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## fetch what the embedded stack needs (libchdb, once, into a cache folder)
	@scripts/fetch-libchdb >/dev/null

.PHONY: build
build: ## build bin/verbatim
	@go build -o $(BIN)/verbatim ./services/cmd/verbatim

.PHONY: demo
demo: deps build ## see one execution go through the whole pipeline
	@scripts/demo $(BIN)/verbatim

.PHONY: test
test: deps ## run all tests of all modules with -race
	@scripts/test

.PHONY: test-kafka
test-kafka: deps ## run the transport's suites and the scenarios against a real Apache Kafka (java, mvn)
	@scripts/test-kafka

.PHONY: prove-transport
prove-transport: deps ## Watermill's suites five times on each broker, with the race detector: about half an hour
	@cd events && go test -race -timeout 60m -count=5 -run 'TestPubSub$$|TestReconnect' ./kafka
	@cd events && STRESS_TEST_COUNT=10 go test -race -tags stress -timeout 60m -count=5 -run TestPubSubStress -parallel 4 ./kafka
	@cd services && go test -race -timeout 60m -count=5 -run 'TestConformance|TestReconnect' ./embedded/kafka
	@VERBATIM_TEST_ROUNDS=5 scripts/test-kafka

.PHONY: soak-transport
soak-transport: ## 5 minutes of consumers coming and going while the broker is killed, on both brokers
	@scripts/soak-transport embedded 5m
	@scripts/soak-transport apache 5m

.PHONY: kill-loop
kill-loop: deps ## kill worker, broker, supervisor and stack hundreds of times under load, and compare every byte
	@scripts/kill-loop embedded
	@scripts/kill-loop apache

.PHONY: prove-big-stream
prove-big-stream: deps ## 10 GB of one process into an S3 server that is stopped meanwhile: the digests, and the recorder's memory
	@scripts/big-stream

.PHONY: bench-runner
bench-runner: ## the runner beside a bare os/exec loop and `command > file`, in one run
	@scripts/bench-runner

.PHONY: bench-transport
bench-transport: ## the transport beside kafka-go alone, in one run
	@scripts/bench-transport

.PHONY: bench-projector
bench-projector: deps ## the fold, the way from the log to the row, replay, and the views over 10 million rows
	@scripts/bench-projector

.PHONY: fuzz
fuzz: ## fuzz every decoder for 30 s each
	@scripts/fuzz 30s

.PHONY: tools
tools: ## install the pinned developer tools into bin/tools
	@scripts/install-tools $(TOOLS)

.PHONY: lint
lint: tools ## run the linters, the layer rules and the schema checks
	@scripts/lint

.PHONY: fmt
fmt: tools ## format Go and Protobuf files
	@gofumpt -l -w $(MODULES)
	@buf format -w events/proto

.PHONY: generate
generate: tools ## generate Go and docs/events.md from the Protobuf payloads
	@cd events/proto && buf generate
	@buf build events/proto --as-file-descriptor-set -o - | go run ./events/internal/catalogue >docs/events.md

.PHONY: check
check: ## show that generated files and go.mod files are up to date, and that each module builds alone
	@scripts/check

.PHONY: clean
clean: ## remove what was built here
	@rm -rf $(BIN)
