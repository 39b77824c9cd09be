# Every target works on a fresh clone with Go, git and make; tools are fetched
# at the versions below. VERSION goes into the binary.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
T ?= 30s

GOLANGCI_LINT = go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOTESTSUM     = go run gotest.tools/gotestsum@v1.13.0
BUF           = go run github.com/bufbuild/buf/cmd/buf@v1.75.0
DEADCODE      = go run golang.org/x/tools/cmd/deadcode@v0.44.0

# One binary for one source: no paths, no time, no VCS state, no C.
BUILD = CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)"

.PHONY: all build build-check cross test race lint tidy-check modules-check bench fuzz soak lab generate smells clean

all: build

build:
	$(BUILD) -o bin/kith ./cmd/kith

# The same commit built in another folder must give the same file.
build-check: build
	@set -eu; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	git ls-files -z | tar -c --null -T - | tar -x -C "$$dir"; \
	(cd "$$dir" && $(BUILD) -o "$$dir/out" ./cmd/kith); \
	sha256sum bin/kith "$$dir/out"; \
	cmp bin/kith "$$dir/out"

cross:
	@set -eu; for target in linux/amd64 linux/arm64 linux/arm windows/amd64 darwin/arm64; do \
		out=dist/kith-$$(echo $$target | tr / -); \
		echo "$$out"; \
		GOOS=$${target%/*} GOARCH=$${target#*/} $(BUILD) -o "$$out" ./cmd/kith; \
	done; ls -l dist

# Everything once as it ships, without C, and once under the race detector. Vet goes
# first, so not again with every test binary.
test:
	@tools/need.sh gcc ip=iproute2 nft=nftables ethtool curl chromium
	CGO_ENABLED=0 go vet ./...
	CGO_ENABLED=0 $(GOTESTSUM) --format pkgname-and-test-fails -- -vet=off -timeout 20m ./...
	@$(MAKE) --no-print-directory race

# The race detector needs a C compiler. Where there is none and none can be
# installed, the tests above have run and this says what is missing. The long
# property runs are left out: they have no concurrency to check.
#
# Packages with simulated networks get one CPU each: Go 1.26's runtime corrupts
# the race detector when two threads fire timers of one synctest bubble
# (docs/decisions/0015).
#
# SQLite, as Go translated from WebAssembly, runs one call at a time and takes a
# third of the time when every access to its memory is watched.
SIMULATED = /(discovery|node|node/mailbox|node/nodetest|node/transport)$$
RACE = CGO_ENABLED=1 $(GOTESTSUM) --format pkgname-and-test-fails -- -vet=off -race '-gcflags=github.com/ncruces/go-sqlite3-wasm/...=-race=false' -short -timeout 30m
race:
	@if command -v cc >/dev/null; then \
		set -e; all=$$(go list ./...); set -x; \
		$(RACE) $$(echo "$$all" | grep -vE '$(SIMULATED)'); \
		$(RACE) -cpu 1 $$(echo "$$all" | grep -E '$(SIMULATED)'); \
	else \
		echo "no C compiler: the tests ran without the race detector; install gcc for it"; \
	fi

lint: tidy-check modules-check
	$(GOLANGCI_LINT) run ./...

tidy-check:
	go mod verify
	go mod tidy -diff

# docs/dependencies.md says how many modules the binary links, and why.
modules-check:
	@tools/modules.sh

# Benchmarks print their floor beside the figure, taken in the same run.
bench:
	CGO_ENABLED=0 go test -run '^$$' -bench . -benchmem -timeout 60m \
		$$(git grep -l '^func Benchmark' -- '*_test.go' | xargs -n1 dirname | sort -u | sed 's|^|./|')

# Every fuzz target for T each.
fuzz:
	@set -eu; git grep -o '^func Fuzz[A-Za-z0-9_]*' -- '*_test.go' | while IFS=: read -r file func; do \
		name=$${func#func }; echo "$$(dirname "$$file") $$name $(T)"; \
		CGO_ENABLED=0 go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(T) -fuzzminimizetime 1x "./$$(dirname "$$file")"; \
	done

# The same tests, those that can go on for longer doing so.
soak:
	KITH_SOAK=1 CGO_ENABLED=0 go test -count=1 -timeout 24h ./...

# All of the censorship lab: every policy of the censor, with a table. Needs root
# and the lab, which is beside this tree or where KITH_LAB_DIR says.
lab:
	@tools/need.sh chromium ethtool ip=iproute2 nft=nftables curl tcpdump ndpiReader=libndpi-bin
	KITH_LAB=1 CGO_ENABLED=0 go test -count=1 -timeout 4h -v -run 'TestLab|TestLearnHello_Browser' ./cmd/kith

generate:
	cd node/api && $(BUF) generate

# What docs/style.md watches and does not gate.
smells:
	@tools/smells.sh
	-CGO_ENABLED=0 $(DEADCODE) ./...

clean:
	rm -rf bin dist
