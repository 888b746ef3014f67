package image

import (
	"os"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// A Proof is what is known of the plain blob: its digest, once somebody has computed it or imported the blob.
type Proof struct {
	path string // of the file that has it for later lives

	mu  sync.Mutex // guards sum
	sum digest.Digest
}

// Sum returns the digest of the plain blob; "" until it is known.
func (p *Proof) Sum() digest.Digest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sum
}

// Known reports whether the digest of the plain blob is known.
func (p *Proof) Known() bool { return p.Sum() != "" }

// Verified reports whether the plain blob is known to be what a diffID says, from this life or an
// earlier one.
func (p *Proof) Verified(diffID digest.Digest) bool {
	sum := p.Sum()
	return sum != "" && sum == diffID
}

// Remember notes the digest of the plain blob, for later lives, too.
func (p *Proof) Remember(sum digest.Digest) error {
	if err := os.WriteFile(p.path, []byte(sum.String()+"\n"), 0o600); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum = sum
	return nil
}

// load reads what was found earlier. It is called before anybody else has the image.
func (p *Proof) load() {
	b, err := os.ReadFile(p.path)
	if err != nil {
		return // it is not known yet
	}
	if d, err := digest.Parse(strings.TrimSpace(string(b))); err == nil {
		p.sum = d
	}
}
