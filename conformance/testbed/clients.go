package testbed

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// Ctr runs ctr and returns its stdout.
func (s *Stack) Ctr(ctx context.Context, args ...string) (string, error) {
	return Output(ctx, s.ctrEnv(), s.ofContainerd("ctr"), args...)
}

// CtrCommand returns a command that runs ctr.
func (s *Stack) CtrCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	c, err := Command(ctx, s.ofContainerd("ctr"), args...)
	if err != nil {
		return nil, err
	}
	c.Env = append(c.Env, s.ctrEnv()...)
	return c, nil
}

// ctrEnv is how clients of containerd reach the stack's.
func (s *Stack) ctrEnv() []string {
	return []string{"CONTAINERD_ADDRESS=" + s.Socket, "CONTAINERD_NAMESPACE=" + s.Namespace}
}

// Snapctl runs snapctl and returns its stdout.
func (s *Stack) Snapctl(ctx context.Context, args ...string) (string, error) {
	out, err := Output(ctx, s.SnapctlEnv(), cmp.Or(s.snapctl, "snapctl"), args...)
	if err == nil {
		s.stores.note(args)
	}
	return out, err
}

// SnapctlEnv is what snapctl needs in its environment to work with the stack.
func (s *Stack) SnapctlEnv() []string {
	return append(s.ctrEnv(), "REMORA_ADDRESS="+s.Remora, "XDG_CACHE_HOME="+filepath.Join(s.Dir, "snapctl-cache"))
}

// Status is what tests read of `snapctl status --json`, by its documented names.
type Status struct {
	Backend struct{ Name, Reason string }
	Cache   struct{ Bytes, Limit, Pinned int64 }
	Layers  []LayerStatus
	Broken  []struct{ Container, Snapshot, Mounted, Reason string }
	Holder  struct{ PID int }
	Damaged []struct{ File, Aside, Lost, Advice string }
	Waiting []struct {
		PID                                       int
		Command, Container, Image, Digest, Reason string
		Seconds                                   float64
	}
}

// LayerStatus is one of Status.Layers.
type LayerStatus struct {
	Digest       string
	Image        string
	Format       string
	Backend      string
	State        string
	Reason       string
	Verified     bool
	PresentBytes int64 `json:"present_bytes"`
	TotalBytes   int64 `json:"total_bytes"`
	FetchedBytes int64 `json:"fetched_bytes"`
	ReadBytes    int64 `json:"read_bytes"`

	PrefetchedBytes   int64   `json:"prefetched_bytes"`
	PrefetchUsedBytes int64   `json:"prefetch_used_bytes"`
	DemandBytes       int64   `json:"demand_bytes"`
	Waits             int     `json:"waits"`
	WaitSeconds       float64 `json:"wait_seconds"`
}

// Status returns what `snapctl status --json` says.
func (s *Stack) Status(ctx context.Context) (*Status, error) {
	out, err := s.Snapctl(ctx, "--json", "status")
	if err != nil {
		return nil, err
	}
	st := new(Status)
	return st, json.Unmarshal([]byte(out), st)
}

// Ref names an image in the stack's registry.
func (s *Stack) Ref(name string) string { return s.Addr + "/" + name }

// PullOrdinary pulls by containerd alone.
func (s *Stack) PullOrdinary(ctx context.Context, ref, snapshotter string) error {
	_, err := s.Ctr(ctx, "images", "pull", "--local", "--hosts-dir", s.HostsDir, "--snapshotter", snapshotter, ref)
	return err
}

// RunProgram runs a program's container and returns with the line that says that it works. end
// waits for the container's end.
func (s *Stack) RunProgram(ctx context.Context, ref, snapshotter string, p Program) (end func() error, err error) {
	c, err := s.CtrCommand(ctx, append([]string{"run", "--rm", "--snapshotter", snapshotter, ref, p.Name}, p.Args...)...)
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	c.Stderr = &stderr
	if err := c.Start(); err != nil {
		return nil, err
	}
	in := bufio.NewScanner(out)
	for in.Scan() {
		if strings.Contains(in.Text(), p.Want) {
			return func() error {
				_, err := io.Copy(io.Discard, out)
				return errors.Join(err, c.Wait())
			}, nil
		}
	}
	return nil, fmt.Errorf("%s did not print %q: %v\n%s", p.Name, p.Want, c.Wait(), stderr.String())
}

// In returns the same stack to clients of containerd in another namespace of it.
func (s *Stack) In(namespace string) *Stack {
	other := *s
	other.Namespace = namespace
	return &other
}

// Manifest returns the digest of an image's manifest, or of its index, in the registry.
func (s *Stack) Manifest(ctx context.Context, ref string) (digest.Digest, error) {
	repo, err := s.repository(ref)
	if err != nil {
		return "", err
	}
	d, err := repo.Resolve(ctx, repo.Reference.Reference)
	return d.Digest, err
}

// repository is a client of the registry for a repository, or for an image of one.
func (s *Stack) repository(ref string) (*remote.Repository, error) {
	repo, err := remote.NewRepository(ref)
	if err != nil {
		return nil, err
	}
	repo.PlainHTTP = true
	if s.opts.Auth {
		repo.Client = &auth.Client{Credential: auth.StaticCredential(s.Addr, auth.Credential{Username: User, Password: Password})}
	}
	return repo, nil
}

// Push copies an image of an OCI layout into the registry.
func (s *Stack) Push(ctx context.Context, layout, tag, name string) error {
	if err := s.linkBlobs(layout, tag, name); err != nil {
		return fmt.Errorf("push %s: %w", name, err)
	}
	from, err := oci.NewFromFS(ctx, os.DirFS(layout))
	if err != nil {
		return fmt.Errorf("push %s: %w", name, err)
	}
	to, err := s.repository(s.Ref(name))
	if err != nil {
		return fmt.Errorf("push %s: %w", name, err)
	}
	if _, err := oras.Copy(ctx, from, tag, to, to.Reference.Reference, oras.DefaultCopyOptions); err != nil {
		return fmt.Errorf("push %s: %w", name, err)
	}
	return nil
}

const linkFrom = 1 << 20 // bytes of a blob

// linkBlobs gives the registry the large blobs of an image by links in its storage, as its file system driver keeps
// them. A push that finds them there need not send them: the tests push the same few images a hundred times.
func (s *Stack) linkBlobs(layout, tag, name string) error {
	m, err := ManifestOf(layout, tag)
	if err != nil {
		return nil // an index, which is pushed as it is
	}
	repository, _, _ := strings.Cut(name, ":")
	root := filepath.Join(s.registryStorage(), "docker", "registry", "v2")
	for _, l := range m.Layers {
		if l.Size < linkFrom || l.Digest.Validate() != nil {
			continue
		}
		hex := l.Digest.Encoded()
		blob := filepath.Join(root, "blobs", "sha256", hex[:2], hex, "data")
		link := filepath.Join(root, "repositories", repository, "_layers", "sha256", hex, "link")
		for _, file := range []string{blob, link} {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				return err
			}
		}
		err := os.Link(filepath.Join(layout, "blobs", "sha256", hex), blob)
		if errors.Is(err, syscall.EXDEV) {
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := os.WriteFile(link, []byte(l.Digest), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// StopRegistry ends the registry.
func (s *Stack) StopRegistry() error {
	err := s.registry.Stop(syscall.SIGTERM)
	s.registry = nil
	return err
}
