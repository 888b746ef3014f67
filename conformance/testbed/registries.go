package testbed

import (
	"fmt"
	"net/http"
	"time"
)

// Drip answers a request for a range as a registry does that holds up its clients: it announces what was asked for, and sends a
// byte of it every second.
func Drip(w http.ResponseWriter, r *http.Request) {
	var first, last int64
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", first, last))
	w.Header().Set("Content-Length", fmt.Sprint(last-first+1))
	w.WriteHeader(http.StatusPartialContent)
	for range last - first + 1 {
		if _, err := w.Write([]byte{0}); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush() // the next write tells
		select {
		case <-time.After(time.Second):
		case <-r.Context().Done():
			return
		}
	}
}
