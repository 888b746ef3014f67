package simstore_test

import (
	"math/rand/v2"
	"testing"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

func TestStore(t *testing.T) {
	suite.Store(t, func(*testing.T) store.Store { return simstore.New(rand.New(rand.NewPCG(1, 1))) })
}
