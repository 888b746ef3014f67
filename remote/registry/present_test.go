package registry_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/remora-storage/remora/remote/registry"
)

// TestPresent: a host that serves its API's base, or wants credentials for it, is a registry; one that knows no path is none.
func TestPresent(t *testing.T) {
	for status, want := range map[int]bool{
		http.StatusOK: true, http.StatusUnauthorized: true, http.StatusForbidden: true,
		http.StatusNotFound: false, http.StatusBadGateway: false,
	} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v2/" {
					t.Errorf("asked for %s", r.URL)
				}
				w.WriteHeader(status)
			}))
			defer s.Close()
			r := registry.New(registry.Options{ConfigPath: []string{hostsDir(t, "reg.test", plain(s.Listener.Addr().String()))}})
			if err := r.Present(t.Context(), "reg.test"); (err == nil) != want {
				t.Error(err)
			}
			s.Close()
			if err := r.Present(t.Context(), "reg.test"); err == nil {
				t.Error("nobody listens")
			}
		})
	}
}
