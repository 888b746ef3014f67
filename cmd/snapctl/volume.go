package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/control"
	"github.com/remora-storage/remora/volume"
)

func (a *app) volumeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "volume",
		Short: "Manage disks that live in an object store",
		Long: `volume makes disks whose bytes are in an object store, and attaches them to this machine as block devices.

  snapctl volume create --store file:/var/lib/volumes data 10G
  snapctl volume mount data /mnt
  snapctl volume umount data

A store is a directory of this machine, file:/path, or a bucket, s3://BUCKET/PREFIX?endpoint=URL, whose server must have
conditional writes. Credentials of buckets are remorad's: its environment, ~/.aws/credentials or [volume] credentials.
Without --store a volume is looked for where this node has created or attached it, else in [volume] store. A name that volumes
of several stores have is refused, and the error lists them. A store is the same by each of its URLs.

A volume's class says when a flush (fsync) returns, and so what can be lost:
  remote        when the store has everything: nothing flushed is ever lost
  local         when this machine's disk has it: a power cut loses nothing. If the machine is lost, you lose the writes
                that the store lacks, never older than --max-age while the store can be reached
  writethrough  as remote, for every single write

A volume is attached to one machine at a time. Another one that attaches it waits until the lease of the first has
run out, and what the first writes then is refused.`,
	}
	c.AddCommand(a.volumeInitCommand(), a.volumeCreateCommand(), a.volumeListCommand(), a.volumeInspectCommand(),
		a.volumeAttachCommand(), a.volumeDetachCommand(), a.volumeMountCommand(), a.volumeUmountCommand(),
		a.volumeResizeCommand(), a.volumeRemoveCommand(), a.volumeFsckCommand(), a.volumeBenchCommand(), a.volumeProbeCommand(),
		journalCommand(a), drainCommand(a))
	return c
}

// storeFlag is on every command that names a volume.
func storeFlag(c *cobra.Command, req *control.VolumeRequest) {
	c.Flags().StringVar(&req.Store, "store", "", "the volume's store: `URL` file:/path or s3://BUCKET/PREFIX?endpoint=URL")
}

// absStore makes a relative path of a store absolute, as the caller sees it, and refuses what is no store's URL.
func absStore(url string) (string, error) {
	kind, path, _ := strings.Cut(url, ":")
	switch {
	case url == "" || kind == "s3":
		return url, nil
	case kind == "file" && path != "":
		path, err := filepath.Abs(path)
		return "file:" + path, err
	case kind == url && kind != "file": // no URL at all
		return "", cli.Usagef("store %q: want file:/path or s3://BUCKET/PREFIX?endpoint=URL; for a directory file:%s", url, url)
	}
	return "", cli.Usagef("store %q: want file:/path or s3://BUCKET/PREFIX?endpoint=URL", url)
}

// parseSize reads a size, which may have a fraction, and makes whole blocks of it.
func parseSize(s string) (int64, error) {
	n, err := units.RAMInBytes(s)
	if err != nil || n <= 0 || n > volume.MaxSize {
		return 0, cli.Usagef("size %q: want for example 10G", s)
	}
	return (n + volume.Block - 1) / volume.Block * volume.Block, nil
}

func (a *app) volumeInitCommand() *cobra.Command {
	req := control.InitStoreRequest{}
	c := &cobra.Command{
		Use:   "init STORE",
		Short: "Test a store and prepare it for volumes",
		Long: `init races conditional writes against a store, and refuses one that lets two writers win: volumes there would not
be safe. A store that was prepared already stays as it is. "create" does this by itself where it is needed.`,
		Args: exactly(1, "one STORE"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.tryStore(cmd.Context(), req, args[0]) },
	}
	return c
}

func (a *app) volumeProbeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "probe STORE",
		Short: "Test whether a store is safe for volumes",
		Long:  `probe does what init does, without preparing the store. It deletes what it has stored.`,
		Args:  exactly(1, "one STORE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.tryStore(cmd.Context(), control.InitStoreRequest{Probe: true}, args[0])
		},
	}
}

func (a *app) tryStore(ctx context.Context, req control.InitStoreRequest, url string) (err error) {
	if req.Store, err = absStore(url); err != nil {
		return err
	}
	reply, err := ask(a, func(c *control.Client) (*control.InitStoreReply, error) {
		return c.InitStore(ctx, &req, func(step string) { a.note("%s", step) })
	})
	if err != nil {
		return err
	}
	return a.print(reply, func(w io.Writer) {
		switch {
		case req.Probe:
			fmt.Fprintf(w, "%s keeps what volumes need\n", reply.Store)
		case reply.Made:
			fmt.Fprintf(w, "%s is ready for volumes\n", reply.Store)
		default:
			fmt.Fprintf(w, "%s was ready for volumes already\n", reply.Store)
		}
		printWarnings(w, reply.Warnings)
	})
}

func printWarnings(w io.Writer, all []string) {
	for _, s := range all {
		fmt.Fprintf(w, "  warning: %s\n", s)
	}
}

func (a *app) volumeCreateCommand() *cobra.Command {
	req := control.CreateVolumeRequest{}
	c := &cobra.Command{
		Use:   "create NAME SIZE",
		Short: "Make a volume",
		Long: `create makes an empty volume. It takes no room in the store until it is written to. A store that was never prepared
for volumes is tried and prepared. Creating a volume that exists as it is asked for is no error.

  snapctl volume create --store s3://bucket/volumes?endpoint=https://s3.example.com data 100G
  snapctl volume create --class local scratch 20G`,
		Args: exactly(2, "a NAME and a SIZE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			if req.Size, err = parseSize(args[1]); err != nil {
				return err
			}
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			if req.MaxAge < 0 || req.MaxAge%time.Second != 0 {
				return cli.Usagef("--max-age %s: want whole seconds", req.MaxAge)
			}
			reply, err := ask(a, func(c *control.Client) (*control.CreateVolumeReply, error) {
				return c.CreateVolume(cmd.Context(), &req)
			})
			if err != nil {
				return err
			}
			return a.print(reply, func(w io.Writer) {
				what := "created"
				if !reply.Made {
					what = "exists"
				}
				fmt.Fprintf(w, "%s %s: %s, class %s, in %s\n", reply.Name, what, size(reply.Size), reply.Class, reply.Store)
				printWarnings(w, reply.Warnings)
			})
		},
	}
	storeFlag(c, &req.VolumeRequest)
	c.Flags().StringVar(&req.Class, "class", "remote", "`when` a flush returns: remote, local or writethrough")
	c.Flags().DurationVar(&req.MaxAge, "max-age", 5*time.Second, "`age` at which writes are stored even without a flush")
	return c
}

func (a *app) volumeListCommand() *cobra.Command {
	req := control.VolumesRequest{}
	c := &cobra.Command{
		Use:   "ls",
		Short: "List volumes",
		Long: `ls lists the volumes of a store, or of all stores that this node has used. With --json it prints volumes[] with
name, id, store, size_bytes, class, fs, owner (a node's id), here, device.`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			reply, err := ask(a, func(c *control.Client) (*control.VolumesReply, error) { return c.Volumes(cmd.Context(), &req) })
			if err != nil {
				return err
			}
			return a.print(reply, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "NAME\tSIZE\tCLASS\tFS\tATTACHED\tSTORE")
				for _, v := range reply.Volumes {
					if v.Error != "" {
						fmt.Fprintf(t, "%s\t\t\t\t%s\t%s\n", v.Name, v.Error, v.Store)
						continue
					}
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, size(v.Size), v.Class, v.FS, whereAttached(&v), v.Store)
				}
				t.Flush()
				if n := reply.Strays; n > 0 {
					fmt.Fprintf(w, "%d journals on this node are of no volume that is attached here: snapctl volume journal ls\n", n)
				}
			})
		},
	}
	c.Flags().StringVar(&req.Store, "store", "", "the store: `URL` file:/path or s3://BUCKET/PREFIX?endpoint=URL")
	return c
}

func whereAttached(v *control.Volume) string {
	switch {
	case v.Failed != "":
		return "FAILED: " + v.Failed
	case v.State != "" && v.State != "absent" && v.State != "attached":
		return strings.TrimSpace(v.State + " " + v.Device)
	case v.Device != "":
		return v.Device
	case v.Here:
		return "this node, no device"
	case v.Owner != "":
		return "node " + v.Owner
	}
	return "no"
}

func (a *app) volumeInspectCommand() *cobra.Command {
	req := control.VolumeRequest{}
	c := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show everything about a volume",
		Long: `inspect tells what a volume is, what it takes in its store and, on the node that it is attached to, how much of what
was written the store does not have yet (at risk with this node), since when, and what waits for what.`,
		Args: exactly(1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			d, err := ask(a, func(c *control.Client) (*control.VolumeDetails, error) { return c.InspectVolume(cmd.Context(), &req) })
			if err != nil {
				return err
			}
			return a.print(d, func(w io.Writer) { printVolume(w, d) })
		},
	}
	storeFlag(c, &req)
	return c
}

func printVolume(w io.Writer, d *control.VolumeDetails) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", key, fmt.Sprintf(format, args...)) }
	line("name", "%s (%s)", d.Name, d.ID)
	line("store", "%s", d.Store)
	if d.StoreError == "" {
		line("size", "%s, %s stored in %d objects", size(d.Size), size(d.StoredBytes), d.StoredObjects)
	} else {
		line("size", "%s", size(d.Size))
		line("store says", "%s", d.StoreError)
	}
	class := d.Class
	if d.ReadOnly {
		class += ", read-only"
	}
	line("class", "%s", class)
	if d.FS != "" {
		line("file system", "%s", d.FS)
	}
	line("attached", "%s", whereAttached(&d.Volume))
	if d.Journal != "" {
		line("journal", "%s", d.Journal)
	}
	if d.JournalBytes > 0 {
		if d.AtRiskSeconds > 0 { // what was trimmed has no bytes
			line("at risk", "%s, the oldest change %.1f s old", size(d.AtRiskBytes), d.AtRiskSeconds)
		} else {
			line("at risk", "nothing")
		}
		line("journal used", "%s of %s", size(d.JournalUsed), size(d.JournalBytes))
		line("lease", "certain for %.1f s", d.LeaseSeconds)
		line("since attached", "%s written, %s read, %d flushes, %d commits", size(d.Written), size(d.Read), d.Flushes, d.Commits)
		line("uploaded", "%s of data, %s of map", size(d.Uploaded), size(d.MapBytes))
		r := d.Requests
		line("requests", "%d get, %d put, %d delete, %d list, %d failed; %s received, %s sent; %d for the lease", r.Get, r.Put, r.Delete, r.List,
			r.Failed, size(r.Received), size(r.Sent), r.Lease)
	}
	for _, e := range d.Events {
		line(e.What, "%s: %s", e.Time.Local().Format(time.DateTime), e.Detail)
	}
	switch d.Throttled {
	case volume.ThrottleJournal:
		line("writes wait", "the journal is full of what the store does not have yet")
	case volume.ThrottleStore:
		line("writes wait", "the store is behind")
	}
	for _, wait := range d.Waits {
		line("waits", "%s, for %.0f s: %s", wait.What, wait.Seconds, wait.Reason)
	}
	t.Flush()
}

func (a *app) volumeRemoveCommand() *cobra.Command {
	req := control.RemoveVolumeRequest{}
	c := &cobra.Command{
		Use:   "rm NAME",
		Short: "Delete a volume and everything in it",
		Long: `rm deletes a volume that is not attached anywhere. There is no way back. With --dry-run it says what would be
deleted. A volume that does not exist is no error.`,
		Args: exactly(1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			reply, err := ask(a, func(c *control.Client) (*control.RemoveVolumeReply, error) {
				return c.RemoveVolume(cmd.Context(), &req)
			})
			if err != nil {
				return err
			}
			return a.print(reply, func(w io.Writer) {
				switch {
				case !reply.Was:
					fmt.Fprintf(w, "there is no volume %s\n", req.Name)
				case req.DryRun:
					fmt.Fprintf(w, "%s: %d objects, %s would be deleted from %s\n", req.Name, reply.Objects, size(reply.Bytes), reply.Store)
				default:
					fmt.Fprintf(w, "%s: %d objects, %s deleted from %s\n", req.Name, reply.Objects, size(reply.Bytes), reply.Store)
				}
			})
		},
	}
	storeFlag(c, &req.VolumeRequest)
	c.Flags().BoolVar(&req.DryRun, "dry-run", false, "print what would be deleted, and delete nothing")
	return c
}

func (a *app) volumeFsckCommand() *cobra.Command {
	req := control.CheckVolumeRequest{Data: true}
	quick, into := false, ""
	c := &cobra.Command{
		Use:   "fsck NAME",
		Short: "Check everything that belongs to a volume",
		Long: `fsck walks over a volume's map, its log and every block in the store, and compares all checksums and counts. It changes
nothing, and the volume may be in use. It exits with 1 if something is wrong. It knows nothing of the file system
inside: that is for e2fsck and the like.

With --repair a map that cannot be read is made anew first, from an older one and the log since. The volume must be
detached for that.

Where that is not enough (the head is lost, or parts of the log), --rebuild-into makes a new volume under another name of
what is left, which is read-only, and reports which parts of it may be older than they should be. The damaged one stays
as it is. If its name is lost too, give its id, a directory under v/ in the store, instead. With --json: map_segment,
missing, stale[] and lost[] with offset and length in bytes.`,
		Args: exactly(1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Name, req.Data = args[0], !quick
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			if into != "" {
				return a.rebuildVolume(cmd.Context(), control.RebuildVolumeRequest{VolumeRequest: req.VolumeRequest, Into: into})
			}
			r, err := ask(a, func(c *control.Client) (*control.VolumeReport, error) {
				return c.CheckVolume(cmd.Context(), &req, func(step string) { a.note("%s", step) })
			})
			if err != nil {
				return err
			}
			if err := a.print(r, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %d segments, %d map nodes, %d extents, %s in the map, %s read; %d unused objects of %s\n",
					r.Name, r.Segments, r.Nodes, r.Extents, size(r.MappedBytes), size(r.ReadBytes), r.UnusedObjects, size(r.UnusedBytes))
				if r.Repaired != "" {
					fmt.Fprintf(w, "  repaired: %s\n", r.Repaired)
				}
				for _, p := range r.Problems {
					fmt.Fprintf(w, "  %s\n", p)
				}
			}); err != nil {
				return err
			}
			if n := len(r.Problems); n > 0 {
				return fmt.Errorf("%s: %d problems", r.Name, n)
			}
			return nil
		},
	}
	storeFlag(c, &req.VolumeRequest)
	c.Flags().BoolVar(&req.Repair, "repair", false, "make a new map if it cannot be read")
	c.Flags().BoolVar(&quick, "quick", false, "do not read the blocks")
	c.Flags().StringVar(&into, "rebuild-into", "", "make a new, read-only volume called `NAME` from what is left")
	c.MarkFlagsMutuallyExclusive("repair", "rebuild-into")
	c.MarkFlagsMutuallyExclusive("quick", "rebuild-into")
	return c
}

func (a *app) rebuildVolume(ctx context.Context, req control.RebuildVolumeRequest) error {
	r, err := ask(a, func(c *control.Client) (*volume.Rebuilt, error) {
		return c.RebuildVolume(ctx, &req, func(step string) { a.note("%s", step) })
	})
	if err != nil {
		return err
	}
	return a.print(r, func(w io.Writer) { printRebuilt(w, r) })
}

func printRebuilt(w io.Writer, r *volume.Rebuilt) {
	guessed := ""
	if r.Guessed {
		guessed = " (a guess: the end of the last block that is known)"
	}
	fmt.Fprintf(w, "%s: %s%s, %s mapped, read-only\n", r.Name, size(r.Size), guessed, size(r.Bytes))
	fmt.Fprintf(w, "  made of %s", r.Base())
	if r.Ignored > 0 {
		fmt.Fprintf(w, "; %d others never counted, or cannot be read", r.Ignored)
	}
	fmt.Fprintln(w)
	for _, p := range r.Problems {
		fmt.Fprintf(w, "  damaged: %s\n", p)
	}
	if r.Missing > 0 {
		fmt.Fprintf(w, "  %d segments are not there: deleted with everything in them, or lost. What only those held is missing\n", r.Missing)
	}
	for _, part := range []struct {
		what   string
		ranges []volume.Range
	}{{"may be older than it should be", r.Stale}, {"could not be read, and is zeros", r.Lost}} {
		n := int64(0)
		for _, x := range part.ranges {
			n += x.Len
		}
		if n > 0 {
			fmt.Fprintf(w, "  %s in %d places %s; --json names them\n", size(n), len(part.ranges), part.what)
		}
	}
	if r.Missing == 0 && len(r.Lost) == 0 {
		fmt.Fprintln(w, "  nothing is in doubt up to the last segment that is there")
	}
}
