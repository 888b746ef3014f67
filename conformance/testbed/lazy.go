package testbed

import (
	"context"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// LazyLayout returns the directory of an OCI layout that holds the program's image under the tag
// "lazy", as snapctl converts it, with the files of FilesList first. It is made once for a snapctl
// and kept until another makes its own.
func (p Program) LazyLayout(ctx context.Context) (string, error) {
	var args, of []string
	if _, err := os.Stat(p.FilesList()); err == nil {
		args, of = []string{"--prioritize", p.FilesList()}, []string{p.FilesList()}
	}
	return p.converted(ctx, "lazy", args, of)
}

// UnlistedLayout is LazyLayout of the image without any list of files.
func (p Program) UnlistedLayout(ctx context.Context) (string, error) {
	return p.converted(ctx, "unlisted", nil, nil)
}

// converted keeps what snapctl makes of the program's image by args, which depend on the files of.
func (p Program) converted(ctx context.Context, kind string, args, of []string) (string, error) {
	unlock, err := lockWork()
	if err != nil {
		return "", err
	}
	defer unlock()
	src, err := p.layout(ctx)
	if err != nil {
		return "", err
	}
	snapctl, err := lookPath("snapctl")
	if err != nil {
		return "", err
	}
	sum := digest.Canonical.Digester()
	for _, file := range append([]string{snapctl, filepath.Join(src, "index.json")}, of...) {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		sum.Hash().Write(b)
	}
	family := filepath.Join(Work(), "images", p.Name+"-"+kind+"-")
	dir := family + sum.Digest().Encoded()[:16]
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
		return dir, nil
	}
	old, err := filepath.Glob(family + "*")
	if err != nil {
		return "", err
	}
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return "", err
		}
	}
	unfinished := dir + ".new"
	cache, err := os.MkdirTemp("", "convert-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(cache)
	args = append(append([]string{"convert"}, args...), "oci:"+src+":src", "oci:"+unfinished+":lazy")
	if _, err := Output(ctx, []string{"XDG_CACHE_HOME=" + cache}, "snapctl", args...); err != nil {
		return "", err
	}
	return dir, os.Rename(unfinished, dir)
}
