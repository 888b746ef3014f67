package heap

import (
	"time"

	"golang.org/x/sys/unix"
)

// CPU returns the processor time that the process took while do ran. Other work on the machine hardly changes it; other goroutines'
// time counts, and that of collecting garbage.
func CPU(do func()) time.Duration {
	before := spent()
	do()
	return spent() - before
}

func spent() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // there is no other way to ask for it
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
