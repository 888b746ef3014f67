package cmdtest

import (
	"bytes"
	"sync"
)

// Output is what a program writes, from several goroutines. The zero value is empty.
type Output struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

// Write adds to what was written.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String returns all that was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
