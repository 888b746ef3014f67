package snapshotter

import (
	"github.com/remora-storage/remora/internal/durable"
)

// ListDamaged returns what was set aside below a root of what this package keeps there.
func ListDamaged(root string) ([]durable.Damage, error) {
	return durable.ListDamaged(root, BrokenFile)
}
