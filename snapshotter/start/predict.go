package start

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// Without a profile and without a word of the layers' author, it is foretold what an image's program
// reads first: the file that the entrypoint names, the interpreter of a script, the dynamic loader,
// and the shared libraries, wherever in the image they are.

const (
	maxPredicted = 64       // files
	maxHead      = 64 << 10 // bytes of a script that are looked at
	maxELF       = 256 << 20
	maxSymlinks  = 40
)

// predict makes present what the image's entrypoint needs. It returns when that is here, or soon
// after ctx ends. Whatever goes wrong, the program reads what it needs by itself.
func (st *start) predict(ctx context.Context) {
	config, err := st.config(ctx)
	if err != nil {
		st.s.log.Debug("nothing foretold", "image", st.img.Ref, "err", err)
		return
	}
	p := &prediction{ctx: ctx, cache: st.s.cache, seen: map[string]bool{}, env: config.Config.Env}
	st.mu.Lock()
	for i := len(st.img.Layers) - 1; i >= 0; i-- {
		if f := st.files[st.img.Layers[i].Descriptor.Digest]; f != nil {
			if tree, err := treeOf(f); err == nil {
				p.layers = append(p.layers, predictedLayer{f, tree})
			}
		}
	}
	st.mu.Unlock()
	began := time.Now()
	args := slices.Concat(config.Config.Entrypoint, config.Config.Cmd)
	if len(args) > 0 {
		p.program(args[0])
	}
	p.fetchAll()
	st.s.log.Debug("foretold", "image", st.img.Ref, "files", len(p.seen), "took", time.Since(began).Round(time.Millisecond))
}

// config reads the image's configuration.
func (st *start) config(ctx context.Context) (*ocispec.Image, error) {
	reader, ok := st.s.registry.(Manifests)
	if !ok {
		return nil, errors.New("this registry gives no manifests")
	}
	_, doc, err := reader.Manifest(ctx, st.img.Repo, st.img.Target.Digest.String())
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(doc, &m); err != nil {
		return nil, err
	}
	if m.Config.Size <= 0 || m.Config.Size > layers.MaxConfig || m.Config.Digest.Validate() != nil {
		return nil, errors.New("no configuration")
	}
	p := make([]byte, m.Config.Size)
	if _, err := st.s.registry.Blob(st.img.Repo, m.Config).ReadAt(ctx, p, 0); err != nil {
		return nil, err
	}
	if m.Config.Digest.Algorithm().FromBytes(p) != m.Config.Digest {
		return nil, errors.New("configuration has other bytes")
	}
	config := new(ocispec.Image)
	return config, json.Unmarshal(p, config)
}

type predictedLayer struct {
	f    *cache.File
	tree *erofs.Reader
}

// prediction follows a program through the image's files.
type prediction struct {
	ctx    context.Context // of predict: all of this is one operation
	cache  *cache.Cache
	layers []predictedLayer
	env    []string
	seen   map[string]bool
	pieces []cache.Piece // wanted and not fetched yet
}

// find returns the file at a path, following symbolic links through all layers, and where it is.
func (p *prediction) find(name string) (f *cache.File, n *erofs.Node, at string, ok bool) {
	name = path.Clean("/" + name)
	for range maxSymlinks {
		target := ""
		for _, l := range p.layers {
			n, found, link, rest, err := l.tree.Find(name)
			if err != nil {
				return nil, nil, "", false
			}
			if found && n.Mode&unix.S_IFMT == unix.S_IFLNK {
				link, rest, found = n, "", false
			}
			if link != nil {
				to, err := l.tree.Link(link)
				if err != nil {
					return nil, nil, "", false
				}
				dir := strings.TrimSuffix(strings.TrimSuffix(name, "/"+rest), "/") // the link itself
				if rest == "" {
					dir = name
				}
				if !path.IsAbs(to) {
					to = path.Join(path.Dir(dir), to)
				}
				target = path.Join(to, rest)
				break
			}
			if found && n.Mode&unix.S_IFMT == unix.S_IFREG {
				return l.f, n, name, true
			}
			if found {
				return nil, nil, "", false // a directory, or a whiteout
			}
		}
		if target == "" {
			return nil, nil, "", false
		}
		name = path.Clean("/" + target)
	}
	return nil, nil, "", false
}

// program follows a command as execvp(3) would find it.
func (p *prediction) program(name string) {
	if strings.Contains(name, "/") {
		p.file(name)
		return
	}
	dirs := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, kv := range p.env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			dirs = v
		}
	}
	for dir := range strings.SplitSeq(dirs, ":") {
		if p.file(path.Join(dir, name)) {
			return
		}
	}
}

// file wants a file and what it needs. It reports whether there is such a file.
func (p *prediction) file(name string) bool {
	f, n, at, ok := p.find(name)
	if !ok {
		return false
	}
	if p.seen[at] || len(p.seen) >= maxPredicted || n.Size > maxELF || p.ctx.Err() != nil {
		return true
	}
	p.seen[at] = true
	if n.Size == 0 {
		return true
	}
	f.Extents(n.Data, n.Size, func(e cache.Extent) bool {
		p.pieces = append(p.pieces, cache.Piece{File: f, Unit: e.Unit})
		return true
	})
	p.fetchAll() // what it needs is written in it
	r := io.NewSectionReader(peeker{f}, n.Data, n.Size)
	head := make([]byte, min(n.Size, maxHead))
	if _, err := io.ReadFull(r, head); err != nil {
		return true
	}
	if line, ok := bytes.CutPrefix(head, []byte("#!")); ok {
		line, _, _ = bytes.Cut(line, []byte("\n"))
		for i, word := range strings.Fields(string(line)) {
			if i == 0 {
				p.file(word)
			} else if !strings.HasPrefix(word, "-") && strings.HasSuffix(strings.Fields(string(line))[0], "/env") {
				p.program(word)
				break
			}
		}
		return true
	}
	p.elf(r)
	return true
}

// elf wants the loader and the libraries of a program or a library.
func (p *prediction) elf(r io.ReaderAt) {
	defer func() {
		// debug/elf is not meant for hostile files, and these come from anybody.
		_ = recover()
	}()
	e, err := elf.NewFile(r)
	if err != nil {
		return
	}
	for _, prog := range e.Progs {
		if prog.Type == elf.PT_INTERP && prog.Filesz < 4096 {
			name := make([]byte, prog.Filesz)
			if _, err := prog.ReadAt(name, 0); err == nil {
				p.file(string(bytes.TrimRight(name, "\x00")))
			}
		}
	}
	needed, err := e.ImportedLibraries()
	if err != nil {
		return
	}
	for _, name := range needed[:min(len(needed), maxPredicted)] {
		for _, dir := range libraryDirs(e.Machine) {
			if p.file(path.Join(dir, name)) {
				break
			}
		}
	}
}

// libraryDirs is where the dynamic loader looks. What ld.so.conf adds is seldom needed to start.
func libraryDirs(m elf.Machine) []string {
	dirs := []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"}
	switch m {
	case elf.EM_X86_64:
		return append([]string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"}, dirs...)
	case elf.EM_AARCH64:
		return append([]string{"/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu"}, dirs...)
	}
	return dirs
}

// fetchAll makes what is wanted present.
func (p *prediction) fetchAll() {
	if len(p.pieces) == 0 {
		return
	}
	pieces := p.pieces
	p.pieces = nil
	_ = p.cache.PrefetchPieces(p.ctx, pieces) // the program will ask again
}

// peeker reads a cached image without counting as its reader.
type peeker struct{ *cache.File }

func (r peeker) ReadAt(b []byte, off int64) (int, error) { return r.Peek(b, off) }
