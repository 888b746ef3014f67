package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// HelpColumns is how wide the help's lists of flags are at most.
const HelpColumns = 120

// wrapHelp has the help of a program and its commands break long descriptions of flags, and not say that a group takes any.
func wrapHelp(root *cobra.Command) {
	cobra.AddTemplateFunc("runs", func(c *cobra.Command) bool { return c.Runnable() && !IsGroup(c) })
	cobra.AddTemplateFunc("wrapped", func(f *pflag.FlagSet) string { return f.FlagUsagesWrapped(HelpColumns) })
	usage := strings.ReplaceAll(root.UsageTemplate(), "{{if .Runnable}}", "{{if runs .}}")
	for _, flags := range []string{".LocalFlags", ".InheritedFlags"} {
		usage = strings.ReplaceAll(usage, flags+".FlagUsages ", "wrapped "+flags+" ")
	}
	root.SetUsageTemplate(usage)
}
