package transport

import (
	"net"
	"runtime"
	"testing"
	"time"
)

// TestVeilHearsAcknowledgements: a connection on which our bytes arrive is not dead,
// although nothing comes back.
func TestVeilHearsAcknowledgements(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m := &meter{Conn: conn}
	before := time.Now().Truncate(time.Millisecond)
	for range 3 { // the second waits for the third
		if _, err := m.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		_, received, heard := m.read()
		if received != 0 {
			t.Fatalf("%d bytes came from nowhere", received)
		}
		if !heard.Before(before) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("nothing was heard since %v", heard)
		}
	}
	_, _, first := m.read()
	if _, _, again := m.read(); !again.Equal(first) {
		t.Errorf("heard at %v, and again at %v, of the same bytes", first, again)
	}
}
