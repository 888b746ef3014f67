package durable

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSaveJSON: a file is replaced as a whole, what an earlier crash left beside it is of no matter, and a directory that
// is not there is an error.
func TestSaveJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.json")
	if err := os.WriteFile(path+".new", []byte("left by a crash, and longer than what comes"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"a", "b"} {
		if err := SaveJSON(path, v); err != nil {
			t.Fatal(err)
		}
		if p, err := os.ReadFile(path); err != nil || string(p) != `"`+v+`"` {
			t.Errorf("%s, %v", p, err)
		}
	}
	if err := SaveJSON(filepath.Join(t.TempDir(), "none", "x"), 1); err == nil {
		t.Error("saved into a directory that is not there")
	}
	if err := SaveJSON(path, func() {}); err == nil {
		t.Error("saved what is no JSON")
	}
	if p, err := os.ReadFile(path); err != nil || string(p) != `"b"` {
		t.Errorf("%s, %v", p, err)
	}
}
