package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
)

// A deviceLoad is one kind of load on a block device, by requests past the page cache.
type deviceLoad struct {
	Name   string
	write  bool
	random bool
	sync   bool // each write is followed by fdatasync, which is what is timed
	bytes  int  // of a request
	depth  int  // requests at a time
}

// deviceResult is what a load has measured.
type deviceResult struct {
	Name     string  `json:"name"`
	Requests int     `json:"requests"`
	IOPS     float64 `json:"iops"`
	Bytes    float64 `json:"bytes_per_second"`
	Median   float64 `json:"median_microseconds"`
	P99      float64 `json:"p99_microseconds"`
}

// run puts the load on the first size bytes of a device for as long as is asked for.
func (l deviceLoad) run(ctx context.Context, dev string, size int64, during time.Duration) (*deviceResult, error) {
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var mu sync.Mutex // guards the variables below
	var took []time.Duration
	var failed error
	next := int64(0)
	slots := size / int64(l.bytes)
	begin := time.Now()
	var running sync.WaitGroup
	for i := range l.depth {
		running.Go(func() {
			p := blockdev.AlignedBuffer(l.bytes)
			rand.NewChaCha8([32]byte{byte(i)}).Read(p) // never fails; bytes that do not compress
			for first := true; first || time.Since(begin) < during && ctx.Err() == nil; first = false {
				mu.Lock()
				slot := next % slots
				next++
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
				if l.random {
					slot = rand.Int64N(slots)
				}
				d, err := l.request(f, p, slot*int64(l.bytes))
				mu.Lock()
				took, failed = append(took, d), errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	running.Wait()
	if err := errors.Join(failed, context.Cause(ctx)); err != nil {
		return nil, fmt.Errorf("%s: %w", l.Name, err)
	}
	seconds := time.Since(begin).Seconds()
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[int(q*float64(len(took)-1))].Nanoseconds()) / 1e3
	}
	n := float64(len(took))
	return &deviceResult{Name: l.Name, Requests: len(took), IOPS: n / seconds, Bytes: n * float64(l.bytes) / seconds, Median: at(0.5),
		P99: at(0.99)}, nil
}

func (l deviceLoad) request(f *os.File, p []byte, off int64) (time.Duration, error) {
	begin := time.Now()
	var err error
	if l.write {
		_, err = f.WriteAt(p, off)
	} else {
		_, err = f.ReadAt(p, off)
	}
	if l.sync && err == nil {
		begin = time.Now()
		err = unix.Fdatasync(int(f.Fd()))
	}
	return time.Since(begin), err
}
