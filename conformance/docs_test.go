package conformance_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestCommandsAreDocumented: docs/cli.md is what make generate makes.
func TestCommandsAreDocumented(t *testing.T) {
	testbed.NeedRoot(t) // only because bin/ is there then
	c := exec.Command("go", "run", "./conformance/tools/clidoc")
	c.Dir = testbed.Repo()
	want, err := c.Output()
	testbed.Must(t, err)
	got, err := os.ReadFile(filepath.Join(testbed.Repo(), "docs", "cli.md"))
	testbed.Must(t, err)
	if string(got) != string(want) {
		t.Error("docs/cli.md is stale: run make generate")
	}
}

// longestSentence is how many words a sentence may have. Code is one.
const longestSentence = 25

// readByMost are the documents that people read first.
var readByMost = []string{
	"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/security.md", "docs/operations.md", "docs/volumes.md", "docs/registries.md",
	"docs/dependencies.md",
}

// TestSentencesAreShort: no sentence of what most people read is long.
func TestSentencesAreShort(t *testing.T) {
	t.Parallel()
	for _, name := range readByMost {
		p, err := os.ReadFile(filepath.Join(testbed.Repo(), name))
		testbed.Must(t, err)
		all := sentences(string(p))
		if len(all) < 20 {
			t.Errorf("%s has %d sentences", name, len(all))
		}
		for _, s := range all {
			if n := len(strings.Fields(s)); n > longestSentence {
				t.Errorf("%s has a sentence of %d words, and %d are enough: %s", name, n, longestSentence, s)
			}
		}
	}
}

var (
	fenced    = regexp.MustCompile("(?ms)^```.*?^```$")
	code      = regexp.MustCompile("`[^`]*`")
	links     = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	codeAlone = regexp.MustCompile(`\(\x00(,? (and )?\x00)*\)`) // tests and files that a sentence names
	begins    = regexp.MustCompile(`^(\||[-*] |\d+\. |#)`)
	sentence  = regexp.MustCompile(`[.!?:;][*")]*\s+|\s·\s`)
)

// sentences returns those of a document: a cell of a table, an item of a list and a heading begin one. A colon and a semicolon end one.
func sentences(document string) (all []string) {
	var text string
	end := func() {
		text = begins.ReplaceAllString(strings.TrimSpace(text), "")
		text = codeAlone.ReplaceAllString(code.ReplaceAllString(links.ReplaceAllString(text, "$1"), "\x00"), "")
		all, text = append(all, sentence.Split(text, -1)...), ""
	}
	for line := range strings.Lines(fenced.ReplaceAllString(document, "")) {
		line = strings.TrimSpace(line)
		if line == "" || begins.MatchString(line) {
			end()
		}
		if strings.HasPrefix(line, "|") {
			all = append(all, strings.Split(line, "|")...)
			continue
		}
		text += line + " "
	}
	end()
	return slices.DeleteFunc(all, func(s string) bool { return strings.TrimSpace(s) == "" })
}

// TestSentences: what sentences returns.
func TestSentences(t *testing.T) {
	t.Parallel()
	got := sentences("# A head\n\nOne of\ntwo lines. Two (`a`, `b` and `c`)! See [that](x.md#y.z).\n- **An item.** With `co. de`: more\n" +
		"| a | b |\n```\nno. no\n```\n")
	want := []string{" A head", "One of two lines", "Two ", "See that.", "**An item", "With \x00", "more", " a ", " b "}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
