package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/cmd/internal/version"
)

func main() { cli.Main("snapctl", run) }

// app is what every command needs.
type app struct {
	containerd, remora, namespace string
	json                          bool
	stdin                         io.Reader // nil for the process's own
	stdout, stderr                io.Writer
	fifos                         string        // directory for the output of containers; "" for containerd's own
	patience                      time.Duration // with a containerd that is not there; 0 for its client's own
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	return (&app{stdout: stdout, stderr: stderr}).run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) error {
	if err := log.SetLevel("error"); err != nil { // of containerd's packages
		return err
	}
	return cli.Execute(ctx, a.command(), args)
}

// command returns all commands.
func (a *app) command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapctl",
		Short: "Lazy container images and remote disks for containerd",
		Long: `snapctl works with images that start while they are still in the registry, and with disks that live in an object
store.

  snapctl convert docker.io/library/redis:7 registry.example.com/redis:7-lazy
  snapctl pull registry.example.com/redis:7-lazy
  ctr run --rm --snapshotter remora registry.example.com/redis:7-lazy demo redis-server --version
  snapctl record registry.example.com/redis:7-lazy --until-line "Ready to accept"
  snapctl status

  snapctl volume create --store file:/var/lib/volumes data 10G
  snapctl volume mount data /mnt

"snapctl doctor" checks that this machine, containerd and remorad fit together.`,
		Version:       version.String(),
		SilenceErrors: true, SilenceUsage: true,
	}
	cmd.SetIn(a.stdin)
	cmd.SetOut(a.stdout)
	cmd.SetErr(a.stderr)
	cmd.CompletionOptions.HiddenDefaultCmd = true
	f := cmd.PersistentFlags()
	f.StringVar(&a.containerd, "address", envOr("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock"), "containerd's `socket`")
	f.StringVar(&a.remora, "remora", envOr("REMORA_ADDRESS", "/run/remora/remora.sock"), "remorad's `socket`")
	f.StringVar(&a.namespace, "namespace", envOr("CONTAINERD_NAMESPACE", "default"), "containerd's `namespace` (k8s.io for Kubernetes)")
	f.BoolVar(&a.json, "json", false, "print one JSON object on stdout")
	cmd.AddCommand(a.pullCommand(), a.convertCommand(), a.fetchCommand(), a.repairCommand(), a.statusCommand(), a.cacheCommand(),
		a.detachCommand(), a.doctorCommand(), a.recordCommand(), a.profileCommand(), a.indexCommand(), a.traceCommand(),
		a.devCommand(), a.volumeCommand())
	addSynonyms(cmd)
	return cmd
}

// synonyms are the words that people try for a verb.
var synonyms = map[string][]string{
	"ls": {"list"}, "rm": {"remove", "delete"}, "umount": {"unmount"}, "inspect": {"show", "status"}, "show": {"inspect"},
	"status": {"ls", "list"}, "fsck": {"check"},
}

// addSynonyms makes each word an alias, where its group has no command of that name.
func addSynonyms(root *cobra.Command) {
	for c := range cli.All(root) {
		for _, sub := range c.Commands() {
			for _, word := range synonyms[sub.Name()] {
				if !slices.ContainsFunc(c.Commands(), func(other *cobra.Command) bool { return other.Name() == word }) {
					sub.Aliases = append(sub.Aliases, word)
				}
			}
		}
	}
}

func envOr(key, otherwise string) string {
	if v := os.Getenv(key); v != "" {
		return v
	}
	return otherwise
}

// exactly makes a wrong number of arguments a usage error.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return cli.Usagef("want %s, got %d arguments (see %s --help)", what, len(args), c.CommandPath())
		}
		return nil
	}
}

// dialRemora connects to remorad. The closer must be called.
func (a *app) dialRemora() (*control.Client, io.Closer, error) { return control.Dial(a.remora) }

// ask makes one call of remorad and returns what it answers, or an error that is fit for people.
func ask[Reply any](a *app, call func(*control.Client) (Reply, error)) (reply Reply, err error) {
	remora, closer, err := a.dialRemora()
	if err != nil {
		return reply, err
	}
	defer closer.Close()
	reply, err = call(remora)
	return reply, control.Explain(err, a.remora)
}

// dialContainerd connects to containerd and puts the namespace into the context.
func (a *app) dialContainerd(ctx context.Context) (context.Context, *client.Client, error) {
	c, err := client.New(a.containerd, client.WithTimeout(a.patience))
	if err != nil {
		return ctx, nil, fmt.Errorf("containerd at %s: %w", a.containerd, err)
	}
	return namespaces.WithNamespace(ctx, a.namespace), c, nil
}

// localImage finds an image in containerd. The client must be closed.
func (a *app) localImage(ctx context.Context, ref string) (context.Context, *client.Client, client.Image, error) {
	ctx, c, err := a.dialContainerd(ctx)
	if err != nil {
		return ctx, nil, nil, err
	}
	img, err := c.GetImage(ctx, ref)
	if err != nil {
		c.Close()
		return ctx, nil, nil, fmt.Errorf("image %s in namespace %s: %w (pull it first: snapctl pull %s)", ref, a.namespace, err, ref)
	}
	return ctx, c, img, nil
}

// print writes v as JSON, or calls human.
func (a *app) print(v any, human func(w io.Writer)) error {
	if a.json {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	human(a.stdout)
	return nil
}

func (a *app) note(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }
