package transport

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

// visit sends a request as a visitor or prober would and returns status,
// headers and body as text.
func visit(t testing.TB, b *testBridge, method, path string, body []byte, header ...string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, ServerName: b.addr.SNI},
		ForceAttemptHTTP2: true, DisableKeepAlives: true,
	}}
	scheme := "https"
	if b.bridge.Certificate == nil {
		scheme = "http"
	}
	r, err := http.NewRequestWithContext(t.Context(), method, scheme+"://"+b.addr.hostPort()+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Header.Del("Date")
	keys := make([]string, 0, len(resp.Header))
	for k := range resp.Header {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var s strings.Builder
	fmt.Fprintf(&s, "%s %s\n", resp.Proto, resp.Status)
	for _, k := range keys {
		fmt.Fprintf(&s, "%s: %q\n", k, resp.Header[k])
	}
	return s.String() + string(got)
}

// TestD06_WrongRequestsGetTheSite compares what a bridge answers to requests
// that aren't quite right with what the site answers to the same ones
// (docs/spec/veil.md, section 5.2).
func TestD06_WrongRequestsGetTheSite(t *testing.T) {
	b := newTestBridge(t)
	go b.echo()
	plain := newTestBridge(t, func(cfg *Bridge) { cfg.Path = func(string) bool { return false } })

	first := veilRequest{session: sessionID{1}, data: []byte("hello")}
	answer := visit(t, b, "POST", "/"+testPath, first.marshal())
	if !strings.Contains(answer, veilContentType) {
		t.Fatalf("a first request got\n%s", answer)
	}
	next := func(change func(*veilRequest)) []byte {
		r := veilRequest{session: sessionID{1}, number: 5, offset: 5}
		change(&r)
		return r.marshal()
	}
	for _, test := range []struct {
		name, method, path string
		body               []byte
	}{
		{"a visit", "GET", "/", nil},
		{"the path, read", "GET", "/" + testPath, nil},
		{"the path, empty", "POST", "/" + testPath, nil},
		{"the path, other bytes", "POST", "/" + testPath, []byte("x=1")},
		{"the path, many bytes", "POST", "/" + testPath, make([]byte, maxVeilBody+maxVeilPad+1)},
		{"the path, more bytes", "POST", "/" + testPath, make([]byte, 3<<20)},
		{"another path", "POST", "/" + testPath[:21] + "x", first.marshal()},
		{"below the path", "POST", "/" + testPath + "/", first.marshal()},
		{"replayed first request", "POST", "/" + testPath, first.marshal()},
		{"unknown session", "POST", "/" + testPath, next(func(r *veilRequest) { r.session[0] = 9 })},
		{"from the future", "POST", "/" + testPath, next(func(r *veilRequest) { r.from, r.received = 1<<40, 1<<40 })},
		{"backwards", "POST", "/" + testPath, next(func(r *veilRequest) { r.number, r.from, r.received = 6, 0, 1 })},
		{"first request that ends", "POST", "/" + testPath, next(func(r *veilRequest) { r.session[0], r.offset, r.flags = 8, 0, veilAbort })},
	} {
		got, want := visit(t, b, test.method, test.path, test.body), visit(t, plain, test.method, test.path, test.body)
		if got != want {
			t.Errorf("%s: the bridge answers\n%s\nthe site\n%s", test.name, got, want)
		}
	}

	// What was right once is wrong when it is repeated, in session and after.
	good := next(func(r *veilRequest) { r.number = 20 })
	if got := visit(t, b, "POST", "/"+testPath, good); !strings.Contains(got, veilContentType) {
		t.Fatalf("a good request got\n%s", got)
	}
	replay := func(name string, body []byte) {
		t.Helper()
		if got, want := visit(t, b, "POST", "/"+testPath, body), visit(t, plain, "POST", "/"+testPath, body); got != want {
			t.Errorf("%s: the bridge answers\n%s\nthe site\n%s", name, got, want)
		}
	}
	replay("replayed", good)
	last := next(func(r *veilRequest) { r.number, r.flags = 21, veilFin|veilAbort })
	if got := visit(t, b, "POST", "/"+testPath, last); !strings.Contains(got, veilContentType) {
		t.Fatalf("the end got\n%s", got)
	}
	replay("replayed end", last)
	b.mu.Lock()
	s := b.sessions[sessionID{1}]
	b.mu.Unlock()
	b.forget(s)
	replay("replayed after the end", first.marshal())
	replay("replayed after the end", good)

	if seen, want := b.site.requests(), plain.site.requests(); !slices.Equal(seen, want) {
		t.Errorf("the site behind the bridge saw %v, the other %v", seen, want)
	}
}

func TestReplayWindow(t *testing.T) {
	var w replayWindow
	for _, step := range []struct {
		n    uint64
		want bool
	}{
		{0, true},
		{0, false},
		{2, true},
		{1, true},
		{1, false},
		{2, false},
		{65, true},
		{1, false},
		{3, true},
		{64, true},
		{1000, true},
		{65, false},
		{936, false},
		{937, true},
		{937, false},
		{1 << 62, true},
		{1000, false},
		{1<<64 - 1, false},
		{1<<64 - 2, true},
		{1<<64 - 2, false},
	} {
		if got := w.use(step.n); got != step.want {
			t.Errorf("number %d: %v, want %v", step.n, got, step.want)
		}
	}
}

// TestBridgeBehindWebServer speaks plain HTTP/1.1, as nginx and Caddy do to
// what is behind them, and counts by the address they tell.
func TestBridgeBehindWebServer(t *testing.T) {
	b := newTestBridge(t, func(cfg *Bridge) { cfg.Certificate = nil })
	go b.echo()
	for i := range maxPerSource + 1 {
		r := veilRequest{session: sessionID{byte(i), byte(i >> 8), 1}}
		got := visit(t, b, "POST", "/"+testPath, r.marshal(), "X-Forwarded-For", "198.51.100.7, 192.0.2.1")
		if !strings.Contains(got, "HTTP/1.1 200 OK") || !strings.Contains(got, veilContentType) {
			t.Fatalf("session %d got\n%s", i, got)
		}
		var a veilAnswer
		if err := a.unmarshal([]byte(got[strings.LastIndex(got, "]\n")+2:])); err != nil {
			t.Fatal(err)
		}
		if full := a.flags&veilAbort != 0; full != (i == maxPerSource) {
			t.Fatalf("session %d: full is %v", i, full)
		}
	}
	r := veilRequest{session: sessionID{2, 2, 2}}
	visit(t, b, "POST", "/"+testPath, r.marshal(), "X-Forwarded-For", "198.51.100.7, 192.0.2.2")
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sessions[r.session]; s == nil || s.remote.String() != "/ip4/192.0.2.2/tcp/0/tls" {
		t.Errorf("a session from another address: %v", s)
	}
}

// TestVeilThroughWebServer goes through a reverse proxy that speaks HTTP/2 to
// the client and HTTP/1.1 to the bridge.
func TestVeilThroughWebServer(t *testing.T) {
	b := newTestBridge(t, func(cfg *Bridge) { cfg.Certificate = nil })
	go b.echo()
	cert := selfSigned(t, "cats.example")
	front := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: b.addr.hostPort()}))
	front.EnableHTTP2 = true
	front.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	front.StartTLS()
	t.Cleanup(front.Close)
	pin := PinOf(cert.Certificate[0])
	b.addr.Pin, b.addr.Port = &pin, uint16(front.Listener.Addr().(*net.TCPAddr).Port)
	c := dialTest(t, b, VeilClient{})
	for _, n := range []int{10, 10_000, 1 << 20} {
		echoed(t, c, randomBytes(n))
	}
	c.mu.Lock()
	if c.parallel {
		t.Error("it isn't HTTP/2")
	}
	c.mu.Unlock()
	c.Close()
	<-c.done
}

func TestBridgeRefused(t *testing.T) {
	good := newTestBridge(t).bridge
	for name, change := range map[string]func(*Bridge){
		"no TLS on all interfaces": func(b *Bridge) { b.Certificate, b.Listen = nil, ma.StringCast("/ip4/0.0.0.0/tcp/0") },
		"no paths":                 func(b *Bridge) { b.Path = nil },
		"no site":                  func(b *Bridge) { b.Site = nil },
		"UDP":                      func(b *Bridge) { b.Listen = ma.StringCast("/ip4/127.0.0.1/udp/0") },
	} {
		cfg := good
		change(&cfg)
		if s, err := newVeilServer(cfg); err == nil {
			s.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestParkedRequest shows that one request waits, that others overtake it, and
// that a newer one lets it go.
func TestParkedRequest(t *testing.T) {
	b := newTestBridge(t)
	streams := make(chan io.ReadWriter, 1)
	go func() {
		if c, err := b.Accept(); err == nil {
			streams <- c
		}
	}()
	post := func(r veilRequest) veilAnswer {
		r.session = sessionID{7}
		got := visit(t, b, "POST", "/"+testPath, r.marshal())
		var a veilAnswer
		if err := a.unmarshal([]byte(got[strings.LastIndex(got, "]\n")+2:])); err != nil {
			t.Errorf("%v: %s", err, got)
		}
		return a
	}
	post(veilRequest{})
	s := <-streams
	parked := make(chan veilAnswer, 2)
	go func() { parked <- post(veilRequest{number: 1, most: 100, hold: 60_000}) }()
	b.mu.Lock()
	session := b.sessions[sessionID{7}]
	b.mu.Unlock()
	await(t, func() bool { session.mu.Lock(); defer session.mu.Unlock(); return session.parked == 1 })
	if a := post(veilRequest{number: 2, data: []byte("abc")}); a.accepted != 3 {
		t.Errorf("a request that overtook: %+v", a)
	}
	go func() { parked <- post(veilRequest{number: 3, offset: 3, most: 100, hold: 60_000}) }()
	if a := <-parked; len(a.data) != 0 {
		t.Errorf("the older parked request got %q", a.data)
	}
	io.WriteString(s, "answer")
	if a := <-parked; string(a.data) != "answer" {
		t.Errorf("the parked request got %q", a.data)
	}
	// Bytes after a gap wait for those before.
	late := make(chan veilAnswer)
	go func() { late <- post(veilRequest{number: 4, offset: 6, received: 6, from: 6, data: []byte("ghi")}) }()
	post(veilRequest{number: 5, offset: 3, received: 6, from: 6, data: []byte("def")})
	if a := <-late; a.accepted != 9 {
		t.Errorf("after the gap was filled: %+v", a)
	}
	got := make([]byte, 9)
	if _, err := io.ReadFull(s, got); err != nil || string(got) != "abcdefghi" {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestVeilAnswersGather: what is written just after a parked request could be
// answered goes along, the longer after the further away the client is.
func TestVeilAnswersGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id := sessionID{7}
		s := &veilSession{veilStream: newVeilStream(nil, nil), id: id, idle: time.AfterFunc(time.Hour, func() {})}
		v := &veilServer{sessions: map[sessionID]*veilSession{id: s}}
		s.server = v
		ask := func(req veilRequest) chan *veilAnswer {
			req.session, req.most, req.hold = id, 100, 60_000
			answer := make(chan *veilAnswer)
			go func() { answer <- v.exchange(httptest.NewRequest("POST", "/", nil), "", &req) }()
			synctest.Wait()
			return answer
		}
		var saying sync.WaitGroup
		defer saying.Wait()
		say := func(pause time.Duration, pieces ...string) {
			saying.Go(func() {
				for _, p := range pieces {
					io.WriteString(s, p)
					time.Sleep(pause)
				}
			})
		}
		first := ask(veilRequest{number: 1})
		say(time.Millisecond, "an", "swer")
		if a := <-first; string(a.data) != "answer" {
			t.Errorf("the answer is %q", a.data)
		}
		time.Sleep(200 * time.Millisecond) // a round trip
		second := ask(veilRequest{number: 2, received: 6, from: 6})
		began := time.Now()
		say(12*time.Millisecond, "a", "n", "other", "late")
		if a := <-second; string(a.data) != "another" {
			t.Errorf("the other answer is %q", a.data)
		}
		if took := time.Since(began); took != 25*time.Millisecond {
			t.Errorf("it came after %v, want an eighth of the round trip", took)
		}
	})
}

// await waits until something is true that happens in another goroutine.
func await(t testing.TB, f func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 10_000 {
		if f() {
			return
		}
		<-tick.C
	}
	t.Fatal("it doesn't happen")
}

// TestVeilDoor: visitors are bounded, those of one source and all, and who goes
// makes room.
func TestVeilDoor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{Listener: l, most: 4, mostFrom: 1, from: make(map[netip.Prefix]int)}
	defer d.Close()
	in := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := d.Accept()
			if err != nil {
				return
			}
			in <- c
		}
	}()
	knock := func(from string) (let bool) {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		return errors.Is(err, os.ErrDeadlineExceeded)
	}
	for i, want := range []bool{true, true, false} {
		if got := knock("127.0.0.1"); got != want {
			t.Errorf("visitor %d of one source: %v", i, got)
		}
	}
	if !knock("127.0.0.2") || !knock("127.0.0.2") || knock("127.0.0.3") {
		t.Error("four visitors are let in, and no fifth")
	}
	c := <-in
	c.Close()
	c.Close()
	if !knock("127.0.0.1") || knock("127.0.0.3") {
		t.Error("who goes makes room for one")
	}
}

// TestVeilBodies: who knows a path can not have a bridge read without end. One who
// sends bodies and never ends them gets 503, comes back when there is room, and is
// in nobody's way.
func TestVeilBodies(t *testing.T) {
	b := newTestBridge(t)
	go b.echo()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: b.addr.SNI}, ForceAttemptHTTP2: true,
	}}
	defer client.CloseIdleConnections()
	var slow []*io.PipeWriter
	for range maxBodies / 2 { // a source on loopback may have as many
		read, write := io.Pipe()
		slow = append(slow, write)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+b.addr.hostPort()+"/"+testPath, read)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = 1000
		go func() {
			if resp, err := client.Do(r); err == nil {
				resp.Body.Close()
			}
		}()
	}
	reading := func() int { b.mu.Lock(); defer b.mu.Unlock(); return b.reading }
	await(t, func() bool { return reading() == maxBodies/2 })
	post := func() string {
		return visit(t, b, http.MethodPost, "/"+testPath, (&veilRequest{session: sessionID{1}}).marshal())
	}
	if got := post(); !strings.HasPrefix(got, "HTTP/2.0 503") {
		t.Errorf("one more body: %.100s", got)
	}
	if got := visit(t, b, http.MethodGet, "/", nil); !strings.HasPrefix(got, "HTTP/2.0 200") {
		t.Errorf("the site: %.100s", got)
	}
	for _, w := range slow {
		w.CloseWithError(errSilent)
	}
	await(t, func() bool { return reading() == 0 })
	if got := post(); !strings.HasPrefix(got, "HTTP/2.0 200") {
		t.Errorf("when there is room again: %.100s", got)
	}
}
