package version

import "runtime/debug"

// Version and Commit are set by the Makefile with -ldflags.
var (
	Version = "dev"
	Commit  = ""
)

// String returns one line for people.
func String() string {
	commit := Commit
	if info, ok := debug.ReadBuildInfo(); ok && commit == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
	}
	if commit == "" {
		return Version
	}
	return Version + " (" + commit + ")"
}
