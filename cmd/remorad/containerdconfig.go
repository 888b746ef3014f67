package main

import (
	"bytes"
	_ "embed"
	"io"
	"log/slog"
	"os"

	"github.com/remora-storage/remora/snapshotter"
)

//go:embed containerd.toml
var containerdConfig []byte

// Capabilities of a proxy plugin, as containerd names them.
const (
	remapIDs     = "remap-ids"
	onlyRemapIDs = "only-remap-ids"
)

// printContainerdConfig prints the snippet, with the capability that fits this machine.
func printContainerdConfig(w io.Writer, root string) error {
	dir := root
	if _, err := os.Stat(dir); err != nil {
		dir = os.TempDir()
	}
	text := containerdConfig
	// Without root's rights nothing can be tried; the snippet is for the usual case then.
	caps, err := snapshotter.Probe(dir, "", true, slog.New(slog.DiscardHandler))
	if err == nil && caps.Lazy != "" && !caps.IDMap {
		text = bytes.Replace(text, []byte(`["`+remapIDs+`"]`), []byte(`["`+onlyRemapIDs+`"]`), 1)
	}
	_, err = w.Write(text)
	return err
}
