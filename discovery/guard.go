package discovery

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// maxFrame bounds one DHT message: a record, twenty peers with their
	// addresses, and room. kad-dht itself would take 4 MiB, in which two
	// million empty elements decode to 205 MiB.
	maxFrame = 64 << 10

	// maxElements bounds the fields of one DHT message, those of its peers
	// included. Twenty-one peers with eight addresses each are 215; without
	// this bound a frame of empty elements still decodes to fifty times its
	// size, as often as its sender likes.
	maxElements = 1024

	// frameTime is how long a frame may take from its first byte to its last.
	frameTime = 10 * time.Second

	// maxPeerAddrs and maxPeerAddrBytes bound the addresses of one peer that
	// are believed or passed on, so that no peer can make the honest answers
	// that name it grow beyond maxFrame.
	maxPeerAddrs     = 8
	maxPeerAddrBytes = 1 << 10

	// Field numbers of the DHT's message (docs/spec/discovery.md, section 3).
	fieldCloserPeers   protowire.Number = 8
	fieldProviderPeers protowire.Number = 9
)

var (
	errFrameSize     = errors.New("frame is larger than the DHT allows")
	errFrameElements = errors.New("frame has more elements than the DHT allows")
)

// guardHost is the host that kad-dht is given. Every stream through it, in
// either direction, is read frame by frame, and one that carries a frame
// beyond the limits of docs/spec/discovery.md, section 3, is reset before
// kad-dht sees it. Addresses of peers are bounded on the way out of its
// peerstore.
type guardHost struct {
	host.Host
	store guardPeerstore
}

func newGuardHost(h host.Host, keep func([]ma.Multiaddr) []ma.Multiaddr) *guardHost {
	return &guardHost{Host: h, store: guardPeerstore{Peerstore: h.Peerstore(), keep: keep}}
}

// Peerstore returns the peerstore with bounded answers.
func (g *guardHost) Peerstore() peerstore.Peerstore { return g.store }

// SetStreamHandler guards the streams that peers open.
func (g *guardHost) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	g.Host.SetStreamHandler(id, func(s network.Stream) {
		if err := s.Scope().ReserveMemory(maxFrame, network.ReservationPriorityMedium); err != nil {
			_ = s.Reset()
			return
		}
		handle(guardStream(s))
	})
}

// NewStream guards the streams that we open.
func (g *guardHost) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	s, err := g.Host.NewStream(ctx, p, ids...)
	if err != nil {
		return nil, err
	}
	return guardStream(s), nil
}

// guardPeerstore bounds the addresses that a peer is said to have.
type guardPeerstore struct {
	peerstore.Peerstore
	keep func([]ma.Multiaddr) []ma.Multiaddr
}

func (g guardPeerstore) Addrs(p peer.ID) []ma.Multiaddr {
	return g.keep(g.Peerstore.Addrs(p))
}

func (g guardPeerstore) PeerInfo(p peer.ID) peer.AddrInfo {
	return peer.AddrInfo{ID: p, Addrs: g.Addrs(p)}
}

// guardedStream hands out only whole frames that passed the guard.
type guardedStream struct {
	network.Stream
	frames frameReader
}

func guardStream(s network.Stream) network.Stream {
	return &guardedStream{Stream: s, frames: frameReader{
		r:     s,
		start: func() { _ = s.SetReadDeadline(time.Now().Add(frameTime)) },
		end:   func() { _ = s.SetReadDeadline(time.Time{}) },
	}}
}

// Read resets the stream when a frame breaks the limits.
func (g *guardedStream) Read(p []byte) (int, error) {
	n, err := g.frames.Read(p)
	var timeout net.Error
	if errors.Is(err, errFrameSize) || errors.Is(err, errFrameElements) ||
		errors.Is(err, io.ErrUnexpectedEOF) || (errors.As(err, &timeout) && timeout.Timeout()) {
		_ = g.Stream.Reset()
	}
	return n, err
}

// frameReader reads frames, each a length (unsigned varint) and as many bytes,
// and hands them out unchanged, length included, after checking them. It
// allocates what has arrived, never what a length claims.
type frameReader struct {
	r          io.Reader
	start, end func() // called around each frame; either may be nil

	buf  []byte // the frame being handed out, its length included
	next int    // what of buf has been handed out
	err  error  // sticky
}

// Read implements io.Reader.
func (f *frameReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if f.next == len(f.buf) {
		if f.err == nil {
			f.err = f.fill()
		}
		if f.err != nil {
			f.buf, f.next = nil, 0 // nothing of a bad frame gets out
			return 0, f.err
		}
	}
	n := copy(p, f.buf[f.next:])
	f.next += n
	return n, nil
}

// fill reads the next frame into buf.
func (f *frameReader) fill() error {
	f.buf, f.next = f.buf[:0], 0
	var one [1]byte
	for {
		if _, err := io.ReadFull(f.r, one[:]); err != nil {
			if err == io.EOF && len(f.buf) > 0 {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		if len(f.buf) == 0 && f.start != nil {
			f.start()
		}
		f.buf = append(f.buf, one[0])
		if one[0] < 0x80 {
			break
		}
		if len(f.buf) == maxLengthBytes {
			return errFrameSize
		}
	}
	size, n := binary.Uvarint(f.buf)
	if size > maxFrame || (n > 1 && f.buf[n-1] == 0) { // too large, or not minimal
		return errFrameSize
	}
	for left := int(size); left > 0; {
		chunk := min(left, readChunk)
		have := len(f.buf)
		f.buf = append(f.buf, make([]byte, chunk)...)
		got, err := io.ReadFull(f.r, f.buf[have:])
		if err != nil {
			f.buf = f.buf[:have+got]
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		left -= chunk
	}
	if f.end != nil {
		f.end()
	}
	if countElements(f.buf[n:]) > maxElements {
		return errFrameElements
	}
	return nil
}

const (
	// maxLengthBytes is the size of the varint of maxFrame.
	maxLengthBytes = 3
	// readChunk is how far the buffer grows ahead of what has arrived.
	readChunk = 4 << 10
)

// countElements returns the number of fields in a DHT message and its peers.
// What is not well-formed ends the count: decoding will refuse it.
func countElements(msg []byte) int {
	count := 0
	for len(msg) > 0 && count <= maxElements {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return count
		}
		size := protowire.ConsumeFieldValue(num, typ, msg[n:])
		if size < 0 {
			return count
		}
		count++
		if typ == protowire.BytesType && (num == fieldCloserPeers || num == fieldProviderPeers) {
			inner, _ := protowire.ConsumeBytes(msg[n:])
			count += countPeerElements(inner)
		}
		msg = msg[n+size:]
	}
	return count
}

func countPeerElements(msg []byte) int {
	count := 0
	for len(msg) > 0 && count <= maxElements {
		_, _, n := protowire.ConsumeField(msg)
		if n < 0 {
			return count
		}
		count++
		msg = msg[n:]
	}
	return count
}
