package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/errdefs"
	containerdlog "github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"

	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/formats"
	"github.com/remora-storage/remora/cmd/internal/version"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter"
	"github.com/remora-storage/remora/snapshotter/layers"
	"github.com/remora-storage/remora/volume/node"
)

// serve runs the daemon until ctx ends.
func serve(ctx context.Context, f flags, stderr io.Writer) (err error) {
	log, err := newLog(f.logLevel, stderr)
	if err != nil {
		return err
	}
	cfg, err := readConfig(f.config, f.defaultConfig)
	if err != nil {
		return err
	}
	if f.root, err = filepath.Abs(f.root); err != nil {
		return err
	}
	if err := containerdlog.SetLevel("error"); err != nil { // of containerd's packages: they log what we return
		return err
	}
	// Garbage of a pull is large beside what stays; keep the heap close to the latter.
	debug.SetGCPercent(50)

	if err := ownProcessGroup(); err != nil {
		log.Warn("clients in remorad's process group may see layers empty that are not there yet", "err", err)
	}

	spareFromOOM(log)

	// The parts, leaf first.
	lock, err := snapshotter.Lock(f.root)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := durable.Sweep(f.root); err != nil {
		return err
	}
	if f.root, err = filepath.EvalSymlinks(f.root); err != nil { // the kernel's lists of mounts have none
		return err
	}
	if err := needsNothingLazy(cfg); err != nil {
		return err
	}
	limit, err := cfg.cacheLimit(f.root)
	if err != nil {
		return err
	}
	limits, err := cfg.limits()
	if err != nil {
		return err
	}
	memoryLimit, err := cfg.memory()
	if err != nil {
		return err
	}
	decoding := memory.New(memoryLimit)
	logins, err := registry.OpenLogins(filepath.Join(f.root, registry.LoginsFile.Name), log)
	if err != nil {
		return err
	}
	reg := registry.New(registry.Options{
		ConfigPath: cfg.Registry.ConfigPath, DockerConfig: cfg.Registry.DockerConfig, Logins: logins,
		Retry: registry.Retry{Attempts: cfg.Registry.Attempts}, Stall: time.Duration(cfg.Registry.StallTimeout),
		PrivatePlaces: cfg.Registry.PrivatePlaces, Log: log,
	})
	rate, err := cfg.backgroundRate()
	if err != nil {
		return err
	}
	h, kept, err := connectHolder(f, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	ofDisks := wayOfDisks(f.root, h.keeper(), log)
	taken, err := ofDisks.Take(kept)
	if err != nil {
		return err
	}
	exports, err := snapshotter.OpenExports(f.root, h.keeper(), kept, waysOfLayers, log) // drops what nobody has taken
	if err != nil {
		return err
	}
	images, err := cache.Open(filepath.Join(f.root, "cache"), cache.Options{
		Limit: limit, Policy: cfg.Fetch.policy(), Unreachable: mayAnswerLater, Rate: rate, Plain: limits.Plain,
		Memory: decoding, Held: exports.Held, Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, images.Close()) }()
	owned, err := openHost(f.root, cfg, images.Objects(), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, owned.Close()) }()
	disks, err := openDisks(ctx, f.root, ofDisks, taken, h, owned, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disks.Close()) }()
	vols := &volumes{host: owned, disks: disks, node: node.New(), byName: cleanStore(cfg.Volume.Store), log: log}
	defer vols.node.Close()
	if err := vols.adoptVolumes(); err != nil {
		return err
	}
	var daily sync.WaitGroup
	defer daily.Wait()
	dailyCtx, stopDaily := context.WithCancel(ctx)
	defer stopDaily()
	daily.Go(func() { owned.Run(dailyCtx) })
	go disks.Fit(dailyCtx) // nobody waits: the file of a device may take as long as its store
	containerd, err := client.New(cfg.Containerd.Address)
	if err != nil {
		return fmt.Errorf("containerd at %s: %w", cfg.Containerd.Address, err)
	}
	defer containerd.Close()
	known := snapshotter.NewContentImages(containerd.ContentStore(), containerd.ImageService(), reg.Configured, decoding)
	sn, err := snapshotter.New(f.root, images, layers.Remote{Registry: reg}, known, snapshotter.Options{
		Layers: layers.Options{
			Formats: formats.All(), Trust: cfg.trust(), TrustOf: cfg.trustOf, Limits: limits, Memory: decoding, PolicyOf: cfg.policyOf,
			ImportOf: cfg.importOf, IndexOf: cfg.indexOf, Blobs: &storedBlobs{containerd, reg.Configured},
		},
		Backend: cfg.backend(), BackendOf: cfg.backendFor, ImportWait: time.Duration(cfg.Import.Wait),
		KeepBlobs: cfg.keepsBlobs(), Background: snapshotter.Background(cfg.Fetch.Background), Learn: cfg.Profile.Learn,
		Exports: exports, Kernel: f.kernel, Pod: inPod(),
		Metadata: &noted{containerd, f.address},
		Releases: &releases{containerd.NamespaceService(), containerd.ImageService(), known}, ReleaseAsk: cfg.Images.Release == releaseAsk,
		Tell:    tellBy(containerd),
		NotOurs: []string{disk.Dir(f.root), disk.EarlierDir(f.root)}, MapsMounts: mapsMounts(containerd), Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sn.Close()) }()

	server := grpc.NewServer(controlOptions()...)
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	controls{
		node:    &nodeService{root: f.root, cfg: cfg, cache: images, sn: sn, holder: h},
		images:  &imagesService{cfg: cfg, sn: sn, registry: reg, containerd: containerd},
		disks:   &disksService{disks: disks, host: owned},
		volumes: vols,
	}.register(server)
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	images.Register(metrics)
	sn.Register(metrics)
	owned.Register(metrics)
	return listen(ctx, addresses{f.address, cfg.Metrics.Address, cfg.Pprof.Address}, server, metrics, sn.Serving, log)
}

// mapsMounts is snapshotter.Options.MapsMounts. It asks containerd for its version each time, as another may run then.
func mapsMounts(c *client.Client) func(context.Context) error {
	return func(ctx context.Context) error {
		v, err := c.Version(ctx)
		if err != nil {
			return fmt.Errorf("version of containerd: %w", err)
		}
		if !version.MapsMounts(v.Version) {
			return fmt.Errorf("containerd %s shows a container in a user namespace remote layers as empty: use containerd 2.3 or later: %w",
				v.Version, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
}

// mayAnswerLater tells the errors of a registry that pass from those that do not. Credentials may
// be renewed.
func mayAnswerLater(err error) bool {
	return registry.Retryable(err) || errors.Is(err, registry.ErrUnauthorized)
}

// addresses are what remorad serves on.
type addresses struct {
	socket         string
	metrics, pprof string // "" for none
}

// listen serves until ctx ends or a listener fails, then stops accepting and finishes requests. It calls serving once it serves.
func listen(
	ctx context.Context, at addresses, server *grpc.Server, metrics *prometheus.Registry, serving func(), log *slog.Logger,
) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	l, err := cli.ListenUnix(ctx, at.socket)
	if err != nil {
		return err
	}
	var started sync.WaitGroup
	for _, s := range []struct {
		section, address string
		handler          http.Handler
	}{{"metrics", at.metrics, metricsHandler(metrics)}, {"pprof", at.pprof, pprofHandler()}} {
		if s.address == "" {
			continue
		}
		h, err := serveHTTP(ctx, s.section, s.address, s.handler, &started, stop)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		defer h.Close()
		log.Info("serving "+s.section, "address", s.address)
	}
	started.Go(func() {
		if err := server.Serve(l); err != nil {
			stop(fmt.Errorf("serve on %s: %w", at.socket, err))
		}
	})
	log.Info("serving", "address", at.socket)
	serving()
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("systemd not notified", "err", err)
	}
	<-ctx.Done()
	log.Info("stopping")
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) // it only informs
	finished := make(chan struct{})
	started.Go(func() {
		defer close(finished)
		server.GracefulStop()
	})
	select {
	case <-finished:
	case <-time.After(stopGrace): // somebody waits for a mount
		server.Stop()
	}
	started.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

const stopGrace = 5 * time.Second

func metricsHandler(metrics *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return mux
}

// pprofHandler serves profiles of the process. They tell what it has in memory, and a caller can make it work for them: so they
// have an address of their own, which is none unless somebody looks for something.
func pprofHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// serveHTTP serves on host:port, or on a Unix socket that only root may use, until ctx ends.
func serveHTTP(
	ctx context.Context, section, addr string, handler http.Handler, started *sync.WaitGroup, stop context.CancelCauseFunc,
) (*http.Server, error) {
	var l net.Listener
	var err error
	if filepath.IsAbs(addr) {
		l, err = cli.ListenUnix(ctx, addr)
	} else {
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("[%s] address: %w", section, err)
	}
	h := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	started.Go(func() {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			stop(fmt.Errorf("serve %s: %w", section, err))
		}
	})
	context.AfterFunc(ctx, func() { h.Close() })
	return h, nil
}
