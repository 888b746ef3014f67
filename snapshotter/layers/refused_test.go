package layers

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/remora-storage/remora/remote/registry"
)

// TestIsGone: only who says that he has not the layer says that it is gone, whoever else says what.
func TestIsGone(t *testing.T) {
	missing := error(&registry.StatusError{Status: http.StatusNotFound})
	status := func(code int) error { return &registry.StatusError{Status: code} }
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"missing": {missing, true}, "other bytes": {errWrongBlob, true}, "both": {errors.Join(missing, errWrongBlob), true},
		"nothing": {nil, false}, "no access": {status(http.StatusForbidden), false}, "an outage": {status(http.StatusBadGateway), false},
		"missing, no access elsewhere": {errors.Join(missing, status(http.StatusUnauthorized)), false},
		"missing, an outage elsewhere": {errors.Join(status(http.StatusServiceUnavailable), missing), false},
		"an outage, missing elsewhere": {errors.Join(missing, status(http.StatusServiceUnavailable)), false},
		"other bytes, so not lazy":     {fmt.Errorf("layer: %w", NotLazy("%w", errWrongBlob)), true},
		"not lazy for another reason":  {NotLazy("it is a bomb"), false},
		"missing, whole elsewhere":     {errors.Join(missing, registry.ErrRange), false},
	} {
		if got := IsGone(c.err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
