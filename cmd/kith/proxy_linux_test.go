package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// connectProxy is an HTTP proxy. It listens where enter leads and dials from here;
// names under example.org are this machine.
type connectProxy struct {
	addr string

	mu    sync.Mutex
	asked []string
}

func newConnectProxy(t *testing.T, enter func(func())) *connectProxy {
	t.Helper()
	var ln net.Listener
	var err error
	enter(func() { ln, err = net.Listen("tcp", "127.0.0.1:0") })
	if err != nil {
		t.Fatal(err)
	}
	p := &connectProxy{addr: ln.Addr().String()}
	server := &http.Server{Handler: p}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ln)
	}()
	t.Cleanup(func() { server.Close(); <-served })
	return p
}

func (p *connectProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.Host)
	p.mu.Unlock()
	host, port, err := net.SplitHostPort(r.Host)
	if r.Method != http.MethodConnect || err != nil {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if strings.HasSuffix(host, ".example.org") {
		host = "127.0.0.1"
	}
	out, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer out.Close()
	w.WriteHeader(http.StatusOK)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(out, buffered)
		out.Close()
	}()
	_, _ = io.Copy(conn, out)
}

// TestProxy_NothingElseLeaves talks from a network namespace that has a proxy on
// its loopback and a default route that counts. Not one packet takes the route:
// no direct dial, no UDP, no question about a name.
func TestProxy_NothingElseLeaves(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("a network namespace needs iproute2")
	}
	n := newNetwork(t)
	b := n.person("b", "ben")

	enter, wire := ownNetwork(t)
	var out []byte
	var err error
	enter(func() {
		const setUp = `echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6 &&
			ip link add out0 type veth peer name out1 && ip addr add 192.0.2.2/24 dev out0 && ip link set out0 up && ip link set out1 up &&
			ip route add default via 192.0.2.1`
		out, err = exec.Command("sh", "-c", setUp).CombinedOutput()
	})
	if err != nil {
		t.Skipf("no route can be made in a network namespace: %s", out)
	}
	if wire() != 0 {
		t.Fatal("the namespace is not new")
	}
	p := newConnectProxy(t, enter)
	i := slices.IndexFunc(n.node.ready.Listen, func(a string) bool { return strings.Contains(a, "/tcp/") })
	tcp := n.node.ready.Listen[i]
	_, port, _ := strings.Cut(tcp, "/tcp/")
	a := n.home("a", "--name", "ann", "--proxy", "http://"+p.addr,
		"--bootstrap", tcp, "--bootstrap", "/dns4/node.example.org/tcp/"+port)
	n.enter = enter
	a.up()
	n.enter = nil
	if len(a.ready.Listen) != 0 {
		t.Errorf("it listens on %q", a.ready.Listen)
	}
	n.meet(b, "ben", a, "ann")
	if got := a.read("ben"); len(got) != 2 {
		t.Errorf("%d messages are shown, want 2", len(got))
	}
	a.kill()

	if got := packets(t, enter, "out0"); got != 0 {
		t.Errorf("%d packets went past the proxy", got)
	}
	enter(func() {
		var conn net.Conn
		if conn, err = net.Dial("udp", "192.0.2.7:53"); err == nil {
			_, err = conn.Write([]byte("seen"))
			conn.Close()
		}
	})
	if got := packets(t, enter, "out0"); err != nil || got == 0 {
		t.Errorf("%d packets are counted of one that went past it (%v)", got, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.asked) == 0 {
		t.Error("the proxy was asked for nothing")
	}
}

// packets is how many packets a device of another namespace has sent.
func packets(t *testing.T, enter func(func()), device string) (sent uint64) {
	t.Helper()
	var table []byte
	var err error
	enter(func() { table, err = os.ReadFile("/proc/thread-self/net/dev") })
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		name, numbers, _ := strings.Cut(line, ":")
		if f := strings.Fields(numbers); strings.TrimSpace(name) == device && len(f) > 9 {
			sent, err = strconv.ParseUint(f[9], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return sent
		}
	}
	t.Fatalf("there is no device %s", device)
	return 0
}
