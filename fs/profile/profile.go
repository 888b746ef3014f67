package profile

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/remote/registry"
)

// MediaType is that of an encoded profile: JSON packed by zstd.
const MediaType = "application/vnd.remora.profile.v1+json+zstd"

// Artifact is how a profile is published.
var Artifact = registry.ArtifactKind{Type: "application/vnd.remora.profile.v1", MediaType: MediaType,
	Tag: "remora-profile", Limit: MaxPacked}

// ErrInvalid marks bytes that are not a profile, or one that breaks our limits.
var ErrInvalid = errors.New("invalid profile")

// The limits. A start that reads more than this is not helped by a list of it.
const (
	MaxEntries = 1 << 16
	MaxPacked  = 4 << 20  // bytes, what registries allow in a manifest
	MaxPlain   = 32 << 20 // bytes
	maxPath    = 4095
	maxRuns    = 1 << 10 // runs that are remembered; more make older ones count less
	version    = 1

	// Digests do not shrink, so a profile is never this much larger than its packed bytes.
	freePlain = 1 << 20 // bytes
	mostRatio = 32
)

// A Profile is what programs read of an image when they start.
type Profile struct {
	Version int `json:"version"`
	// Image is the manifest that the last run was of, and Repository where it came from.
	Image      digest.Digest `json:"image,omitempty"`
	Repository string        `json:"repository,omitempty"`
	Runs       int           `json:"runs"`    // how many starts were recorded
	Entries    []Entry       `json:"entries"` // in the order in which they are needed
}

// An Entry is a range of a file.
type Entry struct {
	Path   string        `json:"path"` // absolute, in the container
	Off    int64         `json:"off"`
	Len    int64         `json:"len"`
	Digest digest.Digest `json:"digest"` // SHA-256 of the range's bytes
	AtMS   int64         `json:"at_ms"`  // since the start, the mean of all runs
	Runs   int           `json:"runs"`   // how many runs read it
}

// Bytes returns the plain bytes of all entries.
func (p *Profile) Bytes() (n int64) {
	for _, e := range p.Entries {
		n += e.Len
	}
	return n
}

// Paths lists the files, each once, in order.
func (p *Profile) Paths() []string {
	var all []string
	seen := map[string]bool{}
	for _, e := range p.Entries {
		if !seen[e.Path] {
			seen[e.Path] = true
			all = append(all, e.Path)
		}
	}
	return all
}

func (p *Profile) check() error {
	switch {
	case p.Version != version:
		return fmt.Errorf("%w: version %d", ErrInvalid, p.Version)
	case len(p.Entries) > MaxEntries:
		return fmt.Errorf("%w: %d entries, more than %d", ErrInvalid, len(p.Entries), MaxEntries)
	case p.Runs < 1 || p.Runs > maxRuns:
		return fmt.Errorf("%w: %d runs", ErrInvalid, p.Runs)
	}
	for i := range p.Entries {
		if err := p.Entries[i].check(p.Runs); err != nil {
			return err
		}
	}
	return nil
}

// check checks an entry of a profile of some runs.
func (e *Entry) check(runs int) error {
	if e.Path == "" || e.Path[0] != '/' || len(e.Path) > maxPath || strings.ContainsRune(e.Path, 0) || path.Clean(e.Path) != e.Path {
		return fmt.Errorf("%w: path %.80q", ErrInvalid, e.Path)
	}
	if e.Off < 0 || e.Len <= 0 || e.Off > 1<<62 || e.Len > 1<<62-e.Off || e.AtMS < 0 || e.Runs < 1 || e.Runs > runs {
		return fmt.Errorf("%w: range %d+%d of %.80q, at %d ms, in %d of %d runs", ErrInvalid, e.Off, e.Len, e.Path, e.AtMS, e.Runs, runs)
	}
	if err := e.Digest.Validate(); err != nil || e.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%w: digest %.80q of %.80q", ErrInvalid, e.Digest, e.Path)
	}
	return nil
}

// Encode returns the packed bytes.
func (p *Profile) Encode() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	plain, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	packed := enc.EncodeAll(plain, nil)
	if len(packed) > MaxPacked {
		return nil, fmt.Errorf("%w: %d packed bytes, more than %d", ErrInvalid, len(packed), MaxPacked)
	}
	return packed, nil
}

// New returns the profile of one run, whose entries are in the order in which they were read.
func New(image digest.Digest, repository string, entries []Entry) *Profile {
	for i := range entries {
		entries[i].Runs = 1
	}
	return &Profile{Version: version, Image: image, Repository: repository, Runs: 1, Entries: entries[:min(len(entries), MaxEntries)]}
}

// Merge returns what several profiles say together. What most runs read comes first, in the order of
// time; then the rest, the more frequent first.
func Merge(all ...*Profile) *Profile {
	type key struct {
		path string
		off  int64
		sum  digest.Digest
	}
	out := &Profile{Version: version}
	at := map[key]int{}
	for _, p := range all {
		if p == nil {
			continue
		}
		out.Runs += p.Runs
		if p.Image != "" {
			out.Image, out.Repository = p.Image, p.Repository
		}
		for _, e := range p.Entries {
			k := key{e.Path, e.Off, e.Digest}
			i, ok := at[k]
			if !ok {
				at[k] = len(out.Entries)
				out.Entries = append(out.Entries, e)
				continue
			}
			o := &out.Entries[i]
			o.AtMS = (o.AtMS*int64(o.Runs) + e.AtMS*int64(e.Runs)) / int64(o.Runs+e.Runs)
			o.Runs += e.Runs
		}
	}
	for out.Runs > maxRuns {
		out.age()
	}
	half := func(e Entry) bool { return 2*e.Runs >= out.Runs }
	slices.SortStableFunc(out.Entries, func(a, b Entry) int {
		switch {
		case half(a) != half(b):
			if half(a) {
				return -1
			}
			return 1
		case half(a):
			return cmp.Compare(a.AtMS, b.AtMS)
		}
		return cmp.Or(cmp.Compare(b.Runs, a.Runs), cmp.Compare(a.AtMS, b.AtMS))
	})
	out.Entries = out.Entries[:min(len(out.Entries), MaxEntries)]
	return out
}

// age halves what every run counts, so that what was not read for long goes.
func (p *Profile) age() {
	p.Runs /= 2
	for i := range p.Entries {
		p.Entries[i].Runs = min(p.Entries[i].Runs/2, p.Runs)
	}
	p.Entries = slices.DeleteFunc(p.Entries, func(e Entry) bool { return e.Runs == 0 })
}
