package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kith-im/kith/node/api"
	"github.com/kith-im/kith/node/transport"
)

// learn runs what learn-hello does beside a client that connects.
func learn(t *testing.T, visit func(address string)) ([]byte, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	visited := make(chan struct{})
	go func() {
		defer close(visited)
		visit(ln.Addr().String())
	}()
	record, err := recordHello(t.Context(), ln)
	ln.Close()
	<-visited
	return record, err
}

func TestLearnHello(t *testing.T) {
	record, err := learn(t, func(address string) {
		// What is no hello, or only half of one, is passed over.
		for _, noise := range []string{"", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff", "\x16\x03\x01\x00\x00", "\x16\x03\x01\x00\x10half"} {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, noise)
			conn.Close()
		}
		conn, err := tls.Dial("tcp", address, &tls.Config{ServerName: "localhost", NextProtos: []string{"h2", "http/1.1"}})
		if err == nil {
			conn.Close()
			t.Error("somebody answered")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := transport.RecordedHello("x", record); err != nil {
		t.Error(err)
	}
	d := &daemon{cfg: &config{paths: paths{Data: t.TempDir()}}}
	if got := d.hellos(); got != nil {
		t.Errorf("hellos of a fresh home: %v", got)
	}
	if err := os.WriteFile(filepath.Join(d.cfg.paths.Data, helloFile), record, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := d.hellos(); len(got) != 1+len(transport.BuiltInHellos()) || got[0].Name != "browser" {
		t.Errorf("hellos of a home that learnt one: %v", got)
	}
}

// TestLearnHello_Resumed visits twice, so that the second hello offers a ticket
// of the first.
func TestLearnHello_Resumed(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.StartTLS()
	defer server.Close()
	client := &tls.Config{ServerName: "localhost", InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	conn, err := tls.Dial("tcp", server.Listener.Addr().String(), client)
	if err != nil {
		t.Fatal(err)
	}
	// Tickets come with the first answer.
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	_, err = learn(t, func(address string) {
		if conn, err := tls.Dial("tcp", address, client); err == nil {
			conn.Close()
		}
	})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeRefused || !strings.Contains(e.Message, "resumes a session") || !strings.Contains(e.Hint, "private window") {
		t.Errorf("a hello that resumes a session: %v", err)
	}
}

func TestLearnHello_NobodyComes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	ln.Close()
	var e *api.Error
	if _, err := recordHello(ctx, ln); !errors.As(err, &e) || e.Code != api.CodeTimeout {
		t.Errorf("nobody came: %v", err)
	}
}
