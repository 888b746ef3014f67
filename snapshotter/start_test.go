package snapshotter

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/fs/convert"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// settled returns when an image's first start is over.
func (b *bed) settled(im *image) {
	b.t.Helper()
	eventually(b.t, "the start is over", func() bool {
		img := layers.Image{Repo: b.repo(im), Target: im.Target}
		return !b.starts.Starting(img.ID())
	})
}

// prefetched pulls an image, waits for the end of its start, and fails the test unless some files are here then and
// others are not.
func (b *bed) prefetched(im *image, here map[string][]byte, missing ...string) {
	b.t.Helper()
	mounts := b.run("container", b.pull(im))
	b.settled(im)
	b.origin.Answer("/blobs/", http.StatusForbidden)
	for path, body := range here {
		b.sees(mounts, path, body)
	}
	for _, path := range missing {
		if _, err := b.look(mounts, path); err == nil {
			b.t.Errorf("%s is here, too", path)
		}
	}
}

// wanted is a file that a start needs, beside one that it does not.
func wanted(t *testing.T, make func(testing.TB, ...member) layer) (layer, []byte) {
	t.Helper()
	body := noise(1, 1<<20)
	return make(t, file("first", noise(2, 1<<20)), file("wanted", body), file("last", noise(3, 1<<20))), body
}

// TestStartByProfile: what a profile names is here before anybody reads it, and nothing else; whether the profile was
// recorded here, of this image or of another of its repository, or is published.
func TestStartByProfile(t *testing.T) {
	for _, f := range formats[:2] {
		l, body := wanted(t, f.make)
		im := newImage(t, "app", nil, l)
		other := newImage(t, "app", []string{"/other"}, l)
		for name, add := range map[string]func(*bed, *profile.Profile){
			"of this node":     func(b *bed, p *profile.Profile) { b.addProfile(im, p) },
			"of another build": func(b *bed, p *profile.Profile) { b.addProfile(other, p) },
			"published": func(b *bed, p *profile.Profile) {
				data, err := p.Encode()
				if err != nil {
					t.Fatal(err)
				}
				publish(t, b.origin, im, profile.Artifact, data)
			},
		} {
			t.Run(f.name+", "+name, func(t *testing.T) {
				b := newBed(t, newOrigin(t, im), nil)
				add(b, profile.New(im.Target.Digest, b.repo(im).String(), []profile.Entry{entry("/wanted", body)}))
				b.prefetched(im, map[string][]byte{"wanted": body}, "first", "last")
			})
		}
	}
}

func (b *bed) addProfile(im *image, p *profile.Profile) {
	b.t.Helper()
	if _, err := b.AddProfile(im.Target.Digest, p); err != nil {
		b.t.Fatal(err)
	}
}

// TestStaleProfile: a profile of which nothing fits the image is of no use, nor is one that is damaged; what the entrypoint
// needs is fetched.
func TestStaleProfile(t *testing.T) {
	l, body := wanted(t, estargzLayer)
	im := newImage(t, "app", []string{"/wanted"}, l)
	t.Run("another image's", func(t *testing.T) {
		b := newBed(t, newOrigin(t, im), nil)
		b.addProfile(im, profile.New(im.Target.Digest, "r", []profile.Entry{entry("/gone", []byte("gone"))}))
		b.prefetched(im, map[string][]byte{"wanted": body}, "first", "last")
	})
	t.Run("damaged", func(t *testing.T) {
		o := newOrigin(t, im)
		publish(t, o, im, profile.Artifact, []byte("hello"))
		newBed(t, o, nil).prefetched(im, map[string][]byte{"wanted": body}, "first", "last")
	})
}

// TestStartByLandmark: what a layer's author puts first is here before anybody reads it, and it begins to come before
// the index does.
func TestStartByLandmark(t *testing.T) {
	for _, f := range convert.Formats {
		t.Run(string(f), func(t *testing.T) {
			l, body := wanted(t, func(t testing.TB, members ...member) layer {
				return converted(t, convert.Options{Format: f, First: []string{"wanted"}}, members...)
			})
			if l.Desc.Annotations[annotation.StartSize] == "" {
				t.Fatal("the layer does not say how much a start needs")
			}
			im := newImage(t, "app", nil, l)
			b := newBed(t, newOrigin(t, im), nil)
			b.prefetched(im, map[string][]byte{"wanted": body}, "first")
			if from := b.origin.AskedFrom(l); from != 0 {
				t.Errorf("the blob was asked for from %d", from)
			}
		})
	}
}

// TestStartOfProgram: without a profile, the file that the entrypoint names is fetched, what a script is run by, the
// loader and the libraries, through links and layers.
func TestStartOfProgram(t *testing.T) {
	pad := func(seed uint64, head []byte) []byte { return append(head, noise(seed, 200_000)...) }
	loader, lib := noise(1, 200_000), pad(2, program64("", "libdeep.so"))
	deep, env := noise(3, 200_000), pad(4, program64("/lib64/ld.so", "libc.so"))
	script := []byte("#!/usr/bin/env -S interp\necho\n")
	interp := noise(5, 200_000)
	low := estargzLayer(t, dir("usr", 0o755), link("lib64", "usr/lib64"), dir("usr/lib64", 0o755), file("usr/lib64/ld-1.so", loader),
		link("usr/lib64/ld.so", "ld-1.so"), file("usr/lib64/libc.so", lib), file("usr/lib64/libdeep.so", deep), file("other", noise(6, 1<<20)))
	top := estargzLayer(t, dir("usr", 0o755), dir("usr/bin", 0o755), program("usr/bin/env", env), dir("opt", 0o755),
		program("opt/interp", interp), program("opt/run", script), file("zz", noise(7, 1<<20)))
	config := ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"run"}, Env: []string{"PATH=/nowhere:/opt"}}}
	config.RootFS.DiffIDs = []digest.Digest{low.DiffID, top.DiffID}
	im := imageOf(t, "app", config, low, top)
	b := newBed(t, newOrigin(t, im), nil)
	b.prefetched(im, map[string][]byte{
		"opt/run": script, "usr/bin/env": env, "opt/interp": interp, "usr/lib64/ld-1.so": loader, "usr/lib64/libc.so": lib,
		"usr/lib64/libdeep.so": deep,
	}, "other", "zz")
}

// program64 is a program of 64 bits, as far as its loader and libraries are concerned.
func program64(interp string, libs ...string) []byte {
	names := []byte{0}
	var dynamic []uint64
	for _, l := range libs {
		dynamic = append(dynamic, uint64(elf.DT_NEEDED), uint64(len(names)))
		names = append(append(names, l...), 0)
	}
	dynamic = append(dynamic, uint64(elf.DT_NULL), 0)
	const head, phdr, shdr = 64, 56, 64
	interpAt := uint64(head + phdr)
	dynAt := interpAt + uint64(len(interp)+1)
	namesAt := dynAt + uint64(8*len(dynamic))
	sections := namesAt + uint64(len(names))
	var out bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&out, binary.LittleEndian, v); err != nil {
			panic(err) // constant shapes
		}
	}
	h := elf.Header64{Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: head, Shoff: sections,
		Ehsize: head, Phentsize: phdr, Shentsize: shdr, Shnum: 3, Shstrndx: 2}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	p := elf.Prog64{Type: uint32(elf.PT_NULL)}
	if h.Phnum = 1; interp != "" {
		p = elf.Prog64{Type: uint32(elf.PT_INTERP), Off: interpAt, Filesz: uint64(len(interp) + 1), Memsz: uint64(len(interp) + 1)}
	}
	put(h)
	put(p)
	put(append([]byte(interp), 0))
	put(dynamic)
	put(names)
	put(elf.Section64{})
	put(elf.Section64{Type: uint32(elf.SHT_DYNAMIC), Off: dynAt, Size: uint64(8 * len(dynamic)), Link: 2, Entsize: 16})
	put(elf.Section64{Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(len(names))})
	return out.Bytes()
}
