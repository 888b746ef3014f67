package layers

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/remote/registry"
)

// That a layer asks for more than [limits] allow is known once most of it was read. It will ask for that again, so it is remembered over
// restarts, and containerd is told immediately the next time. Whoever serves other bytes under a layer's digest could say the same of
// them, so what is remembered is of one repository alone.

// refusals are layers that were beyond [limits].
type refusals struct {
	promises
	path   string
	limits string // describes those
	log    *slog.Logger

	saving sync.Mutex // one writes the file at a time; taken before mu

	mu  sync.Mutex     // guards all
	all []knownRefusal // the oldest first
}

const (
	refusalsMost    = 1024
	refusalsHold    = 7 * 24 * time.Hour
	refusalsVersion = 1
	refusalsWhy     = 500 // bytes of each reason
)

var refusalsKind = durable.Kind{
	Name: "refused.json",
	Lost: "which layers are beyond [limits]: each is read once more when it is pulled next",
	Do:   "remove this file",
}

// A knownRefusal is what is remembered of a layer.
type knownRefusal struct {
	Repo  registry.Repository `json:"repository"`
	Layer digest.Digest       `json:"layer"`
	By    string              `json:"by"`             // what it was read by
	Bomb  bool                `json:"bomb,omitempty"` // it is not unpacked either
	Why   string              `json:"why"`
	At    time.Time           `json:"at"`
}

type savedRefusals struct {
	Version int            `json:"version"`
	Limits  string         `json:"limits"`
	Layers  []knownRefusal `json:"layers"`
}

// openRefusals reads what earlier lives have found out of the same limits.
func openRefusals(root string, opts *Options) *refusals {
	limits := opts.Limits.WithDefaults()
	limits.Grow = nil
	budget := int64(0)
	if opts.Memory != nil {
		budget = opts.Memory.Limit()
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%+v %d", limits, budget))
	r := &refusals{
		promises: promises{opts}, path: filepath.Join(root, refusalsKind.Name), limits: hex.EncodeToString(sum[:8]), log: opts.Log,
	}
	saved, _, err := durable.LoadJSON(r.path, refusalsKind, r.log, func(s *savedRefusals) error {
		return durable.CheckVersion(s.Version, refusalsVersion)
	})
	if err != nil {
		r.log.Warn("which layers are beyond [limits] is found out again", "err", err)
	}
	if saved.Limits == r.limits {
		r.all = saved.Layers
	}
	return r
}

// note remembers a layer that an error says to be beyond [limits], if it does.
func (r *refusals) note(s *Source, err error) {
	if !IsBeyond(err) || errors.As(err, new(*remembered)) {
		return
	}
	bomb := errors.Is(err, scan.ErrBomb)
	by := r.contentOf(s)
	why := err.Error()
	why = strings.ToValidUTF8(why[:min(len(why), refusalsWhy)], "")
	r.add(s, by, knownRefusal{s.Repo, s.Descriptor.Digest, by, bomb, why, time.Now()})
	if err := r.save(); err != nil {
		r.log.Warn("that a layer is beyond [limits] is known only until remorad ends", "digest", s.Descriptor.Digest, "err", err)
	}
}

func (r *refusals) add(s *Source, by string, one knownRefusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(slices.DeleteFunc(r.all, func(known knownRefusal) bool { return known.is(s, by) || known.isOld() }), one)
	r.all = r.all[max(len(r.all)-refusalsMost, 0):]
}

// save writes what is known now. Nobody who asks waits for that.
func (r *refusals) save() error {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	all := slices.Clone(r.all)
	r.mu.Unlock()
	return durable.SaveJSON(r.path, savedRefusals{refusalsVersion, r.limits, all})
}

// of returns why no image is made of a layer, if that is known; else nil. The error wraps ErrNotLazy.
func (r *refusals) of(s *Source) error {
	by := r.contentOf(s)
	r.mu.Lock()
	defer r.mu.Unlock()
	at := slices.IndexFunc(r.all, func(known knownRefusal) bool { return known.is(s, by) && !known.isOld() })
	if at < 0 {
		return nil
	}
	return NotLazy("%w", &remembered{r.all[at]})
}

func (r *knownRefusal) is(s *Source, by string) bool {
	return r.Repo == s.Repo && r.Layer == s.Descriptor.Digest && r.By == by
}

func (r *knownRefusal) isOld() bool { return time.Since(r.At) > refusalsHold }

// remembered is the error that a knownRefusal was.
type remembered struct{ knownRefusal }

func (e *remembered) Error() string {
	return fmt.Sprintf("%s (known since %s)", e.Why, e.At.UTC().Format(time.RFC3339))
}

// Unwrap returns what it was of those that are noted.
func (e *remembered) Unwrap() error {
	if e.Bomb {
		return scan.ErrBomb
	}
	return layout.ErrBeyond
}
