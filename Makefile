# "make" alone lists the targets.

SHELL       := /bin/bash
WORK        := $(CURDIR)/.work
TOOLS       := $(WORK)/tools
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT      ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)
PKG         := github.com/remora-storage/remora
LDFLAGS     := -s -w -X $(PKG)/cmd/internal/version.Version=$(VERSION) -X $(PKG)/cmd/internal/version.Commit=$(COMMIT)
GOBUILD     := go build -ldflags '$(LDFLAGS)'
GOTOOL      := GOBIN=$(TOOLS) go install -ldflags '-s -w'
PREFIX      ?= /usr/local
DESTDIR     ?=
FUZZTIME    ?= 20s
BENCH       ?=
# Those that take longest go first, so that no processor idles behind them.
GO_LONGEST  := ./snapshotter ./volume ./snapshotter/layers ./cache ./volume/host ./remote/registry
GO_UNIT      = $(shell go list $(GO_LONGEST); go list ./... | grep -v -x -e '.*/conformance/\(images\|disks\|volumes\)' \
  $(foreach p,$(GO_LONGEST),-e '$(PKG)$(p:.%=%)'))

# What a part of the tests, or of the benchmarks, is run by name: make test ONLY=volumes.
PARTS       := unit race images disks volumes measured
ONLY        ?= $(PARTS)
SIDE_BY_SIDE ?= 8
# How many packages the race detector runs side by side: most tests use one processor, and wait for the disk.
PACKAGES_SIDE_BY_SIDE := 4
# Tests that measure time or memory have names that begin so, and run alone.
MEASURED    := ^TestMeasured

# Programs built from Go modules, pinned.
CONTAINERD  := v2.4.2
CONTAINERD_OLDEST := v2.1.9
STATICCHECK := v0.8.2
CRANE       := v0.14.0
MINIO       := v0.0.0-20260212201848-7aac2a2c5b7c
VERSITYGW   := v1.8.0
CYCLONEDX   := v1.10.0
GOVULNCHECK := v1.9.0

# Debian packages: what the demonstration runs, and what the tests of each part need besides.
PACKAGES_demo    := runc docker-registry mmdebstrap erofs-utils e2fsprogs ca-certificates git
PACKAGES_unit    := erofs-utils
PACKAGES_race    := erofs-utils gcc libc6-dev
PACKAGES_images  := $(PACKAGES_demo) fuse3 umoci skopeo attr xfsprogs btrfs-progs strace systemd
PACKAGES_disks   := $(PACKAGES_demo) nbdkit qemu-utils libnbd-bin python3-libnbd fio xfsprogs btrfs-progs
PACKAGES_volumes := $(PACKAGES_demo) fio strace postgresql xfsprogs btrfs-progs
PACKAGES_measured := $(PACKAGES_images) $(PACKAGES_disks) $(PACKAGES_volumes)
PACKAGES_bench   := $(PACKAGES_measured)

TOOLS_demo       := $(TOOLS)/containerd-$(CONTAINERD)
TOOLS_lint       := $(TOOLS)/staticcheck-$(STATICCHECK)
TOOLS_images     := $(TOOLS_demo) $(TOOLS)/crane-$(CRANE) $(TOOLS)/podman-chunked \
  $(TOOLS)/containerd-2.1/$(CONTAINERD_OLDEST)
TOOLS_disks      := $(TOOLS_demo)
TOOLS_volumes    := $(TOOLS_demo) $(TOOLS)/minio-$(MINIO) $(TOOLS)/versitygw-$(VERSITYGW) $(TOOLS)/promtool
TOOLS_measured   := $(TOOLS_images) $(TOOLS_volumes)
TOOLS_bench      := $(TOOLS_measured)

export PATH := $(CURDIR)/bin:$(TOOLS):$(PATH):/usr/sbin:/sbin
# One way of compiling for programs, tests and checks, so that Go compiles each package once. The race detector needs another.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath
# Nothing that is tested depends on where the caller's own containerd, registry or bucket is.
unexport CONTAINERD_ADDRESS CONTAINERD_NAMESPACE CONTAINERD_SNAPSHOTTER REMORA_ADDRESS SNAPCTL_PASSWORD DOCKER_CONFIG XDG_CACHE_HOME \
  AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE AWS_REGION AWS_ENDPOINT_URL

.DEFAULT_GOAL := help
.PHONY: help build check test soak fuzz cover bench demo lint fmt generate proto install clean deps tools dist reproducible vulns $(PARTS)

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

build: ## bin/remorad and bin/snapctl for this machine
	@mkdir -p bin
	@echo "building bin/remorad and bin/snapctl (the first time, Go downloads and compiles their dependencies)"
	@$(GOBUILD) -o bin/ ./cmd/remorad ./cmd/snapctl

# What a release is: the same bytes wherever they are built, so no stamp of the working tree beside VERSION and COMMIT.
dist: $(TOOLS)/cyclonedx-gomod-$(CYCLONEDX) ## bin/linux-ARCH for amd64 and arm64, with SBOMs (CycloneDX) and SHA256SUMS
	@rm -rf bin/linux-* bin/SHA256SUMS
	@for arch in amd64 arm64; do mkdir -p bin/linux-$$arch; echo "linux/$$arch"; \
	  GOOS=linux GOARCH=$$arch $(GOBUILD) -buildvcs=false -o bin/linux-$$arch/ ./cmd/remorad ./cmd/snapctl || exit 1; \
	  for program in remorad snapctl; do cyclonedx-gomod bin -json -std -noserial -notimestamp -version $(VERSION) \
	    -output bin/linux-$$arch/$$program.cdx.json bin/linux-$$arch/$$program || exit 1; done; done
	@cd bin && sha256sum linux-*/* > SHA256SUMS

reproducible: $(TOOLS)/cyclonedx-gomod-$(CYCLONEDX) ## what dist makes of the last commit, twice: all must be equal
	@conformance/tools/reproducible

check: lint vulns ## before a commit: format, vet, lint, known vulnerabilities, fast tests
	go test -short -skip '$(MEASURED)' ./...

test: ## everything, as root; ONLY="volumes" for parts of: unit race images disks volumes measured
	@conformance/tools/parts $(ONLY)

# Each test of the packages runs once: under the race detector, or without it if it is one of these. conformance/parts_test.go
# keeps the lists.
# Long work of one goroutine, in which the detector has nothing to find: it makes that five to ten times slower.
ALONE   := Fuzz.*|TestRebuild|TestCorrupt|TestRepair|TestReproducible|TestInvalid|TestRefusingCostsLittle|TestDirectoryOf100000|$\
  TestProbeOnBadNetwork|TestAnnounced|Test.*ThatGrow|TestTreesThatAreLarge|TestZeros|TestJournalEveryCut|TestMarksThatRepeat|$\
  TestBehindExtents|TestUnpack|TestInflateStream|TestVerifyingIsBounded|TestBombs|TestDamage|TestAttributesThatAreShared|$\
  TestDecodingIsBounded
# Tests that do less with -short, as the detector has them. Without it they run whole.
SHORTER := TestSimulation|TestCheckpoints|TestMutants|TestAllocations|TestScan|TestSourceFails|TestCommandsAreDocumented

unit: deps-unit build ## tests of the packages that the race detector does not run, or not whole
	go test -count=1 -run '^($(ALONE)|$(SHORTER))$$' \
	  $$(grep -rlE '^func ($(ALONE)|$(SHORTER))\(' --include='*_test.go' . | xargs -n1 dirname | sort -u)

race: deps-race ## tests of the packages under the race detector, without containerd
	CGO_ENABLED=1 go test -race -short -count=1 -timeout 45m -p $(PACKAGES_SIDE_BY_SIDE) $(GO_UNIT) -skip '$(MEASURED)|^($(ALONE))$$'

images disks volumes: %: deps-% tools-% build ## end to end: real containerd, runc, registry, stores and kernel (root)
	REMORA_ONE_EACH=1 go test -count=1 -timeout 45m -parallel $(SIDE_BY_SIDE) -skip '$(MEASURED)' ./conformance/$@

measured: deps-measured tools-measured build ## tests that measure time or memory, each alone (root)
	go test -count=1 -timeout 45m -p 1 -parallel 1 -run '$(MEASURED)' \
	  $$(grep -rl 'func TestMeasured' --include='*_test.go' . | xargs -n1 dirname | sort -u)

# The parts of make soak: those tests that do more with REMORA_SOAK, in groups that end within 45 minutes on two cores each.
SOAK        := sim oldest outlive kill odd kinds disks volumes cuts outages operators fuzz
SOAK_sim     := TestSimulation|TestDetachAndStarts
SOAK_outlive := images TestOwnerOfRoot|TestSurvive|TestBothKilled|TestMeasuredNeighbours
SOAK_kill    := images TestKilledUnderLoad|TestImportKilled|TestConvertKilled|TestPowerCut|TestRegistryGone|TestAccessWithdrawn
SOAK_odd     := images TestOddImage|TestHugeFile|TestRootElsewhere|TestClientsAndRegistries|TestImagesOfTheClientAlone|TestTablesThatLie
SOAK_kinds   := images TestForgedLayer|TestPretender|TestLayersOfEveryKind|TestMountedWhileImported|TestDamagedFiles|TestDetachAndContainers
SOAK_disks   := disks TestDisk.*
SOAK_volumes := volumes TestVolumeKilled.*|TestVolumePostgres
SOAK_cuts    := volumes TestVolumePowerCut
SOAK_outages := volumes TestVolumeOutage.*|TestVolumeSlowLink|TestVolumeSilentLink|TestVolumeFileSystems
SOAK_operators := volumes TestVolumePairs|TestVolumeOperators|TestVolumePostgresFaults

soak: ## full counts, in parts of at most 45 minutes; SOAK="disks cuts" for some
	@conformance/tools/parts $(addprefix soak-,$(SOAK))

soak-sim:
	REMORA_SOAK=1 go test -count=1 -timeout 45m -run '^($(SOAK_sim))$$' ./volume ./snapshotter

# As make images, with the oldest containerd. Its time goes into another containerd instead of higher counts.
soak-oldest: deps-images tools-images build
	REMORA_ONE_EACH=1 REMORA_CONTAINERD=2.1 go test -count=1 -timeout 45m -parallel $(SIDE_BY_SIDE) -skip '$(MEASURED)' ./conformance/images

soak-outlive soak-kill soak-odd soak-kinds soak-disks soak-volumes soak-cuts soak-outages soak-operators: \
  soak-%: deps-measured tools-measured build
	REMORA_SOAK=1 go test -count=1 -timeout 45m -parallel $(SIDE_BY_SIDE) -run '^($(word 2,$(SOAK_$*)))$$' \
	  ./conformance/$(firstword $(SOAK_$*))

soak-fuzz:
	timeout 45m $(MAKE) fuzz FUZZTIME=60s

# An input that is new is made smaller for a minute unless that is bounded, and nothing else runs meanwhile.
fuzz: ## every fuzz target for FUZZTIME (20s)
	@for pkg in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; go test -run='^$$' -fuzz="^$$f\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=1s $$pkg || exit 1; done; done

# A statement that several packages' tests have in their profiles counts once, and is run if one of them runs it. Not counted are
# generated code, and packages that only tests import.
cover: ## which share of snapshotter's and cmd's statements their fast tests run, as any user
	@mkdir -p $(WORK)
	go test -short -count=1 -coverpkg=./snapshotter/...,./cmd/... -coverprofile=$(WORK)/cover.out ./snapshotter/... ./cmd/...
	@grep -vE '^mode:|\.pb\.go:|/internal/(cmdtest|imagetest)/' $(WORK)/cover.out | awk '\
	  { n[$$1] = $$2; if ($$3 > 0) ran[$$1] = 1 } \
	  END { for (s in n) { split(s, dir, "/"); all[dir[4]] += n[s]; if (s in ran) got[dir[4]] += n[s] } \
	    for (room in all) printf "%s: %d of %d statements, %.1f %%\n", room, got[room], all[room], 100 * got[room] / all[room] }'

bench: deps-bench tools-bench build ## the tables of docs/performance.md; BENCH="coldstart" for one
	go run ./conformance/bench $(BENCH)

demo: deps-demo tools-demo build ## a real image pulled and run, and a volume that outlives kill -9 (root)
	go run ./conformance/demo

lint: $(TOOLS_lint)
	@out=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); \
	[ -z "$$out" ] || { echo "not gofmt-ed (make fmt):"; echo "$$out"; exit 1; }
	go vet ./...
	staticcheck ./...

vulns:
	@conformance/tools/vulns $(TOOLS)/govulncheck-$(GOVULNCHECK)

fmt: ## gofmt all files
	gofmt -w $$(git ls-files '*.go')

generate: proto build ## Go code from .proto files, docs/cli.md from the commands' help
	go run ./conformance/tools/clidoc > docs/cli.md

proto:
	go run ./conformance/tools/protogen cmd/control/v1

install: build ## into DESTDIR/PREFIX, with the systemd unit and a sample configuration
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin bin/remorad bin/snapctl
	install -D -m 0644 -t $(DESTDIR)/etc/systemd/system cmd/remorad/remorad.service cmd/remorad/remora-holder.service \
	  cmd/remorad/remora-drain.service
	install -D -m 0755 -t $(DESTDIR)/usr/sbin cmd/remorad/mount.remora
	install -D -m 0644 cmd/remorad/config.toml $(DESTDIR)/etc/remora/config.toml.sample
	install -D -m 0644 cmd/remorad/containerd.toml $(DESTDIR)/etc/remora/containerd.toml.sample

clean: ## everything that was built or downloaded
	rm -rf bin $(WORK)

deps: deps-bench deps-race ## the Debian packages that tests and benchmarks need
tools: $(TOOLS_bench) $(TOOLS_lint) ## the pinned programs that tests and benchmarks run

# deps-PART installs the Debian packages of a part that are missing.
deps-%:
	@conformance/tools/packages $(sort $(PACKAGES_$*))

# tools-PART builds the programs of a part.
.SECONDEXPANSION:
tools-%: $$(TOOLS_$$*) ;

# The tests speak to containerd by its socket and by ctr; CRI, btrfs, zfs and device mapper are left out, which are half of it.
CONTAINERD_TAGS := -tags 'no_cri no_btrfs no_zfs no_devmapper no_tracing'
CONTAINERD_CMDS := {containerd,ctr,containerd-shim-runc-v2}
$(TOOLS)/containerd-$(CONTAINERD):
	@echo "building containerd $(CONTAINERD), ctr and the shim for runc (once, kept in .work/tools)"
	@$(GOTOOL) $(CONTAINERD_TAGS) github.com/containerd/containerd/v2/cmd/$(CONTAINERD_CMDS)@$(CONTAINERD)
	@touch $@

# The oldest line that README.md promises, in a directory of its own. Its go.mod excludes versions, which go install takes of the
# main module alone: so Go builds it where it keeps the module.
$(TOOLS)/containerd-2.1/$(CONTAINERD_OLDEST):
	@echo "building containerd $(CONTAINERD_OLDEST) (once, kept in .work/tools/containerd-2.1)"
	@go mod download github.com/containerd/containerd/v2@$(CONTAINERD_OLDEST)
	@cd "$$(go list -m -f '{{.Dir}}' github.com/containerd/containerd/v2@$(CONTAINERD_OLDEST))" && \
	  GOBIN=$(@D) go install -ldflags '-s -w' $(CONTAINERD_TAGS) ./cmd/$(CONTAINERD_CMDS)
	@touch $@

$(TOOLS)/staticcheck-$(STATICCHECK):
	@echo "building staticcheck $(STATICCHECK) (once)"
	@$(GOTOOL) honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK)
	@touch $@

# Writes software bills of materials.
$(TOOLS)/cyclonedx-gomod-$(CYCLONEDX):
	@echo "building cyclonedx-gomod $(CYCLONEDX) (once)"
	@$(GOTOOL) github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(CYCLONEDX)
	@touch $@

# Finds known vulnerabilities. It runs by its own name with the version, which make and the script know.
$(TOOLS)/govulncheck-$(GOVULNCHECK):
	@echo "building govulncheck $(GOVULNCHECK) (once)"
	@$(GOTOOL) golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK)
	@mv $(TOOLS)/govulncheck $@

$(TOOLS)/crane-$(CRANE):
	@echo "building crane $(CRANE) (once)"
	@$(GOTOOL) github.com/google/go-containerregistry/cmd/crane@$(CRANE)
	@touch $@

# S3 servers that volumes are tested with.
$(TOOLS)/minio-$(MINIO):
	@echo "building MinIO (once; this takes minutes)"
	@$(GOTOOL) github.com/minio/minio@$(MINIO)
	@touch $@

$(TOOLS)/versitygw-$(VERSITYGW):
	@echo "building versitygw $(VERSITYGW) (once)"
	@$(GOTOOL) github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW)
	@touch $@

# Podman's library, in a module of its own: only the tests need it.
$(TOOLS)/podman-chunked: conformance/tools/podman/main.go conformance/tools/podman/go.mod
	@echo "building a program over Podman's library (once)"
	@cd conformance/tools/podman && go build -tags 'exclude_graphdriver_btrfs exclude_graphdriver_devicemapper' -o $@ .

# Debian's, without the server that would be started beside it.
$(TOOLS)/promtool:
	@mkdir -p $(TOOLS) && dir=$$(mktemp -d) && cd $$dir && chmod 755 . && apt-get update -qq && \
	apt-get download -qq -o APT::Sandbox::User=root prometheus && dpkg-deb -x prometheus_*.deb . && cp usr/bin/promtool $@; \
	rc=$$?; rm -rf $$dir; exit $$rc
