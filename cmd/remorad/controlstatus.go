package main

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remora-storage/remora/blockdev/disk"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

// codesOf has what a program can tell errors apart by. cmd/control/v1/node.proto says what the codes mean.
var codesOf = []struct {
	err  error
	code codes.Code
}{
	{errNoStore, codes.InvalidArgument},
	{profile.ErrInvalid, codes.InvalidArgument},
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{volume.ErrNotFound, codes.NotFound},
	{errUnknownName, codes.NotFound},
	{registry.ErrNotFound, codes.NotFound},
	{errdefs.ErrNotFound, codes.NotFound},
	{volume.ErrNameTaken, codes.AlreadyExists},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{host.ErrNotAttached, codes.FailedPrecondition},
	{host.ErrJournalInUse, codes.FailedPrecondition},
	{errAmbiguous, codes.FailedPrecondition},
	{volume.ErrOwned, codes.FailedPrecondition},
	{volume.ErrAttached, codes.FailedPrecondition},
	{volume.ErrHalfRemoved, codes.FailedPrecondition},
	{volume.ErrReadOnly, codes.FailedPrecondition},
	{volume.ErrNoStore, codes.FailedPrecondition},
	{disk.ErrInUse, codes.FailedPrecondition},
	{store.ErrUnsafe, codes.FailedPrecondition},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{host.ErrOnlyCopy, codes.DataLoss},
	{volume.ErrLoss, codes.DataLoss},
	{volume.ErrCorrupt, codes.DataLoss},
	{volume.ErrBeyondRepair, codes.DataLoss},
	{cache.ErrDiffID, codes.DataLoss},
	{cache.ErrNoRoom, codes.ResourceExhausted},
	{store.ErrFull, codes.ResourceExhausted},
	{registry.ErrUnauthorized, codes.Unauthenticated},
	{store.ErrDenied, codes.PermissionDenied},
}

// statusOf translates an error at the border of the control API. The message stays. Errors that are a status already stay as
// they are, and gRPC has codes for a caller that has gone.
func statusOf(err error) error {
	if _, ok := status.FromError(err); ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for _, c := range codesOf {
		if errors.Is(err, c.err) {
			return status.Error(c.code, err.Error())
		}
	}
	return err
}

// invalid is the error of a request that cannot succeed as it is.
func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}
