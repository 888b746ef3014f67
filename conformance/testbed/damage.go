package testbed

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// MustNameDamaged insists that status names these files as damaged and no other, as JSON and as text, with what was lost and
// what to do, and that the log names them. It removes what was set aside, as an operator does at the end, and insists that they
// are no longer named.
func MustNameDamaged(t *testing.T, s *Stack, want ...string) {
	t.Helper()
	st, err := s.Status(t.Context())
	Must(t, err)
	text, err := s.Snapctl(t.Context(), "status")
	Must(t, err)
	log, err := os.ReadFile(s.RemoradLog())
	Must(t, err)
	var got []string
	for _, d := range st.Damaged {
		got = append(got, d.File)
		if d.Lost == "" || d.Advice == "" || !strings.Contains(text, d.File) || !strings.Contains(text, d.Advice) {
			t.Errorf("status says of %s: lost %q, advice %q; as text:\n%s", d.File, d.Lost, d.Advice, text)
		}
		if !strings.Contains(string(log), d.File) {
			t.Errorf("the log does not name %s", d.File)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("damaged:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, d := range st.Damaged {
		Must(t, os.RemoveAll(d.Aside))
	}
	if st, err = s.Status(t.Context()); err != nil || len(st.Damaged) != 0 {
		t.Errorf("damaged after they were removed: %+v, %v", st, err)
	}
}
