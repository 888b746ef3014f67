package cache

import (
	"github.com/remora-storage/remora/cache/fetch"
	"github.com/remora-storage/remora/cache/image"
	"github.com/remora-storage/remora/cache/proof"
)

// The words that callers need of the packages below.
type (
	Extent = image.Extent
	Spec   = image.Spec
	Use    = image.Use

	Source   = fetch.Source
	Placed   = fetch.Placed
	Measured = fetch.Measured
	Policy   = fetch.Policy
	Wait     = fetch.Wait
	Event    = fetch.Event
)

// The kinds of Events.
const (
	Fetched = fetch.Fetched
	Waited  = fetch.Waited
)

// DataStart is where an imported image's data begins: behind the most metadata that there can be.
const DataStart = image.DataStart

// What callers act on.
var (
	ErrNotFound = image.ErrNotFound
	ErrNoRoom   = image.ErrNoRoom
	ErrCorrupt  = image.ErrCorrupt
	ErrMissing  = image.ErrMissing
	ErrDiffID   = proof.ErrDiffID
)
