package registry

import "runtime"

// AwaitBulk waits until so many requests for a host wait for a place, and so many that go before them.
func AwaitBulk(r *Registry, host string, bulk, before int) {
	for {
		w, f := r.pace(host).pool.Waiting()
		if w == bulk && f == before {
			return
		}
		runtime.Gosched()
	}
}
