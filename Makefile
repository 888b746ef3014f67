# "make" alone lists the targets.

SHELL       := /bin/bash
WORK        := $(CURDIR)/.work
TOOLS       := $(WORK)/tools
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT      ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)
PKG         := github.com/remora-storage/remora
LDFLAGS     := -s -w -X $(PKG)/cmd/internal/version.Version=$(VERSION) -X $(PKG)/cmd/internal/version.Commit=$(COMMIT)
GOBUILD     := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
PREFIX      ?= /usr/local
DESTDIR     ?=
FUZZTIME    ?= 20s
SIDE_BY_SIDE ?= 3
BENCH       ?=
GO_UNIT     := $(shell go list ./... 2>/dev/null | grep -v /conformance)

# What tests and the demonstration need besides Go.
CONTAINERD  := v2.4.2
STATICCHECK := v0.8.2
CRANE       := v0.14.0
MINIO       := v0.0.0-20260212201848-7aac2a2c5b7c
VERSITYGW   := v1.8.0
PACKAGES    := runc strace nbdkit qemu-utils libnbd-bin python3-libnbd fio btrfs-progs fuse3 docker-registry mmdebstrap erofs-utils umoci skopeo e2fsprogs xfsprogs attr postgresql ca-certificates gcc libc6-dev git

export PATH := $(CURDIR)/bin:$(TOOLS):$(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help build check test race conformance soak fuzz bench demo lint fmt generate install clean deps tools dist unit

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

build: ## bin/remorad and bin/snapctl for this machine
	@mkdir -p bin
	$(GOBUILD) -o bin/ ./cmd/remorad ./cmd/snapctl

dist: ## bin/linux-ARCH for amd64 and arm64
	@for arch in amd64 arm64; do mkdir -p bin/linux-$$arch; echo "linux/$$arch"; \
	  GOOS=linux GOARCH=$$arch $(GOBUILD) -o bin/linux-$$arch/ ./cmd/remorad ./cmd/snapctl || exit 1; done

check: lint ## before a commit: format, vet, lint, fast tests
	go test -short ./...

test: deps tools build dist unit race conformance ## everything

unit:
	go test -count=1 $(GO_UNIT)

race: ## unit tests under the race detector
	CGO_ENABLED=1 go test -race -short -count=1 $(GO_UNIT)

conformance: deps tools build ## real containerd, runc, registry and kernel (root)
	go test -count=1 -timeout 45m -parallel $(SIDE_BY_SIDE) ./conformance/...

soak: deps tools build ## the simulation and the conformance tests with full counts, and longer fuzzing
	REMORA_SOAK=1 go test -count=1 -timeout 2h -run Simulation ./volume
	REMORA_SOAK=1 go test -count=1 -timeout 6h -parallel $(SIDE_BY_SIDE) ./conformance/...
	$(MAKE) fuzz FUZZTIME=10m

fuzz: deps ## every fuzz target for FUZZTIME (20s)
	@for pkg in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; go test -run='^$$' -fuzz="^$$f\$$" -fuzztime=$(FUZZTIME) $$pkg || exit 1; done; done

bench: deps tools build ## the tables of docs/performance.md; BENCH="coldstart" for one
	go run ./conformance/bench $(BENCH)

demo: deps tools build ## a real image, pulled lazily and run
	go run ./conformance/demo

lint: tools
	@out=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); [ -z "$$out" ] || { echo "not gofmt-ed (make fmt):"; echo "$$out"; exit 1; }
	go vet ./...
	staticcheck ./...

fmt: ## gofmt all files
	gofmt -w $$(git ls-files '*.go')

generate: build ## docs/cli.md from the commands' help
	go run ./conformance/tools/clidoc > docs/cli.md

install: build ## into DESTDIR/PREFIX, with the systemd unit and a sample configuration
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin bin/remorad bin/snapctl
	install -D -m 0644 -t $(DESTDIR)/etc/systemd/system cmd/remorad/remorad.service cmd/remorad/remora-holder.service
	install -D -m 0644 cmd/remorad/config.toml $(DESTDIR)/etc/remora/config.toml.sample
	install -D -m 0644 cmd/remorad/containerd.toml $(DESTDIR)/etc/remora/containerd.toml.sample

clean: ## everything that was built or downloaded
	rm -rf bin $(WORK)

# deps installs Debian packages that are missing.
deps:
	@missing=$$(dpkg-query -W -f='$${binary:Package} $${db:Status-Status}\n' $(PACKAGES) 2>/dev/null | awk '$$2=="installed"{sub(":.*","",$$1); print $$1}' | sort > /tmp/remora-have.$$$$; \
	  printf '%s\n' $(PACKAGES) | sort | comm -23 - /tmp/remora-have.$$$$; rm -f /tmp/remora-have.$$$$); \
	if [ -n "$$missing" ]; then echo "installing" $$missing; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

# tools builds pinned Go programs.
tools: $(TOOLS)/containerd-$(CONTAINERD) $(TOOLS)/staticcheck-$(STATICCHECK) $(TOOLS)/crane-$(CRANE) $(TOOLS)/podman-chunked $(TOOLS)/promtool $(TOOLS)/minio-$(MINIO) $(TOOLS)/versitygw-$(VERSITYGW)

$(TOOLS)/containerd-$(CONTAINERD):
	GOBIN=$(TOOLS) go install -trimpath github.com/containerd/containerd/v2/cmd/{containerd,ctr,containerd-shim-runc-v2}@$(CONTAINERD)
	@touch $@

$(TOOLS)/staticcheck-$(STATICCHECK):
	GOBIN=$(TOOLS) go install -trimpath honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK)
	@touch $@

$(TOOLS)/crane-$(CRANE):
	GOBIN=$(TOOLS) go install -trimpath github.com/google/go-containerregistry/cmd/crane@$(CRANE)
	@touch $@

# S3 servers that volumes are tested with.
$(TOOLS)/minio-$(MINIO):
	GOBIN=$(TOOLS) go install -trimpath github.com/minio/minio@$(MINIO)
	@touch $@

$(TOOLS)/versitygw-$(VERSITYGW):
	GOBIN=$(TOOLS) go install -trimpath github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW)
	@touch $@

# Podman's library, in a module of its own: only the tests need it.
$(TOOLS)/podman-chunked: conformance/tools/podman/main.go conformance/tools/podman/go.mod
	cd conformance/tools/podman && CGO_ENABLED=0 go build -trimpath -tags 'exclude_graphdriver_btrfs exclude_graphdriver_devicemapper' -o $@ .

# Debian's, without the server that would be started beside it.
$(TOOLS)/promtool:
	@mkdir -p $(TOOLS) && dir=$$(mktemp -d) && cd $$dir && chmod 755 . && apt-get update -qq && apt-get download -qq -o APT::Sandbox::User=root prometheus && dpkg-deb -x prometheus_*.deb . && cp usr/bin/promtool $@; rc=$$?; rm -rf $$dir; exit $$rc
