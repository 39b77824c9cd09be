package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	utls "github.com/refraction-networking/utls"
)

const veilContentType = "application/octet-stream"

// meter counts what a TCP connection carries, and sends the last message of
// the TLS handshake together with the first request, as browsers do.
type meter struct {
	net.Conn

	mu       sync.Mutex // never held while the network is waited for
	packets  int        // estimated, both ways
	received int
	acked    uint64    // bytes of ours that the other end's TCP has
	heard    time.Time // when something last came, or went through

	writing sync.Mutex // one write after the other; a dead connection may hold it for long
	writes  int
	held    []byte // not yet sent
	flush   *time.Timer
}

// flushAfter bounds how long the end of a handshake waits for a request.
const flushAfter = 20 * time.Millisecond

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > 0 {
		full := (n + packetBytes - 1) / packetBytes
		m.packets += full + (full+1)/2 // and their acknowledgements
		m.received += n
		m.heard = time.Now()
	}
	return n, err
}

func (m *meter) Write(p []byte) (int, error) {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.writes++
	if m.writes == 2 { // the first is the hello
		m.held = slices.Clone(p)
		m.flush = time.AfterFunc(flushAfter, func() {
			m.writing.Lock()
			defer m.writing.Unlock()
			_ = m.send(nil) // the next write says what is wrong
		})
		return len(p), nil
	}
	if err := m.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// send writes p behind what was held. The caller holds writing.
func (m *meter) send(p []byte) error {
	if len(m.held) > 0 {
		p = append(m.held, p...)
		m.held = nil
		m.flush.Stop()
	}
	if len(p) == 0 {
		return nil
	}
	full := (len(p) + packetBytes - 1) / packetBytes
	m.mu.Lock()
	m.packets += full + (full+1)/2
	m.mu.Unlock()
	_, err := m.Conn.Write(p)
	return err
}

// read returns the packets carried, an estimate, the bytes received, and when
// the last of them came, or the last of ours were acknowledged: on a slow line much is
// on its way for long, and a flow that was cut acknowledges nothing.
func (m *meter) read() (packets, received int, heard time.Time) {
	acked, at := acknowledged(m.Conn)
	m.mu.Lock()
	defer m.mu.Unlock()
	if acked > m.acked {
		m.acked = acked
		if at.After(m.heard) {
			m.heard = at
		}
	}
	return m.packets, m.received, m.heard
}

// veilLink is one TLS connection to a bridge.
type veilLink struct {
	meter *meter
	http  *http.ClientConn
	url   string
	many  bool // HTTP/2: carries many exchanges at once
	rtt   time.Duration
	born  time.Time

	// Guarded by the caller's mu.
	inFlight int
	served   int
	doubt    chan struct{} // closed when the link seems dead
	dead     bool
}

func newVeilLink(conn *utls.UConn, m *meter, v VeilAddr, rtt time.Duration) (*veilLink, error) {
	l := &veilLink{
		meter: m, rtt: rtt, born: time.Now().Add(-rtt), doubt: make(chan struct{}),
		url:  (&url.URL{Scheme: "https", Host: v.authority(), Path: "/" + v.Path}).String(),
		many: conn.ConnectionState().NegotiatedProtocol == "h2",
	}
	// Package http takes HTTP/2 over a connection that it doesn't know to be TLS
	// if it is told that there is none.
	var protocols http.Protocols
	protocols.SetHTTP1(!l.many)
	protocols.SetUnencryptedHTTP2(l.many)
	t := &http.Transport{
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		Protocols:          &protocols,
		DisableCompression: true,
	}
	var err error
	l.http, err = t.NewClientConn(context.Background(), "http", v.hostPort())
	if err != nil {
		conn.Close()
		return nil, err
	}
	return l, nil
}

func (l *veilLink) close() { l.http.Close() }

// room returns how many bytes of data one more exchange on the link may carry
// in both directions together, or 0 if the link has carried enough.
func (l *veilLink) room(lesson Lesson) int {
	if lesson.Packets == 0 {
		return maxVeilData
	}
	packets, received, _ := l.meter.read()
	// Three quarters of what was once too much; an exchange costs two packets
	// and their acknowledgements, and its data as much again as its length.
	left := lesson.room(packets, received)
	if l.served == 0 {
		return max(left, minChunk)
	}
	if left < minChunk {
		return 0
	}
	return left
}

// room is how much data fits on a connection that has carried something.
func (l Lesson) room(packets, received int) int {
	left := (l.Packets*3/4 - packets - 4) * packetBytes * 2 / 3
	if l.Bytes > 0 {
		left = min(left, l.Bytes*3/4-received)
	}
	return min(left-maxVeilPad, maxVeilData)
}

// errNotBridge says that the site answered as it does to everybody.
var errNotBridge = errors.New("the web site at the bridge's address knows nothing of a bridge: ask for a new invite")

// errBridgeBusy says that a web server in front of a bridge can't reach it now.
var errBridgeBusy = errors.New("the bridge's web server is busy")

// roundTrip carries out one exchange.
func (l *veilLink) roundTrip(ctx context.Context, req *veilRequest) (*veilAnswer, error) {
	body := req.marshal()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(body))
	if err != nil {
		return nil, errNotVeil // the cause repeats the path
	}
	r.Header.Set("Content-Type", veilContentType)
	r.Header.Set("Accept", "*/*")
	r.Header.Set("User-Agent", "Mozilla/5.0")
	resp, err := l.http.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK && resp.Header.Get("Content-Type") == veilContentType:
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusBadGateway,
		resp.StatusCode == http.StatusServiceUnavailable, resp.StatusCode == http.StatusGatewayTimeout:
		return nil, errBridgeBusy
	default:
		return nil, errNotBridge
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, answerHead+maxVeilData+maxVeilPad+1))
	if err != nil {
		return nil, err
	}
	a := new(veilAnswer)
	if err := a.unmarshal(b); err != nil {
		return nil, errNotBridge
	}
	return a, nil
}
