package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/remote/registry"
)

func (a *app) profileCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "profile",
		Short: "Show, merge and publish what images read when they start",
		Long: `A profile lists the parts of files that an image's program reads when it starts, in order.
remorad fetches them as soon as the image is pulled, before the container exists.

A node keeps the profiles that were recorded on it: by "snapctl record", and of each image's
first starts ([profile] learn). "profile push" publishes one in the registry, beside the image,
where every node finds it; the image itself does not change. Profiles name files by path and
content, so that one serves the next build of the image as well.`,
	}
	c.AddCommand(a.profileShow(), a.profileMerge(), a.profilePush(), a.profilePull(), a.profileRemove())
	return c
}

// isFile tells a profile's file from an image: files have a path that exists.
func isFile(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.Mode().IsRegular()
}

func readProfile(path string) (*profile.Profile, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p, err := profile.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

func (a *app) profileShow() *cobra.Command {
	var all, published bool
	var o pullOptions
	c := &cobra.Command{
		Use:   "show [flags] IMAGE|FILE",
		Short: "Show a profile: of an image on this node, as published, or in a file",
		Args:  exactly(1, "an image or a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.anyProfile(cmd.Context(), args[0], published, o)
			if err != nil {
				return err
			}
			return a.print(p, func(w io.Writer) { showProfile(w, p, all) })
		},
	}
	c.Flags().BoolVar(&all, "all", false, "list every entry instead of the first 40")
	c.Flags().BoolVar(&published, "published", false, "show the one in the registry instead of this node's")
	o.registryFlags(c)
	return c
}

// anyProfile reads a file, this node's profile of an image, or the published one.
func (a *app) anyProfile(ctx context.Context, name string, published bool, o pullOptions) (*profile.Profile, error) {
	if isFile(name) {
		return readProfile(name)
	}
	r, err := a.remoteImage(ctx, name, o)
	if err != nil {
		return nil, err
	}
	if published {
		return r.published(ctx)
	}
	reply, err := ask(a, func(c *control.Client) (*control.ProfileReply, error) {
		return c.Profile(ctx, &control.ProfileRequest{Manifest: r.manifest.Digest})
	})
	if err != nil {
		return nil, err
	}
	if len(reply.Profile) == 0 {
		return nil, fmt.Errorf("this node has no profile of %s; record one with \"snapctl record\", or see --published", r.ref)
	}
	return profile.Decode(reply.Profile)
}

func showProfile(w io.Writer, p *profile.Profile, all bool) {
	fmt.Fprintf(w, "%d runs of %s, the last of %s: %s in %d parts of %d files\n\n", p.Runs, p.Repository, short(p.Image), size(p.Bytes()),
		len(p.Entries), len(p.Paths()))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "AT\tRUNS\tOFFSET\tLENGTH\tPATH")
	for i, e := range p.Entries {
		if i == 40 && !all {
			fmt.Fprintf(t, "\t\t\t\t... and %d more (--all)\n", len(p.Entries)-i)
			break
		}
		fmt.Fprintf(t, "%d ms\t%d\t%d\t%s\t%s\n", e.AtMS, e.Runs, e.Off, size(e.Len), e.Path)
	}
	t.Flush()
}

func (a *app) profileMerge() *cobra.Command {
	return &cobra.Command{
		Use:   "merge OUT IN...",
		Short: "Merge profiles of several runs or nodes into a file",
		Long: `merge writes what several profiles say together to the file OUT: first what most runs read, in
the order of time, then the rest. IN are files, or images whose profile this node keeps.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return exactly(2, "OUT and at least one IN")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var all []*profile.Profile
			for _, name := range args[1:] {
				p, err := a.anyProfile(cmd.Context(), name, false, pullOptions{})
				if err != nil {
					return err
				}
				all = append(all, p)
			}
			merged := profile.Merge(all...)
			data, err := merged.Encode()
			if err != nil {
				return err
			}
			if err := os.WriteFile(args[0], data, 0o644); err != nil {
				return err
			}
			a.note("%s: %d runs, %d entries", args[0], merged.Runs, len(merged.Entries))
			return nil
		},
	}
}

// pushedProfile is what `snapctl profile push --json` prints.
type pushedProfile struct {
	Image  string        `json:"image"`
	Digest digest.Digest `json:"digest"` // of the image's manifest
	Pushed digest.Digest `json:"pushed"` // of the artifact's manifest
	Tag    string        `json:"tag"`
	Runs   int           `json:"runs"`
}

func (a *app) profilePush() *cobra.Command {
	var o pullOptions
	c := &cobra.Command{
		Use:   "push [flags] IMAGE [FILE]",
		Short: "Publish an image's profile in its registry",
		Long: `push publishes a profile beside an image: this node's, or the one in FILE, which may be of an
earlier build. It is an OCI artifact that refers to the image; every node that pulls the image
finds it in the same round trip as the layers' indexes. It replaces what was published before.`,
		Args: between(1, 2, "an image and perhaps a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			from := args[len(args)-1]
			if len(args) == 2 && !isFile(from) {
				return fmt.Errorf("%s: no such file", from)
			}
			p, err := a.anyProfile(cmd.Context(), from, false, o)
			if err != nil {
				return err
			}
			r, err := a.remoteImage(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			result, err := r.publish(cmd.Context(), p)
			if err != nil {
				return fmt.Errorf("publish the profile of %s: %w", r.ref, err)
			}
			return a.print(result, func(w io.Writer) {
				fmt.Fprintf(w, "published the profile of %s@%s, %d runs, as %s\n", r.ref, r.manifest.Digest, p.Runs, result.Tag)
			})
		},
	}
	o.registryFlags(c)
	return c
}

func (a *app) profilePull() *cobra.Command {
	var o pullOptions
	c := &cobra.Command{
		Use:   "pull [flags] IMAGE [FILE]",
		Short: "Fetch an image's published profile, to this node or a file",
		Args:  between(1, 2, "an image and perhaps a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			r, err := a.remoteImage(ctx, args[0], o)
			if err != nil {
				return err
			}
			p, err := r.published(ctx)
			if err != nil {
				return err
			}
			data, err := p.Encode()
			if err != nil {
				return err
			}
			if len(args) == 2 {
				return os.WriteFile(args[1], data, 0o644)
			}
			_, err = ask(a, func(c *control.Client) (*control.ProfileReply, error) {
				return c.AddProfile(ctx, &control.ProfileRequest{Manifest: r.manifest.Digest, Profile: data})
			})
			return err
		},
	}
	o.registryFlags(c)
	return c
}

func (a *app) profileRemove() *cobra.Command {
	return a.artifactRemove("Remove an image's profile from this node", "this node", profile.Artifact,
		func(ctx context.Context, r *remoteImage) error {
			_, err := ask(a, func(c *control.Client) (struct{}, error) {
				return struct{}{}, c.RemoveProfile(ctx, &control.ProfileRequest{Manifest: r.manifest.Digest})
			})
			return err
		})
}

// artifactRemove is the command that removes what an image has beside it: here, or with --published in the
// registry.
func (a *app) artifactRemove(short, here string, kind registry.ArtifactKind,
	remove func(context.Context, *remoteImage) error) *cobra.Command {
	var o pullOptions
	var published bool
	c := &cobra.Command{
		Use:   "rm [flags] IMAGE",
		Short: short,
		Args:  exactly(1, "an image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.remoteImage(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			if published {
				return r.registry.RemoveArtifact(cmd.Context(), r.repo, r.manifest.Digest, kind)
			}
			return remove(cmd.Context(), r)
		},
	}
	c.Flags().BoolVar(&published, "published", false, "from the registry, instead of "+here+" (the registry must allow deletion)")
	o.registryFlags(c)
	return c
}

func between(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return exactly(most, what)(c, args)
		}
		return nil
	}
}

// A remoteImage is an image in a registry, as this machine's platform has it.
type remoteImage struct {
	ref      string
	repo     registry.Repository
	registry *registry.Registry
	manifest ocispec.Descriptor
}

// remoteImage resolves an image in its registry.
func (a *app) remoteImage(ctx context.Context, name string, o pullOptions) (*remoteImage, error) {
	ref, err := normalize(name)
	if err != nil {
		return nil, err
	}
	t, err := a.openRegistry(ctx, ref, o.loginOptions)
	if err != nil {
		return nil, err
	}
	desc, err := t.Resolve(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	r := &remoteImage{ref: ref, repo: t.repo, registry: t.registry}
	r.manifest, err = forThisPlatform(ctx, t, desc)
	return r, err
}

func (r *remoteImage) published(ctx context.Context) (*profile.Profile, error) {
	data, err := r.registry.Artifact(ctx, r.repo, r.manifest.Digest, profile.Artifact, nil)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, fmt.Errorf("no profile of %s is published; see \"snapctl profile push\"", r.ref)
	}
	if err != nil {
		return nil, err
	}
	return profile.Decode(data)
}

// publish pushes a profile beside the image.
func (r *remoteImage) publish(ctx context.Context, p *profile.Profile) (*pushedProfile, error) {
	data, err := p.Encode()
	if err != nil {
		return nil, err
	}
	done, err := r.registry.PushArtifact(ctx, r.repo, r.manifest, profile.Artifact, data)
	if err != nil {
		return nil, err
	}
	return &pushedProfile{Image: r.ref, Digest: r.manifest.Digest, Pushed: done.Digest, Tag: done.Tag, Runs: p.Runs}, nil
}
