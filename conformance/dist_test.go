package conformance_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestDist: what is delivered are both programs for each architecture, the bill of materials of each, and the sums of all of these. Shell
// scripts stand for the compiler and for what writes the bills, each of which says what it was asked for.
func TestDist(t *testing.T) {
	t.Parallel()
	makefile := filepath.Join(testbed.Repo(), "Makefile")
	text, err := os.ReadFile(makefile)
	testbed.Must(t, err)
	version := regexp.MustCompile(`(?m)^CYCLONEDX +:= (\S+)$`).FindSubmatch(text)
	if version == nil {
		t.Fatal("the Makefile pins no version of what writes bills of materials")
	}
	dir := t.TempDir()
	tools := filepath.Join(dir, ".work", "tools")
	testbed.Must(t, os.MkdirAll(tools, 0o755))
	for name, script := range map[string]string{
		"cyclonedx-gomod-" + string(version[1]): "",
		"cyclonedx-gomod": `[ "$1 $2" = "bin -json" ] || exit 1
			while [ "$1" != -output ]; do shift; done
			echo "bill of $(cat "$3")" > "$2"`,
		"compile": `while [ "$1" != -o ]; do shift; done
			for p in "${@:3}"; do echo "$GOOS/$GOARCH ${p##*/}" > "$2/${p##*/}"; done`,
	} {
		testbed.Must(t, os.WriteFile(filepath.Join(tools, name), []byte("#!/bin/bash\n"+script+"\n"), 0o755))
	}
	c := exec.Command("make", "-s", "-f", makefile, "dist", "GOBUILD="+filepath.Join(tools, "compile"))
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	bin := filepath.Join(dir, "bin")
	var want []string
	for _, arch := range []string{"amd64", "arm64"} {
		for _, program := range []string{"remorad", "snapctl"} {
			path, says := filepath.Join("linux-"+arch, program), "linux/"+arch+" "+program
			for file, says := range map[string]string{path: says, path + ".cdx.json": "bill of " + says} {
				want = append(want, file)
				if got, err := os.ReadFile(filepath.Join(bin, file)); err != nil || string(got) != says+"\n" {
					t.Errorf("%s is %q, %v", file, got, err)
				}
			}
		}
	}
	sums, err := os.ReadFile(filepath.Join(bin, "SHA256SUMS"))
	testbed.Must(t, err)
	var summed []string
	for _, m := range regexp.MustCompile(`(?m)^[0-9a-f]{64}  (\S+)$`).FindAllSubmatch(sums, -1) {
		summed = append(summed, string(m[1]))
	}
	slices.Sort(want)
	slices.Sort(summed)
	if !slices.Equal(summed, want) {
		t.Errorf("there are sums of %v, want %v", summed, want)
	}
	check := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = bin
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
