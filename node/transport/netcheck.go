package transport

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/quic-go/quic-go"
	utls "github.com/refraction-networking/utls"
)

const (
	// probeTime bounds one attempt at a probe, and probeAttempts how often one is
	// made whose answer does not come: a lost packet is not a censor.
	probeTime     = 3 * time.Second
	probeAttempts = 2

	// longRounds is how many exchanges a connection has to survive: networks that
	// freeze connections let 12 or so through.
	longRounds = 30

	// fewRounds is how many a rule needs at most that looks at more than the first
	// packet of a connection to name what is on it.
	fewRounds = 4

	// maxProbeLine bounds a line of multistream that is read.
	maxProbeLine = 64
)

// Probe is one thing that a network may let through or not.
type Probe uint8

// The probes of a community node, in the order in which they are made, and of a
// bridge. None says more to the network than our ordinary connections do,
// but ProbeRandom.
const (
	ProbeTCP      Probe = iota // a connection by TCP
	ProbeUDP                   // a datagram that names no protocol, and its answer
	ProbeQUIC                  // a QUIC handshake as browsers make it
	ProbeQUICOurs              // the same that names libp2p
	ProbePlain                 // libp2p's first line over TCP
	ProbeLong                  // longRounds exchanges on one TCP connection
	ProbeRandom                // bytes that look like nothing, over TCP
	ProbeName                  // a name of ours looked up
	ProbeTLS                   // a browser's hello, with the bridge's name
	ProbeOther                 // another browser's
	ProbeNameless              // the first without a name
	ProbeVeil                  // a connection to the bridge itself, behind its web site
	probes
)

// Outcome is how a probe went.
type Outcome uint8

// The outcomes.
const (
	NotTried Outcome = iota
	Passed
	Silent  // no answer in time
	Refused // nobody listens there, or somebody says so
	Reset   // ended by a reset
	Altered // somebody else answers
)

// String returns the outcome's word.
func (o Outcome) String() string {
	return [...]string{"not tried", "passed", "silent", "refused", "reset", "altered"}[o]
}

// Failed reports whether something did not get through.
func (o Outcome) Failed() bool { return o != NotTried && o != Passed }

// Findings is how the probes of one server went.
type Findings [probes]Outcome

// Prober finds out what a network lets through. The zero value probes directly.
type Prober struct {
	DialTCP DialFunc // through a proxy, past which no UDP goes; nil: directly
	Dial    Reach    // where names may lead that are resolved here; 0: anywhere
	Hellos  []Hello  // none: BuiltInHellos
	// Random also tries ProbeRandom, which an observer may find strange.
	Random bool
}

// Node probes a community node at its addresses.
func (p Prober) Node(ctx context.Context, addrs []ma.Multiaddr) (f Findings) {
	var tcp, udp string
	for _, a := range addrs {
		network, address, err := manet.DialArgs(a)
		if err != nil || isRelayed(a) || IsVeil(a) {
			continue
		}
		switch {
		case strings.HasPrefix(network, "tcp") && tcp == "":
			tcp = address
		case strings.HasPrefix(network, "udp") && udp == "" && p.DialTCP == nil:
			udp = address
		}
	}
	var both sync.WaitGroup
	if udp != "" {
		for probe, try := range map[Probe]func(context.Context) error{
			ProbeUDP:      func(ctx context.Context) error { return probeUDP(ctx, udp) },
			ProbeQUIC:     func(ctx context.Context) error { return probeQUIC(ctx, udp, "h3") },
			ProbeQUICOurs: func(ctx context.Context) error { return probeQUIC(ctx, udp, "libp2p") },
		} {
			both.Go(func() { f[probe] = twice(ctx, try) })
		}
	}
	if tcp != "" {
		both.Go(func() {
			if f[ProbeTCP] = twice(ctx, func(ctx context.Context) error { return p.probeTCP(ctx, tcp) }); f[ProbeTCP] != Passed {
				return
			}
			if f[ProbePlain] = twice(ctx, func(first context.Context) error { return p.probePlain(ctx, first, tcp, fewRounds) }); f[ProbePlain] == Passed {
				f[ProbeLong] = twice(ctx, func(first context.Context) error { return p.probePlain(ctx, first, tcp, longRounds) })
			}
			if p.Random {
				f[ProbeRandom] = twice(ctx, func(ctx context.Context) error { return p.probeRandom(ctx, tcp) })
			}
		})
	}
	both.Wait()
	return f
}

// Bridge probes a bridge with hellos of browsers, in which its secret path is not
// uttered: whoever answers learns nothing. That a web site answers says nothing of
// the bridge, so where one does, through connects as it is always connected to,
// until it has proven who it is.
func (p Prober) Bridge(ctx context.Context, v VeilAddr, through func(context.Context) error) (f Findings) {
	address := net.JoinHostPort(v.Host, portText(v.Port))
	if _, err := netip.ParseAddr(v.Host); err != nil && p.DialTCP == nil {
		f[ProbeName] = twice(ctx, func(ctx context.Context) error {
			_, err := net.DefaultResolver.LookupNetIP(ctx, "ip", v.Host)
			return err
		})
		if f[ProbeName].Failed() {
			return f
		}
	}
	if f[ProbeTCP] = twice(ctx, func(ctx context.Context) error { return p.probeTCP(ctx, address) }); f[ProbeTCP] != Passed {
		return f
	}
	hellos := p.Hellos
	if len(hellos) == 0 {
		hellos = BuiltInHellos()
	}
	name := v.SNI
	if name == "" {
		if _, err := netip.ParseAddr(v.Host); err != nil {
			name = v.Host
		}
	}
	hello := func(h Hello, name string) Outcome {
		return twice(ctx, func(ctx context.Context) error { return p.probeTLS(ctx, address, h, name, v) })
	}
	f[ProbeTLS] = hello(hellos[0], name)
	if f[ProbeTLS].Failed() && f[ProbeTLS] != Altered {
		if len(hellos) > 1 {
			f[ProbeOther] = hello(hellos[1], name)
		}
		if name != "" {
			f[ProbeNameless] = hello(hellos[0], "")
		}
	}
	if f[ProbeTLS] == Passed || f[ProbeOther] == Passed {
		f[ProbeVeil] = outcomeOf(through(ctx)) // once: it tries again by itself, for as long as there is hope
	}
	return f
}

func portText(port uint16) string {
	return strings.TrimPrefix(netip.AddrPortFrom(netip.IPv4Unspecified(), port).String(), "0.0.0.0:")
}

// twice makes a probe again whose answer did not come.
func twice(ctx context.Context, probe func(context.Context) error) Outcome {
	var out Outcome
	for range probeAttempts {
		if ctx.Err() != nil {
			break
		}
		attempt, cancel := context.WithTimeout(ctx, probeTime)
		out = outcomeOf(probe(attempt))
		cancel()
		if out == Passed || out == Altered {
			break
		}
	}
	return out
}

var errAltered = errors.New("somebody else answers")

func outcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return Passed
	case errors.Is(err, errAltered), errors.Is(err, errWrongCertificate):
		return Altered
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, errNotBridge):
		return Refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		return Reset
	}
	return Silent
}

func (p Prober) dial(ctx context.Context, address string) (net.Conn, error) {
	dial := p.DialTCP
	if dial == nil {
		dial = new(net.Dialer).DialContext
		if _, err := netip.ParseAddrPort(address); err != nil && p.Dial != 0 {
			dial = reachDialer(p.Dial).DialContext
		}
	}
	c, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline() // twice sets one
	return c, errors.Join(c.SetDeadline(deadline))
}

func (p Prober) probeTCP(ctx context.Context, address string) error {
	c, err := p.dial(ctx, address)
	if err != nil {
		return err
	}
	return c.Close()
}

// probePlain exchanges the first line of libp2p's negotiation (multistream-select
// 1.0) and then proposes protocols that nobody has. Each has probeTime, the first
// until first ends, and all have until ctx ends: a node may be slow on purpose.
func (p Prober) probePlain(ctx, first context.Context, address string, rounds int) error {
	c, err := p.dial(first, address)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	in := bufio.NewReaderSize(c, maxProbeLine)
	say := func(line, want string) error {
		if _, err := c.Write(append([]byte{byte(len(line) + 1)}, line+"\n"...)); err != nil {
			return err
		}
		size, err := in.ReadByte()
		if err != nil {
			return err
		}
		if size > maxProbeLine {
			return errAltered
		}
		got := make([]byte, size)
		if _, err := io.ReadFull(in, got); err != nil {
			return err
		}
		if !bytes.Equal(got, []byte(want+"\n")) {
			return errAltered
		}
		return nil
	}
	const hello = "/multistream/1.0.0"
	if err := say(hello, hello); err != nil {
		return err
	}
	for range rounds {
		if err := c.SetDeadline(time.Now().Add(probeTime)); err != nil {
			return err
		}
		if err := say("/none", "na"); err != nil {
			return err
		}
	}
	return nil
}

// probeRandom sends what no rule can name. Whoever gets it hangs up.
func (p Prober) probeRandom(ctx context.Context, address string) error {
	c, err := p.dial(ctx, address)
	if err != nil {
		return err
	}
	defer c.Close()
	noise := make([]byte, 300)
	_, _ = rand.Read(noise)
	noise[0], noise[1] = 0xff, 0xff // as a length, longer than any that is taken
	if _, err := c.Write(noise); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(c, 4096))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return err
	}
	return nil // it was heard
}

// probeUDP sends a datagram in the form of QUIC's short header for a connection
// that does not exist, which is answered by a stateless reset (RFC 9000, section
// 10.3). A rule that looks for QUIC looks for long headers.
func probeUDP(ctx context.Context, address string) error {
	c, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	datagram := make([]byte, 100)
	_, _ = rand.Read(datagram)
	datagram[0] = 0x40 | datagram[0]&0x3f
	if _, err := c.Write(datagram); err != nil {
		return err
	}
	_, err = c.Read(datagram)
	return err
}

// probeQUIC begins a handshake. Any answer will do: a node refuses those who name
// another protocol, and those who do not show a certificate.
func probeQUIC(ctx context.Context, address, alpn string) error {
	c, err := quic.DialAddr(ctx, address, &tls.Config{
		InsecureSkipVerify: true, // who answers is not asked, and told nothing
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{alpn},
	}, &quic.Config{HandshakeIdleTimeout: probeTime})
	if err == nil {
		return c.CloseWithError(0, "")
	}
	var failed *quic.TransportError
	if errors.As(err, &failed) && failed.Remote {
		return nil
	}
	return err
}

// probeTLS makes the handshake of a browser with a bridge, and looks at the
// certificate if the address pins it.
func (p Prober) probeTLS(ctx context.Context, address string, h Hello, name string, v VeilAddr) error {
	spec, err := h.spec()
	if err != nil {
		return err
	}
	if name == "" {
		kept := spec.Extensions[:0]
		for _, e := range spec.Extensions {
			if _, ok := e.(*utls.SNIExtension); !ok {
				kept = append(kept, e)
			}
		}
		spec.Extensions = kept
	}
	c, err := p.dial(ctx, address)
	if err != nil {
		return err
	}
	defer c.Close()
	u := utls.UClient(c, &utls.Config{ServerName: name, InsecureSkipVerify: true}, utls.HelloCustom) // nothing is said after it
	if err := u.ApplyPreset(spec); err != nil {
		return err
	}
	if err := u.HandshakeContext(ctx); err != nil {
		var alert utls.AlertError
		if errors.As(err, &alert) {
			return nil // an answer, of a server that wants a name for example
		}
		return err
	}
	if certs := u.ConnectionState().PeerCertificates; v.Pin != nil && (len(certs) == 0 || PinOf(certs[0].Raw) != *v.Pin) {
		return errAltered
	}
	return nil
}

// HardwareMark begins the mark that is the hardware address of a router.
const HardwareMark = "hardware "

// NetworkMarks are what tells the network that this machine is on from others:
// the prefixes of its IPv4 addresses, and where the system says so the router and
// its hardware address. They are told to nobody; callers hash them with a key.
func NetworkMarks() (marks []string) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			ones, _ := n.Mask.Size()
			ip, _ := netip.AddrFromSlice(n.IP.To4())
			marks = append(marks, netip.PrefixFrom(ip, ones).Masked().String())
		}
	}
	for _, f := range linesOf("/proc/net/route") { // Linux
		if len(f) > 2 && f[1] == "00000000" {
			marks = append(marks, "router "+f[2])
		}
	}
	if len(marks) > 0 {
		for _, f := range linesOf("/proc/net/arp") {
			if len(f) > 3 && isRouter(f[0], marks) {
				marks = append(marks, HardwareMark+f[3])
			}
		}
	}
	return marks
}

func linesOf(path string) (lines [][]string) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	for _, line := range strings.Split(string(b), "\n") {
		lines = append(lines, strings.Fields(line))
	}
	return lines
}

// isRouter says whether an IPv4 address is a router among marks, where it stands
// as the kernel writes it: hexadecimal in the byte order of the machine.
func isRouter(ip string, marks []string) bool {
	a, err := netip.ParseAddr(ip)
	if err != nil || !a.Is4() {
		return false
	}
	const digits = "0123456789ABCDEF"
	var little, big strings.Builder
	b := a.As4()
	for i := range b {
		for w, v := range map[*strings.Builder]byte{&little: b[3-i], &big: b[i]} {
			w.WriteByte(digits[v>>4])
			w.WriteByte(digits[v&15])
		}
	}
	for _, m := range marks {
		if m == "router "+little.String() || m == "router "+big.String() {
			return true
		}
	}
	return false
}
