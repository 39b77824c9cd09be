package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/stream"
)

// Limits of a conversation stream (docs/spec/stream.md, section 5).
const (
	// maxInFlight envelopes or maxInFlightBytes may wait for their
	// acknowledgement. Stop-and-wait measured 17,000 a second on loopback and
	// a window of 64 130,000; at 100 ms of round trip it is not optional.
	maxInFlight      = 64
	maxInFlightBytes = 1 << 20
	// A sender begins with firstInFlight and goes up to that where they come within
	// quickAck; where they take slowAck it goes back. What waits in front of a slow
	// line is lost with the conversation, and all else waits behind it.
	firstInFlight = 64 << 10
	quickAck      = 2 * time.Second
	slowAck       = 8 * time.Second

	// maxBatch envelopes share one transaction on arrival.
	maxBatch = 64

	// A write of which writePiece bytes take longer than writeTime ends the
	// stream: the slowest link that works has 1 kB/s.
	writeTime  = 15 * time.Second
	writePiece = 16 << 10
	// What is written in one turn, so that an acknowledgement does not wait
	// behind a window full of envelopes.
	writeTurn = 32 << 10
	// Who answers an invite has guestTime until the first envelope opens.
	guestTime = 15 * time.Second
	// No device is given longer than ackTime to acknowledge something, but for what
	// a slow line takes.
	ackTime = 30 * time.Second
	// A stream nothing happens on is closed after idleTime.
	idleTime = 10 * time.Minute
)

// conversation is an authenticated stream with a device: both ends have proved
// that they hold the key that named it. One goroutine reads; any may write.
type conversation struct {
	stream  network.Stream
	key     protocol.StreamKey
	in      *transport.Reader
	opened  bool // by us
	road    road
	arrived chan []byte // envelopes, in order; closed when reading has ended
	acked   chan uint64 // the newest acknowledgement not yet looked at
	ended   chan struct{}
	end     sync.Once

	mu      sync.Mutex
	device  identity.DeviceHash // zero until the first envelope opened, on an invite's stream
	count   uint64              // envelopes done with here
	waiting int                 // envelopes that arrived and are not done with
	bytes   int                 // what those take
	heard   time.Time           // when an envelope last arrived
	pings   map[[8]byte]chan struct{}

	writing chan struct{} // holds one token: whoever takes it writes

	// handling is held while envelopes are received and acknowledged: who ends a
	// conversation at such a moment leaves the sender with a copy that it takes to a
	// mailbox a little later, and nodes see who has just heard from whom.
	handling baton

	guest bool // counted among the lobby's guests; under the lobby's lock

	punched atomic.Bool // a way through NATs has been looked for
}

// road names the way a stream or an envelope takes.
type road string

// The roads of this version.
const (
	roadDirect  road = "direct"
	roadLAN     road = "lan"
	roadRelay   road = "relay"
	roadBridge  road = "bridge" // a relay that is reached through a bridge
	roadMailbox road = "mailbox"
	roadBundle  road = "bundle"
)

// relayed says whether the two ends of a road have no connection of their own.
func (r road) relayed() bool { return r == roadRelay || r == roadBridge }

func newConversation(s network.Stream, key protocol.StreamKey, device identity.DeviceHash, opened bool, by road) *conversation {
	c := &conversation{
		stream: s, in: transport.NewReader(s), key: key, device: device, opened: opened, road: by,
		arrived: make(chan []byte, maxBatch),
		acked:   make(chan uint64, 1),
		ended:   make(chan struct{}),
		pings:   make(map[[8]byte]chan struct{}),
		writing: make(chan struct{}, 1), handling: newBaton(),
	}
	c.writing <- struct{}{}
	return c
}

// remote is the transport's name of the other side.
func (c *conversation) remote() peer.ID { return c.stream.Conn().RemotePeer() }

// opener is the transport's name of the side that opened the stream.
func (c *conversation) opener() peer.ID {
	if c.opened {
		return c.stream.Conn().LocalPeer()
	}
	return c.remote()
}

// known says whether the device at the other end is known.
func (c *conversation) known() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.device != identity.DeviceHash{}
}

// name fixes the device at the other end of a stream that an invite named. The
// first one stays.
func (c *conversation) name(d identity.DeviceHash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if (c.device == identity.DeviceHash{}) {
		c.device = d
	}
}

// greet opens a conversation as the side that opened the stream
// (docs/spec/stream.md, section 3). The reader's deadlines bound every step.
func (c *conversation) greet(ctx context.Context, rand io.Reader) error {
	defer context.AfterFunc(ctx, c.reset)()
	hello, first, err := stream.Initiate(rand, c.key, []byte(c.stream.Conn().LocalPeer()), []byte(c.remote()))
	if err != nil {
		return err
	}
	if err := c.writeBytes(first); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	second := make([]byte, stream.Hello2Size)
	c.in.Begin()
	if _, err := io.ReadFull(c.in, second); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	third, err := hello.Finish(second)
	if err != nil {
		return err
	}
	if err := c.writeBytes(third); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	return nil
}

// answer is greet's other side.
func (c *conversation) answer(ctx context.Context, rand io.Reader) error {
	defer context.AfterFunc(ctx, c.reset)()
	first := make([]byte, stream.Hello1Size)
	c.in.Begin()
	if _, err := io.ReadFull(c.in, first); err != nil {
		return fmt.Errorf("answer a greeting: %w", err)
	}
	hello, second, err := stream.Respond(rand, c.key, []byte(c.stream.Conn().LocalPeer()), []byte(c.remote()), first)
	if err != nil {
		return err
	}
	if err := c.writeBytes(second); err != nil {
		return fmt.Errorf("answer a greeting: %w", err)
	}
	third := make([]byte, stream.Hello3Size)
	c.in.Begin()
	if _, err := io.ReadFull(c.in, third); err != nil {
		return fmt.Errorf("answer a greeting: %w", err)
	}
	return hello.Finish(third)
}

// read reads frames until the stream ends. It never blocks on a slow receiver
// of acknowledgements, and on a slow receiver of envelopes only as long as the
// conversation lives: that is the back-pressure.
func (c *conversation) read() {
	defer close(c.arrived)
	defer c.reset()
	c.in.SetIdle(idleTime + time.Minute) // the sending side closes first
	for {
		c.in.Begin()
		f, err := stream.ReadFrame(c.in.Reader)
		if err != nil {
			return
		}
		switch f.Type {
		case stream.TypeEnvelope:
			if !c.admit(len(f.Envelope)) {
				return // more than the window: not an honest sender
			}
			select {
			case c.arrived <- f.Envelope:
			case <-c.ended:
				return
			}
		case stream.TypeAck:
			select {
			case <-c.acked: // an older count that nobody has looked at
			default:
			}
			c.acked <- f.Count
		case stream.TypePing:
			if !c.known() {
				continue // a guest does not learn how far away we are
			}
			if err := c.write(stream.Frame{Type: stream.TypePong, Token: f.Token}); err != nil {
				return
			}
		case stream.TypePong:
			c.pong(f.Token)
		case stream.TypeClose:
			return
		}
	}
}

// write sends one frame with one write.
func (c *conversation) write(f stream.Frame) error {
	b := stream.AppendFrame(make([]byte, 0, 4+stream.MaxFrame/128+len(f.Envelope)), f)
	return c.writeBytes(b)
}

func (c *conversation) writeBytes(b []byte) error {
	select {
	case <-c.writing:
	case <-c.ended:
		return errEnded
	}
	defer func() { c.writing <- struct{}{} }()
	for len(b) > 0 {
		n := min(len(b), writePiece)
		if err := c.stream.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
			return err
		}
		if _, err := c.stream.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// admit counts an envelope that arrived, if the sender keeps to the window.
func (c *conversation) admit(size int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting > 0 && (c.waiting >= maxInFlight || c.bytes+size > maxInFlightBytes) {
		return false
	}
	c.waiting++
	c.bytes += size
	c.heard = time.Now()
	return true
}

// lastHeard is when an envelope last arrived; zero: none has.
func (c *conversation) lastHeard() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard
}

// acknowledge tells the other side that these envelopes are done with.
func (c *conversation) acknowledge(batch [][]byte) error {
	c.mu.Lock()
	for _, e := range batch {
		c.count++
		c.waiting--
		c.bytes -= len(e)
	}
	count := c.count
	c.mu.Unlock()
	return c.write(stream.Frame{Type: stream.TypeAck, Count: count})
}

// close says why and ends the conversation.
func (c *conversation) close(why stream.Reason) {
	c.handling.Lock()
	defer c.handling.Unlock()
	// The other side notices the end either way.
	_ = c.write(stream.Frame{Type: stream.TypeClose, Reason: why})
	c.end.Do(func() {
		close(c.ended)
		_ = c.stream.Close()
	})
}

// cut ends the conversation as soon as what has been received is acknowledged.
func (c *conversation) cut() {
	c.handling.Lock()
	defer c.handling.Unlock()
	c.end.Do(func() {
		close(c.ended)
		_ = c.stream.Close() // a reset would overtake the acknowledgement
	})
}

// reset ends the conversation at once.
func (c *conversation) reset() {
	c.end.Do(func() {
		close(c.ended)
		_ = c.stream.Reset()
	})
}

var errEnded = errors.New("the conversation has ended")

// ping measures one round trip.
func (c *conversation) ping(ctx context.Context, token [8]byte) (time.Duration, error) {
	back := make(chan struct{})
	c.mu.Lock()
	c.pings[token] = back
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pings, token)
		c.mu.Unlock()
	}()
	begin := time.Now()
	if err := c.write(stream.Frame{Type: stream.TypePing, Token: token}); err != nil {
		return 0, err
	}
	select {
	case <-back:
		return time.Since(begin), nil
	case <-c.ended:
		return 0, errEnded
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (c *conversation) pong(token [8]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if back := c.pings[token]; back != nil {
		close(back)
		delete(c.pings, token)
	}
}
