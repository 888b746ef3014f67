package host

import (
	"testing"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/store"
)

func TestStoreWrappers(t *testing.T) {
	t.Run("meter", func(t *testing.T) {
		suite.StoreWrapper(t, func(inner store.Store) store.Store { return metered(inner) })
	})
	t.Run("host's store", func(t *testing.T) {
		suite.StoreWrapper(t, func(inner store.Store) store.Store {
			return &hostStore{Store: metered(inner)}
		})
	})
}
