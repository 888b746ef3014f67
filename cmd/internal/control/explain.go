package control

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remora-storage/remora/cmd/internal/version"
)

// Explain makes an error of a call fit for people: what to do if nobody answers or remorad is of another release, and
// otherwise the message without gRPC's wrapping.
func Explain(err error, socket string) error {
	st, ok := status.FromError(err)
	switch {
	case err == nil || !ok:
		return err
	case st.Code() == codes.Unavailable && strings.Contains(st.Message(), "dial"):
		return fmt.Errorf("remorad does not answer on %s: is it running? (systemctl status remorad, or --remora SOCKET)", socket)
	case st.Code() == codes.Unimplemented:
		return fmt.Errorf("remorad on %s is of another release than this snapctl (%s) and does not know this call: install both of "+
			"one release, and restart remorad (%s)", socket, version.String(), st.Message())
	}
	return errors.New(st.Message())
}
