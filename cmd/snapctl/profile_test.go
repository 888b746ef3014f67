package main

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/profile"
)

// profileText is an encoded profile of one run that read a part of each of the files.
func profileText(t *testing.T, paths ...string) string {
	t.Helper()
	var entries []profile.Entry
	for i, path := range paths {
		entries = append(entries, profile.Entry{Path: path, Len: 4096, Digest: digest.FromString(path), AtMS: int64(i)})
	}
	p := profile.New(digest.FromString("image"), "r.example.com/app", entries)
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
