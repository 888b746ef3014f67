package cache

import (
	"context"

	"github.com/remora-storage/remora/cache/fetch"
	"github.com/remora-storage/remora/cache/image"
	"github.com/remora-storage/remora/cache/proof"
)

// The words that callers need of the packages below.
type (
	Name    = image.Name
	Voucher = image.Voucher
	Extent  = image.Extent
	Spec    = image.Spec
	Use     = image.Use
	Part    = image.Part

	Source   = fetch.Source
	Placed   = fetch.Placed
	Shared   = fetch.Shared
	Measured = fetch.Measured
	Policy   = fetch.Policy
	Wait     = fetch.Wait
	Event    = fetch.Event
	Content  = fetch.Content
	Sample   = fetch.Sample
)

// The kinds of Events.
const (
	Fetched = fetch.Fetched
	Waited  = fetch.Waited
)

// Whole vouches for an image whose blob was read from start to end and had the digest.
const Whole = image.Whole

// ByTable is what vouches for an image that is read by the table which by describes.
func ByTable(by string) Voucher { return image.ByTable(by) }

// ParseName returns the name that a file's ID is of.
func ParseName(id string) Name { return image.ParseName(id) }

// AskedBy returns a context of fetches that are made for one of those that share a file, as For makes them.
func AskedBy(ctx context.Context, who any) context.Context { return fetch.AskedBy(ctx, who) }

// DataStart is where an imported image's data begins: behind the most metadata that there can be.
const DataStart = image.DataStart

// What callers act on.
var (
	ErrNotFound = image.ErrNotFound
	ErrNoRoom   = image.ErrNoRoom
	ErrCorrupt  = image.ErrCorrupt
	ErrMissing  = image.ErrMissing
	ErrDiffID   = proof.ErrDiffID
	ErrTooLarge = proof.ErrTooLarge

	ErrNotByParts = fetch.ErrNotByParts
)
