package layers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// fakePlace is a repository that has a blob, and gives it in its own way.
type fakePlace struct {
	blob   []byte
	refuse error         // of Open
	silent bool          // nothing comes, not even an answer
	piece  int           // bytes that come together; 0 for all that are asked for
	every  time.Duration // a piece comes
	breaks int64         // after so many bytes of a request; 0 for never
	opens  atomic.Int32
	bytes  atomic.Int64
}

func (p *fakePlace) Place() (host, user string)   { return "reg.test", "" }
func (p *fakePlace) Link() (time.Duration, int64) { return 0, 0 }

func (p *fakePlace) Open(ctx context.Context, off, n int64, _ int) (io.ReadCloser, error) {
	p.opens.Add(1)
	if p.silent {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if p.refuse != nil {
		return nil, p.refuse
	}
	return &fakeBody{ctx: ctx, p: p, left: p.blob[off : off+n]}, nil
}

type fakeBody struct {
	ctx  context.Context
	p    *fakePlace
	left []byte
	gave int64
}

var errBroken = errors.New("broken")

func (b *fakeBody) Read(p []byte) (int, error) {
	if len(b.left) == 0 {
		return 0, io.EOF
	}
	if b.p.breaks > 0 && b.gave >= b.p.breaks {
		return 0, errBroken
	}
	select {
	case <-time.After(b.p.every):
	case <-b.ctx.Done():
		return 0, context.Cause(b.ctx)
	}
	if b.p.piece > 0 {
		p = p[:min(len(p), b.p.piece)]
	}
	n := copy(p, b.left)
	b.left, b.gave = b.left[n:], b.gave+int64(n)
	b.p.bytes.Add(int64(n))
	return n, nil
}

func (b *fakeBody) Close() error { return nil }

func (p *fakePlace) Whole(ctx context.Context) (io.ReadCloser, error) {
	return p.Open(ctx, 0, int64(len(p.blob)), 0)
}

// among are repositories that have a blob, in the order in which they came.
func among(places ...*fakePlace) *repositories {
	x := &repositories{
		more: func(context.Context) []repositorySource { return nil },
		lost: func() {},
	}
	for i, p := range places {
		x.add(repositorySource{repo: registry.Repository{Host: "reg.test", Path: fmt.Sprint(i)}, placedSource: p})
	}
	return x
}

// TestRepositoriesWhole: whoever wants all of a layer anew, since something of it was wrong, gets it from another repository.
func TestRepositoriesWhole(t *testing.T) {
	blob := imagetest.Noise(2, 1000)
	places := []*fakePlace{{blob: blob}, {blob: blob}, {blob: blob}}
	x := among(places...)
	own := x.For(registry.Repository{Host: "reg.test", Path: "1"}).(interface {
		Whole(ctx context.Context, try int) (io.ReadCloser, error)
	})
	for try, want := range []int{1, 0, 2, 1} { // its own, and then as they came
		before := places[want].opens.Load()
		r, err := own.Whole(t.Context(), try)
		if err != nil || r.Close() != nil {
			t.Fatal(err)
		}
		if places[want].opens.Load() != before+1 {
			t.Errorf("try %d asked another one than %d", try, want)
		}
	}
}

// read reads a range of a blob and says how long that took.
func (x *repositories) read(t *testing.T, blob []byte, off, n int64) (took time.Duration, err error) {
	t.Helper()
	began := time.Now()
	r, err := x.For(nil).Open(t.Context(), off, n, 0)
	if err != nil {
		return time.Since(began), err
	}
	got, err := io.ReadAll(r)
	took = time.Since(began)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err == nil && !bytes.Equal(got, blob[off:off+n]) {
		t.Errorf("%d other bytes", len(got))
	}
	return took, err
}

// TestRepositoriesRace: of several repositories that have a layer, the first that came is asked, and the next beside it once that one
// is slow: nobody is held up by whoever names his layer.
func TestRepositoriesRace(t *testing.T) {
	const size, soon = 2 << 20, 400 * time.Millisecond
	blob := imagetest.Noise(1, size)
	drips := func() *fakePlace { return &fakePlace{blob: blob, piece: 1, every: 5 * time.Millisecond} }
	quick := func() *fakePlace { return &fakePlace{blob: blob, every: 10 * time.Millisecond} }
	gone := errors.New("gone")
	for name, c := range map[string]struct {
		places      []*fakePlace
		least, most time.Duration // of a read of all
		next        time.Duration // of one after that, at most
		opens       []int32       // of each place, in the first read
		want        error
	}{
		"a newcomer that drips":  {[]*fakePlace{quick(), drips()}, 0, soon, soon, []int32{1, 0}, nil},
		"a newcomer that is not": {[]*fakePlace{quick(), {silent: true}}, 0, soon, soon, []int32{1, 0}, nil},
		"the first drips":        {[]*fakePlace{drips(), quick()}, time.Second, 1500 * time.Millisecond, soon, []int32{1, 1}, nil},
		"the first is silent": {[]*fakePlace{{silent: true}, quick()}, time.Second, 1500 * time.Millisecond, soon,
			[]int32{1, 1}, nil},
		"several are bad": {[]*fakePlace{{silent: true}, drips(), {refuse: gone}, quick()}, time.Second, 3 * time.Second,
			soon, []int32{1, 1, 1, 1}, nil},
		"the first lets nobody in": {[]*fakePlace{{refuse: registry.ErrUnauthorized}, quick()}, 0, soon,
			soon, []int32{1, 1}, nil},
		"the first breaks": {[]*fakePlace{{blob: blob, every: time.Millisecond, breaks: 1 << 20}, quick()}, 0, 500 * time.Millisecond,
			soon, []int32{1, 1}, nil},
		// 50 kB/s: what it gives, it gives beside the others.
		"all are slow": {[]*fakePlace{{blob: blob, piece: 5000, every: 100 * time.Millisecond}, drips()}, 40 * time.Second, 43 * time.Second,
			43 * time.Second, []int32{1, 1}, nil},
		"nobody has it":            {[]*fakePlace{{refuse: gone}, {refuse: gone}}, 0, 0, 0, []int32{1, 1}, gone},
		"the rest breaks anywhere": {[]*fakePlace{{refuse: gone}, {blob: blob, breaks: 1 << 20}}, 0, 0, 0, []int32{1, 1}, errBroken},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := among(c.places...)
				took, err := x.read(t, blob, 0, size)
				if !errors.Is(err, c.want) {
					t.Errorf("got %v", err)
				}
				if took < c.least || took > c.most {
					t.Errorf("it took %s, want %s to %s", took, c.least, c.most)
				}
				for i, p := range c.places {
					if n := p.opens.Load(); n != c.opens[i] {
						t.Errorf("place %d was asked %d times, want %d", i, n, c.opens[i])
					}
				}
				if took, _ := x.read(t, blob, 1000, size-1000); took > c.next {
					t.Errorf("the next one took %s, want %s at most", took, c.next)
				}
			})
		})
	}
}

// TestFirstAgain: a repository that was slow is asked first again after a while, and one that comes again keeps its place.
func TestFirstAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := imagetest.Noise(1, 1<<20)
		first, second := &fakePlace{blob: blob, silent: true}, &fakePlace{blob: blob}
		x := among(first, second)
		read := func() {
			t.Helper()
			if _, err := x.read(t, blob, 0, 1<<20); err != nil {
				t.Error(err)
			}
		}
		read()
		read()
		if first.opens.Load() != 1 || second.opens.Load() != 2 {
			t.Errorf("they were asked %d and %d times", first.opens.Load(), second.opens.Load())
		}
		time.Sleep(homeAgain + time.Second)
		better := &fakePlace{blob: blob}
		again := registry.Repository{Host: "reg.test", Path: "0"}
		x.add(repositorySource{repo: again, placedSource: better}) // it has new credentials, for example
		read()
		if better.opens.Load() != 1 || second.opens.Load() != 2 {
			t.Errorf("they were asked %d and %d times", better.opens.Load(), second.opens.Load())
		}
	})
}

// TestOwnFirst: each repository asks itself first, and the others where it fails; then it is the last, until a while has passed.
func TestOwnFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := imagetest.Noise(1, 1<<20)
		places := []*fakePlace{{blob: blob}, {blob: blob}, {blob: blob}}
		x := among(places...)
		ask := func(who any, want ...int32) {
			t.Helper()
			r, err := x.For(who).Open(t.Context(), 0, 1<<20, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, blob) {
				t.Errorf("%d other bytes, %v", len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			for i, p := range places {
				if n := p.opens.Swap(0); n != want[i] {
					t.Errorf("for %v, place %d was asked %d times, want %d", who, i, n, want[i])
				}
			}
		}
		own := registry.Repository{Host: "reg.test", Path: "2"}
		ask(own, 0, 0, 1)
		ask(registry.Repository{Host: "reg.test", Path: "other"}, 1, 0, 0)
		ask(nil, 1, 0, 0)
		places[2].refuse = errors.New("away")
		ask(own, 1, 0, 1)
		places[2].refuse = nil
		ask(own, 1, 0, 0)
		time.Sleep(homeAgain + time.Second)
		ask(own, 0, 0, 1)
	})
}

// TestMixed: an image of several registries is told from one of several repositories.
func TestMixed(t *testing.T) {
	x := &Sources{all: map[string]*repositories{}}
	if x.Mixed("image") {
		t.Error("nobody reads it")
	}
	x.all["image"] = among(&fakePlace{}, &fakePlace{})
	if x.Mixed("image") {
		t.Error("one registry's repositories read it")
	}
	x.all["image"].add(repositorySource{repo: registry.Repository{Host: "other.test", Path: "0"}, placedSource: &fakePlace{}})
	if !x.Mixed("image") {
		t.Error("two registries' read it")
	}
}

// TestRaceLeaves: a reader that leaves a race leaves nothing behind, whichever state the repositories are in.
func TestRaceLeaves(t *testing.T) {
	blob := imagetest.Noise(1, 1<<20)
	for name, p := range map[string]*fakePlace{"silent": {silent: true}, "drips": {blob: blob, piece: 1, every: time.Second}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // which fails if a goroutine stays
				ctx, leave := context.WithCancel(t.Context())
				left := make(chan error)
				go func() {
					r, err := among(p, &fakePlace{silent: true}).For(nil).Open(ctx, 0, 1<<20, 0)
					if err == nil {
						_, err = io.ReadAll(r)
						r.Close()
					}
					left <- err
				}()
				time.Sleep(10 * time.Second)
				leave()
				if err := <-left; !errors.Is(err, context.Canceled) {
					t.Errorf("left with %v", err)
				}
			})
		})
	}
}
