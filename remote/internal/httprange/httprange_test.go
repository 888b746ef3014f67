package httprange_test

import (
	"fmt"
	"testing"

	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/remote/internal/httprange"
)

func TestParse(t *testing.T) {
	for header, want := range map[string]httprange.Content{
		"bytes 0-9/100":   {First: 0, Last: 9, Size: 100},
		"bytes 5-5/6":     {First: 5, Last: 5, Size: 6},
		"bytes 90-99/100": {First: 90, Last: 99, Size: 100},
		"bytes 0-9/*":     {First: 0, Last: 9, Size: -1},
	} {
		if got, ok := httprange.Parse(header); !ok || got != want {
			t.Errorf("%q: %+v, %v; want %+v", header, got, ok, want)
		}
	}
	for _, bad := range []string{
		"", "bytes", "bytes */100", "bytes 0-9", "bytes 9-0/100", "bytes 0-100/100", "bytes -1-9/100", "bytes 0-9/-1", "bytes +0-9/100",
		"bytes 0-9/9223372036854775808", "bytes 0-/100", "bytes a-9/100", "items 0-9/100", "bytes  0-9/100", "bytes 0-9/100 ",
	} {
		if got, ok := httprange.Parse(bad); ok {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}

// FuzzParse: what is read is a range within its size, and is read the same when it is written again.
func FuzzParse(f *testing.F) {
	f.Add("bytes 0-9/100")
	f.Add("bytes 0-9/*")
	f.Add("bytes 9-0/18446744073709551616")
	f.Fuzz(func(t *testing.T, header string) {
		var c httprange.Content
		var ok bool
		heap.RecordMost(len(header)).Allocates(t, func() int64 { c, ok = httprange.Parse(header); return 0 })
		if !ok {
			return
		}
		if c.First < 0 || c.Last < c.First || c.Size != -1 && c.Last >= c.Size {
			t.Fatalf("%q is read as %+v", header, c)
		}
		size := "*"
		if c.Size >= 0 {
			size = fmt.Sprint(c.Size)
		}
		if again, ok := httprange.Parse(fmt.Sprintf("bytes %d-%d/%s", c.First, c.Last, size)); !ok || again != c {
			t.Errorf("%+v is written and read as %+v", c, again)
		}
	})
}
