package main

import (
	"context"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/version"
	"github.com/remora-storage/remora/snapshotter"
	"github.com/remora-storage/remora/volume/mount"
)

// Where things are unless flags say otherwise.
const (
	defaultConfig = "/etc/remora/config.toml"
	defaultRoot   = "/var/lib/remora"
	defaultSocket = "/run/remora/remora.sock"
)

func main() { cli.Main("remorad", run) }

type flags struct {
	config, root, address, logLevel, holder string
	defaultConfig                           bool
	kernel                                  snapshotter.Kernel // nil for this machine's; no flag
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	return flags{}.run(ctx, args, stdout, stderr)
}

func (f flags) run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cmd := &cobra.Command{
		Use:   "remorad",
		Short: "Lazy container images for containerd",
		Long: `remorad is a containerd proxy snapshotter. Containers start while their image is still in the
registry. remorad fetches data when a program reads it, or earlier by prefetching.

containerd needs to know its socket (see "remorad containerd-config"), and pulls need to be told
to use it: snapctl pull IMAGE, ctr run --snapshotter remora, or CRI's snapshotter = "remora".`,
		Args:          cobra.NoArgs,
		Version:       version.String(),
		SilenceErrors: true, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.defaultConfig = !cmd.Flags().Changed("config")
			return serve(cmd.Context(), f, stderr)
		},
	}
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.Flags().StringVar(&f.config, "config", defaultConfig, "configuration `file`; the default one may be missing")
	cmd.PersistentFlags().StringVar(&f.root, "root", defaultRoot,
		"`directory` for snapshots and the cache, on ext4, xfs or btrfs for the best back ends")
	cmd.Flags().StringVar(&f.address, "address", defaultSocket, "Unix `socket` to serve on")
	cmd.Flags().StringVar(&f.holder, "holder", holderAuto,
		"`which` holder keeps mounts alive while remorad is away: auto finds the root's holder or starts one, "+
			"external waits for one that systemd starts, none lets mounts end with remorad")
	cmd.PersistentFlags().StringVar(&f.logLevel, "log-level", "info", "least `level` to log: debug, info, warn or error")
	cmd.AddCommand(
		&cobra.Command{Use: "sample-config", Short: "Print the commented default configuration", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { _, err := stdout.Write(sampleConfig); return err }},
		&cobra.Command{Use: "containerd-config", Short: "Print what belongs in containerd's config.toml", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return printContainerdConfig(stdout, f.root) }},
		&cobra.Command{Use: onDeviceCommand, Short: "Do what remorad asks for with a volume's device", Hidden: true, Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return mount.Serve(os.Stdin, stdout) }},
		&cobra.Command{Use: "holder", Short: "Keep mounts alive while remorad is not there (remorad starts it itself)", Args: cobra.NoArgs,
			Long: `holder is a second, small process beside remorad. It has a reference to everything that mounts of
lazy layers depend on. It keeps reads that the kernel has handed out until they are answered. So
remorad can be killed, stopped or upgraded while containers run: their reads of missing data wait
for the next remorad. It uses no network and needs no restart at an upgrade.

remorad starts one for its root unless --holder says otherwise. Under systemd it has a unit of its
own, remora-holder.service. It ends when remorad stops and nothing is left to hold, as after snapctl
detach --all, or when its root is deleted. Where no mount depends on it and no remorad is there, it
also ends by itself within minutes, or when it is told to (SIGTERM).`,
			RunE: func(cmd *cobra.Command, _ []string) error { return hold(cmd.Context(), f, stderr) }},
	)
	return cli.Execute(ctx, cmd, args)
}

func newLog(level string, w io.Writer) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, cli.Usagef("--log-level %q: want debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}
