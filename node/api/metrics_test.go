package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestServeMetrics(t *testing.T) {
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var fail error
	go func() {
		done <- ServeMetrics(ctx, ln, func(w io.Writer) error {
			fmt.Fprintln(w, "kith_mailbox_boxes 3")
			return fail
		})
	}()
	client := http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(method, path string) (int, string, http.Header) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+ln.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b), res.Header
	}
	code, body, header := get("GET", "/metrics")
	if code != http.StatusOK || body != "kith_mailbox_boxes 3\n" || !strings.HasPrefix(header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("status %d, %q, %v", code, body, header)
	}
	if header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("web pages may read it")
	}
	if code, _, _ := get("GET", "/"); code != http.StatusNotFound {
		t.Errorf("elsewhere: status %d", code)
	}
	if code, _, _ := get("POST", "/metrics"); code != http.StatusMethodNotAllowed {
		t.Errorf("POST: status %d", code)
	}
	fail = errors.New("secret")
	if code, body, _ := get("GET", "/metrics"); code != http.StatusInternalServerError || strings.Contains(body, "secret") || strings.Contains(body, "boxes") {
		t.Errorf("failing: status %d, %q", code, body)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ServeMetrics = %v, want nil", err)
	}
	if _, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", ln.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}
