package snapshotter

import "github.com/remora-storage/remora/snapshotter/internal/imagetest"

// What tests make images of, by short names.
type (
	image         = imagetest.Image
	layer         = imagetest.Layer
	member        = imagetest.Member
	origin        = imagetest.Origin
	stoppedAnswer = imagetest.StoppedAnswer
)

var (
	converted        = imagetest.Converted
	dir              = imagetest.Dir
	encode           = imagetest.Encode
	estargzLayer     = imagetest.EstargzLayer
	file             = imagetest.File
	gzipLayer        = imagetest.GzipLayer
	imageOf          = imagetest.ImageOf
	indexOf          = imagetest.IndexOf
	large            = imagetest.Large
	link             = imagetest.Link
	logOf            = imagetest.LogOf
	newImage         = imagetest.NewImage
	newOrigin        = imagetest.NewOrigin
	noise            = imagetest.Noise
	program          = imagetest.Program
	publish          = imagetest.Publish
	split            = imagetest.SplitPath
	tarLayer         = imagetest.TarLayer
	waitsForMemory   = imagetest.WaitsForMemory
	zstdChunkedLayer = imagetest.ZstdChunkedLayer
	zstdLayer        = imagetest.ZstdLayer
)
