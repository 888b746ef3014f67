package main

import (
	"fmt"

	"github.com/distribution/reference"
)

// normalize turns what people type into the full reference that containerd wants.
func normalize(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", usageError{fmt.Errorf("image %q: %w", ref, err)}
	}
	return named.String(), nil
}

func registryHost(ref string) string {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return ""
	}
	return reference.Domain(named)
}
