package mailbox_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// flooding is what a process does to a mailbox under many names at one time.
type flooding struct {
	Node         string // its address
	Key          [32]byte
	Peers, Each  int
	Bad, Request envelope.Tag // two tags of the victim's box that are not secret
}

// flooded is what came of it, as the process prints it.
type flooded struct {
	Peers   int64 // that got a stream
	Sent    int64
	Stored  int64
	Refused [8]int64 // by reason
	Broken  int64    // streams that ended early, and were begun anew
}

// The source addresses: four peers share a /24, and no two of these a /16.
func floodIP(peer int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(2 + peer/4), byte(peer / 4), byte(1 + peer%4)})
}

// dialer makes a connection from an address.
type dialer func(from netip.Addr, network, to string) (net.Conn, error)

// floodHost is a host that runs errands from an address.
func floodHost(from netip.Addr, dial dialer) (*transport.Host, error) {
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return transport.New(transport.Config{
		Key: key, Role: transport.Errands, Memory: transport.MinMemory, Dial: transport.Private,
		Transports: func(up libp2p.Upgrader, resources network.ResourceManager) ([]libp2p.Transport, error) {
			t, err := tcp.NewTCPTransport(up, resources, nil, tcp.DisableReuseport(),
				tcp.WithDialerForAddr(func(ma.Multiaddr) (tcp.ContextDialer, error) { return boundDialer{from, dial}, nil }))
			return []libp2p.Transport{t}, err
		},
	})
}

// boundDialer dials from one address.
type boundDialer struct {
	from netip.Addr
	dial dialer
}

func (d boundDialer) DialContext(_ context.Context, network, to string) (net.Conn, error) {
	return d.dial(d.from, network, to)
}

func dialHere(from netip.Addr, network, to string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 10 * time.Second}
	return d.Dial(network, to)
}

// run floods, and prints what came of it.
func (r *flooding) run() error {
	info, err := peer.AddrInfoFromString(r.Node)
	if err != nil {
		return err
	}
	var out flooded
	var all sync.WaitGroup
	for i := range r.Peers {
		all.Go(func() { r.as(i, *info, &out) })
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(&out)
}

// as floods as one peer: under tags that do not exist, under the victim's two,
// or, every fourth, under those of a box of its own. When it is shown out it
// comes back.
func (r *flooding) as(i int, info peer.AddrInfo, out *flooded) {
	host, err := floodHost(floodIP(i), dialHere)
	if err != nil {
		return
	}
	defer host.Close()
	again := time.NewTicker(time.Second) // not all get in at one time
	defer again.Stop()
	own, in := newTag(), false
	for left, tries := r.Each, 0; left > 0 && tries < 600; tries++ {
		if c, err := connect(host, info, r.Key); err == nil {
			if !in {
				atomic.AddInt64(&out.Peers, 1)
			}
			in = true
			left -= r.on(c, left, []envelope.Tag{newTag(), r.Bad, r.Request, own}[i%4], i%4 == 3, out)
			if left > 0 {
				atomic.AddInt64(&out.Broken, 1)
			}
		}
		if left > 0 {
			<-again.C
			host.Network().(*swarm.Swarm).Backoff().Clear(info.ID)
		}
	}
}

// on floods on one stream, and says how many deposits were answered.
func (r *flooding) on(c *client, n int, tag envelope.Tag, own bool, out *flooded) (answered int) {
	var writing sync.WaitGroup
	defer writing.Wait()
	defer c.close() // ends the writing, too
	if own {
		open := wire.AppendFrame(nil, wire.SignOpen(newKey(), c.node, c.hello.Nonce, true))
		if _, err := c.net.Write(wire.AppendFrame(open, tagsFrame(1, false, wire.ClassContact, tag))); err != nil {
			return 0
		}
		for range 2 {
			if _, err := c.next(); err != nil {
				return 0
			}
		}
	}
	writing.Go(func() {
		var b []byte
		for range n {
			b = wire.AppendFrame(b[:0], &wire.Deposit{Envelope: letter(tag, protocol.MinEnvelope)})
			if _, err := c.net.Write(b); err != nil {
				return
			}
			atomic.AddInt64(&out.Sent, 1)
		}
	})
	for range n {
		f, err := c.next()
		if err != nil {
			return answered
		}
		answered++
		switch f := f.(type) {
		case *wire.Stored:
			atomic.AddInt64(&out.Stored, 1)
		case *wire.Refused:
			atomic.AddInt64(&out.Refused[f.Why], 1)
		}
	}
	return answered
}
