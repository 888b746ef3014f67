package registry_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A hostsBed is one registry behind several listeners: A and B speak plain HTTP, T and U speak TLS with a certificate of the bed's
// authority, and take one of their clients. It notes each request.
type hostsBed struct {
	sites map[string]*httptest.Server
	pems  map[string][]byte // what "@name" stands for in a case's files

	mu    sync.Mutex // guards the fields below
	saw   []string
	fault map[string]int // statuses by site
	odd   func(site string, w http.ResponseWriter, r *http.Request) (handled bool)
}

var (
	bedManifest = []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `"}`)
	bedDigest   = digest.FromBytes(bedManifest)
	bedBlob     = data[:1000]
)

func newHostsBed(t *testing.T) *hostsBed {
	t.Helper()
	b := &hostsBed{sites: map[string]*httptest.Server{}, pems: map[string][]byte{}}
	ca := b.certificate(t, "authority", nil)
	server := b.certificate(t, "server", &ca)
	b.certificate(t, "client", &ca)
	b.certificate(t, "second", &ca)
	b.certificate(t, "other", nil)
	b.pems["both"] = append(slices.Clone(b.pems["client"]), b.pems["client.key"]...)
	for _, name := range []string{"A", "B", "T", "U"} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.serve(name, w, r) }))
		s.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are meant to fail
		if name == "A" || name == "B" {
			s.Start()
		} else {
			s.TLS = &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert}
			s.StartTLS()
		}
		t.Cleanup(s.Close)
		b.sites[name] = s
	}
	return b
}

// certificate makes a certificate and its key, of an authority if there is one.
func (b *hostsBed) certificate(t *testing.T, name string, by *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: by == nil, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	parent, signer := tmpl, any(key)
	if by != nil {
		parent, signer = by.Leaf, by.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b.pems[name] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	b.pems[name+".key"] = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	pair, err := tls.X509KeyPair(b.pems[name], b.pems[name+".key"])
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func (b *hostsBed) serve(site string, w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.saw = append(b.saw, b.describe(site, r))
	status, odd := b.fault[site], b.odd
	b.mu.Unlock()
	switch {
	case odd != nil && odd(site, w, r):
	case status != 0:
		w.WriteHeader(status)
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(bedManifest).String())
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bedManifest))
	default:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bedBlob))
	}
}

// chosen are headers that every client chooses for itself.
var chosen = []string{"Accept", "Accept-Encoding", "Range", "Referer", "User-Agent"}

// describe says what is to be compared of a request.
func (b *hostsBed) describe(site string, r *http.Request) string {
	s := fmt.Sprintf("%s %s", site, r.URL.RequestURI())
	for _, k := range slices.Sorted(maps.Keys(r.Header)) {
		if !slices.Contains(chosen, k) || k == "User-Agent" && strings.HasPrefix(r.UserAgent(), "set ") {
			s += fmt.Sprintf(" %s=%q", k, r.Header[k])
		}
	}
	if r.TLS != nil {
		s += " tls"
		for _, c := range r.TLS.PeerCertificates {
			s += " cert=" + c.Subject.CommonName
		}
	}
	return b.anonymous(s)
}

// anonymous replaces addresses by their sites' names.
func (b *hostsBed) anonymous(s string) string {
	for name, site := range b.sites {
		at := site.Listener.Addr().String()
		s = strings.NewReplacer(at, "{"+name+"}", strings.ReplaceAll(at, ":", "%3A"), "{"+name+"}").Replace(s)
	}
	return s
}

// named replaces sites' names by their addresses: {A} is host:port, {A_} is the name of its directory, and {Aport} is the port.
func (b *hostsBed) named(s string) string {
	for name, site := range b.sites {
		host, port, _ := strings.Cut(site.Listener.Addr().String(), ":")
		s = strings.NewReplacer("{"+name+"}", host+":"+port, "{"+name+"_}", host+"_"+port+"_", "{"+name+"port}", port).Replace(s)
	}
	return s
}

// write writes a case's files, by their paths, into a configuration directory.
func (b *hostsBed) write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(root, b.named(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		p := []byte(b.named(strings.ReplaceAll(content, "{root}", root)))
		if of, ok := strings.CutPrefix(content, "@"); ok {
			p = b.pems[of]
		}
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// during returns what was seen while f ran, and whether f failed.
func (b *hostsBed) during(f func() error) (saw []string, err error) {
	b.mu.Lock()
	b.saw = nil
	b.mu.Unlock()
	err = f()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saw, err
}
