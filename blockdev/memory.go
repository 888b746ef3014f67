package blockdev

import "context"

// bytesDevice is a Device in memory.
type bytesDevice []byte

// Memory returns a Device that holds p, which must not change any more.
func Memory(p []byte) Device { return bytesDevice(p) }

func (d bytesDevice) Size() int64 { return int64(len(d)) }

func (d bytesDevice) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off >= int64(len(d)) {
		return 0, nil
	}
	return copy(p, d[off:]), nil
}
