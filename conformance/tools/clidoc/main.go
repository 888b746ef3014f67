package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/remora-storage/remora/conformance/testbed"
)

func main() {
	fmt.Print("# Commands\n\nMade by `make generate` from the commands' own help.\n")
	for _, program := range []string{"snapctl", "remorad"} {
		if err := document(program); err != nil {
			fmt.Fprintln(os.Stderr, "clidoc:", err)
			os.Exit(1)
		}
	}
	fmt.Print(exitCodes)
}

// document prints a command's help, and that of the commands below it, as the help lists them.
func document(command ...string) error {
	out, err := testbed.Output(context.Background(), nil, command[0], append(command[1:], "--help")...)
	if err != nil {
		return err
	}
	fmt.Printf("\n## %s\n\n```\n%s\n```\n", strings.Join(command, " "), strings.TrimSpace(out))
	_, list, _ := strings.Cut(out, "\nAvailable Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		if name := strings.Fields(line)[0]; name != "help" {
			if err := document(append(slices.Clone(command), name)...); err != nil {
				return err
			}
		}
	}
	return nil
}

const exitCodes = `
## Exit codes

0: done. 1: it failed; the reason is on stderr. 2: the command was called wrongly.

## Environment

snapctl reads ` + "`CONTAINERD_ADDRESS`, `CONTAINERD_NAMESPACE`, `REMORA_ADDRESS` and `SNAPCTL_PASSWORD`" + `. convert also reads
` + "`DOCKER_CONFIG`" + ` where remorad does not run. convert and index keep what they know of layers in ` +
	"`XDG_CACHE_HOME`" + ` (~/.cache).
`
