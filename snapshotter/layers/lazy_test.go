package layers

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

func TestWhichLayersAreLazy(t *testing.T) {
	toc := digest.FromString("toc").String()
	gzip := ocispec.MediaTypeImageLayerGzip
	for name, c := range map[string]struct {
		mediaType   string
		annotations map[string]string
		urls        []string
		trust       Trust
		lazy        bool
	}{
		"eStargz": {gzip, map[string]string{annotation.TOCDigest: toc}, nil, Trust{}, true},
		"Docker's media type": {"application/vnd.docker.image.rootfs.diff.tar.gzip", map[string]string{annotation.TOCDigest: toc},
			nil, Trust{}, true},
		"no index":              {gzip, nil, nil, Trust{}, false},
		"no index, trusted":     {gzip, nil, nil, Trust{Unverified: []string{"reg.test"}}, true},
		"another host trusted":  {gzip, nil, nil, Trust{Unverified: []string{"other.test"}}, false},
		"a digest that is none": {gzip, map[string]string{annotation.TOCDigest: "sha256:12"}, nil, Trust{}, false},
		"two kinds of index": {gzip,
			map[string]string{annotation.TOCDigest: toc, "io.github.containers.zstd-chunked.manifest-checksum": toc}, nil,
			Trust{Unverified: []string{"reg.test"}}, false},
		"zstd":    {ocispec.MediaTypeImageLayerZstd, map[string]string{annotation.TOCDigest: toc}, nil, Trust{}, false},
		"foreign": {gzip, map[string]string{annotation.TOCDigest: toc}, []string{"https://elsewhere.test/"}, Trust{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := Source{Repo: registry.Repository{Host: "reg.test", Path: "app"}, Descriptor: ocispec.Descriptor{
				MediaType: c.mediaType, Digest: digest.FromString("x"), Size: 100, Annotations: c.annotations, URLs: c.urls,
			}}
			_, err := (&promises{&Options{Trust: c.trust, Formats: imagetest.Formats}}).indexOf(&s)
			if (err == nil) != c.lazy || err != nil && !errors.Is(err, ErrNotLazy) {
				t.Errorf("got %v, want lazy %v", err, c.lazy)
			}
		})
	}
}

// TestVouchers: what vouches for a layer has the names that images in caches have been given by it.
func TestVouchers(t *testing.T) {
	sum := digest.FromString("toc")
	chunked := map[string]string{
		"io.github.containers.zstd-chunked.manifest-checksum": sum.String(),
		"io.github.containers.zstd-chunked.manifest-position": "100:20:300:1",
	}
	for name, c := range map[string]struct {
		mediaType   string
		annotations map[string]string
		want        string
	}{
		"eStargz": {ocispec.MediaTypeImageLayerGzip, map[string]string{annotation.TOCDigest: sum.String()},
			"estargz " + sum.String() + " {Digest: Off:0 Packed:0 Plain:0}"},
		"zstd:chunked": {ocispec.MediaTypeImageLayerZstd, chunked,
			"zstdchunked  {Digest:" + sum.String() + " Off:100 Packed:20 Plain:300}"},
		"nobody":     {ocispec.MediaTypeImageLayerGzip, nil, "estargz of reg.test/app"},
		"the digest": {ocispec.MediaTypeImageLayer, nil, "whole"},
	} {
		t.Run(name, func(t *testing.T) {
			s := Source{Repo: registry.Repository{Host: "reg.test", Path: "app"}, Descriptor: ocispec.Descriptor{
				MediaType: c.mediaType, Digest: digest.FromString("x"), Size: 100, Annotations: c.annotations,
			}}
			l := newOf(t, imagetest.NewOrigin(t), Options{Trust: Trust{Unverified: []string{"reg.test"}}})
			p, err := l.promiseOf(&s)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.vouchedBy(&s); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}
