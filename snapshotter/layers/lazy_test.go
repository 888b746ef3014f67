package layers

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/format/estargz"
	"github.com/remora-storage/remora/remote/registry"
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
		"eStargz": {gzip, map[string]string{estargz.TOCDigest: toc}, nil, Trust{}, true},
		"Docker's media type": {"application/vnd.docker.image.rootfs.diff.tar.gzip", map[string]string{estargz.TOCDigest: toc},
			nil, Trust{}, true},
		"no index":              {gzip, nil, nil, Trust{}, false},
		"no index, trusted":     {gzip, nil, nil, Trust{Unverified: []string{"reg.test"}}, true},
		"another host trusted":  {gzip, nil, nil, Trust{Unverified: []string{"other.test"}}, false},
		"a digest that is none": {gzip, map[string]string{estargz.TOCDigest: "sha256:12"}, nil, Trust{}, false},
		"two kinds of index": {gzip, map[string]string{estargz.TOCDigest: toc, "io.github.containers.zstd-chunked.manifest-checksum": toc}, nil,
			Trust{Unverified: []string{"reg.test"}}, false},
		"zstd":    {ocispec.MediaTypeImageLayerZstd, map[string]string{estargz.TOCDigest: toc}, nil, Trust{}, false},
		"foreign": {gzip, map[string]string{estargz.TOCDigest: toc}, []string{"https://elsewhere.test/"}, Trust{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := Source{Repo: registry.Repository{Host: "reg.test", Path: "app"}, Descriptor: ocispec.Descriptor{
				MediaType: c.mediaType, Digest: digest.FromString("x"), Size: 100, Annotations: c.annotations, URLs: c.urls,
			}}
			_, err := c.trust.indexOf(&s)
			if (err == nil) != c.lazy || err != nil && !errors.Is(err, ErrNotLazy) {
				t.Errorf("got %v, want lazy %v", err, c.lazy)
			}
		})
	}
}
