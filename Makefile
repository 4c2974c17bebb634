# CONTRIBUTING.md explains these. Pinned tools live in .tools/bin, under names that carry their versions.
TOOLS         := $(CURDIR)/.tools/bin
GOLANGCI_LINT := $(TOOLS)/golangci-lint-v2.15.0
GOFUMPT       := $(TOOLS)/gofumpt-v0.12.0
SCRIPTS       := .ci/run gateway/e2e/setup.sh $(wildcard docs/examples/*/*.sh)
# What a release is built for; also in .goreleaser.yaml.
PLATFORMS     := linux/amd64 linux/arm64 windows/amd64 windows/arm64 darwin/amd64 darwin/arm64

# Which of the end-to-end tests to run.
RUN ?= .
# The race detector needs a C compiler: `make test RACE=` does without.
RACE ?= -race
# How long each fuzz target runs.
FUZZTIME ?= 20s
# How long the soak takes, and the file for its table, if any.
DURATION ?= 30m
SOAK_REPORT ?=

.PHONY: build cross test unit e2e e2e-setup soak lint fmt tools fuzz demo bench bench-smoke

build:
	CGO_ENABLED=0 go build -trimpath -o orthanc-dicomweb-oauth .

# Builds and vets for every platform of a release; leaves nothing behind. The benchmark is for Linux.
cross:
	@set -e; for platform in $(PLATFORMS); do \
		echo $$platform; \
		export CGO_ENABLED=0 GOOS=$${platform%/*} GOARCH=$${platform#*/}; \
		go build -trimpath -o /dev/null .; \
		if [ $$GOARCH = amd64 ]; then go vet $$(go list ./... | grep -v /bench$$); fi; \
	done

test: e2e-setup unit e2e

unit:
	go test $(RACE) -shuffle=on ./...
	cd gateway/e2e/fosite && go test $(RACE) -shuffle=on ./...

e2e: e2e-setup
	go test -tags e2e -count=1 -parallel 4 -timeout 10m $(if $(CI),-artifacts) -run '$(RUN)' ./gateway/e2e/...

soak: e2e-setup
	SOAK=$(DURATION) SOAK_REPORT=$(abspath $(SOAK_REPORT)) go test -tags e2e -count=1 -v -timeout 0 -run '^TestSoak$$' ./gateway/e2e

e2e-setup:
	gateway/e2e/setup.sh

lint: tools
	test -z "$$($(GOFUMPT) -l . | tee /dev/stderr)"
	go vet ./...
	go vet -tags e2e ./gateway/e2e/...
	go mod tidy -diff
	cd gateway/e2e/fosite && go vet ./... && go mod tidy -diff
	$(GOLANGCI_LINT) run --build-tags e2e
	@if command -v shellcheck; then shellcheck $(SCRIPTS); else echo 'no shellcheck here: the scripts were not checked'; fi

fmt: tools
	$(GOFUMPT) -w .

tools: $(GOLANGCI_LINT) $(GOFUMPT)

$(GOLANGCI_LINT):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	mv $(TOOLS)/golangci-lint $@

$(GOFUMPT):
	GOBIN=$(TOOLS) go install mvdan.cc/gofumpt@v0.12.0
	mv $(TOOLS)/gofumpt $@

# Without a bound, making inputs smaller takes most of a short run.
fuzz:
	@set -e; for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$package; \
		done; \
	done

demo:
	go run . demo

# Measures side by side with the peers and writes docs/benchmarks.md. BIN=path measures another binary, BENCHFLAGS are its
# own flags (go run ./gateway/bench -help).
bench: e2e-setup
	go run ./gateway/bench -bin '$(BIN)' $(BENCHFLAGS)

# One short round that shows that all of it works.
bench-smoke:
	go run ./gateway/bench -quick -bin '$(BIN)' $(BENCHFLAGS)
