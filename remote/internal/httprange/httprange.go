package httprange

import (
	"strconv"
	"strings"
)

// Content is what a Content-Range header says: that the body is bytes First to Last of Size. Size is -1 if the server
// does not know it.
type Content struct {
	First, Last, Size int64
}

// Parse reads a header like "bytes 0-9/100" or "bytes 0-9/*". ok is false for anything else, and for a range that ends before
// it begins or outside of its size.
func Parse(header string) (c Content, ok bool) {
	rest, found := strings.CutPrefix(header, "bytes ")
	span, size, cut := strings.Cut(rest, "/")
	first, last, dash := strings.Cut(span, "-")
	if !found || !cut || !dash {
		return Content{}, false
	}
	var oks [3]bool
	c.First, oks[0] = number(first)
	c.Last, oks[1] = number(last)
	c.Size, oks[2] = number(size)
	if size == "*" {
		c.Size, oks[2] = -1, true
	}
	if oks != [3]bool{true, true, true} || c.Last < c.First || c.Size >= 0 && c.Last >= c.Size {
		return Content{}, false
	}
	return c, true
}

// number reads decimal digits alone, of 0 or more.
func number(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil
}
