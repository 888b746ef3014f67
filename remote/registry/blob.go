package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/remote/internal/httprange"
)

// A Blob is a blob in a repository, read by range.
type Blob struct {
	r      *Registry
	repo   Repository
	digest digest.Digest
	size   int64
	urls   []string
}

// Blob returns a blob of a repository. It makes no request.
func (r *Registry) Blob(repo Repository, dgst digest.Digest, size int64) *Blob {
	return &Blob{r: r, repo: repo, digest: dgst, size: size}
}

// WithURLs returns the blob as one that may be had elsewhere, too, as the manifest says of foreign layers.
// No credentials are sent there.
func (b *Blob) WithURLs(urls []string) *Blob {
	with := *b
	with.urls = urls
	return &with
}

// Size returns the blob's size in bytes, as the manifest has it.
func (b *Blob) Size() int64 { return b.size }

// Place names the registry that the blob is of, as references do, and the repository there.
func (b *Blob) Place() (host, user string) { return b.repo.Host, b.repo.Path }

// Open returns a reader of exactly the n bytes from off. A connection that breaks is made again
// where it broke; the reader fails when that does not help. try counts from 0 the attempts to
// get right bytes: each asks another host first, where there are several.
func (b *Blob) Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > b.size-n {
		return nil, fmt.Errorf("read %s at %d+%d of %d: outside the blob", b.digest, off, n, b.size)
	}
	r := b.reader(ctx)
	r.off, r.end, r.try = off, off+n, try
	if err := r.connect(); err != nil {
		return nil, fmt.Errorf("read %s of %s at %d+%d: %w", b.digest, b.repo, off, n, err)
	}
	if spare := spareOf(ctx); spare != nil {
		spare.end() // another host serves ranges
	}
	return r, nil
}

// Whole returns a reader of the whole blob by a request that names no range, which servers understand that know none. A connection
// that breaks is made again; where that serves no range, what came before is skipped. Where a request for a range was lately answered
// with the whole, no request is made (Sparing).
func (b *Blob) Whole(ctx context.Context) (io.ReadCloser, error) {
	r := b.reader(ctx)
	r.end, r.whole = b.size, true
	if r.body, r.packed = spareOf(ctx).take(b); r.body != nil {
		r.body.rates[1] = &r.rate
		r.body.endWith(ctx)
		return r, nil
	}
	if err := r.connect(); err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", b.digest, b.repo, err)
	}
	return r, nil
}

func (b *Blob) reader(ctx context.Context) *rangeReader {
	silence := time.Duration(b.r.opts.Retry.Attempts) * b.r.opts.Stall
	return &rangeReader{ctx: ctx, b: b, meter: b.r.meterOf(b.repo.Host), rate: rate{window: 2 * silence}, between: muchBetween}
}

// ReadAt fills p from off or fails.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	r, err := b.Open(ctx, off, int64(len(p)), 0)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.ReadFull(r, p)
}

// rangeReader reads a range over as many connections as it takes.
type rangeReader struct {
	ctx      context.Context // of Open: the reader is one operation
	b        *Blob
	off, end int64
	whole    bool // answers without a range will do
	packed   bool // there was an encoding around the last answer: it serves no ranges
	ranged   bool // the last answer was a range
	try      int
	meter    *meter
	body     *stallReader
	rate     rate            // of all connections
	broken   int             // connections that broke in a row without giving a byte
	between  int64           // bytes that came since one broke; muchBetween before the first does
	pauses   backoff.Backoff // after those that broke in a row without muchBetween
}

// muchBetween is how many bytes between two connections that break make the second one as good as the first: the next is made
// immediately. Where fewer come, a pause keeps a server from having a request made for each byte. It is short, since bytes come.
const (
	muchBetween  = 64 << 10
	longestPause = time.Second
)

// connect asks the hosts in turn for the rest of the range, and all of them again while that
// may help.
func (r *rangeReader) connect() error {
	reg := r.b.r
	return reg.opts.Retry.do(r.ctx, func(attempt int) error {
		hosts, err := reg.registryHosts(r.ctx, r.b.repo.Host)
		if err != nil {
			return err
		}
		tried, err := reg.ask(r.ctx, turn{
			hosts: hosts, first: r.try, needs: docker.HostCapabilityPull, repo: r.b.repo, blob: r.b.digest.String(), ranged: !r.whole,
		}, r.ask)
		if r.body != nil {
			return nil
		}
		if cause := context.Cause(r.ctx); cause != nil {
			return cause
		}
		for _, u := range r.b.urls {
			tried++
			body, e := r.askURL(u)
			if e == nil {
				r.body = body
				return nil
			}
			err = keep(err, e)
		}
		if tried == 0 {
			return fmt.Errorf("no host is configured to pull from %s", r.b.repo.Host)
		}
		if errors.Is(err, ErrUnauthorized) && attempt == 0 {
			reg.forget(r.b.repo.Host) // credentials may have changed since they were read
			return &tryOnce{err}
		}
		return err
	})
}

// tryOnce makes an error worth one more attempt.
type tryOnce struct{ error }

func (e *tryOnce) Unwrap() error { return e.error }

// keep returns the error that says more: one that a retry may cure goes before one that it
// will not, and a mirror's not-found is of no interest beside another answer.
func keep(a, b error) error {
	if a == nil || !Retryable(a) && (Retryable(b) || errors.Is(a, ErrNotFound)) {
		return b
	}
	return a
}

// ask makes one request for the rest of the range, checks the answer's form, and has its body read next.
func (r *rangeReader) ask(ctx context.Context, host docker.RegistryHost) error {
	began := time.Now()
	body, err := r.askBy(ctx, host.Host, func(ctx context.Context, rng string) (*http.Response, error) {
		return r.b.r.request(ctx, host, r.b.repo, r.b.digest.String(), rng)
	})
	if errors.Is(err, ErrRange) || err == nil && !r.whole {
		r.b.r.noteRanges(host, r.ranged && err == nil, err)
	}
	if err != nil {
		return err
	}
	body.began, body.health = began, r.b.r.healthOf(host.Scheme, host.Host)
	r.body = body
	return nil
}

// askURL does so at a place outside the registry.
func (r *rangeReader) askURL(place string) (*stallReader, error) {
	u, err := url.Parse(place)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("layer's URL %.200q is not one of HTTP: %w", place, ErrNotFound)
	}
	return r.askBy(r.ctx, u.Host, func(ctx context.Context, rng string) (*http.Response, error) {
		ctx, _ = onTrip(ctx, "", true)
		host := docker.RegistryHost{Client: r.b.r.elsewhere, Host: u.Host, Scheme: u.Scheme}
		return r.b.r.requestOrigin(ctx, host, r.b.repo, u.String(), rng, "")
	})
}

func (r *rangeReader) askBy(
	ctx context.Context, name string, request func(ctx context.Context, rng string) (*http.Response, error),
) (*stallReader, error) {
	reg := r.b.r
	spare := spareOf(ctx)
	ctx, cancel, leave := spare.detached(ctx)
	rng := fmt.Sprintf("bytes=%d-%d", r.off, r.end-1)
	if r.whole && (r.off == 0 || r.packed) {
		rng = ""
	}
	timer := time.AfterFunc(reg.opts.Stall, func() { cancel(errStalled) })
	began := time.Now()
	resp, err := request(ctx, rng)
	timer.Stop()
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
			err = fmt.Errorf("%s: %w", name, cause)
		}
		cancel(nil)
		return nil, err
	}
	body := &stallReader{
		body: resp.Body, cancel: cancel, ctx: ctx, stall: reg.opts.Stall, host: name, rates: [2]*rate{{window: rateWindow}, &r.rate},
	}
	if err := r.check(resp); err != nil {
		if spare != nil && r.isWhole(resp) && leave() {
			spare.offer(r.b, body, resp.Uncompressed)
			return nil, err
		}
		body.Close()
		return nil, err
	}
	r.packed, r.ranged = resp.Uncompressed, resp.StatusCode == http.StatusPartialContent
	r.meter.answered(time.Since(began))
	r.rate.waited += time.Since(began)
	if resp.StatusCode == http.StatusOK {
		if _, err := io.CopyN(io.Discard, body, r.off); err != nil {
			body.Close()
			return nil, fmt.Errorf("%s: what came before: %w", name, err)
		}
	}
	return body, nil
}

// isWhole reports whether an answer is the whole blob, as far as it says.
func (r *rangeReader) isWhole(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK && (resp.ContentLength == r.b.size || resp.ContentLength < 0)
}

// check insists on 206 and on the very range that was asked for, unless the whole blob will do.
func (r *rangeReader) check(resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		if r.isWhole(resp) && (r.whole || r.off == 0 && r.end == r.b.size) {
			return nil // the whole blob is the range, or the rest of it
		}
		return fmt.Errorf("%w: %s answers 200 with the whole blob", ErrRange, resp.Request.URL.Host)
	}
	if resp.StatusCode != http.StatusPartialContent {
		return statusError(resp)
	}
	if around := encodings(resp); len(around) > 0 {
		return fmt.Errorf("%w: %s answers with a range of the encoding %.80q", ErrRange, resp.Request.URL.Host, strings.Join(around, ", "))
	}
	c, ok := httprange.Parse(resp.Header.Get("Content-Range"))
	if !ok || c.First != r.off || c.Last != r.end-1 || c.Size != -1 && c.Size != r.b.size {
		return fmt.Errorf("%w: %s answers with Content-Range %.80q for bytes %d-%d of %d", ErrRange,
			resp.Request.URL.Host, resp.Header.Get("Content-Range"), r.off, r.end-1, r.b.size)
	}
	if resp.ContentLength >= 0 && resp.ContentLength != r.end-r.off {
		return fmt.Errorf("%w: %s announces %d bytes for %d", ErrRange, resp.Request.URL.Host, resp.ContentLength, r.end-r.off)
	}
	return nil
}

func (r *rangeReader) Read(p []byte) (int, error) {
	for {
		if r.off == r.end {
			return 0, io.EOF
		}
		if r.body == nil {
			if err := r.connect(); err != nil {
				return 0, fmt.Errorf("read %s of %s at %d: %w", r.b.digest, r.b.repo, r.off, err)
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.end-r.off)])
		r.off += int64(n)
		if n > 0 {
			r.broken = 0
			r.between += int64(n)
			r.body.serves()
			r.meter.received(n, time.Now())
			return n, nil
		}
		if err == nil {
			continue
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // the body is shorter than the range
		}
		err = &brokenError{hide(err)}
		body := r.body
		body.Close()
		r.body = nil
		if cause := context.Cause(r.ctx); cause != nil {
			return 0, cause
		}
		if body.health != nil {
			r.b.r.judge(r.ctx, body.host, body.health, body.began, err)
		}
		if r.broken++; r.broken >= r.b.r.opts.Retry.Attempts || errors.Is(err, errDrips) {
			return 0, fmt.Errorf("read %s of %s at %d: %w", r.b.digest, r.b.repo, r.off, err)
		}
		if cause := r.pause(); cause != nil {
			return 0, cause
		}
	}
}

// pause waits before the connection that follows one that broke.
func (r *rangeReader) pause() error {
	much := r.between >= muchBetween
	if r.between = 0; much {
		r.pauses = backoff.Backoff{First: r.b.r.opts.Retry.First, Max: longestPause, Jitter: true}
		return nil
	}
	wait := r.pauses.Next()
	r.rate.waited += wait
	return backoff.Sleep(r.ctx, wait)
}

func (r *rangeReader) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}

// Errors of servers that are there and do not serve.
var (
	errStalled = errors.New("server sends nothing")
	errDrips   = fmt.Errorf("server sends less than %d bytes a second", leastRate)
)

// What brings less than leastRate over a window of waiting is given up: a connection over rateWindow, and a reader, whatever the number
// of its connections, over twice as long as it takes silence. The rate is far below what any link gives each of the requests to a
// registry, and far above a byte now and then, which would hold a request for ever.
const (
	leastRate  = 128 // bytes a second
	rateWindow = time.Minute
)

// rate is, of one window, what was waited for servers, and what came. What the reader does in between does not count.
type rate struct {
	window, waited time.Duration
	came           int64
}

// low reports whether a window is over in which too little came. The next one begins then.
func (r *rate) low() bool {
	if r.waited < r.window {
		return false
	}
	low := float64(r.came) < leastRate*r.window.Seconds()
	r.waited, r.came = 0, 0
	return low
}

// stallReader gives up on a body that stops coming, or hardly comes.
type stallReader struct {
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	ctx    context.Context // of the request, to tell why it ended
	stall  time.Duration
	host   string
	began  time.Time // of the request
	health *health   // of the host that was asked; nil if it is no registry's
	served bool      // a byte came
	rates  [2]*rate  // of this connection, and of its reader's all together
}

// serves notes that bytes came.
func (s *stallReader) serves() {
	if s.health != nil && !s.served {
		s.served = true
		s.health.served()
	}
}

func (s *stallReader) Read(p []byte) (int, error) {
	for _, r := range s.rates {
		if r.low() {
			return 0, fmt.Errorf("%s: %w", s.host, errDrips)
		}
	}
	began := time.Now()
	timer := time.AfterFunc(s.stall, func() { s.cancel(errStalled) })
	n, err := s.body.Read(p)
	timer.Stop()
	for _, r := range s.rates {
		r.waited += time.Since(began)
		r.came += int64(n)
	}
	if err != nil && err != io.EOF && errors.Is(context.Cause(s.ctx), errStalled) {
		err = fmt.Errorf("%s: %w", s.host, errStalled)
	}
	return n, err
}

// endWith ends the answer with the context of who reads it from now on.
func (s *stallReader) endWith(ctx context.Context) {
	cancel := s.cancel
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	s.cancel = func(cause error) {
		stop()
		cancel(cause)
	}
}

func (s *stallReader) Close() error {
	s.cancel(nil)
	return s.body.Close()
}
