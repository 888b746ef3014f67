package blockdev

import "context"

// An Op is a kind of request.
type Op int

// The kinds.
const (
	OpRead Op = iota
	OpWrite
	OpWriteSync
	OpFlush
	OpTrim
	OpZero
	OpMap
	opCount
)

func (o Op) String() string {
	return [...]string{"read", "write", "write_sync", "flush", "trim", "write_zeroes", "map"}[o]
}

// A Duty is what a wrapper does around each request. It is called for many requests at the same time.
type Duty interface {
	// Before runs ahead of a request for n bytes from off. Its error is the request's, which then does not reach the device.
	Before(ctx context.Context, op Op, off, n int64) (token int64, err error)

	// After runs behind a request that Before let pass, with what Before returned and what the request has come to, n bytes
	// and err; the error that it returns is the request's.
	After(op Op, n, token int64, err error) error
}

// Around returns d with a duty, an *AroundWriter if d is a Writer. What is wrapped so passes on what its callers ask for by
// Syncer, Trimmer, Zeroer and Mapper, but is neither Quick nor Mapped: callers that went these ways would go around the
// wrapper.
func Around(d Device, u Duty) Device {
	if w, ok := d.(Writer); ok {
		return NewAroundWriter(w, u)
	}
	return &aroundReader{d, u}
}

type aroundReader struct {
	d Device
	u Duty
}

// Size implements Device.
func (a *aroundReader) Size() int64 { return a.d.Size() }

// BlockSize implements Device.
func (a *aroundReader) BlockSize() int { return a.d.BlockSize() }

// ReadAt implements Device.
func (a *aroundReader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	token, err := a.u.Before(ctx, OpRead, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	n, err := a.d.ReadAt(ctx, p, off)
	return n, a.u.After(OpRead, int64(n), token, err)
}

// Extents implements Mapper.
func (a *aroundReader) Extents(ctx context.Context, off, n int64, yield func(Extent) bool) error {
	token, err := a.u.Before(ctx, OpMap, off, n)
	if err != nil {
		return err
	}
	return a.u.After(OpMap, n, token, Extents(ctx, a.d, off, n, yield))
}

// An AroundWriter is a Writer with a duty.
type AroundWriter struct {
	aroundReader
	w Writer
}

// NewAroundWriter returns w with a duty.
func NewAroundWriter(w Writer, u Duty) *AroundWriter { return &AroundWriter{aroundReader{w, u}, w} }

// WriteAt implements Writer.
func (a *AroundWriter) WriteAt(ctx context.Context, p []byte, off int64) error {
	token, err := a.u.Before(ctx, OpWrite, off, int64(len(p)))
	if err != nil {
		return err
	}
	return a.u.After(OpWrite, int64(len(p)), token, a.w.WriteAt(ctx, p, off))
}

// WriteSync implements Syncer.
func (a *AroundWriter) WriteSync(ctx context.Context, p []byte, off int64) error {
	token, err := a.u.Before(ctx, OpWriteSync, off, int64(len(p)))
	if err != nil {
		return err
	}
	return a.u.After(OpWriteSync, int64(len(p)), token, WriteSync(ctx, a.w, p, off))
}

// Flush implements Writer.
func (a *AroundWriter) Flush(ctx context.Context) error {
	token, err := a.u.Before(ctx, OpFlush, 0, 0)
	if err != nil {
		return err
	}
	return a.u.After(OpFlush, 0, token, a.w.Flush(ctx))
}

// Trim implements Trimmer.
func (a *AroundWriter) Trim(ctx context.Context, off, n int64) error {
	token, err := a.u.Before(ctx, OpTrim, off, n)
	if err != nil {
		return err
	}
	return a.u.After(OpTrim, n, token, Trim(ctx, a.w, off, n))
}

// WriteZeroes implements Zeroer.
func (a *AroundWriter) WriteZeroes(ctx context.Context, off, n int64, how Zeroing) error {
	token, err := a.u.Before(ctx, OpZero, off, n)
	if err != nil {
		return err
	}
	return a.u.After(OpZero, n, token, WriteZeroes(ctx, a.w, off, n, how))
}
