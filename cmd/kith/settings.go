package main

// What the configuration says of hiding, of proxies and of mail, checked and
// brought into the form that the parts of a daemon take.

import (
	"context"
	"net"
	"net/netip"
	"os"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node"
	"github.com/kith-im/kith/node/api"
	"github.com/kith-im/kith/node/transport"
)

// hideSettings refuses what would show the address that is to be hidden.
func (d *daemon) hideSettings() error {
	if !d.cfg.hide.value {
		return nil
	}
	switch {
	case d.role == node.RoleCommunity:
		return usagef("leave it away", "--hide-address is for a user: others are told to dial a community node")
	case len(d.listen) > 0:
		return usagef("leave --listen away", "who hides the address does not listen")
	case d.cfg.upnp.value:
		return usagef("leave one of the two away", "who hides the address needs no ports of the router")
	case d.cfg.lan.value == "on":
		return usagef("leave one of the two away", "on the local network others are told the address, which is to be hidden")
	}
	return nil
}

// proxySettings finds the proxy that is named here or in the environment, and
// refuses what would go past it.
func (d *daemon) proxySettings() (err error) {
	const hint = "use socks5://HOST:PORT or http://HOST:PORT, with USER:PASSWORD@ before the host if the proxy wants them"
	named := d.cfg.proxy.value
	switch {
	case d.role == node.RoleCommunity:
		if named != "" && named != noProxy {
			return usagef("leave it away", "--proxy is for a user: a community node has to be reachable")
		}
		return nil
	case named == noProxy:
		return nil
	case named != "":
		d.proxy, err = transport.ParseProxy(named)
	default:
		d.proxy, err = transport.ProxyFromEnvironment(os.Getenv)
	}
	if err != nil {
		if named == "" {
			return usagef(hint+" in HTTPS_PROXY or ALL_PROXY, or heed neither with --proxy none", "%v", err)
		}
		return usagef(hint, "%v", err)
	}
	if d.proxy == nil {
		return nil
	}
	for _, a := range d.listen {
		if _, err := a.ValueForProtocol(ma.P_TCP); err != nil {
			return usagef("listen on TCP, or start without a proxy", "%s would go past the proxy, which carries only TCP", a)
		}
	}
	for _, info := range d.bootstrap {
		for _, a := range info.Addrs {
			if _, err := a.ValueForProtocol(ma.P_TCP); err != nil {
				return usagef("name one with /tcp/PORT", "%s can not be reached through a proxy, which carries only TCP", a)
			}
		}
	}
	return nil
}

// dialTCP is how connections are opened; nil: directly. Names that are no
// proxy's business lead to addresses in reach alone.
func (d *daemon) dialTCP(reach transport.Reach) transport.DialFunc {
	if d.proxy == nil {
		return nil
	}
	return d.proxy.Within(reach)
}

// mailSettings checks what is said about mailboxes, one's own and others'.
func (d *daemon) mailSettings() (err error) {
	switch d.cfg.mailbox.value {
	case "auto":
	case "none":
		d.mailbox = node.MailboxNone
	default:
		return usagef("use one of the two", "mailbox is either auto or none, not %q", clean(d.cfg.mailbox.value))
	}
	if d.role == node.RoleUser {
		for name, given := range map[string]setting[string]{"quota": d.cfg.quota, "metrics": d.cfg.metrics} {
			if given.value != "" {
				return usagef("add --role community, or leave it away", "--%s is for a community node", name)
			}
		}
		return nil
	}
	if d.cfg.mailbox.from != "default" {
		return usagef("leave it away", "--mailbox is for a user: a community node has no mailboxes of its own")
	}
	if s := d.cfg.quota.value; s != "" {
		if d.quota, err = parseSize("--quota", "5GB", s); err != nil {
			return err
		}
		if d.quota < api.MinQuota {
			return usagef("for example --quota 5GB; the least is 16MiB", "a quota of %s is too little to keep mail", size(d.quota))
		}
	}
	if s := d.cfg.metrics.value; s != "" {
		// The address has to be named, so that nobody shows the world by leaving it away.
		if d.metrics, err = netip.ParseAddrPort(s); err != nil {
			return usagef("for example --metrics 127.0.0.1:9090; whoever reaches the address can read the counts", "%q is not an IP address with a port", clean(s))
		}
	}
	return nil
}

// listenEverywhere is the default: ports the system picks, on every interface.
func listenEverywhere() []ma.Multiaddr {
	out := []ma.Multiaddr{ma.StringCast("/ip4/0.0.0.0/udp/0/quic-v1"), ma.StringCast("/ip4/0.0.0.0/tcp/0")}
	probe, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp6", "[::]:0")
	if err != nil { // no IPv6 on this machine
		return out
	}
	probe.Close()
	return append(out, ma.StringCast("/ip6/::/udp/0/quic-v1"), ma.StringCast("/ip6/::/tcp/0"))
}
