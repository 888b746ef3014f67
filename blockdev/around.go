package blockdev

import "context"

// An Op is a kind of request.
type Op int

// The kinds.
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpTrim
	OpZero
	OpMap
	opCount
)

func (o Op) String() string {
	return [...]string{"read", "write", "flush", "trim", "zero", "map"}[o]
}

// A duty is what a wrapper does around each request. A wrapped device passes on what its callers ask for
// by Syncer, Trimmer, Zeroer and Mapper, but is neither Quick nor Mapped: who went these ways would go
// around the wrapper.
type duty interface {
	// before runs ahead of a request for n bytes. Its error is the request's.
	before(ctx context.Context, op Op, off, n int64) (token int64, err error)
	// after runs behind a request that before let pass, with what it has come to; its error is the
	// request's.
	after(op Op, n, token int64, err error) error
}

// wrap returns d with a duty, a Writer if d is one.
func wrap(d Device, u duty) Device {
	reader := aroundReader{d, u}
	if w, ok := d.(Writer); ok {
		return &aroundWriter{reader, w}
	}
	return &reader
}

type aroundReader struct {
	d Device
	u duty
}

func (a *aroundReader) Size() int64    { return a.d.Size() }
func (a *aroundReader) BlockSize() int { return a.d.BlockSize() }

func (a *aroundReader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	token, err := a.u.before(ctx, OpRead, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	n, err := a.d.ReadAt(ctx, p, off)
	return n, a.u.after(OpRead, int64(n), token, err)
}

func (a *aroundReader) Extents(ctx context.Context, off, n int64, yield func(Extent) bool) error {
	token, err := a.u.before(ctx, OpMap, off, n)
	if err != nil {
		return err
	}
	return a.u.after(OpMap, n, token, Extents(ctx, a.d, off, n, yield))
}

type aroundWriter struct {
	aroundReader
	w Writer
}

func (a *aroundWriter) WriteAt(ctx context.Context, p []byte, off int64) error {
	token, err := a.u.before(ctx, OpWrite, off, int64(len(p)))
	if err != nil {
		return err
	}
	return a.u.after(OpWrite, int64(len(p)), token, a.w.WriteAt(ctx, p, off))
}

func (a *aroundWriter) WriteSync(ctx context.Context, p []byte, off int64) error {
	token, err := a.u.before(ctx, OpWrite, off, int64(len(p)))
	if err != nil {
		return err
	}
	return a.u.after(OpWrite, int64(len(p)), token, WriteSync(ctx, a.w, p, off))
}

func (a *aroundWriter) Flush(ctx context.Context) error {
	token, err := a.u.before(ctx, OpFlush, 0, 0)
	if err != nil {
		return err
	}
	return a.u.after(OpFlush, 0, token, a.w.Flush(ctx))
}

func (a *aroundWriter) Trim(ctx context.Context, off, n int64) error {
	token, err := a.u.before(ctx, OpTrim, off, n)
	if err != nil {
		return err
	}
	return a.u.after(OpTrim, n, token, Trim(ctx, a.w, off, n))
}

func (a *aroundWriter) WriteZeroes(ctx context.Context, off, n int64, how Zeroing) error {
	token, err := a.u.before(ctx, OpZero, off, n)
	if err != nil {
		return err
	}
	return a.u.after(OpZero, n, token, WriteZeroes(ctx, a.w, off, n, how))
}
