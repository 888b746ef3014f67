package simstore_test

import (
	"math/rand/v2"
	"testing"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote"
	"github.com/remora-storage/remora/remote/simstore"
)

func TestStore(t *testing.T) {
	suite.Store(t, func(*testing.T) remote.Store { return simstore.New(rand.New(rand.NewPCG(1, 1))) })
}
