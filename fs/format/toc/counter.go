package toc

import (
	"fmt"

	"github.com/remora-storage/remora/fs/layout"
)

// A Counter counts the entries of a table that is written to it. It refuses too many of them, entries that are too
// large to be kept while they are decoded, and nesting that no real table has.
type Counter struct {
	limit, objects, depth int
	inString, escaped     bool
	length                int // bytes since an entry began or ended
}

// NewCounter returns a Counter that takes up to limit entries.
func NewCounter(limit int) *Counter { return &Counter{limit: limit} }

// Write implements io.Writer.
func (c *Counter) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != ' ' && b != '\n' && b != '\t' && b != '\r' {
			if c.length++; c.length > maxEntry {
				return 0, fmt.Errorf("%w: an entry of more than %d bytes", layout.ErrInvalid, maxEntry)
			}
		}
		switch {
		case c.inString:
			if c.escaped {
				c.escaped = false
			} else if b == '\\' {
				c.escaped = true
			} else if b == '"' {
				c.inString = false
			}
		case b == '"':
			c.inString = true
		case b == '{' || b == '[':
			// Objects inside an entry (its extended attributes) are at depth 4.
			if b == '{' && c.depth < 3 {
				c.objects++
				c.length = 0
			}
			c.depth++
			if c.objects > c.limit {
				return 0, fmt.Errorf("%w: more than %d entries", layout.ErrInvalid, c.limit-1)
			}
			if c.depth > maxDepth {
				return 0, fmt.Errorf("%w: table nests deeper than %d", layout.ErrInvalid, maxDepth)
			}
		case b == '}' || b == ']':
			if c.depth--; c.depth <= 2 {
				c.length = 0
			}
		}
	}
	return len(p), nil
}
