package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/fs/convert"
	"github.com/remora-storage/remora/fs/profile"
)

type convertOptions struct {
	loginOptions
	format      string
	level       int
	tocFor      string
	chunkSize   string
	platforms   []string
	oci         bool
	jobs        int
	reuse       bool
	profile     string
	prioritize  string
	annotations []string
	dryRun      bool
}

// convertedImage is what `snapctl convert --json` prints. Sizes are packed bytes.
type convertedImage struct {
	Source      string           `json:"source"`
	Destination string           `json:"destination"`
	Digest      digest.Digest    `json:"digest,omitempty"`
	Format      string           `json:"format"`
	DryRun      bool             `json:"dry_run,omitempty"`
	Seconds     float64          `json:"seconds"`
	Before      int64            `json:"bytes_before"`
	After       int64            `json:"bytes_after"`
	Uploaded    int64            `json:"bytes_uploaded"`
	Layers      []convertedLayer `json:"layers"`
}

type convertedLayer struct {
	Platform string        `json:"platform,omitempty"`
	From     digest.Digest `json:"from"`
	To       digest.Digest `json:"to,omitempty"`
	Before   int64         `json:"bytes_before"`
	Bytes    int64         `json:"bytes,omitempty"`
	Plain    int64         `json:"bytes_plain,omitempty"`
	How      string        `json:"how"` // converted, reused, known (from an earlier run)
	Seconds  float64       `json:"seconds"`
}

func (a *app) convertCommand() *cobra.Command {
	var o convertOptions
	c := &cobra.Command{
		Use:   "convert [flags] SRC DST",
		Short: "Convert an image, so that it can be pulled lazily",
		Long: `convert copies an image and makes every layer readable by parts: the same files, with an index
at the end. Nodes without Remora pull the result as an ordinary image.

SRC and DST are, as docker push would write them, references like registry.example.com/app:1, or

  oci:DIR:TAG                 an OCI layout on disk
  docker-archive:FILE[:REF]   what docker save writes and docker load reads
  containerd:REF              an image in containerd, in --namespace

--format estargz is read by parts by Remora and stargz-snapshotter, zstdchunked by Remora and, as
--toc-for says, by Podman, Buildah and Skopeo or by stargz-snapshotter. zstdchunked is faster to
make and to unpack; a node without any of these needs containerd 1.5 or Docker 23 for it.

Put the files first that the program reads at start: record them once with "snapctl record -o
FILE", and give that file with --profile. The profile is published beside the result too, and nodes
prefetch by it. --prioritize takes a list of paths instead, one per line.

Nothing is uploaded that the destination has. Stopped at any moment, convert leaves no half-made
image; run again, it goes on where it stopped. Equal input and options give equal bytes, whatever
the machine and --jobs.`,
		Example: `  snapctl convert docker.io/library/redis:7 registry.example.com/redis:7-lazy
  snapctl convert --format zstdchunked --profile redis.profile redis:7 registry.example.com/redis:7-lazy
  snapctl convert --platform linux/amd64,linux/arm64 oci:build:latest localhost:5000/app:lazy
  snapctl convert --dry-run docker-archive:app.tar registry.example.com/app:1`,
		Args: exactly(2, "a source and a destination"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.convert(cmd.Context(), args[0], args[1], o) },
	}
	f := c.Flags()
	o.loginOptions.flags(c, "registries", "")
	f.StringVar(&o.format, "format", string(convert.Estargz), "`format` of the layers: estargz or zstdchunked")
	f.IntVar(&o.level, "level", 0, "`level` of compression: 1 to 9 for estargz (default 6), 1 to 22 for zstdchunked (default 3)")
	f.StringVar(&o.tocFor, "toc-for", string(convert.ForPodman),
		"whose `generation` of zstdchunked: podman or stargz; Podman refuses what stargz-snapshotter needs")
	f.StringVar(&o.chunkSize, "chunk-size", "1MiB", "`size` of the parts that large files are read in")
	f.StringSliceVar(&o.platforms, "platform", []string{"all"},
		"`platforms` to convert of an image that has several: linux/amd64,linux/arm64 or all; the others are left out")
	f.BoolVar(&o.oci, "oci", false, "give the result OCI's media types where the source has Docker's (zstdchunked always does)")
	f.IntVar(&o.jobs, "jobs", 0, "`processors` to use; 0 for all")
	f.BoolVar(&o.reuse, "reuse", false, "leave layers that are in the format already as they are")
	f.StringVar(&o.profile, "profile", "", "`file` with a profile: what it lists comes first, in its order, and it is published beside the "+
		"result")
	f.StringVar(&o.prioritize, "prioritize", "", "`file` with paths to put first, one per line, in order")
	f.StringArrayVar(&o.annotations, "annotation", nil, "add an annotation to the image, `KEY=VALUE`; may be repeated")
	f.BoolVar(&o.dryRun, "dry-run", false, "print what would be done, and do nothing")
	return c
}

// plan checks the options and reads the files that they name.
func (o *convertOptions) plan() (*converter, error) {
	c := &converter{o: *o, annotations: map[string]string{}}
	c.layer.Format = convert.Format(o.format)
	if !slices.Contains(convert.Formats, c.layer.Format) {
		return nil, cli.Usagef("--format %q: want one of %v", o.format, convert.Formats)
	}
	if least, most, _ := c.layer.Format.Levels(); o.level != 0 && (o.level < least || o.level > most) {
		return nil, cli.Usagef("--level %d: %s has %d to %d", o.level, o.format, least, most)
	}
	c.layer.For = convert.Generation(o.tocFor)
	if c.layer.For != convert.ForPodman && c.layer.For != convert.ForStargz {
		return nil, cli.Usagef("--toc-for %q: want podman or stargz", o.tocFor)
	}
	n, err := units.RAMInBytes(o.chunkSize)
	if err != nil || n < 4<<10 || n > 64<<20 {
		return nil, cli.Usagef("--chunk-size %q: want 4KiB to 64MiB", o.chunkSize)
	}
	if o.jobs < 0 {
		return nil, cli.Usagef("--jobs %d: want at least 1, or 0 for all processors", o.jobs)
	}
	if o.jobs == 0 {
		o.jobs = runtime.NumCPU()
	}
	c.o.jobs = o.jobs
	c.layer.Level, c.layer.ChunkSize, c.layer.Jobs = o.level, int(n), convert.NewJobs(o.jobs)
	for _, kv := range o.annotations {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, cli.Usagef("--annotation %q: want KEY=VALUE", kv)
		}
		c.annotations[k] = v
	}
	if !slices.Contains(o.platforms, "all") {
		for _, name := range o.platforms {
			p, err := platforms.Parse(name)
			if err != nil {
				return nil, cli.Usagef("--platform %q: %w", name, err)
			}
			c.platforms = append(c.platforms, p)
		}
	}
	if o.profile != "" {
		if c.profile, err = readProfile(o.profile); err != nil {
			return nil, fmt.Errorf("--profile: %w", err)
		}
		c.layer.First = c.profile.Paths()
	}
	list, err := readList(o.prioritize)
	if err != nil {
		return nil, err
	}
	for _, path := range list {
		if !slices.Contains(c.layer.First, path) {
			c.layer.First = append(c.layer.First, path)
			c.wanted = append(c.wanted, path)
		}
	}
	return c, nil
}

func (a *app) convert(ctx context.Context, from, to string, o convertOptions) (err error) {
	began := time.Now()
	c, err := o.plan()
	if err != nil {
		return err
	}
	c.app, c.from, c.to = a, from, to
	if c.work, err = workDir(); err != nil {
		return err
	}
	defer func() { c.work.close() }()
	// The library that cuts the layers keeps its files where this says.
	before, was := os.LookupEnv("TMPDIR")
	if err := os.Setenv("TMPDIR", c.work.dir); err != nil {
		return err
	}
	defer func() {
		if was {
			_ = os.Setenv("TMPDIR", before) // it was set so before
		} else {
			_ = os.Unsetenv("TMPDIR")
		}
	}()
	c.layer.Dir = c.work.dir
	if c.src, err = a.openTarget(ctx, from, o, false, c.work.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.src.Close()) }()
	if c.dst, err = a.openTarget(ctx, to, o, true, c.work.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.dst.Close()) }()
	desc, err := c.src.Resolve(ctx, c.src.Name())
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	result := &convertedImage{Source: from, Destination: to, Format: o.format, DryRun: o.dryRun}
	out, err := c.any(ctx, desc, "")
	if err != nil {
		return fmt.Errorf("convert %s: %w", from, err)
	}
	if !o.dryRun {
		if err := c.dst.Tag(ctx, out, c.dst.Name()); err != nil {
			return fmt.Errorf("%s: %w", to, err)
		}
		result.Digest = out.Digest
		if err := c.publishProfiles(ctx); err != nil {
			return err
		}
		for _, path := range c.unfound() {
			a.note("warning: %s is in no layer of %s", path, from)
		}
	}
	result.Layers, result.Uploaded = c.done, c.uploaded.Load()
	for _, l := range result.Layers {
		result.Before += l.Before
		result.After += l.Bytes
	}
	result.Seconds = time.Since(began).Seconds()
	return a.print(result, result.human)
}

// publishProfiles gives every image that was made the profile that it was made by.
func (c *converter) publishProfiles(ctx context.Context) error {
	r, ok := c.dst.(*registryTarget)
	if c.profile == nil || !ok {
		return nil
	}
	for _, m := range c.manifests {
		p := profile.Merge(c.profile)
		p.Image, p.Repository = m.Digest, r.repo.String()
		image := &remoteImage{ref: r.ref, repo: r.repo, registry: r.registry, manifest: m}
		if _, err := image.publish(ctx, p); err != nil {
			return fmt.Errorf("publish the profile of %s: %w", c.to, err)
		}
	}
	return nil
}

func readList(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--prioritize: %w", err)
	}
	defer f.Close()
	var list []string
	in := bufio.NewScanner(f)
	for in.Scan() {
		if line := strings.TrimSpace(in.Text()); line != "" && !strings.HasPrefix(line, "#") {
			list = append(list, line)
		}
	}
	return list, in.Err()
}

func (r *convertedImage) human(w io.Writer) {
	if r.DryRun {
		for _, l := range r.Layers {
			fmt.Fprintf(w, "%s  %10s  would be %s\n", short(l.From), size(l.Before), l.How)
		}
		fmt.Fprintf(w, "%s would become %s: %d layers, %s\n", r.Source, r.Destination, len(r.Layers), size(r.Before))
		return
	}
	ratio := 1.0
	if r.Before > 0 {
		ratio = float64(r.After) / float64(r.Before)
	}
	fmt.Fprintf(w, "%s is %s@%s: %d layers, %s before, %s now (%.2f), %s uploaded, %.2f s\n", r.Source, r.Destination, r.Digest,
		len(r.Layers), size(r.Before), size(r.After), ratio, size(r.Uploaded), r.Seconds)
}

func platformName(p *ocispec.Platform) string {
	if p == nil {
		return ""
	}
	return platforms.Format(*p)
}
