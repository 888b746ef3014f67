package heap

import (
	"runtime"
	"runtime/debug"
	"time"
)

// Peak returns by how many bytes the heap grew at most while do ran. Garbage is collected often meanwhile, so that what is
// in use counts, and not how busy the machine is. Other goroutines' memory counts, so tests that call it do not run beside
// others.
func Peak(do func()) int64 {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	runtime.GC()
	base := inUse()
	stop, done := make(chan struct{}), make(chan int64)
	go func() {
		most := int64(0)
		for {
			most = max(most, inUse()-base)
			select {
			case <-stop:
				done <- max(most, inUse()-base)
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	do()
	close(stop)
	return <-done
}

func inUse() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Allocated returns how many bytes were allocated at all while do ran: more than Peak, and the same each time.
func Allocated(do func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}
