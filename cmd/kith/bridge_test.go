package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/bridge"
	"github.com/kith-im/kith/node/transport"
)

// freePort is a TCP port of this machine that nobody listens on.
func freePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
}

// choir makes the folder of a site.
func choir(t testing.TB, dir string) (site string) {
	t.Helper()
	site = filepath.Join(dir, "site")
	if err := os.MkdirAll(site, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(site, "index.html"), []byte("<!doctype html><title>Choir</title>"), 0o600); err != nil {
		t.Fatal(err)
	}
	return site
}

// visitor is a user's host that goes through bridges.
func visitor(t testing.TB, roots *x509.CertPool) *transport.Host {
	t.Helper()
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := transport.New(transport.Config{
		Key: key, Role: transport.Errands, Memory: transport.MinMemory, Dial: transport.Loopback, Veil: transport.VeilClient{Roots: roots},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// reaches reports whether a new visitor gets through a bridge at an address.
func reaches(t testing.TB, address string, roots *x509.CertPool) error {
	t.Helper()
	info, err := peer.AddrInfoFromString(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return visitor(t, roots).Connect(ctx, *info)
}

// fetch is what a browser that trusts everybody shows of a page.
func fetch(t testing.TB, page string) (status int, body string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, page, nil)
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
	return res.StatusCode, string(b)
}

// TestBridge runs a bridge with a certificate of its own and gives two people an
// address, of which one is taken back.
func TestBridge(t *testing.T) {
	n := &network{t: t, dir: shortDir(t)}
	port := freePort(t)
	b := n.home("b", "--role", "community", "--bridge", "--site", choir(t, n.dir), "--bridge-listen", "/ip4/127.0.0.1/tcp/"+port)
	b.up()
	if len(b.ready.Listen) != 0 {
		t.Errorf("a bridge shows where it listens: %q", b.ready.Listen)
	}
	invite := func(name string) (i bridgeInviteJSON) {
		b.decode(&i, "bridge", "invite", "--name", name)
		return i
	}
	ann, ben := invite("ann"), invite("ben")
	if status, body := fetch(t, "https://127.0.0.1:"+port+"/"); status != 200 || !strings.Contains(body, "Choir") {
		t.Errorf("the site: %d %q", status, body)
	}
	for _, i := range []bridgeInviteJSON{ann, ben} {
		if err := reaches(t, i.Address, nil); err != nil {
			t.Errorf("%s: %v", i.Name, err)
		}
	}
	if out := b.must("bridge", "list"); !strings.Contains(out, "ann") || !strings.Contains(out, ben.Address) {
		t.Errorf("listed are %s", out)
	}
	b.must("bridge", "revoke", ann.ID)
	if err := reaches(t, ann.Address, nil); err == nil {
		t.Error("the address that was taken back still works")
	}
	b.refused(exitNotFound, "kith bridge list", "bridge", "revoke", ann.ID)

	// What was given out outlives a restart.
	b.stop()
	b.up()
	if err := reaches(t, ben.Address, nil); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := reaches(t, ann.Address, nil); err == nil {
		t.Error("after a restart the address that was taken back works again")
	}
	_, path, _ := strings.Cut(ben.Address, "/http-path/")
	path, _, _ = strings.Cut(path, "/")
	if status, _ := fetch(t, "https://127.0.0.1:"+port+"/"+path); status != 404 {
		t.Errorf("a visitor who asks for the secret path gets %d", status)
	}
	n.quiet(path, "choir")
}

// TestBridge_BehindAWebServer puts the operator's own server, with its own
// certificate, in front.
func TestBridge_BehindAWebServer(t *testing.T) {
	n := &network{t: t, dir: shortDir(t)}
	inner := freePort(t)
	to, err := url.Parse("http://127.0.0.1:" + inner)
	if err != nil {
		t.Fatal(err)
	}
	own := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the operator's site") }))
	defer own.Close()
	front := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host
		r.SetXForwarded()
	}})
	defer front.Close()
	_, port, _ := net.SplitHostPort(front.Listener.Addr().String())
	b := n.home("b", "--role", "community", "--bridge", "--bridge-behind", "--domain", "example.com", "--site", own.URL,
		"--bridge-listen", "/ip4/127.0.0.1/tcp/"+inner, "--bridge-address", "/ip4/127.0.0.1/tcp/"+port)
	b.up()
	var i bridgeInviteJSON
	b.decode(&i, "bridge", "invite")
	if !strings.Contains(i.Address, "/tls/sni/example.com/http-path/") {
		t.Errorf("the address is %s", i.Address)
	}
	roots := x509.NewCertPool()
	roots.AddCert(front.Certificate())
	if err := reaches(t, i.Address, roots); err != nil {
		t.Error(err)
	}
	if status, body := fetch(t, front.URL+"/page"); status != 200 || body != "the operator's site" {
		t.Errorf("the site: %d %q", status, body)
	}
}

// TestBridgeSaysSo: a bridge tells its operator that it is one, and under which name,
// where it starts, where it is started again and in its status; its secrets it does not
// tell, and neither the name in what is shown to others.
func TestBridgeSaysSo(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		site string // PORT stands for the port
	}{
		{"by an address", nil, "127.0.0.1:PORT"},
		{"by a domain", []string{"--domain", "www.example.org"}, "www.example.org:PORT"},
		{"by a domain, behind a web server", []string{"--domain", "www.example.org", "--bridge-behind"}, "www.example.org"},
		{"no bridge", nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := &network{t: t, dir: shortDir(t)}
			port := freePort(t)
			args := []string{"--role", "community", "--listen", "/ip4/127.0.0.1/tcp/0"}
			if test.site != "" {
				args = append([]string{"--role", "community", "--bridge", "--site", choir(t, n.dir), "--bridge-listen", "/ip4/127.0.0.1/tcp/" + port}, test.args...)
			}
			site := strings.ReplaceAll(test.site, "PORT", port)
			b := n.home("b", args...)
			b.up()
			if b.ready.Bridge != site {
				t.Errorf("it starts as a bridge of %q, want %q", b.ready.Bridge, site)
			}
			if s := b.status(); s.Bridge != site {
				t.Errorf("its status names %q, want %q", s.Bridge, site)
			}
			shown := map[string]string{"status": b.must("status"), "up": b.must(append([]string{"up"}, args...)...)}
			if site != "" {
				var invite bridgeInviteJSON
				b.decode(&invite, "bridge", "invite")
				_, secret, _ := strings.Cut(invite.Address, "/http-path/")
				secret, _, _ = strings.Cut(secret, "/")
				if out := shown["up"] + b.must("status"); secret == "" || strings.Contains(out, secret) {
					t.Errorf("a secret path is shown:\n%s", out)
				}
				if report := b.must("doctor", "--report"); strings.Contains(report, "example.org") {
					t.Errorf("the report for others names the site:\n%s", report)
				}
			}
			for command, out := range shown {
				if says := strings.Contains(out, "to everybody else the web site "+site+"\n"); says != (site != "") {
					t.Errorf("kith %s:\n%s", command, out)
				}
			}
		})
	}
}

// checkOf is what doctor says of one thing.
func (h *home) checkOf(name string) (c checkJSON) {
	h.t.Helper()
	var found struct {
		Checks []checkJSON `json:"checks"`
	}
	_, doctor, stderr := h.cli("doctor", "--json")
	if err := json.Unmarshal([]byte(doctor), &found); err != nil {
		h.t.Fatalf("doctor: %q, %q", doctor, stderr)
	}
	for _, c := range found.Checks {
		if c.Name == name {
			return c
		}
	}
	return c
}

// TestBridgeDoctor: a bridge's doctor says what its visitors find, and how many were
// given a secret path.
func TestBridgeDoctor(t *testing.T) {
	n := &network{t: t, dir: shortDir(t)}
	site := choir(t, n.dir)
	b := n.home("b", "--role", "community", "--bridge", "--site", site, "--bridge-listen", "/ip4/127.0.0.1/tcp/"+freePort(t))
	b.up()
	c := b.checkOf("bridge")
	if !c.OK || c.Hint != "" || !strings.Contains(c.Text, "its web site answers; its certificate ends on 20") || !strings.Contains(c.Text, "nobody has a secret path") {
		t.Errorf("of a new bridge doctor says %+v", c)
	}
	b.must("bridge", "invite")
	b.must("bridge", "invite")
	b.must("bridge", "revoke", "1")
	if c := b.checkOf("bridge"); !strings.Contains(c.Text, "secret paths that work: 1.") {
		t.Errorf("with one of two paths taken back doctor says %+v", c)
	}
	if err := os.Remove(filepath.Join(site, "index.html")); err != nil {
		t.Fatal(err)
	}
	if c := b.checkOf("bridge"); c.OK || !strings.Contains(c.Text, "no front page") || !strings.Contains(c.Hint, "--site") {
		t.Errorf("without a front page doctor says %+v", c)
	}

	// Behind a web server it shows no certificate, and its site is that server's.
	own := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer own.Close()
	behind := n.home("behind", "--role", "community", "--bridge", "--bridge-behind", "--domain", "example.com", "--site", own.URL,
		"--bridge-listen", "/ip4/127.0.0.1/tcp/"+freePort(t))
	behind.up()
	if c := behind.checkOf("bridge"); !c.OK || !strings.Contains(c.Text, "its web site answers; nobody has") {
		t.Errorf("behind a web server doctor says %+v", c)
	}
	own.Close()
	if c := behind.checkOf("bridge"); c.OK || !strings.Contains(c.Text, "does not answer") {
		t.Errorf("when that is down doctor says %+v", c)
	}
	plain := n.home("plain", "--role", "community", "--listen", "/ip4/127.0.0.1/tcp/0")
	plain.up()
	if c := plain.checkOf("bridge"); c.Name != "" {
		t.Errorf("of a node that is no bridge doctor says %+v", c)
	}
}

// TestBridgeCertificateEnds: the operator is told before the certificate ends, and
// what to do depends on where it is from.
func TestBridgeCertificateEnds(t *testing.T) {
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		settings   bridgeSettings
		left       time.Duration
		state      string
		text, hint string
	}{
		{bridgeSettings{}, 15 * 24 * time.Hour, "ok", "ends on 2026-05-16", ""},
		{bridgeSettings{acme: true}, 13 * 24 * time.Hour, "warning", "ends on 2026-05-14", "Let's Encrypt asks"},
		{bridgeSettings{cert: new(bridge.Certificate)}, time.Hour, "warning", "ends on 2026-05-01", "--cert and --key"},
		{bridgeSettings{}, -time.Hour, "WRONG", "ended on 2026-04-30", "addresses that were given out end"},
	} {
		f := &bridgeFront{settings: &test.settings, invites: new(bridge.Service)}
		f.bridge.Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }
		c := f.judge(bridge.Visit{Listens: true, Ends: now.Add(test.left), Answers: true, Page: true}, now)
		if state := checkState(c.Ok, c.Hint); state != test.state || !strings.Contains(c.Text, test.text) || !strings.Contains(c.Hint, test.hint) {
			t.Errorf("with %v left: %s, %v", test.left, state, c)
		}
	}
	f := &bridgeFront{settings: &bridgeSettings{acme: true}, invites: new(bridge.Service)}
	f.bridge.Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }
	for v, want := range map[bridge.Visit]string{{}: "Nothing answers", {Listens: true}: "no certificate"} {
		if c := f.judge(v, now); c.Ok || !strings.Contains(c.Text, want) || c.Hint == "" {
			t.Errorf("%+v: %v, want %q", v, c, want)
		}
	}
}

// TestBridgeKnown: who adds a bridge is told if they had it.
func TestBridgeKnown(t *testing.T) {
	n := &network{t: t, dir: shortDir(t)}
	a := n.home("a", "--name", "ann", "--listen", "/ip4/127.0.0.1/tcp/0")
	a.up()
	const way, id = "/ip4/127.0.0.1/tcp/9/tls/sni/cats.example/http-path/", "/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
	for _, test := range []struct {
		name, path string
		known      bool
	}{
		{"new", "AAECAwQFBgcICQoLDA0ODw", false},
		{"the same", "AAECAwQFBgcICQoLDA0ODw", true},
		{"another path to it", "AAECAwQFBgcICQoLDA0OEA", false},
		{"that again", "AAECAwQFBgcICQoLDA0OEA", true},
	} {
		out := a.must("bridge", "add", way+test.path+id)
		if says := strings.Contains(out, "was known before"); says != test.known || strings.Contains(out, test.path) {
			t.Errorf("%s: %q", test.name, out)
		}
	}
	var again struct {
		Known bool `json:"known"`
	}
	if a.decode(&again, "bridge", "add", way+"AAECAwQFBgcICQoLDA0ODw"+id); !again.Known {
		t.Error("a program is not told")
	}
}

// TestBridgeRevoked: a path is taken back and another one given; the box at the
// bridge is found under that.
func TestBridgeRevoked(t *testing.T) {
	for _, test := range []struct {
		mode  string
		spare bool // the other path is there before
	}{{"auto", false}, {"open", false}, {"auto", true}, {"open", true}} {
		t.Run(test.mode+", spare: "+strconv.FormatBool(test.spare), func(t *testing.T) {
			t.Parallel()
			bridgeRevoked(t, test.mode, test.spare)
		})
	}
}

func bridgeRevoked(t *testing.T, mode string, spare bool) {
	n := &network{t: t, dir: shortDir(t)}
	b := n.home("b", "--role", "community", "--bridge", "--site", choir(t, n.dir), "--bridge-listen", "/ip4/127.0.0.1/tcp/"+freePort(t))
	b.up()
	a := n.home("a", "--name", "ann")
	a.up()
	var way bridgeInviteJSON
	b.decode(&way, "bridge", "invite")
	a.must("bridge", "add", way.Address)
	a.must("mode", mode)
	a.must("mailbox", "add", way.Address)
	a.boxesWork(1)
	revoked := way.Address
	add := func() {
		b.decode(&way, "bridge", "invite")
		a.must("bridge", "add", way.Address)
	}
	if spare {
		add()
	}
	b.must("bridge", "revoke", "1")
	if !spare {
		a.until("the box is out of reach", func() bool { return strings.Contains(a.must("mailbox", "list"), "unreachable") })
		add()
	}
	a.until("the box has the other path", func() bool {
		list := a.must("mailbox", "list")
		return strings.Contains(list, "good") && !strings.Contains(list, revoked)
	})

	// A parked request may outlive its path for a while; then only the way that is
	// left is said to be one, and the other is removed alone.
	var ways []knownBridgeJSON
	under := func(address string) knownBridgeJSON {
		t.Helper()
		i := slices.IndexFunc(ways, func(w knownBridgeJSON) bool { return w.Address == address })
		if i < 0 {
			t.Fatalf("one of the addresses is not among %d ways", len(ways))
		}
		return ways[i]
	}
	a.until("the new way alone is used", func() bool {
		a.decode(&ways, "bridge", "ways")
		return under(way.Address).Connected && !under(revoked).Connected
	})
	a.must("bridge", "remove", under(revoked).ID)
	if a.decode(&ways, "bridge", "ways"); len(ways) != 1 || ways[0].Address != way.Address {
		t.Errorf("%d ways are left", len(ways))
	}
}

// TestBridgeHome: a home whose address people have does not come up as a plain
// community node, which its web site is there to hide.
func TestBridgeHome(t *testing.T) {
	n := &network{t: t, dir: shortDir(t)}
	b := n.home("b", "--role", "community", "--bridge", "--site", choir(t, n.dir), "--bridge-listen", "/ip4/127.0.0.1/tcp/"+freePort(t))
	b.up()
	b.must("bridge", "invite")
	b.must("down")
	code, _, stderr := b.cli("up", "--role", "community", "--listen", "/ip4/127.0.0.1/tcp/0")
	if code != exitRefused || !strings.Contains(stderr, "this home is a bridge's") || !strings.Contains(stderr, "--bridge") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	b.up()
	b.must("bridge", "revoke", "1")
	b.must("down")
	plain := n.home("b", "--role", "community", "--listen", "/ip4/127.0.0.1/tcp/0")
	plain.up()
}
