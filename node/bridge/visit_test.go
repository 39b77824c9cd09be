package bridge_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/kith-im/kith/node/bridge"
)

// TestSee visits sites as a bridge's operator has them.
func TestSee(t *testing.T) {
	asked := ""
	answer := func(status int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = r.Host + " " + r.URL.Path + " " + r.UserAgent()
			w.WriteHeader(status)
		})
	}
	for _, test := range []struct {
		name          string
		status        int
		secure        bool
		answers, page bool
	}{
		{"a page", http.StatusOK, true, true, true},
		{"a page, behind a web server", http.StatusOK, false, true, true},
		{"a page elsewhere", http.StatusFound, true, true, true},
		{"no page", http.StatusNotFound, true, true, false},
		{"a server that is down", http.StatusBadGateway, true, false, false},
	} {
		s := httptest.NewUnstartedServer(answer(test.status))
		if test.secure {
			s.StartTLS()
		} else {
			s.Start()
		}
		at := s.Listener.Addr().String()
		v := bridge.See(t.Context(), at, "www.example.org", test.secure)
		if !v.Listens || v.Answers != test.answers || v.Page != test.page || asked != "www.example.org / " {
			t.Errorf("%s: %+v; asked was %q", test.name, v, asked)
		}
		if test.secure && !v.Ends.Equal(s.Certificate().NotAfter) || !test.secure && !v.Ends.IsZero() {
			t.Errorf("%s: the certificate ends on %v", test.name, v.Ends)
		}
		s.Close()
		if v := bridge.See(t.Context(), at, "www.example.org", test.secure); v != (bridge.Visit{}) {
			t.Errorf("%s, closed: %+v", test.name, v)
		}
	}
}
