package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/spf13/pflag"

	"github.com/kith-im/kith/node"
	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/bridge"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

const (
	webPort = 443
	// acmeFolder is where certificates that ACME brought are kept, in the data folder.
	acmeFolder = "acme"
	// acmeProto is the ALPN protocol by which a domain proves itself (RFC 8737).
	acmeProto = "acme-tls/1"
)

// define adds the flags of a bridge.
func (c *bridgeConfig) define(f *pflag.FlagSet) {
	f.BoolVar(&c.on.value, "bridge", false, "make a community node a bridge: a web site to everybody who has no invite of it")
	f.StringVar(&c.site.value, "site", "", "what a bridge shows everybody else: a `DIR` with index.html, or the URL of a web server")
	f.StringVar(&c.domain.value, "domain", "", "the `NAME` of a bridge's site")
	f.BoolVar(&c.acme.value, "acme", false, "get certificates for --domain from Let's Encrypt, whose terms you accept with it")
	f.StringVar(&c.cert.value, "cert", "", "the `FILE` with a bridge's certificate and its chain; read again when it changes")
	f.StringVar(&c.key.value, "key", "", "the `FILE` with the certificate's key")
	f.StringVar(&c.listen.value, "bridge-listen", "", "where a bridge listens, a `MULTIADDR` (default /ip4/0.0.0.0/tcp/443)")
	f.StringVar(&c.address.value, "bridge-address", "", "where others reach the bridge, a `MULTIADDR`, if it is not --domain or this machine's own address")
	f.BoolVar(&c.behind.value, "bridge-behind", false, "the bridge is behind my own web server, and speaks plain HTTP on loopback")
}

// override lays the flags that were given over what else is known.
func (c *bridgeConfig) override(flags bridgeConfig, changed func(string) bool) {
	override(&c.on, flags.on, changed("bridge"))
	override(&c.site, flags.site, changed("site"))
	override(&c.domain, flags.domain, changed("domain"))
	override(&c.acme, flags.acme, changed("acme"))
	override(&c.cert, flags.cert, changed("cert"))
	override(&c.key, flags.key, changed("key"))
	override(&c.listen, flags.listen, changed("bridge-listen"))
	override(&c.address, flags.address, changed("bridge-address"))
	override(&c.behind, flags.behind, changed("bridge-behind"))
}

// bridgeSettings is what a bridge was told, checked.
type bridgeSettings struct {
	front   transport.Bridge // where it listens, and the site
	domain  string
	acme    bool
	cert    *bridge.Certificate // from files; nil: another
	behind  bool
	address *transport.VeilAddr // host, family and port; nil: see place
}

// readBridge checks what is said about a bridge; it returns nil if the daemon
// is none.
func readBridge(role node.Role, c *bridgeConfig) (*bridgeSettings, error) {
	given := []struct {
		name string
		is   bool
	}{
		{"site", c.site.value != ""},
		{"domain", c.domain.value != ""},
		{"acme", c.acme.value},
		{"cert", c.cert.value != ""},
		{"key", c.key.value != ""},
		{"bridge-listen", c.listen.value != ""},
		{"bridge-address", c.address.value != ""},
		{"bridge-behind", c.behind.value},
	}
	if !c.on.value {
		for _, g := range given {
			if g.is {
				return nil, usagef("add --bridge, or leave it away", "--%s is for a bridge", g.name)
			}
		}
		return nil, nil
	}
	b := &bridgeSettings{domain: c.domain.value, acme: c.acme.value, behind: c.behind.value}
	cert, key := c.cert.value, c.key.value
	certificates := b.acme || cert != "" || key != ""
	switch {
	case role != node.RoleCommunity:
		return nil, usagef("add --role community", "--bridge is for a community node")
	case c.site.value == "":
		return nil, usagef("add --site DIR with an index.html, or --site URL", "a bridge needs a web site that everybody else sees")
	case (cert == "") != (key == ""):
		return nil, usagef("name both", "--cert and --key belong together")
	case b.acme && cert != "":
		return nil, usagef("choose one of the two", "--acme and --cert exclude each other")
	case b.acme && b.domain == "":
		return nil, usagef("add --domain NAME", "--acme gets a certificate for a domain")
	case b.behind && certificates:
		return nil, usagef("leave it to the web server", "a bridge behind a web server has no certificate of its own")
	case b.behind && b.domain == "":
		return nil, usagef("add --domain NAME", "a bridge behind a web server is reached by the domain of that server")
	}
	var err error
	if b.front.Site, err = bridge.Site(c.site.value); err != nil {
		return nil, usagef("check --site", "%v", err)
	}
	if b.front.Listen, err = b.listenAt(c.listen.value); err != nil {
		return nil, err
	}
	if c.address.value != "" {
		if b.address, err = parsePlace(c.address.value); err != nil {
			return nil, usagef("for example --bridge-address /ip4/203.0.113.7/tcp/443", "%q is no address of a bridge", clean(c.address.value))
		}
	}
	if b.domain != "" {
		v := transport.VeilAddr{Host: b.domain, Family: 4, Port: webPort, Path: "AAAAAAAAAAAAAAAAAAAAAA"}
		if _, err := v.Multiaddr(); err != nil {
			return nil, usagef("for example --domain www.example.org", "%q is no domain", clean(b.domain))
		}
	}
	if cert != "" {
		if b.cert, err = bridge.CertificateFiles(cert, key, b.domain); err != nil {
			return nil, usagef("check --cert and --key", "%v", err)
		}
	}
	return b, nil
}

// listenAt is where the bridge listens.
func (b *bridgeSettings) listenAt(s string) (ma.Multiaddr, error) {
	fallback, example := "/ip4/0.0.0.0/tcp/443", "/ip4/0.0.0.0/tcp/443"
	if b.behind {
		fallback, example = "/ip4/127.0.0.1/tcp/8443", "/ip4/127.0.0.1/tcp/8443"
	}
	if s == "" {
		s = fallback
	}
	v, err := parsePlace(s)
	if err == nil {
		_, err = netip.ParseAddr(v.Host)
	}
	a, err2 := ma.NewMultiaddr(s)
	if err != nil || err2 != nil {
		return nil, usagef("for example --bridge-listen "+example, "%q is nowhere a bridge can listen", clean(s))
	}
	if b.behind && transport.ReachOf(a) != transport.Loopback {
		return nil, usagef("for example --bridge-listen "+example, "a bridge behind a web server listens on loopback")
	}
	return a, nil
}

// parsePlace reads /ip4|ip6|dns4|dns6/HOST/tcp/PORT.
func parsePlace(s string) (*transport.VeilAddr, error) {
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return nil, err
	}
	wrong := errors.New("not a place of a bridge")
	if len(a) != 2 || a[1].Protocol().Code != ma.P_TCP {
		return nil, wrong
	}
	port, err := strconv.ParseUint(a[1].Value(), 10, 16)
	if err != nil || port == 0 {
		return nil, wrong
	}
	v := &transport.VeilAddr{Host: a[0].Value(), Family: 4, Port: uint16(port)}
	switch a[0].Protocol().Code {
	case ma.P_IP4, ma.P_DNS4:
	case ma.P_IP6, ma.P_DNS6:
		v.Family = 6
	default:
		return nil, wrong
	}
	return v, nil
}

// bridgeFront is an open bridge.
type bridgeFront struct {
	invites  *bridge.Service
	settings *bridgeSettings
	bridge   transport.Bridge
	name     string // of the web site, or where it is
}

// called is what is said of the bridge to its operator, which holds no secret; empty
// if there is none.
func (f *bridgeFront) called() string {
	if f == nil {
		return ""
	}
	return f.name
}

// host is the bridge as the host takes it; nil if there is none.
func (f *bridgeFront) host() *transport.Bridge {
	if f == nil {
		return nil
	}
	return &f.bridge
}

// certificateSoon is before the end of a certificate when its operator is told: what
// renews by itself has done so long before, 30 days as a rule.
const certificateSoon = 14 * 24 * time.Hour

// check visits the bridge where it listens, as whoever comes by, and says what they
// find. It does not name the site, as doctor's report is to be shown to others.
func (f *bridgeFront) check(ctx context.Context, listen ma.Multiaddr, now time.Time) *apiv1.Check {
	at, err := visitAt(listen)
	if err != nil {
		return &apiv1.Check{Name: "bridge", Text: "The bridge listens nowhere.", Hint: "start kith again"}
	}
	return f.judge(bridge.See(ctx, at, f.settings.domain, f.bridge.Certificate != nil), now)
}

// visitAt is where a listener of this machine is reached from it.
func visitAt(listen ma.Multiaddr) (string, error) {
	if listen == nil {
		return "", errors.New("there is no listener")
	}
	v, err := parsePlace(listen.String())
	if err != nil {
		return "", err
	}
	if ip, err := netip.ParseAddr(v.Host); err == nil && ip.IsUnspecified() {
		v.Host = "127.0.0.1"
		if ip.Is6() {
			v.Host = "::1"
		}
	}
	return net.JoinHostPort(v.Host, strconv.Itoa(int(v.Port))), nil
}

// judge says what a visit means.
func (f *bridgeFront) judge(v bridge.Visit, now time.Time) *apiv1.Check {
	renew := "put a certificate that is good for longer into the files of --cert and --key, which are read again by themselves"
	switch {
	case f.settings.acme:
		renew = "see that --domain leads to this machine and its port 443 to kith, where Let's Encrypt asks for it"
	case f.settings.cert == nil:
		renew = "move bridge.pem out of the home and start kith again, which makes another one: the addresses that were given out end with it"
	}
	wrong := func(text, hint string) *apiv1.Check { return &apiv1.Check{Name: "bridge", Text: text, Hint: hint} }
	secure, ends := f.bridge.Certificate != nil, v.Ends.Format(time.DateOnly)
	switch {
	case !v.Listens:
		return wrong("Nothing answers where the bridge listens.", "start kith again, or look for a firewall on this machine")
	case secure && v.Ends.IsZero():
		return wrong("The bridge shows no certificate.", renew)
	case secure && !now.Before(v.Ends):
		return wrong("The bridge's certificate ended on "+ends+", and who comes is told so.", renew)
	case !v.Answers:
		return wrong("The bridge listens, and its web site does not answer.", "see that what --site names works: everybody but those you invited is shown it")
	case !v.Page && !f.settings.behind: // there the front page is another server's
		return wrong("The bridge's web site has no front page.", "put an index.html into what --site names")
	}
	out := &apiv1.Check{Name: "bridge", Ok: true, Text: "The bridge listens, and its web site answers"}
	if secure {
		out.Text += "; its certificate ends on " + ends
		if v.Ends.Sub(now) < certificateSoon {
			out.Hint = renew
		}
	}
	if n := f.invites.Paths(); n > 0 {
		out.Text += fmt.Sprintf("; secret paths that work: %d.", n)
	} else {
		out.Text += "; nobody has a secret path to it yet (kith bridge invite makes one)."
	}
	return out
}

// openBridge opens what stands before the secret paths, if this is a bridge.
func (d *daemon) openBridge(ctx context.Context, st *store.Store) (*bridgeFront, error) {
	b := d.bridge
	if b == nil {
		return nil, nil
	}
	key, err := hostKey(ctx, st)
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	cert, err := b.certificate(d.cfg.paths.Data)
	if err != nil {
		return nil, err
	}
	invites, err := bridge.Open(ctx, st, id, func() (transport.VeilAddr, error) { return b.where(cert) })
	if err != nil {
		return nil, err
	}
	front := &bridgeFront{invites: invites, settings: b, bridge: b.front}
	front.bridge.Path = invites.Path
	if cert != nil {
		front.bridge.Certificate = cert.Get
	}
	if b.acme {
		front.bridge.NextProtos = []string{acmeProto}
	}
	// An address that can not be is better found now than by who is given it.
	v, err := b.where(cert)
	if err != nil {
		return nil, err
	}
	v.Path = "AAAAAAAAAAAAAAAAAAAAAA"
	if _, err := v.Multiaddr(); err != nil {
		return nil, usagef("check --domain and --bridge-address", "the bridge's address can not be written")
	}
	if front.name = v.Host; b.domain != "" {
		front.name = b.domain
	}
	if v.Port != webPort {
		front.name = net.JoinHostPort(front.name, strconv.Itoa(int(v.Port)))
	}
	return front, nil
}

// certificate returns what the bridge shows; nil behind a web server.
func (b *bridgeSettings) certificate(data string) (*bridge.Certificate, error) {
	switch {
	case b.behind:
		return nil, nil
	case b.acme:
		return bridge.ACME(filepath.Join(data, acmeFolder), b.domain), nil
	case b.cert != nil:
		return b.cert, nil
	}
	name := b.domain
	if name == "" {
		v, err := b.place(false)
		if err != nil {
			return nil, err
		}
		name = v.Host
	}
	return bridge.SelfSigned(data, name)
}

// where is where others reach the bridge, without a path. A certificate that
// browsers do not trust is told by its pin.
func (b *bridgeSettings) where(cert *bridge.Certificate) (transport.VeilAddr, error) {
	trusted := cert == nil || cert.Trusted
	v, err := b.place(trusted)
	if err != nil {
		return v, err
	}
	if b.domain != v.Host {
		v.SNI = b.domain
	}
	if !trusted {
		leaf, err := cert.Leaf()
		if err != nil {
			return v, err
		}
		pin := transport.PinOf(leaf)
		v.Pin = &pin
	}
	return v, nil
}

// place is the host and port at which others reach the bridge: as was said, or
// by the domain if there is a certificate for it, or an address of this machine.
func (b *bridgeSettings) place(trusted bool) (transport.VeilAddr, error) {
	listen, err := parsePlace(b.front.Listen.String())
	switch {
	case b.address != nil:
		return *b.address, nil
	case err != nil:
		return transport.VeilAddr{}, err
	case b.domain != "" && b.behind:
		return transport.VeilAddr{Host: b.domain, Family: 4, Port: webPort}, nil
	case b.domain != "" && trusted:
		return transport.VeilAddr{Host: b.domain, Family: 4, Port: listen.Port}, nil
	}
	if ip, err := netip.ParseAddr(listen.Host); err == nil && !ip.IsUnspecified() {
		return *listen, nil
	}
	own, err := ownAddress(listen.Family)
	if err != nil {
		return transport.VeilAddr{}, &api.Error{
			Code: api.CodeRefused, Message: "this machine has no address at which others could reach the bridge",
			Hint: "name one with --bridge-address, for example /ip4/203.0.113.7/tcp/443",
		}
	}
	return transport.VeilAddr{Host: own.String(), Family: listen.Family, Port: listen.Port}, nil
}

// ownAddress is the address of this machine that most can reach.
func ownAddress(family int) (best netip.Addr, err error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return best, err
	}
	reach := transport.Reach(0)
	for _, a := range all {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		ip = ip.Unmap()
		if !ok || ip.Is4() != (family == 4) || ip.IsLinkLocalUnicast() {
			continue
		}
		m, err := ma.NewMultiaddr(fmt.Sprintf("/ip%d/%s", family, ip))
		if err != nil {
			continue
		}
		r := transport.ReachOf(m)
		if r != 0 && (reach == 0 || r < reach) {
			best, reach = ip, r
		}
	}
	if reach == 0 || reach == transport.Loopback {
		return best, errors.New("no address of this machine leads elsewhere")
	}
	return best, nil
}
