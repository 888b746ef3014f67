package s3store_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/s3store"
)

// fake starts gofakes3 with an empty bucket.
func fake(t *testing.T) s3store.Options {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("volumes"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(srv.Close)
	creds := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(creds, []byte("[default]\naws_access_key_id = key\naws_secret_access_key = secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return s3store.Options{Endpoint: srv.URL, Region: "us-east-1", Bucket: "volumes", Prefix: "p/", Credentials: creds}
}

func open(t *testing.T, o s3store.Options) *s3store.Store {
	t.Helper()
	s, err := s3store.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	suite.Store(t, func(t *testing.T) store.Store { return open(t, fake(t)) })
}

func TestParseURL(t *testing.T) {
	o, err := s3store.ParseURL("s3://bucket/some/prefix?endpoint=http://127.0.0.1:9000&region=eu")
	if err != nil || o.Bucket != "bucket" || o.Prefix != "some/prefix/" || o.Endpoint != "http://127.0.0.1:9000" || o.Region != "eu" {
		t.Errorf("%+v, %v", o, err)
	}
	s := open(t, o)
	again, err := s3store.ParseURL(s.String())
	if err != nil || again != o {
		t.Errorf("%s is read as %+v, %v", s, again, err)
	}
	for _, bad := range []string{
		"", "s3://", "s3:bucket", "http://x", "s3://key:secret@bucket/", "s3://b?color=red", "s3://b/a//b", "s3://b/../c",
	} {
		if _, err := s3store.ParseURL(bad); err == nil {
			t.Errorf("%q was taken", bad)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("a secret is in %v", err)
		}
	}
}

func TestNoBucket(t *testing.T) {
	o := fake(t)
	o.Bucket = "none"
	_, _, err := open(t, o).Get(t.Context(), "k", 0, -1)
	if err == nil || errors.Is(err, store.ErrNoObject) || !strings.Contains(err.Error(), "bucket none does not exist") {
		t.Errorf("%v", err)
	}
}

// TestCancelledPut: a put to a server that does not answer ends with its context.
func TestCancelledPut(t *testing.T) {
	o := fake(t)
	asked, release := make(chan struct{}), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			close(asked)
			<-release
		}
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(release) })
	o.Endpoint = srv.URL
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := open(t, o).Put(ctx, "k", []byte("v")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestNested: servers that keep objects as files say in words of their own that "a" cannot be beside "a/b".
func TestNested(t *testing.T) {
	for code, status := range map[string]int{
		"ObjectParentIsFile": 409, "ExistingObjectIsDirectory": 409, "XMinioObjectExistsAsDirectory": 400,
	} {
		o := fake(t)
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>why</Message></Error>", code)
		}))
		t.Cleanup(srv.Close)
		o.Endpoint = srv.URL
		if _, err := open(t, o).PutIfAbsent(t.Context(), "a/b", []byte("v")); !errors.Is(err, store.ErrNested) {
			t.Errorf("%s: %v", code, err)
		}
	}
}
