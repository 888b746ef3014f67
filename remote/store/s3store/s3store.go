package s3store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/remora-storage/remora/remote/internal/httprange"
	"github.com/remora-storage/remora/remote/store"
)

// Options say where a bucket is and how to get in. Bucket and Endpoint are needed.
type Options struct {
	Endpoint string // URL of the server
	Region   string // "" has the server asked
	Bucket   string
	Prefix   string // before every key; "" or with a slash at its end
	// Credentials is a file in the format of ~/.aws/credentials, which is used by default if there is one.
	// The environment (AWS_ACCESS_KEY_ID…) goes before it, and the machine's own role comes last.
	Credentials string
	Profile     string // in that file
	Transport   http.RoundTripper
	// Still is how long a request may be under way without a byte of it moving; 0 for the default.
	Still time.Duration
}

// A Store is a bucket, or the part of one below a prefix.
type Store struct {
	core  minio.Core
	creds *credentials.Credentials
	opts  Options
}

// ParseURL reads s3://BUCKET/PREFIX?endpoint=URL&region=NAME&profile=NAME. Without an endpoint it is Amazon's.
func ParseURL(s string) (Options, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "s3" || u.Host == "" {
		return Options{}, fmt.Errorf("%q: want s3://BUCKET/PREFIX?endpoint=URL", s)
	}
	if u.User != nil {
		return Options{}, errors.New("a store's URL must not hold credentials: put them into the environment or into ~/.aws/credentials")
	}
	o := Options{Bucket: u.Host, Endpoint: "https://s3.amazonaws.com"}
	if p := strings.Trim(u.Path, "/"); p != "" {
		if err := store.CheckKey(p); err != nil {
			return Options{}, err
		}
		o.Prefix = p + "/"
	}
	for k, v := range u.Query() {
		switch k {
		case "endpoint":
			o.Endpoint = v[0]
		case "region":
			o.Region = v[0]
		case "profile":
			o.Profile = v[0]
		default:
			return Options{}, fmt.Errorf("%q: %s is not known; want endpoint, region, profile", s, k)
		}
	}
	return o, nil
}

// Open returns the Store. It makes no request.
func Open(o Options) (*Store, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("endpoint %q: want http://HOST or https://HOST", o.Endpoint)
	}
	creds := credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{}, &credentials.EnvMinio{},
		&credentials.FileAWSCredentials{Filename: o.Credentials, Profile: o.Profile},
		&credentials.IAM{},
	})
	transport := o.Transport
	if transport == nil {
		own, err := minio.DefaultTransport(u.Scheme == "https")
		if err != nil {
			return nil, fmt.Errorf("s3 at %s: %w", o.Endpoint, err)
		}
		own.DialContext = (&net.Dialer{Timeout: cmp.Or(o.Still, stillFor), KeepAlive: 30 * time.Second}).DialContext
		own.ResponseHeaderTimeout = 0 // moving knows better
		transport = own
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds: creds, Secure: u.Scheme == "https", Region: o.Region, MaxRetries: 1,
		Transport: documented{newMoving(transport, cmp.Or(o.Still, stillFor))},
	})
	if err != nil {
		return nil, fmt.Errorf("s3 at %s: %w", o.Endpoint, err)
	}
	return &Store{core: minio.Core{Client: client}, creds: creds, opts: o}, nil
}

// String implements store.Store. It is the URL that ParseURL reads.
func (s *Store) String() string {
	v := url.Values{"endpoint": {s.opts.Endpoint}}
	if s.opts.Region != "" {
		v.Set("region", s.opts.Region)
	}
	if s.opts.Profile != "" {
		v.Set("profile", s.opts.Profile)
	}
	return "s3://" + s.opts.Bucket + "/" + strings.TrimSuffix(s.opts.Prefix, "/") + "?" + v.Encode()
}

// nested are the codes by which servers that keep objects as files refuse "a" beside "a/b": versitygw's and MinIO's.
var nested = []string{"ExistingObjectIsDirectory", "ObjectParentIsFile", "XMinioObjectExistsAsDirectory", "XMinioParentIsObject"}

// fail says what an error of S3 is for a Store's callers.
func (s *Store) fail(op, key string, err error) error {
	r := minio.ToErrorResponse(err)
	switch {
	case r.Code == "NoSuchBucket":
		err = fmt.Errorf("bucket %s does not exist: %w", s.opts.Bucket, store.ErrAway)
	case r.Code == "NoSuchKey" && op != "put", r.Code == "NoSuchVersion":
		err = store.ErrNoObject
	case r.StatusCode == http.StatusNotFound:
		err = fmt.Errorf("%w: %s", store.ErrAway, r.Message)
	case slices.Contains(nested, r.Code):
		err = fmt.Errorf("%w: %s", store.ErrNested, r.Message)
	case r.StatusCode == http.StatusInsufficientStorage, strings.Contains(r.Code, "Quota"), r.Code == "XMinioStorageFull":
		err = fmt.Errorf("%w: %s", store.ErrFull, r.Message)
	case r.StatusCode == http.StatusUnauthorized, r.StatusCode == http.StatusForbidden:
		s.creds.Expire() // the next request reads them anew
		err = fmt.Errorf("%w: %s", store.ErrDenied, r.Message)
	}
	return fmt.Errorf("%s %s: %w", op, key, err)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	var opts minio.GetObjectOptions
	switch {
	case n == 0:
		return s.none(ctx, key)
	case n > 0:
		if err := opts.SetRange(off, off+n-1); err != nil {
			return nil, store.Object{}, s.fail("get", key, err)
		}
	case off > 0:
		if err := opts.SetRange(off, 0); err != nil {
			return nil, store.Object{}, s.fail("get", key, err)
		}
	}
	r, info, header, err := s.core.GetObject(ctx, s.opts.Bucket, s.opts.Prefix+key, opts)
	if err != nil {
		if minio.ToErrorResponse(err).StatusCode == http.StatusRequestedRangeNotSatisfiable {
			return s.none(ctx, key)
		}
		return nil, store.Object{}, s.fail("get", key, err)
	}
	defer r.Close()
	o := store.Object{Key: key}
	want := int64(-1) // unknown
	if n > 0 || off > 0 {
		c, ok := httprange.Parse(header.Get("Content-Range"))
		if !ok || c.First != off || c.Size < 0 {
			return nil, o, fmt.Errorf("get %s at %d: %w", key, off, errRange)
		}
		o.Size = c.Size
		if want = c.Size - off; n > 0 {
			want = min(n, want)
		}
	} else if info.Size >= 0 {
		want = info.Size
	}
	if want > store.MostRead {
		return nil, o, store.CheckRead(key, off+want, off, want)
	}
	// What the server announces is compared with what comes, and is the size of nothing: memory is taken for what the caller
	// asks for, or for bytes that are here.
	buf := bytes.NewBuffer(make([]byte, 0, min(max(n, 0), store.MostRead)+bytes.MinRead))
	_, err = buf.ReadFrom(io.LimitReader(r, store.MostRead+1))
	p := buf.Bytes()
	if err == nil && len(p) > store.MostRead {
		return nil, o, store.CheckRead(key, off+int64(len(p)), off, -1)
	}
	if err == nil && want >= 0 && int64(len(p)) != want {
		err = fmt.Errorf("%d bytes came, the server announced %d: %w", len(p), want, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return nil, o, s.fail("get", key, err)
	}
	if o.Size == 0 {
		o.Size = int64(len(p)) // all of it
	}
	if off == 0 && int64(len(p)) == o.Size {
		o.Version = info.ETag
	}
	return p, o, nil
}

// none is Get where no byte is to be had.
func (s *Store) none(ctx context.Context, key string) ([]byte, store.Object, error) {
	o, err := s.Head(ctx, key)
	o.Version = ""
	return nil, o, err
}

var errRange = errors.New("server does not serve the range asked for")

// Head implements store.Store.
func (s *Store) Head(ctx context.Context, key string) (store.Object, error) {
	info, err := s.core.StatObject(ctx, s.opts.Bucket, s.opts.Prefix+key, minio.StatObjectOptions{})
	if err != nil {
		if err = s.fail("head", key, err); errors.Is(err, store.ErrNoObject) { // this answer has no document that would show it
			if _, _, err = s.Get(ctx, key, 0, 1); err == nil {
				err = fmt.Errorf("head %s: the server has it, and said that it has not", key)
			}
		}
		return store.Object{}, err
	}
	return store.Object{Key: key, Size: info.Size, Version: info.ETag}, nil
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, p []byte) (store.Object, error) {
	return s.put(ctx, key, p, minio.PutObjectOptions{}, nil)
}

// PutIfAbsent implements store.Store.
func (s *Store) PutIfAbsent(ctx context.Context, key string, p []byte) (store.Object, error) {
	var opts minio.PutObjectOptions
	opts.SetMatchETagExcept("*")
	return s.put(ctx, key, p, opts, store.ErrExists)
}

// PutIfMatch implements store.Store.
func (s *Store) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	var opts minio.PutObjectOptions
	opts.SetMatchETag(version)
	return s.put(ctx, key, p, opts, store.ErrChanged)
}

func (s *Store) put(ctx context.Context, key string, p []byte, opts minio.PutObjectOptions, unmet error) (store.Object, error) {
	opts.DisableMultipart = true
	opts.ContentType = "application/octet-stream"
	info, err := s.core.Client.PutObject(ctx, s.opts.Bucket, s.opts.Prefix+key, bytes.NewReader(p), int64(len(p)), opts)
	if err != nil {
		r := minio.ToErrorResponse(err)
		gone := errors.Is(unmet, store.ErrChanged) && r.Code == "NoSuchKey" // servers differ in how they say so
		if gone || unmet != nil && r.StatusCode == http.StatusPreconditionFailed {
			return store.Object{}, fmt.Errorf("put %s: %w", key, unmet)
		}
		return store.Object{}, s.fail("put", key, err)
	}
	return store.Object{Key: key, Size: int64(len(p)), Version: info.ETag}, nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	err := s.core.RemoveObject(ctx, s.opts.Bucket, s.opts.Prefix+key, minio.RemoveObjectOptions{})
	if err != nil {
		if err = s.fail("delete", key, err); errors.Is(err, store.ErrNoObject) {
			return nil
		}
	}
	return err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, yield func(store.Object) bool) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	opts := minio.ListObjectsOptions{Prefix: s.opts.Prefix + prefix, Recursive: true}
	for info := range s.core.Client.ListObjects(ctx, s.opts.Bucket, opts) {
		if info.Err != nil {
			return s.fail("list", prefix, info.Err)
		}
		if !yield(store.Object{Key: strings.TrimPrefix(info.Key, s.opts.Prefix), Size: info.Size, Version: info.ETag}) {
			return nil
		}
	}
	return context.Cause(ctx)
}
