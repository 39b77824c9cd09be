package transport

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
)

// Conversations are opened without two round trips that libp2p's own way to do it
// takes: for identify, whose answer cannot name what is secret, and for the answer to
// the stream's name. Far away, through a bridge and a relay, each is a second.

// ErrNotSpoken means that a peer serves no streams of the name that was asked for.
var ErrNotSpoken = errors.New("the peer serves no such streams")

// Reach is Connect without waiting for what the peer says of itself.
func (h *Host) Reach(ctx context.Context, info peer.AddrInfo) error {
	info, err := h.permitted(info)
	if err != nil {
		return err
	}
	h.Peerstore().AddAddrs(info.ID, info.Addrs, peerstore.TempAddrTTL)
	_, err = h.Network().DialPeer(ctx, info.ID)
	return err
}

// Call opens a stream of a name to a peer that we are connected to. The name goes out
// with the first bytes that are written; if the peer serves none such, reading fails
// with ErrNotSpoken. Whoever calls closes the stream.
func (h *Host) Call(ctx context.Context, p peer.ID, name protocol.ID) (network.Stream, error) {
	s, err := h.Network().NewStream(network.WithNoDial(ctx, "it was reached"), p)
	if err != nil {
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	if err := s.SetProtocol(name); err != nil {
		_ = s.ResetWithError(network.StreamResourceLimitExceeded)
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	return &called{Stream: s, named: multistream.NewMSSelect(s, name)}, nil
}

// called is a stream whose name may not have been answered yet.
type called struct {
	network.Stream
	named multistream.LazyConn
}

func (c *called) Read(p []byte) (int, error) {
	n, err := c.named.Read(p)
	if unknown := (multistream.ErrNotSupported[protocol.ID]{}); errors.As(err, &unknown) {
		err = ErrNotSpoken
	}
	return n, err
}

func (c *called) Write(p []byte) (int, error) { return c.named.Write(p) }

// CloseWrite says the name, if nothing was written, before it says that nothing comes.
func (c *called) CloseWrite() error {
	_ = c.named.Flush() // reading says what is wrong
	return c.Stream.CloseWrite()
}

// Close waits for no longer than FirstByteTimeout for the answer to the name.
func (c *called) Close() error {
	_ = c.SetReadDeadline(time.Now().Add(FirstByteTimeout)) // a stream without it ends by Reset
	return c.named.Close()
}
