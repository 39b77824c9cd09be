package transport

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

// DialFunc opens a TCP connection to host:port; the host may be a name. It is
// called from many goroutines.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// VeilClient is how bridges are dialled. The zero value is the default.
type VeilClient struct {
	DialTCP DialFunc   // nil: a net.Dialer; with a proxy, names are resolved there
	Hellos  []Hello    // in order of preference; nil: BuiltInHellos
	Memory  VeilMemory // what worked
}

// VeilMemory keeps what was learnt about a server from one network to the next
// run. Both functions are nil, or neither; they are called from many goroutines
// and shouldn't take long. Without them it is kept as long as the host.
type VeilMemory struct {
	// Load returns what was learnt on the network we are in, the zero Lesson if nothing.
	Load func(server ServerKey) Lesson
	Save func(server ServerKey, lesson Lesson)
}

// ServerKey stands for a server and the name in the hello: a hash that doesn't
// depend on the secret path.
type ServerKey [32]byte

// Lesson is what worked at one server from one network.
type Lesson struct {
	Hello   string        // name of the hello that got an answer; "" unknown
	Packets int           // estimated packets after which a TCP connection went dead; 0: none did
	Bytes   int           // bytes received until then
	Gap     time.Duration // time to leave between TLS connections
	At      time.Time     // when it was learnt
}

// Bridge makes a host reachable through an ordinary web site.
type Bridge struct {
	Listen ma.Multiaddr // /ip4 or /ip6, /tcp
	// Certificate returns the site's certificate. Nil serves plain HTTP/1.1 for
	// the operator's own web server, on loopback only.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Path reports whether a path (without the slash in front) is one of the
	// secret ones, in a time that doesn't tell how nearly it was.
	Path func(path string) bool
	Site http.Handler // answers every other request
}
