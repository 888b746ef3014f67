package s3store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/remora-storage/remora/conformance/heap"
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

// TestAnnounced: what a server announces sizes nothing, and what does not come as announced is an error.
func TestAnnounced(t *testing.T) {
	type answer struct {
		status       int
		length, rng  string // headers; "" for none
		body         string
		off, n       int64
		want, wanted string // bytes, or of the error
	}
	whole, part := http.StatusOK, http.StatusPartialContent
	for name, a := range map[string]answer{
		"a range outside of its size":  {part, "10", "bytes 100-199/50", "0123456789", 100, 100, "", "range asked for"},
		"a range that ends before":     {part, "10", "bytes 100-90/500", "0123456789", 100, 100, "", "range asked for"},
		"a rest outside of its size":   {part, "10", "bytes 100-199/50", "0123456789", 100, -1, "", "range asked for"},
		"a rest of 8 EiB":              {part, "", "bytes 5-9223372036854775806/9223372036854775807", "0123", 5, -1, "", "limit 67108864"},
		"fewer bytes than the range":   {part, "", "bytes 0-9/100", "0123", 0, 10, "", "4 bytes came"},
		"more bytes than the range":    {part, "", "bytes 0-9/100", "0123456789abc", 0, 10, "", "13 bytes came"},
		"a whole object of 1 PiB":      {whole, "1125899906842624", "", "0123", 0, -1, "", "limit 67108864"},
		"a whole object, 1 GiB of it":  {whole, "", "", strings.Repeat("0123456789abcdef", 5<<20), 0, -1, "", "limit 67108864"},
		"a range of 1 PiB":             {part, "", "bytes 0-1125899906842623/1125899906842624", "0123456789", 0, 10, "0123456789", ""},
		"a whole object of any length": {whole, "", "", "0123", 0, -1, "0123", ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := fake(t)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Last-Modified", "Mon, 02 Jan 2023 03:04:05 GMT")
				w.Header().Set("ETag", "\"e\"")
				if a.rng != "" {
					w.Header().Set("Content-Range", a.rng)
				}
				if a.length != "" {
					w.Header().Set("Content-Length", a.length)
				}
				w.WriteHeader(a.status)
				if f, ok := w.(http.Flusher); ok && a.length == "" {
					f.Flush() // so that no length is added
				}
				_, _ = io.Copy(w, strings.NewReader(a.body)) // the client may have had enough
			}))
			t.Cleanup(srv.Close)
			o.Endpoint = srv.URL
			s := open(t, o)
			var got []byte
			var err error
			peak := heap.Peak(func() { got, _, err = s.Get(t.Context(), "k", a.off, a.n) })
			switch {
			case a.wanted == "" && (err != nil || string(got) != a.want):
				t.Errorf("got %q, %v", got, err)
			case a.wanted != "" && (err == nil || !strings.Contains(err.Error(), a.wanted)):
				t.Errorf("got %d bytes, %v; want that %s", len(got), err, a.wanted)
			}
			// What came, and what a buffer leaves behind that grows.
			if most := int64(6 * store.MostRead); peak > most {
				t.Errorf("%d MiB of heap", peak>>20)
			}
		})
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

// TestNotFound: a 404 says that an object is not there only with S3's own document. Everybody else's says that the store is not.
func TestNotFound(t *testing.T) {
	document := `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>why</Message></Error>`
	for name, c := range map[string]struct {
		body string
		gone bool
	}{
		"a proxy's page":           {"<html><head><title>404</title></head></html>", false},
		"nothing":                  {"", false},
		"another document":         {"<Problem><Code>NoSuchKey</Code></Problem>", false},
		"a document that is cut":   {"<Error><Code>NoSuchKey</Co", false},
		"another code":             {fmt.Sprintf(document, "NoSuchRoute"), false},
		"no bucket":                {fmt.Sprintf(document, "NoSuchBucket"), false},
		"no object, as S3 says it": {fmt.Sprintf(document, "NoSuchKey"), true},
	} {
		t.Run(name, func(t *testing.T) {
			o := fake(t)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusNotFound)
				_, _ = io.WriteString(w, c.body)
			}))
			t.Cleanup(srv.Close)
			o.Endpoint = srv.URL
			s, ctx := open(t, o), t.Context()
			missing, changed := store.ErrAway, store.ErrAway
			if c.gone {
				missing, changed = store.ErrNoObject, store.ErrChanged
			}
			for _, r := range []struct {
				what string
				err  error
				want error
			}{
				{"get", third(s.Get(ctx, "k", 0, -1)), missing}, {"get a part", third(s.Get(ctx, "k", 5, 5)), missing},
				{"get nothing", third(s.Get(ctx, "k", 0, 0)), missing}, {"head", second(s.Head(ctx, "k")), missing},
				{"replace", second(s.PutIfMatch(ctx, "k", []byte("x"), "v")), changed},
				{"put", second(s.Put(ctx, "k", []byte("x"))), store.ErrAway},
				{"put new", second(s.PutIfAbsent(ctx, "k", []byte("x"))), store.ErrAway},
			} {
				if !errors.Is(r.err, r.want) || r.want == store.ErrAway && errors.Is(r.err, store.ErrNoObject) {
					t.Errorf("%s: %v, want %v", r.what, r.err, r.want)
				}
			}
			if err := s.Delete(ctx, "k"); c.gone != (err == nil) {
				t.Errorf("delete: %v", err)
			}
			if err := s.List(ctx, "", func(store.Object) bool { return true }); !c.gone && !errors.Is(err, store.ErrAway) {
				t.Errorf("list: %v", err)
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

func third[T, U any](_ T, _ U, err error) error { return err }
