package start

import (
	"context"
	"time"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/internal/fair"
)

const (
	learnCheck   = time.Second
	learnQuiet   = 10 * time.Second // without anything new ends a start
	learnLongest = time.Minute      // from the first read
	learnNever   = 15 * time.Minute // without any read there was no start
	learnRuns    = 8                // starts of an image that are recorded on a node
)

// learn records what the image's first start reads, and merges it into the image's profile.
func (st *start) learn(ctx context.Context) {
	st.mu.Lock()
	recordings := st.recordings
	st.mu.Unlock()
	if len(recordings) == 0 {
		return
	}
	complete := st.awaitQuiet(ctx, recordings)
	used := map[*cache.File][]cache.Use{}
	for _, r := range recordings {
		used[r.File()] = r.End()
	}
	if !complete {
		return
	}
	share, err := st.s.memory.Acquire(ctx, fair.User(st.img.Repo.String()), 2*st.s.profiles.memory(st.img.Target.Digest)) // to merge it, too
	if err != nil {
		return
	}
	defer share.Release()
	old, err := st.s.profiles.get(st.img.Target.Digest)
	if err == nil && old.Runs >= learnRuns {
		return
	}
	entries, err := entriesOf(used)
	if err == nil && len(entries) > 0 {
		_, err = st.s.profiles.add(st.img.Target.Digest, profile.New(st.img.Target.Digest, st.img.Repo.String(), entries))
	}
	if err != nil {
		st.s.log.Warn("start not learned", "image", st.img.Ref, "err", err)
		return
	}
	st.s.log.Info("start learned", "image", st.img.Ref, "manifest", st.img.Target.Digest, "entries", len(entries))
}

// awaitQuiet returns when the start has read all that it reads at first. It reports false if there
// was none, or the image was removed meanwhile.
func (st *start) awaitQuiet(ctx context.Context, recordings []*cache.Recording) bool {
	tick := time.NewTicker(learnCheck)
	defer tick.Stop()
	began := time.Now()
	var first, last time.Time
	before := 0
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		if st.gone() {
			return false
		}
		n := 0
		for _, r := range recordings {
			n += r.Len()
		}
		now := time.Now()
		if n > before {
			if before == 0 {
				first = now
			}
			before, last = n, now
		}
		switch {
		case before == 0 && now.Sub(began) > learnNever:
			return false
		case before > 0 && (now.Sub(last) > learnQuiet || now.Sub(first) > learnLongest):
			return true
		}
	}
}
