package image

import "testing"

func TestNames(t *testing.T) {
	for _, n := range []Name{{"ab", "", ""}, {"ab", Whole, ""}, {"ab", ByTable("x"), ""}, {"ab", Whole, "0123"},
		{"ab", "", "0123"}, {"ab", ByTable("x"), "0123"}} {
		if got := ParseName(n.String()); got != n {
			t.Errorf("%+v is written %s and read as %+v", n, n, got)
		}
	}
}
