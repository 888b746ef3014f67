package disks_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// devServe starts "snapctl dev serve" and returns where it serves. It must end well when it is told to.
func devServe(t *testing.T, args ...string) (uri string) {
	t.Helper()
	uri, _ = devServing(t, args...)
	return uri
}

// devServing is devServe, and returns the server's process.
func devServing(t *testing.T, args ...string) (uri string, pid int) {
	t.Helper()
	uri, c := startDevServe(t, nil, args...)
	t.Cleanup(func() {
		testbed.Must(t, c.Process.Signal(syscall.SIGTERM))
		if err := c.Wait(); err != nil {
			t.Errorf("dev serve %v: %v", args, err)
		}
	})
	return uri, c.Process.Pid
}

// startDevServe starts "snapctl dev serve", which the caller has to end.
func startDevServe(t *testing.T, env []string, args ...string) (uri string, c *exec.Cmd) {
	t.Helper()
	c, err := testbed.Command(context.Background(), "snapctl", append([]string{"--json", "dev", "serve"}, args...)...)
	testbed.Must(t, err)
	c.Env = append(c.Env, env...)
	out, err := c.StdoutPipe()
	testbed.Must(t, err)
	c.Stderr = os.Stderr
	testbed.Must(t, c.Start())
	var reply struct {
		URI string `json:"uri"`
	}
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&reply); err != nil {
		t.Fatalf("dev serve %v: %v, %v", args, err, c.Wait())
	}
	return reply.URI, c
}

func sparseFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	testbed.Must(t, os.WriteFile(path, nil, 0o600))
	testbed.Must(t, os.Truncate(path, size))
	return path
}

// nbdTargets are the devices on which every foreign client is tried.
func nbdTargets(t *testing.T, size int64) map[string][]string {
	dir := t.TempDir()
	sock := func(name string) string { return filepath.Join(dir, name) }
	return map[string][]string{
		"memory":      {"--unix", sock("m"), "memory:" + big.NewInt(size).String()},
		"file":        {"--unix", sock("f"), sparseFile(t, size)},
		"direct file": {"--unix", sock("d"), "--direct", sparseFile(t, size)},
		"tcp":         {"--tcp", "127.0.0.1:0", "--export", "a disk", sparseFile(t, size)},
	}
}

// TestForeignClients: what qemu, libnbd and fio do with a device comes out right.
func TestForeignClients(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	const size = 256 << 20
	for name, args := range nbdTargets(t, size) {
		t.Run(name, func(t *testing.T) {
			uri := devServe(t, args...)
			t.Run("nbdinfo", func(t *testing.T) {
				out := testbed.Tool(t, "nbdinfo", "--json", uri)
				for _, want := range []string{`"export-size": 268435456`, `"can_flush": true`, `"can_fua": true`,
					`"can_trim": true`, `"can_zero": true`,
					`"can_fast_zero": true`, `"can_multi_conn": true`, `"can_cache": true`, `"can_df": true`, `"is_read_only": false`, "base:allocation"} {
					if !strings.Contains(out, want) {
						t.Errorf("no %s in %s", want, out)
					}
				}
				testbed.Tool(t, "nbdinfo", "--list", uri)
			})
			t.Run("qemu-io", func(t *testing.T) { qemuIO(t, uri) })
			t.Run("nbdsh", func(t *testing.T) { nbdsh(t, uri) })
			t.Run("nbdcopy", func(t *testing.T) { copies(t, uri, size) })
			t.Run("qemu-img", func(t *testing.T) { qemuImg(t, uri) })
			t.Run("fio", func(t *testing.T) {
				for _, rw := range []string{"randwrite", "randrw"} {
					testbed.Tool(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw="+rw, "--bssplit=4k/60:64k/30:1m/10", "--size=128m",
						"--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--fsync=64", "--end_fsync=1", "--verify_state_save=0", "--randseed=7")
				}
			})
		})
	}
}

func qemuIO(t *testing.T, uri string) {
	out := testbed.Tool(t, "qemu-io", "-f", "raw", uri,
		"-c", "write -P 0x11 0 1M", "-c", "write -z 64k 64k", "-c", "write -z -u 128k 64k", "-c", "discard 256k 128k", "-c", "flush",
		"-c", "write -f -P 0x33 4k 4k", "-c", "aio_write -P 0x44 2M 1M", "-c", "aio_write -P 0x55 3M 1M", "-c", "aio_flush",
		"-c", "read -P 0x11 0 4k", "-c", "read -P 0x33 4k 4k", "-c", "read -P 0x11 8k 56k", "-c", "read -P 0 64k 128k", "-c",
		"read -P 0x11 192k 64k",
		"-c", "read -P 0x11 384k 640k", "-c", "read -P 0x44 2M 1M", "-c", "read -P 0x55 3M 1M")
	if strings.Contains(out, "ailed") {
		t.Error(out)
	}
}

// nbdshPython is the Python for which Debian packages nbdsh: the first one in PATH may be another.
const nbdshPython = "/usr/bin/python3"

// nbdsh tries what no other client sends.
func nbdsh(t *testing.T, uri string) {
	script := `
import errno
def fails(want, call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errnum == want, (e, want)
    else:
        assert False, "no error"
size = h.get_size()
h.pwrite(b"\x77" * 65536, 1 << 20)
h.pwrite(b"\x78" * 4096, (1 << 20) + 4096, nbd.CMD_FLAG_FUA)
assert h.pread(8192, 1 << 20) == b"\x77" * 4096 + b"\x78" * 4096
h.zero(4096, 1 << 20, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, (1 << 20) + 8192, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 1 << 20) == bytes(4096)
try:
    h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO)
except nbd.Error as e:
    assert e.errnum == errno.ENOTSUP, e
h.trim(1 << 20, 8 << 20, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
h.set_strict_mode(0)
fails(errno.EINVAL, h.pread, 4096, size)
fails(errno.ENOSPC, h.pwrite, bytes(4096), size)
fails(errno.EINVAL, h.trim, 4096, size)
got = []
h.pread_structured(1 << 20, 0, lambda buf, off, status, err: got.append((off, len(buf))))
assert sum(n for _, n in got) == 1 << 20, got
h.pread_structured(1 << 20, 0, lambda buf, off, status, err: got.append(off), nbd.CMD_FLAG_DF)
extents = []
h.block_status(32 << 20, 0, lambda c, off, e, err: extents.extend(e))
assert sum(extents[::2]) >= 1 << 20, extents
pending = {}
for i in range(200):
    b = nbd.Buffer.from_bytearray(bytearray([i % 255 + 1]) * 4096)
    pending[h.aio_pwrite(b, (16 << 20) + i * 4096)] = True
while pending:
    h.poll(-1)
    for c in [c for c in pending if h.aio_command_completed(c)]:
        del pending[c]
for i in range(200):
    assert h.pread(4096, (16 << 20) + i * 4096) == bytes([i % 255 + 1]) * 4096
h.shutdown()
`
	testbed.Tool(t, nbdshPython, "-m", "nbd", "-c", "h.set_uri_allow_local_file(True)", "-c",
		"h.add_meta_context('base:allocation')", "-u", uri, "-c", script)
}

func copies(t *testing.T, uri string, size int64) {
	src := sparseFile(t, size)
	f, err := os.OpenFile(src, os.O_WRONLY, 0)
	testbed.Must(t, err)
	p := make([]byte, 3<<20)
	_, err = rand.Read(p)
	testbed.Must(t, err)
	for _, off := range []int64{0, size / 3, size - int64(len(p))} {
		_, err = f.WriteAt(p, off)
		testbed.Must(t, err)
	}
	testbed.Must(t, f.Close())
	dst := filepath.Join(t.TempDir(), "back.img")
	testbed.Tool(t, "nbdcopy", "--flush", src, uri)
	testbed.Tool(t, "nbdcopy", "--connections=4", uri, dst)
	testbed.Tool(t, "cmp", src, dst)
	if out := testbed.Tool(t, "nbdinfo", "--map", uri); !strings.Contains(out, "hole,zero") || !strings.Contains(out, "data") {
		t.Errorf("holes of a copy: %s", out)
	}
}

func qemuImg(t *testing.T, uri string) {
	qcow := filepath.Join(t.TempDir(), "disk.qcow2")
	testbed.Tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, qcow)
	testbed.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, qcow)
	testbed.Tool(t, "qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", qcow, uri)
	testbed.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, qcow)
	testbed.Tool(t, "qemu-img", "bench", "-f", "raw", "-c", "5000", "-d", "16", "-w", "--flush-interval=100", uri)
}

// TestFaultyProxy: a client behind a proxy that delays, fails and ends connections early. The server goes on
// serving others, and the bytes are right.
func TestFaultyProxy(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	const size = 64 << 20
	dir := t.TempDir()
	uri, server := devServing(t, "--unix", filepath.Join(dir, "s"), "memory:64MiB")
	proxy := filepath.Join(dir, "p")
	ctx, stop := context.WithCancel(t.Context())
	c, err := testbed.Command(ctx, "nbdkit", "-f", "-U", proxy, "--filter=retry-request", "--filter=error",
		"--filter=delay", "nbd", "uri="+uri,
		"error-rate=1%", "error=EIO", "rdelay=1ms", "wdelay=2ms", "retry-request-retries=20", "retry-request-delay=1")
	testbed.Must(t, err)
	c.Stderr = os.Stderr
	testbed.Must(t, c.Start())
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	t.Cleanup(func() { stop(); <-ended })
	for {
		if _, err := os.Stat(proxy); err == nil {
			break
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("nbdkit: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	through := "nbd+unix:///?socket=" + proxy
	src := sparseFile(t, size)
	p := make([]byte, 8<<20)
	_, err = rand.Read(p)
	testbed.Must(t, err)
	f, err := os.OpenFile(src, os.O_WRONLY, 0)
	testbed.Must(t, err)
	_, err = f.WriteAt(p, 5<<20)
	testbed.Must(t, errors.Join(err, f.Close()))
	testbed.Tool(t, "nbdcopy", src, through)
	// Clients that are killed in the middle of their requests.
	for range 10 {
		k := exec.Command("fio", "--name=x", "--thread", "--ioengine=nbd", "--uri="+uri, "--rw=randread", "--bs=64k",
			"--size=32m", "--iodepth=32", "--time_based", "--runtime=20")
		before := written(t, server)
		testbed.Must(t, k.Start())
		testbed.WaitFor(t, "answers to its requests", func() bool { return written(t, server) > before+1<<20 })
		testbed.Must(t, k.Process.Kill())
		_ = k.Wait()
	}
	back := filepath.Join(dir, "back")
	testbed.Tool(t, "nbdcopy", uri, back)
	testbed.Tool(t, "cmp", src, back)
}

// written returns how many bytes a process has written by system calls, to sockets too.
func written(t *testing.T, pid int) int64 {
	t.Helper()
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	testbed.Must(t, err)
	_, rest, _ := strings.Cut(string(p), "wchar: ")
	var n int64
	_, err = fmt.Sscan(rest, &n)
	testbed.Must(t, err)
	return n
}

// A CA and what it signs, in files as libnbd wants them.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.key, a.cert = a.make(nil, time.Hour)
	return a
}

func (a *authority) make(parent *authority, valid time.Duration) (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testbed.Must(a.t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	testbed.Must(a.t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "test " + serial.String()},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(valid),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		BasicConstraintsValid: true, IsCA: parent == nil,
	}
	signer, signKey := template, key
	if parent != nil {
		signer, signKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, &key.PublicKey, signKey)
	testbed.Must(a.t, err)
	cert, err := x509.ParseCertificate(der)
	testbed.Must(a.t, err)
	return key, cert
}

// issue writes ca-cert.pem, and NAME-cert.pem and NAME-key.pem valid for so long, to a new directory.
func (a *authority) issue(name string, valid time.Duration) (dir string) {
	dir = a.t.TempDir()
	key, cert := a.make(a, valid)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	testbed.Must(a.t, err)
	write := func(file, kind string, der []byte) {
		testbed.Must(a.t, os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	write("ca-cert.pem", "CERTIFICATE", a.cert.Raw)
	write(name+"-cert.pem", "CERTIFICATE", cert.Raw)
	write(name+"-key.pem", "PRIVATE KEY", der)
	return dir
}

// TestTLS: a client with a good certificate works; others, and those without TLS, are refused.
func TestTLS(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	ca, other := newAuthority(t), newAuthority(t)
	server := ca.issue("server", time.Hour)
	uri := devServe(t, "--tcp", "127.0.0.1:0", "--tls-cert", filepath.Join(server, "server-cert.pem"), "--tls-key",
		filepath.Join(server, "server-key.pem"),
		"--tls-ca", filepath.Join(server, "ca-cert.pem"), sparseFile(t, 64<<20))
	with := func(certs string) string { return uri + "?tls-certificates=" + certs }
	good := ca.issue("client", time.Hour)
	testbed.Tool(t, "nbdinfo", with(good))
	nbdsh(t, with(good))
	copies(t, with(good), 64<<20)
	mixed := other.issue("client", time.Hour) // trusts our server, but is not trusted
	testbed.Must(t, os.Rename(filepath.Join(ca.issue("x", time.Hour), "ca-cert.pem"), filepath.Join(mixed, "ca-cert.pem")))
	for name, uri := range map[string]string{
		"expired": with(ca.issue("client", -time.Hour)), "another authority": with(mixed), "no TLS": strings.Replace(uri, "nbds:", "nbd:", 1),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		// Reading, since a refused certificate shows only then with TLS 1.3.
		out, err := testbed.Output(ctx, nil, nbdshPython, "-m", "nbd", "-c", "h.set_uri_allow_local_file(True)", "-u", uri,
			"-c", "h.pread(512, 0)")
		cancel()
		if err == nil {
			t.Errorf("%s: let in: %s", name, out)
		}
	}
	testbed.Tool(t, "nbdinfo", with(good))
}

// TestDevServeRefuses: mistakes are named, and nothing stays.
func TestDevServeRefuses(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	file := sparseFile(t, 1<<20)
	dir := t.TempDir()
	devServe(t, "--unix", filepath.Join(dir, "s"), file)
	plain := filepath.Join(dir, "plain")
	testbed.Must(t, os.WriteFile(plain, []byte("text"), 0o600))
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"in use":        {[]string{"--unix", filepath.Join(dir, "t"), file}, "in use"},
		"socket in use": {[]string{"--unix", filepath.Join(dir, "s"), "memory:1M"}, "already serves"},
		"no socket":     {[]string{"--unix", plain, "memory:1M"}, "no socket"},
		"no file":       {[]string{"--unix", filepath.Join(dir, "t"), filepath.Join(dir, "none")}, "no such file"},
		"a directory":   {[]string{"--unix", filepath.Join(dir, "t"), dir}, "neither"},
		"no size":       {[]string{"memory:lots"}, "memory:1GiB"},
		"both":          {[]string{"--unix", "x", "--tcp", "y", "memory:1M"}, "choose one"},
		"half of TLS":   {[]string{"--tls-cert", "x", "memory:1M"}, "belong together"},
		"nothing":       {nil, "want one"},
	} {
		_, err := testbed.Output(t.Context(), nil, "snapctl", append([]string{"dev", "serve"}, c.args...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if p, err := os.ReadFile(plain); err != nil || string(p) != "text" {
		t.Errorf("a file in the socket's place: %q, %v", p, err)
	}
}

// TestDevServeLayer: what is mounted of a lazy layer can be read over NBD, and is a file system without a fault. With
// remorad it ends.
func TestDevServeLayer(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	if len(st.Layers) != 3 {
		t.Fatalf("%d layers", len(st.Layers))
	}
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	for _, l := range st.Layers {
		uri, c := startDevServe(t, s.SnapctlEnv(), "--unix", socket, lazy+"@"+l.Digest)
		if info := testbed.Tool(t, "nbdinfo", uri); !strings.Contains(info, "is_read_only: true") {
			t.Errorf("nbdinfo: %s", info)
		}
		image := filepath.Join(t.TempDir(), "layer.erofs")
		testbed.Tool(t, "nbdcopy", uri, image)
		testbed.Tool(t, "fsck.erofs", image)
		testbed.Must(t, c.Process.Signal(syscall.SIGTERM))
		testbed.Must(t, c.Wait())
		if _, err := os.Stat(socket); err == nil {
			t.Error("the socket is left")
		}
	}
	none := "sha256:" + strings.Repeat("0", 64)
	if _, err := s.Snapctl(t.Context(), "dev", "serve", "--unix", socket, lazy+"@"+none); err == nil ||
		!strings.Contains(err.Error(), "no lazy layer of") {
		t.Errorf("a layer that the image has not: %v", err)
	}
	_, c := startDevServe(t, s.SnapctlEnv(), "--unix", socket, lazy+"@"+st.Layers[0].Digest)
	testbed.Must(t, s.StopRemorad(syscall.SIGKILL))
	if err := c.Wait(); err == nil || c.ProcessState.ExitCode() != 1 {
		t.Errorf("remorad was killed, and serve ended with %v", err)
	}
	testbed.Must(t, s.StartRemorad())
}
