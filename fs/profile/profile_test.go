package profile_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/profile"
)

func entry(path string, at int64) profile.Entry {
	return profile.Entry{Path: path, Len: 10, Digest: digest.FromString(path), AtMS: at}
}

func run(entries ...profile.Entry) *profile.Profile {
	return profile.New(digest.FromString("image"), "registry.test/app", entries)
}

func TestRoundTrip(t *testing.T) {
	p := run(entry("/bin/sh", 0), entry("/lib/libc.so.6", 5))
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := profile.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if got.Image != p.Image || got.Repository != p.Repository || got.Runs != 1 || !slices.Equal(got.Entries, p.Entries) {
		t.Errorf("got %+v, want %+v", got, p)
	}
}

// TestMerge shows that what most runs read comes first, in the order of time, and the rest after it, the
// more frequent first.
func TestMerge(t *testing.T) {
	m := profile.Merge(
		run(entry("/always-late", 100), entry("/always-early", 1), entry("/once", 0)),
		run(entry("/always-early", 3), entry("/always-late", 90), entry("/twice", 2)),
		run(entry("/always-late", 95), entry("/always-early", 2)),
		nil,
		run(entry("/always-early", 2), entry("/always-late", 95)),
		run(entry("/always-early", 2), entry("/always-late", 95), entry("/twice", 2)),
	)
	want := []string{"/always-early", "/always-late", "/twice", "/once"}
	if got := m.Paths(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if m.Runs != 5 || m.Entries[0].Runs != 5 || m.Entries[0].AtMS != 2 || m.Entries[2].Runs != 2 {
		t.Errorf("got %+v", m)
	}
	if m.Image != digest.FromString("image") || m.Repository != "registry.test/app" {
		t.Errorf("got image %s of %s", m.Image, m.Repository)
	}
}

// TestMergeForgets shows that what was not read for long goes, and that runs stay countable.
func TestMergeForgets(t *testing.T) {
	m := run(entry("/old", 0))
	for range 3000 {
		m = profile.Merge(m, run(entry("/new", 0)))
	}
	if got := m.Paths(); !slices.Equal(got, []string{"/new"}) {
		t.Errorf("got %v", got)
	}
	if _, err := m.Encode(); err != nil {
		t.Error(err)
	}
}

func TestInvalid(t *testing.T) {
	valid := func(change func(*profile.Profile)) *profile.Profile {
		p := run(entry("/bin/sh", 0))
		change(p)
		return p
	}
	for name, p := range map[string]*profile.Profile{
		"relative path":     valid(func(p *profile.Profile) { p.Entries[0].Path = "bin/sh" }),
		"path that climbs":  valid(func(p *profile.Profile) { p.Entries[0].Path = "/a/../../etc" }),
		"long path":         valid(func(p *profile.Profile) { p.Entries[0].Path = "/" + strings.Repeat("x", 5000) }),
		"negative offset":   valid(func(p *profile.Profile) { p.Entries[0].Off = -1 }),
		"range beyond":      valid(func(p *profile.Profile) { p.Entries[0].Off, p.Entries[0].Len = 1<<62, 1<<62 }),
		"empty range":       valid(func(p *profile.Profile) { p.Entries[0].Len = 0 }),
		"no digest":         valid(func(p *profile.Profile) { p.Entries[0].Digest = "" }),
		"more runs than":    valid(func(p *profile.Profile) { p.Entries[0].Runs = 2 }),
		"no runs":           valid(func(p *profile.Profile) { p.Runs = 0 }),
		"another version":   valid(func(p *profile.Profile) { p.Version = 2 }),
		"a million entries": valid(func(p *profile.Profile) { p.Entries = slices.Repeat(p.Entries, 1_000_000) }),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := p.Encode(); !errors.Is(err, profile.ErrInvalid) {
				t.Errorf("encode: %v", err)
			}
			if _, err := profile.Decode(asJSON(p)); !errors.Is(err, profile.ErrInvalid) {
				t.Errorf("decode: %v", err)
			}
		})
	}
	for name, data := range map[string][]byte{"nothing": nil, "text": []byte("hello"), "half JSON": []byte(`{"version":1`)} {
		if _, err := profile.Decode(data); !errors.Is(err, profile.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBombs: what unpacks to much more than any profile has, or has more entries than its bytes justify, is refused for little
// memory.
func TestBombs(t *testing.T) {
	pack := func(plain string) []byte {
		enc, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return enc.EncodeAll([]byte(plain), nil)
	}
	head := `{"version":1,"runs":1,"entries":[`
	for name, data := range map[string][]byte{
		"packed":        pack(head + strings.Repeat("null,", 6<<20) + "null]}"),
		"nothing":       []byte(head + strings.Repeat("null,", 6<<20) + "null]}"),
		"no objects":    []byte(head + strings.Repeat("1,", 14<<20) + "1]}"),
		"empty objects": []byte(head + strings.Repeat("{},", 10<<20) + "{}]}"),
		"one long path": []byte(head + `{"path":"/` + strings.Repeat("x", 31<<20) + `"}]}`),
	} {
		t.Run(name, func(t *testing.T) {
			heap.Refuses(t, min(profile.Memory(int64(len(data))), 130<<20), profile.ErrInvalid, "", func() error {
				_, err := profile.Decode(data)
				return err
			})
		})
	}
}

// asJSON writes a profile without checking it.
func asJSON(p *profile.Profile) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"version":%d,"image":%q,"repository":%q,"runs":%d,"entries":[`, p.Version, p.Image, p.Repository, p.Runs)
	for i, e := range p.Entries {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"path":%q,"off":%d,"len":%d,"digest":%q,"at_ms":%d,"runs":%d}`, e.Path, e.Off, e.Len, e.Digest, e.AtMS, e.Runs)
	}
	b.WriteString("]}")
	return b.Bytes()
}

func FuzzDecode(f *testing.F) {
	data, err := run(entry("/bin/sh", 0), entry("/etc/passwd", 7)).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(asJSON(run(entry("/bin/sh", 0))))
	f.Add([]byte(`{"version":1,"runs":1,"entries":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p *profile.Profile
		var err error
		heap.LayerMost(len(data)).Allocates(t, func() int64 { p, err = profile.Decode(data); return 0 })
		if err != nil {
			if !errors.Is(err, profile.ErrInvalid) {
				t.Error(err)
			}
			return
		}
		again, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		q, err := profile.Decode(again)
		if err != nil || !slices.Equal(p.Entries, q.Entries) {
			t.Errorf("%v: %v became %v", err, p, q)
		}
		profile.Merge(p, q, p)
	})
}
