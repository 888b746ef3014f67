package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/remora-storage/remora/conformance/testbed"
)

func main() {
	fmt.Print("# Commands\n\nMade by `make generate` from the commands' own help.\n")
	for _, args := range [][]string{
		{"snapctl"}, {"snapctl", "pull"}, {"snapctl", "convert"}, {"snapctl", "record"},
		{"snapctl", "profile"}, {"snapctl", "profile", "show"}, {"snapctl", "profile", "merge"}, {"snapctl", "profile", "push"},
		{"snapctl", "profile", "pull"}, {"snapctl", "profile", "rm"}, {"snapctl", "trace"},
		{"snapctl", "index"}, {"snapctl", "index", "create"}, {"snapctl", "index", "push"}, {"snapctl", "index", "ls"},
		{"snapctl", "index", "show"}, {"snapctl", "index", "rm"}, {"snapctl", "dev"}, {"snapctl", "dev", "serve"},
		{"snapctl", "dev", "attach"}, {"snapctl", "dev", "detach"}, {"snapctl", "dev", "ls"},
		{"snapctl", "volume"}, {"snapctl", "volume", "init"}, {"snapctl", "volume", "probe"}, {"snapctl", "volume", "create"},
		{"snapctl", "volume", "ls"},
		{"snapctl", "volume", "inspect"}, {"snapctl", "volume", "attach"}, {"snapctl", "volume", "detach"}, {"snapctl",
			"volume", "mount"}, {"snapctl", "volume", "umount"},
		{"snapctl", "volume", "resize"}, {"snapctl", "volume", "rm"}, {"snapctl", "volume", "fsck"}, {"snapctl", "volume", "bench"},
		{"snapctl", "fetch"}, {"snapctl", "repair"}, {"snapctl", "status"}, {"snapctl", "cache"}, {"snapctl", "detach"}, {"snapctl", "doctor"},
		{"remorad"}, {"remorad", "holder"},
	} {
		out, err := testbed.Output(context.Background(), nil, args[0], append(args[1:], "--help")...)
		if err != nil {
			fmt.Fprintln(os.Stderr, "clidoc:", err)
			os.Exit(1)
		}
		fmt.Printf("\n## %s\n\n```\n%s\n```\n", strings.Join(args, " "), strings.TrimSpace(out))
	}
	fmt.Print(exitCodes)
}

const exitCodes = `
## Exit codes

0: done. 1: it failed; the reason is on stderr. 2: the command was called wrongly.

## Environment

snapctl reads ` + "`CONTAINERD_ADDRESS`, `CONTAINERD_NAMESPACE`, `REMORA_ADDRESS` and `SNAPCTL_PASSWORD`" + `. convert also reads
` + "`DOCKER_CONFIG`" + ` where remorad does not run. convert and index keep what they know of layers in ` +
	"`XDG_CACHE_HOME`" + ` (~/.cache).
`
