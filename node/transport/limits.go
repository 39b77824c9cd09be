package transport

import (
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
)

// Memory budgets. A budget bounds what the resource manager lets connections
// and streams reserve; the process needs its own memory on top.
const (
	MinMemory       = 16 << 20
	UserMemory      = 64 << 20  // of the 256 MiB a user's daemon may take
	CommunityMemory = 256 << 20 // of a community node's 512 MiB
)

const (
	memoryPerConn  = 256 << 10 // buffers of the transport and TLS, and one stream's first window
	minConns       = 16        // with fewer the shares of conns come to nothing
	streamsPerConn = 4         // on average; one connection may hold more

	connsPerPeer = 8 // QUIC and TCP, both sides dialling at once, and old connections not yet seen dead
	// streamsPerPeer bounds what one peer may have open, and streamsPerProtocol
	// what it may have open of one kind. An honest peer has one conversation,
	// identify and a few DHT queries.
	streamsPerPeer     = 64
	streamsPerProtocol = 32

	maxStreamWindow = 4 << 20 // 40 MiB/s over a round trip of 100 ms

	dialTimeout      = 3 * time.Second
	handshakeTimeout = 10 * time.Second // an inbound connection to its first stream
	connGrace        = 20 * time.Second // a new connection isn't trimmed before it can have been used
)

// limits are the figures derived from one memory budget.
type limits struct {
	memory    int64
	conns     int // in all
	inbound   int // that stay; as many as half of them may be shaking hands beside
	perIP     int // per IPv4 address or IPv6 /56: a household, or a carrier's NAT with fifty of us
	perSubnet int // per IPv4 /24 or IPv6 /48: one operator
	loopback  int // from this machine: other daemons, and proxies in front of us
	streams   int
}

// limitsFor derives them; most, if it is not 0, bounds the connections further.
func limitsFor(memory int64, most int) limits {
	conns := int(memory / memoryPerConn)
	if most > 0 {
		conns = max(min(conns, most), minConns)
	}
	return limits{
		memory:    memory,
		conns:     conns,
		inbound:   conns / 2,
		perIP:     conns * 3 / 8,
		perSubnet: conns / 2,
		loopback:  conns / 2,
		streams:   conns * streamsPerConn,
	}
}

// resourceManager builds the manager that enforces l. Every scope is explicit:
// no default of libp2p's is left in force, and loopback isn't exempt.
func (l limits) resourceManager() (network.ResourceManager, error) {
	share := func(conns, streams int, memory int64) rcmgr.BaseLimit {
		return rcmgr.BaseLimit{
			Conns: conns, ConnsInbound: conns, ConnsOutbound: conns, FD: conns,
			Streams: streams, StreamsInbound: streams, StreamsOutbound: streams,
			Memory: memory,
		}
	}
	system := share(l.conns, l.streams, l.memory)
	// One in four stays free for what we dial ourselves, and one in four for those
	// who shake hands: places sees to it that the others leave them free.
	system.ConnsInbound, system.StreamsInbound = l.conns*3/4, l.streams*3/4

	protocol := share(0, l.streams/2, l.memory/2)
	protocolPeer := share(0, streamsPerProtocol, l.memory/4)
	peer := share(connsPerPeer, streamsPerPeer, l.memory/4)
	one := share(1, 1, l.memory/8)
	none := share(0, 0, 0)
	scaled := rcmgr.ScalingLimitConfig{
		SystemBaseLimit:    system,
		TransientBaseLimit: share(l.conns/4, l.streams/4, l.memory/4),
		// Nothing is on an allow list.
		AllowlistedSystemBaseLimit:    none,
		AllowlistedTransientBaseLimit: none,
		ServiceBaseLimit:              protocol,
		ServicePeerBaseLimit:          protocolPeer,
		ProtocolBaseLimit:             protocol,
		ProtocolPeerBaseLimit:         protocolPeer,
		PeerBaseLimit:                 peer,
		ConnBaseLimit:                 one,
		StreamBaseLimit:               one,
	}
	v4 := netip.MustParsePrefix("127.0.0.0/8")
	v6 := netip.MustParsePrefix("::1/128")
	return rcmgr.NewResourceManager(
		rcmgr.NewFixedLimiter(scaled.Scale(0, 0)),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithNetworkPrefixLimit(
			[]rcmgr.NetworkPrefixLimit{{Network: v4, ConnCount: l.loopback}},
			[]rcmgr.NetworkPrefixLimit{{Network: v6, ConnCount: l.loopback}},
		),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: l.perIP}, {PrefixLength: 24, ConnCount: l.perSubnet}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: l.perIP}, {PrefixLength: 48, ConnCount: l.perSubnet}},
		),
		rcmgr.WithConnRateLimiters(l.rates(v4, v6)),
	)
}

// rates bounds new connections over time. A handshake costs about a
// millisecond, so the whole takes a fifth of a core at most.
func (l limits) rates(loopback4, loopback6 netip.Prefix) *rate.Limiter {
	local := rate.Limit{RPS: 100, Burst: 2 * l.loopback}
	perIP := rate.Limit{RPS: 4, Burst: 2 * l.perIP}
	perSubnet := rate.Limit{RPS: 8, Burst: 2 * l.perSubnet}
	return &rate.Limiter{
		GlobalLimit: rate.Limit{RPS: 200, Burst: 2 * l.conns},
		NetworkPrefixLimits: []rate.PrefixLimit{
			{Prefix: loopback4, Limit: local},
			{Prefix: loopback6, Limit: local},
		},
		SubnetRateLimiter: rate.SubnetLimiter{
			IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: perIP}, {PrefixLength: 24, Limit: perSubnet}},
			IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: perIP}, {PrefixLength: 48, Limit: perSubnet}},
			GracePeriod:      time.Minute,
		},
	}
}
