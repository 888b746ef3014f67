package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/remote/store/s3store"
	"github.com/remora-storage/remora/volume"
)

// storeOpener opens stores by their URLs: file:/path or s3://bucket/prefix?endpoint=…
func storeOpener(credentials string) func(url string) (store.Store, error) {
	return func(url string) (store.Store, error) {
		kind, rest, _ := strings.Cut(url, ":")
		switch kind {
		case "file":
			if !filepath.IsAbs(rest) {
				return nil, fmt.Errorf("store %q: want file:/path", url)
			}
			return filestore.Open(rest, filestore.Options{Bulk: volume.IsSegment})
		case "s3":
			o, err := s3store.ParseURL(url)
			if err != nil {
				return nil, err
			}
			o.Credentials = credentials
			s, err := s3store.Open(o)
			if err != nil {
				return nil, err
			}
			return store.Hedged(s), nil
		}
		return nil, fmt.Errorf("store %q: want file:/path or s3://BUCKET/PREFIX?endpoint=URL", url)
	}
}

// cleanStore makes one URL of those that mean the same store.
func cleanStore(url string) string {
	if path, ok := strings.CutPrefix(url, "file:"); ok {
		return "file:" + filepath.Clean("/"+strings.TrimLeft(path, "/"))
	}
	return url
}
