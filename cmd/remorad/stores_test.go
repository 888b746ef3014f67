package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestStores opens what URLs name, and refuses what names nothing.
func TestStores(t *testing.T) {
	open := storeOpener("")
	if _, err := open("file:" + filepath.Join(t.TempDir(), "store")); err != nil {
		t.Errorf("a directory: %v", err)
	}
	for url, want := range map[string]string{
		"file:relative": "want file:/path", "ftp://x": "want file:/path or s3://", "": "want file:/path or s3://",
		"s3://": "s3://",
	} {
		_, err := open(url)
		fails(t, err, want)
	}
	for url, want := range map[string]string{
		"file:/a/../b//c/": "file:/b/c", "file:///a": "file:/a", "file:a": "file:/a", "s3://bucket/p": "s3://bucket/p", "": "",
	} {
		if got := cleanStore(url); got != want {
			t.Errorf("%s is %s, want %s", url, got, want)
		}
	}
}

// TestS3Credentials: a bucket's store is opened without asking it anything, and a file of credentials must be there.
func TestS3Credentials(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	_, err := storeOpener(none)("s3://bucket/p?endpoint=http://127.0.0.1:1")
	if err != nil && !strings.Contains(err.Error(), none) {
		t.Errorf("got %v", err)
	}
}
