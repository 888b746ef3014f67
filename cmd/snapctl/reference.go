package main

import (
	"github.com/distribution/reference"

	"github.com/remora-storage/remora/cmd/internal/cli"
)

// normalize turns what people type into the full reference that containerd wants.
func normalize(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", cli.Usagef("image %q: %w", ref, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

func registryHost(ref string) string {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return ""
	}
	return reference.Domain(named)
}
