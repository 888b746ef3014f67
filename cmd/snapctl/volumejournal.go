package main

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/remora-storage/remora/cmd/internal/cli"
	"github.com/remora-storage/remora/cmd/internal/control"
)

const shortJournal = 12 // digits of an id

func journalCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "journal",
		Short: "See, salvage and remove journals on this node",
		Long: `journal is about the files in which this node keeps writes of volumes until their stores have them. While a volume is
attached its journal needs no care. One is left behind when another node takes the volume, when a volume is given up with
--abandon-to-journal, or when it is deleted elsewhere.

  snapctl volume journal ls                          which there are, and what only they hold
  snapctl volume journal salvage 5f2a91 --into old   see what one holds, as a volume beside the real one
  snapctl volume journal rm 5f2a91                   when you have what you need`,
	}
	c.AddCommand(journalListCommand(a), journalSalvageCommand(a), journalRemoveCommand(a))
	return c
}

func journalListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the journals on this node and what only they hold",
		Long: `ls lists the journals on this node. HOLDS is what one has that the store did not have when the volume went on without it,
or does not have now: "at most" where that cannot be told. A journal is
  in use    its volume is attached here
  kept      its volume goes on from it when it is attached on this node: attach stores what it holds
  orphan    its volume has gone on without it, or is no more; if it holds nothing, it soon goes by itself
  unknown   its store does not answer, or is not known, or the journal is damaged

With --json it prints journals[] with id, volume, volume_id, store, state, reason, epoch, writes, bytes, at_most, written (when it
last was), file_bytes, file.`,
		Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := ask(a, func(c *control.Client) (*control.JournalsReply, error) { return c.Journals(cmd.Context()) })
			if err != nil {
				return err
			}
			return a.print(reply, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "JOURNAL\tVOLUME\tEPOCH\tHOLDS\tLAST WRITTEN\tSTATE\tSTORE")
				for _, j := range reply.Journals {
					state := j.State
					if j.Reason != "" {
						state += ": " + j.Reason
					}
					fmt.Fprintf(t, "%.*s\t%s\t%d\t%s\t%s\t%s\t%s\n", shortJournal, j.ID, cmp.Or(j.Volume, j.VolumeID), j.Epoch, journalHolds(&j),
						j.Written.Local().Format(time.DateTime), state, j.Store)
				}
				t.Flush()
			})
		},
	}
}

func journalHolds(j *control.Journal) string {
	switch {
	case j.State == "in use":
		return "-"
	case j.Writes == 0:
		return "nothing"
	case j.AtMost:
		return "at most " + size(j.Bytes)
	}
	return size(j.Bytes)
}

func journalSalvageCommand(a *app) *cobra.Command {
	req := control.SalvageJournalRequest{}
	c := &cobra.Command{
		Use:   "salvage JOURNAL --into NAME",
		Short: "Make a read-only volume of what a journal holds",
		Long: `salvage makes a new, read-only volume, in the store of the journal's volume, as that volume was on this node: its last
commit then, and what the journal holds beyond. Mount it beside the volume and copy what you need. Neither the journal nor
the volume is changed, and the volume may be in use elsewhere.

JOURNAL is an id of "journal ls", or its beginning. Where another node has written over blocks since, the store may no longer
say what was there: salvage says how much of the new volume that is, and with --json where (volume.stale[]). A volume that was
deleted has left no more than the journal's blocks. Give --store if the node does not know the store.`,
		Args: exactly(1, "one JOURNAL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.Journal = args[0]; req.Into == "" {
				return cli.Usagef("--into is missing: the name of the new volume")
			}
			if req.Store, err = absStore(req.Store); err != nil {
				return err
			}
			r, err := ask(a, func(c *control.Client) (*control.SalvagedJournal, error) {
				return c.SalvageJournal(cmd.Context(), &req, func(step string) { a.note("%s", step) })
			})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) {
				fmt.Fprintf(w, "writes %d to %d are in journal %.*s, %s of the new volume's data\n", r.FirstWrite, r.LastWrite, shortJournal, r.Journal,
					size(r.JournalBytes))
				printRebuilt(w, r.Volume)
			})
		},
	}
	c.Flags().StringVar(&req.Store, "store", "", "the store: `URL` file:/path or s3://BUCKET/PREFIX?endpoint=URL")
	c.Flags().StringVar(&req.Into, "into", "", "`NAME` of the new volume")
	return c
}

func journalRemoveCommand(a *app) *cobra.Command {
	req := control.RemoveJournalRequest{}
	c := &cobra.Command{
		Use:   "rm JOURNAL",
		Short: "Remove a journal",
		Long: `rm removes a journal whose volume is not attached here. If it may be the only copy of writes, or that cannot be seen
now, rm is refused: salvage it first, or attach its volume here if the journal is kept for it. With --accept-loss it goes
nevertheless. JOURNAL is an id of "journal ls", or its beginning.`,
		Args: exactly(1, "one JOURNAL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Journal = args[0]
			r, err := ask(a, func(c *control.Client) (*control.RemoveJournalReply, error) {
				return c.RemoveJournal(cmd.Context(), &req)
			})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) {
				fmt.Fprintf(w, "journal %.*s of %s removed, %s are free\n", shortJournal, r.Journal.ID, cmp.Or(r.Journal.Volume, r.Journal.VolumeID),
					size(r.Journal.FileSize))
			})
		},
	}
	c.Flags().BoolVar(&req.AcceptLoss, "accept-loss", false, "remove it though it may be the only copy of writes")
	return c
}
