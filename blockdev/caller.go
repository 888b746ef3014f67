package blockdev

import "context"

type callerKey struct{}

// WithCaller returns a context that names the process a request is for, so that a device can say who waits.
func WithCaller(ctx context.Context, pid int) context.Context {
	return context.WithValue(ctx, callerKey{}, pid)
}

// Caller returns the process that a request is for, 0 if nobody named it.
func Caller(ctx context.Context) (pid int) {
	pid, _ = ctx.Value(callerKey{}).(int)
	return pid
}
