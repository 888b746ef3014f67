package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// HelpColumns is how wide the help's lists of flags are at most.
const HelpColumns = 120

// WrapHelp has the help of a program and its commands break long descriptions of flags.
func WrapHelp(root *cobra.Command) {
	cobra.AddTemplateFunc("wrapped", func(f *pflag.FlagSet) string { return f.FlagUsagesWrapped(HelpColumns) })
	usage := root.UsageTemplate()
	for _, flags := range []string{".LocalFlags", ".InheritedFlags"} {
		usage = strings.ReplaceAll(usage, flags+".FlagUsages ", "wrapped "+flags+" ")
	}
	root.SetUsageTemplate(usage)
}
