package bridge_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/bridge"
	"github.com/kith-im/kith/node/transport"
)

const (
	// probeSilence is how long an answer may take to begin until there is none,
	// and probeQuiet how long it may pause until it has ended. The machine may be
	// busy with other tests.
	probeSilence = 6 * time.Second
	probeQuiet   = time.Second
)

// visit sends bytes to a server, over TLS if config is set, and returns what came
// back and how it ended: "closed", "reset" or "open".
func visit(address string, config *tls.Config, send []byte) (got []byte, how string) {
	var conn net.Conn
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return nil, "no connection"
	}
	defer conn.Close()
	if config != nil {
		c := tls.Client(conn, config)
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if err := c.Handshake(); err != nil {
			// The client's own words; its port and the like are not in them.
			return []byte(strings.TrimPrefix(err.Error(), "remote error: ")), "no handshake"
		}
		conn = c
	}
	_ = conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write(send); err != nil {
		got, how = nil, "closed while sending"
	}
	b := make([]byte, 32<<10)
	for patience := probeSilence; ; patience = probeQuiet {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		n, err := conn.Read(b)
		got = append(got, b[:n]...)
		switch {
		case err == nil:
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return got, how + "open"
		case errors.Is(err, io.EOF):
			return got, how + "closed"
		}
		return got, how + "reset"
	}
}

// undated cuts the value of every Date header.
func undated(b []byte) string {
	lines := strings.SplitAfter(string(b), "\r\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "Date: ") && strings.HasSuffix(l, " GMT\r\n") {
			lines[i] = "Date: …\r\n"
		}
	}
	return strings.Join(lines, "")
}

// twins are a bridge and the same site without one.
type twins struct {
	bridge, site string // addresses
	secret       string // a path that the bridge knows
}

func newTwins(t testing.TB) twins {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "index.html", "<!doctype html><title>Choir</title>"+strings.Repeat("<p>la", 500))
	write(t, dir, "404.html", "<!doctype html><title>Not here</title>")
	write(t, dir, "a/style.css", "p{}")
	stamp := time.Now().Add(-time.Hour)
	if err := errors.Join(os.Chtimes(dir+"/index.html", stamp, stamp), os.Chtimes(dir+"/a/style.css", stamp, stamp)); err != nil {
		t.Fatal(err)
	}
	site, err := bridge.Site(dir)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := bridge.SelfSigned(t.TempDir(), "www.example.org")
	if err != nil {
		t.Fatal(err)
	}
	tw := twins{}
	if tw.secret, err = transport.NewPath(rand.Reader); err != nil {
		t.Fatal(err)
	}

	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tw.bridge = free.Addr().String()
	free.Close()
	_, port, _ := net.SplitHostPort(tw.bridge)
	h, err := transport.New(transport.Config{
		Key: key, Role: transport.Community, Memory: transport.MinMemory, Dial: transport.Loopback,
		Bridge: &transport.Bridge{
			Listen: ma.StringCast("/ip4/127.0.0.1/tcp/" + port), Certificate: cert.Get, Site: site,
			Path: func(path string) bool { return path == tw.secret },
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tw.site = ln.Addr().String()
	plain := &http.Server{
		Handler: site, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		TLSConfig: &tls.Config{GetCertificate: cert.Get, DynamicRecordSizingDisabled: true},
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = plain.ServeTLS(ln, "", "")
	}()
	t.Cleanup(func() { plain.Close(); <-served })
	return tw
}

// probe is one thing that a prober may send.
type probe struct {
	name string
	tls  *tls.Config // nil: plain TCP
	send string
}

// probes are what a prober may send who knows everything, the secret path
// included, but not how to speak to it. PATH stands for it.
func probes() []probe {
	web := &tls.Config{ServerName: "www.example.org", InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	noName, other, libp2p, old, none := web.Clone(), web.Clone(), web.Clone(), web.Clone(), web.Clone()
	noName.ServerName = ""
	other.ServerName = "another.example"
	libp2p.NextProtos = []string{"libp2p"}
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	none.NextProtos = nil
	const host = "Host: www.example.org\r\n"
	random := string(randomBytes(300))
	post := func(path, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\n%sContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n%s", path, host, len(body), body)
	}
	return []probe{
		{"the page", web, "GET / HTTP/1.1\r\n" + host + "\r\n"},
		{"its head", web, "HEAD / HTTP/1.1\r\n" + host + "\r\n"},
		{"a file", web, "GET /a/style.css HTTP/1.1\r\n" + host + "\r\n"},
		{"a folder", web, "GET /a/ HTTP/1.1\r\n" + host + "\r\n"},
		{"what is not there", web, "GET /wp-login.php HTTP/1.1\r\n" + host + "\r\n"},
		{"a range", web, "GET / HTTP/1.1\r\n" + host + "Range: bytes=5-9\r\n\r\n"},
		{"if it changed", web, "GET / HTTP/1.1\r\n" + host + "If-Modified-Since: Tue, 19 Jan 2038 03:14:07 GMT\r\n\r\n"},
		{"two requests at once", web, "GET / HTTP/1.1\r\n" + host + "\r\nGET /a/style.css HTTP/1.1\r\n" + host + "\r\n"},
		{"HTTP/1.0", web, "GET / HTTP/1.0\r\n\r\n"},
		{"HTTP/0.9", web, "GET /\r\n"},
		{"no host", web, "GET / HTTP/1.1\r\n\r\n"},
		{"two hosts", web, "GET / HTTP/1.1\r\n" + host + host + "\r\n"},
		{"another host", web, "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n"},
		{"a name that is not HTTP's", web, "BREW /PATH HTTP/1.1\r\n" + host + "\r\n"},
		{"no HTTP", web, "\x13/multistream/1.0.0\n"},
		{"noise", web, random},
		{"a long path", web, "GET /" + strings.Repeat("a", 9000) + " HTTP/1.1\r\n" + host + "\r\n"},
		{"out of the folder", web, "GET /../../etc/passwd HTTP/1.1\r\n" + host + "\r\n"},
		{"the whole server", web, "OPTIONS * HTTP/1.1\r\n" + host + "\r\n"},
		{"a tunnel", web, "CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1:443\r\n\r\n"},
		{"an echo", web, "TRACE / HTTP/1.1\r\n" + host + "\r\n"},
		{"a post to the page", web, post("/", "a=b")},
		{"a post to a wrong path", web, post("/AAAAAAAAAAAAAAAAAAAAAA", random)},
		{"a large post to a wrong path", web, post("/AAAAAAAAAAAAAAAAAAAAAA", strings.Repeat(random, 500))},
		{"an upgrade", web, "GET /PATH HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"},
		{"a get of the secret path", web, "GET /PATH HTTP/1.1\r\n" + host + "\r\n"},
		{"a put to the secret path", web, "PUT /PATH HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\nx"},
		{"an empty post to the secret path", web, post("/PATH", "")},
		{"noise to the secret path", web, post("/PATH", random)},
		{"much noise to the secret path", web, post("/PATH", strings.Repeat(random, 100))},
		{"noise in chunks to the secret path", web, "POST /PATH HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"},
		{"bad chunks to the secret path", web, "POST /PATH HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\n"},
		{"the secret path with a question", web, post("/PATH?x=1", random)},
		{"the secret path with a slash", web, post("/PATH/", random)},
		{"more than the secret path", web, post("/PATHA", random)},
		{"the secret path, escaped", web, post("/%2FPATH", random)},
		{"no ALPN", none, "GET / HTTP/1.1\r\n" + host + "\r\n"},
		{"the ALPN of libp2p", libp2p, "x"},
		{"no name", noName, "GET / HTTP/1.1\r\n" + host + "\r\n"},
		{"another name", other, "GET / HTTP/1.1\r\nHost: another.example\r\n\r\n"},
		{"an old TLS", old, "x"},
		{"plain HTTP", nil, "GET / HTTP/1.1\r\n" + host + "\r\n"},
		{"multistream in clear", nil, "\x13/multistream/1.0.0\n"},
		{"noise in clear", nil, random},
		{"a TLS record that is none", nil, "\x16\x03\x01\x02\x00" + random},
		{"half a hello", nil, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"},
		{"nothing", nil, ""},
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return b
}

// TestD06_Probes holds what a bridge answers to a prober against what the same
// site answers without one, byte for byte but for the date.
func TestD06_Probes(t *testing.T) {
	tw := newTwins(t)
	if n := len(probes()); n < 30 {
		t.Fatalf("%d probes", n)
	}
	var all sync.WaitGroup // most of the time goes by waiting for silence
	defer all.Wait()
	for _, p := range probes() {
		send := []byte(strings.ReplaceAll(p.send, "PATH", tw.secret))
		all.Go(func() {
			answers := make(chan string)
			go func() {
				b, how := visit(tw.site, p.tls, send)
				answers <- undated(b) + " [" + how + "]"
			}()
			b, how := visit(tw.bridge, p.tls, send)
			got := undated(b) + " [" + how + "]"
			if want := <-answers; got != want {
				t.Errorf("%s: the bridge answers\n%.600q\nthe site\n%.600q", p.name, got, want)
			}
		})
	}
}

// TestD06_ProbesHTTP2 does it for HTTP/2, as far as its client shows.
func TestD06_ProbesHTTP2(t *testing.T) {
	tw := newTwins(t)
	client := &http.Client{
		Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{ServerName: "www.example.org", InsecureSkipVerify: true}},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	defer client.CloseIdleConnections()
	for _, p := range []struct{ method, path, body string }{
		{"GET", "/", ""},
		{"HEAD", "/", ""},
		{"GET", "/a/style.css", ""},
		{"GET", "/none", ""},
		{"GET", "/PATH", ""},
		{"POST", "/", "a=b"},
		{"POST", "/PATH", ""},
		{"POST", "/PATH", strings.Repeat("noise ", 100)},
		{"POST", "/PATH", strings.Repeat("noise ", 100_000)},
		{"POST", "/AAAAAAAAAAAAAAAAAAAAAA", "x"},
		{"PUT", "/PATH", "x"},
		{"DELETE", "/PATH", ""},
		{"OPTIONS", "/PATH", ""},
	} {
		show := func(address string) string {
			req, err := http.NewRequestWithContext(t.Context(), p.method, "https://"+address+strings.ReplaceAll(p.path, "PATH", tw.secret), strings.NewReader(p.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "www.example.org"
			res, err := client.Do(req)
			if err != nil {
				return "no answer"
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if res.ProtoMajor != 2 || err != nil {
				t.Errorf("%s %s: %s, %v", p.method, p.path, res.Proto, err)
			}
			res.Header.Del("Date")
			var head bytes.Buffer
			if err := res.Header.Write(&head); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("%s\n%s%d\n%s", res.Status, &head, res.ContentLength, body)
		}
		if got, want := show(tw.bridge), show(tw.site); got != want {
			t.Errorf("%s %s: the bridge answers\n%.500q\nthe site\n%.500q", p.method, p.path, got, want)
		}
	}
}

// TestD06_ProbeTimes compares how long the answers take: what a prober might
// learn from, in the middle half of many, has to be far less than a network's own
// noise.
func TestD06_ProbeTimes(t *testing.T) {
	tw := newTwins(t)
	config := &tls.Config{ServerName: "www.example.org", InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	for _, p := range []struct{ name, send string }{
		{"a wrong path", "POST /AAAAAAAAAAAAAAAAAAAAAA HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n" + strings.Repeat("x", 300)},
		{"nearly the path", "POST /PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n" + strings.Repeat("x", 300)},
		{"the page", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
	} {
		send := []byte(strings.ReplaceAll(p.send, "PATH", tw.secret[:len(tw.secret)-1]+"!"))
		measure := func(address string) func() time.Duration {
			conn, err := tls.Dial("tcp", address, config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			b := make([]byte, 64<<10)
			return func() time.Duration {
				began := time.Now()
				if _, err := conn.Write(send); err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Read(b); err != nil {
					t.Fatal(err)
				}
				took := time.Since(began)
				for { // the rest of the answer
					_ = conn.SetReadDeadline(time.Now().Add(2 * time.Millisecond))
					if _, err := conn.Read(b); err != nil {
						break
					}
				}
				_ = conn.SetReadDeadline(time.Time{})
				return took
			}
		}
		onBridge, onSite := measure(tw.bridge), measure(tw.site)
		var got, want []time.Duration
		for range 100 {
			got, want = append(got, onBridge()), append(want, onSite())
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := got[50] - want[50]; diff > time.Millisecond || diff < -time.Millisecond {
			t.Errorf("%s: the bridge takes %v, the site %v", p.name, got[50], want[50])
		}
		t.Logf("%s: median %v on the bridge, %v on the site", p.name, got[50], want[50])
	}
}
