package heap

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Cost is what a call takes, or may take.
type Cost struct {
	Memory  int64         // bytes
	CPU     time.Duration // of the process
	Written int64         // bytes that the process writes, and those that the call says it would have written
}

// What decoding one layer may take. The first parts are for what every layer may have however small it is, such as directories that
// nobody lists. A hang, or work that grows with the square of what a layer has, takes more processor time; a busy machine does not.
const (
	layerMost    = 320 << 20 // 202 MiB were measured: paths of directories that nobody lists
	layerPerByte = 4 << 10
	cpuMost      = 5 * time.Second
	cpuPerByte   = 10 * time.Microsecond
	// What decoding a record may take that is no layer's: what it says is kept as it is, in fewer bytes than a cache line for each.
	recordMost    = 1 << 20
	recordPerByte = 64
	// littleWritten is what a process may write by the way, such as lines of a log.
	littleWritten = 64 << 10
)

// LayerMost returns what decoding a layer may take, given the bytes of what describes it, unpacked: all memory that is allocated and
// given back counts, and as written what becomes metadata.
func LayerMost(described int) Cost {
	n := layerMost + layerPerByte*int64(described)
	return Cost{Memory: n, CPU: cpuMost + time.Duration(described)*cpuPerByte, Written: n}
}

// RecordMost returns what decoding a record that is no layer's may take, such as a table, a message or a line, given its bytes. Nothing is
// written.
func RecordMost(size int) Cost {
	return Cost{Memory: recordMost + recordPerByte*int64(size), CPU: cpuMost + time.Duration(size)*cpuPerByte}
}

// Refuses fails a test unless do returns an error that is want and says some words, for at most so many bytes of memory. Little
// processor time may be taken, however much the bytes from outside claim to have, and nothing written.
func Refuses(t testing.TB, memory int64, want error, says string, do func() error) {
	t.Helper()
	var err error
	took := Cost{Memory: memory, CPU: cpuMost}.Peaks(t, func() int64 { err = do(); return 0 })
	t.Logf("%d MiB of heap, %s: %.400v", took.Memory>>20, took.CPU, err)
	if !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want that %s", err, says)
	}
}

// perProcessor is how much a processor may have set aside for small objects, and counts later, if it collects garbage then.
const perProcessor = 2 << 20

// Allocates fails a test in which do takes more, where all memory that it allocates counts: what it has together is less. do returns
// how many bytes it would have written. This is for fuzz targets: it takes microseconds, and is wrong by some MiB.
func (most Cost) Allocates(t testing.TB, do func() (written int64)) Cost {
	t.Helper()
	most.Memory += perProcessor * int64(runtime.GOMAXPROCS(0))
	return most.check(t, func(do func()) int64 {
		before := allocated()
		do()
		return allocated() - before
	}, do)
}

// Peaks fails a test in which do takes more, where memory counts as Peak has it.
func (most Cost) Peaks(t testing.TB, do func() (written int64)) Cost {
	t.Helper()
	return most.check(t, Peak, do)
}

func (most Cost) check(t testing.TB, memory func(func()) int64, do func() int64) (took Cost) {
	t.Helper()
	took.Memory = memory(func() {
		before := written()
		took.CPU = CPU(func() { took.Written = do() })
		took.Written += written() - before
	})
	if took.Memory > most.Memory {
		t.Errorf("it took %d bytes of memory, more than %d", took.Memory, most.Memory)
	}
	if took.CPU > most.CPU {
		t.Errorf("it took %s of processor time, more than %s", took.CPU, most.CPU)
	}
	if took.Written > most.Written+littleWritten {
		t.Errorf("it had %d bytes written, more than %d", took.Written, most.Written)
	}
	return took
}

// allocated returns how many bytes were allocated so far, but for what processors have set aside for small objects.
func allocated() int64 {
	m := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(m)
	return int64(m[0].Value.Uint64())
}

// ioFile says what this process has read and written, by whatever system call; nil where the kernel does not count that.
var ioFile = sync.OnceValue(func() *os.File {
	f, err := os.Open("/proc/self/io")
	if err != nil {
		return nil
	}
	return f
})

// written returns how many bytes this process has written so far.
func written() int64 {
	p := make([]byte, 512)
	n := 0
	if f := ioFile(); f != nil {
		n, _ = f.ReadAt(p, 0) // the end of the file is no error
	}
	_, after, _ := bytes.Cut(p[:n], []byte("wchar: "))
	number, _, _ := bytes.Cut(after, []byte("\n"))
	w, _ := strconv.ParseInt(string(number), 10, 64) // 0 where it is not told
	return w
}
