package snapshotter

import (
	"sync"

	"github.com/golang/groupcache/lru"

	"github.com/remora-storage/remora/snapshotter/layers"
)

// declines are the pulls of which a layer was declined since it was not proven in time. From that layer on containerd downloads all
// layers itself, side by side: what is opened beside that is moved twice.
type declines struct {
	mu  sync.Mutex // guards all
	all lru.Cache  // the layer's place in the image, by declined
}

type declined struct{ namespace, image string }

const maxDeclines = 1024 // pulls that may be under way

func declinedOf(img *layers.Image, index int) declined {
	return declined{img.Layers[index].Namespace, img.ID()}
}

func (d *declines) note(img *layers.Image, index int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all.MaxEntries = maxDeclines
	if _, below := d.all.Get(declinedOf(img, index)); !below {
		d.all.Add(declinedOf(img, index), index)
	}
}

// below reports whether one below a layer was declined in this pull. Another pull begins with that one, or below it.
func (d *declines) below(img *layers.Image, index int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	first, ok := d.all.Get(declinedOf(img, index))
	if ok && index <= first.(int) {
		d.all.Remove(declinedOf(img, index))
		return false
	}
	return ok
}
