package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// group marks a command that only has commands below it.
const group = "group"

// Execute runs a program's command line. A word that is no command of its group is a mistake of the caller, in every group, and
// the error names the commands that come near it. So are flags that nobody knows.
func Execute(ctx context.Context, root *cobra.Command, args []string) error {
	Prepare(root)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil && strings.HasPrefix(err.Error(), "unknown command") { // cobra has no type for it
		return Usage(err)
	}
	return err
}

// Prepare does to a program's commands what Execute needs. For tests that look at them.
func Prepare(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	wrapHelp(root)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if IsGroup(c) && c.Flags().NArg() > 0 { // a flag of a command that is not there
			return unknown(c, c.Flags().Arg(0))
		}
		return Usagef("%w (see %s --help)", err, c.CommandPath())
	})
	for c := range All(root) {
		switch {
		case c.Name() == "help" && c.Parent() == root:
			c.Run, c.RunE = nil, func(c *cobra.Command, args []string) error { return help(root, args) }
		case c.HasSubCommands() && !c.Runnable():
			c.Args = cobra.ArbitraryArgs
			c.Annotations = map[string]string{group: "yes"}
			c.RunE = func(c *cobra.Command, args []string) error {
				if len(args) > 0 && args[0] != "help" {
					return unknown(c, args[0])
				}
				return help(c, args[min(1, len(args)):])
			}
		case c.HasSubCommands(): // it does something itself, without arguments
			c.Args = func(c *cobra.Command, args []string) error {
				if len(args) > 0 {
					return unknown(c, args[0])
				}
				return nil
			}
		}
	}
}

// All yields a command and all below it.
func All(c *cobra.Command) func(yield func(*cobra.Command) bool) {
	return func(yield func(*cobra.Command) bool) {
		all := []*cobra.Command{c}
		for len(all) > 0 && yield(all[0]) {
			all = slices.Concat(all[1:], all[0].Commands())
		}
	}
}

// IsGroup reports whether a command does nothing but have others below it.
func IsGroup(c *cobra.Command) bool { return c.Annotations[group] != "" }

// help prints the help of a command below c.
func help(c *cobra.Command, args []string) error {
	found, rest, err := c.Find(args)
	if err != nil {
		return Usage(err)
	}
	if len(rest) > 0 && IsGroup(found) {
		return unknown(found, rest[0])
	}
	return found.Help()
}

// unknown says that a group has no such command, and which it may have been.
func unknown(c *cobra.Command, word string) error {
	words := &cobra.Command{SuggestionsMinimumDistance: 2}
	var names []string
	for _, sub := range c.Commands() {
		if !sub.IsAvailableCommand() {
			continue
		}
		names = append(names, sub.Name())
		for _, name := range append([]string{sub.Name()}, sub.Aliases...) {
			words.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
		}
	}
	says := "there are " + strings.Join(names, ", ")
	if near := words.SuggestionsFor(word); len(near) > 0 {
		says = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return Usagef("unknown command %q for %q: %s (see %s --help)", word, c.CommandPath(), says, c.CommandPath())
}
