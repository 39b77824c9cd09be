package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/mailbox"
)

const (
	// mailDialTime bounds how long it takes to have a stream to a mailbox.
	mailDialTime = 15 * time.Second
	// mailAnswerTime bounds how long a node thinks about what it need not
	// hold back: it may wait for its disk.
	mailAnswerTime = 30 * time.Second
)

// mailStream is a stream to a node that keeps mail (docs/spec/mailbox.md).
// It is not safe for concurrent use, but for reading beside writing.
type mailStream struct {
	stream network.Stream
	in     *transport.Reader
	node   [32]byte // its transport key: receipts are signed with it
	hello  *mailbox.Hello
	stop   func() bool
}

// errNoMailbox means that a node does not answer as a mailbox.
var errNoMailbox = errors.New("the node does not answer as a mailbox")

// refusal is a node's answer to a request that it does not meet.
type refusal struct{ mailbox.Refused }

func (r *refusal) Error() string { return "the mailbox refuses: " + refusalText(r.Why) }

// refusalText is a refusal in the words of the ledger.
func refusalText(why mailbox.Refusal) string {
	switch why {
	case mailbox.RefusedUnknown:
		return "the mailbox does not know the recipient"
	case mailbox.RefusedFull:
		return "the mailbox is full"
	case mailbox.RefusedBusy:
		return "the mailbox is busy"
	case mailbox.RefusedDraining:
		return "the mailbox is being retired"
	case mailbox.RefusedNoBox:
		return "the mailbox has no such box"
	case mailbox.RefusedProof:
		return "the mailbox does not accept our proof"
	case mailbox.RefusedLimit:
		return "the mailbox allows no more"
	}
	return "the mailbox refuses"
}

// dialMail opens a stream to a node, on a host that the node is to know us by,
// and hears what it offers. The stream ends with ctx or by close.
func dialMail(ctx context.Context, h *transport.Host, info peer.AddrInfo) (*mailStream, error) {
	key, err := nodeKey(info.ID)
	if err != nil {
		return nil, errNoMailbox
	}
	dial, cancel := context.WithTimeout(ctx, mailDialTime)
	defer cancel()
	if err := h.Connect(dial, info); err != nil {
		return nil, errors.Join(errDial, ctx.Err())
	}
	s, err := h.NewStream(dial, info.ID, libp2p.ID(mailbox.Protocol))
	if err != nil {
		return nil, errors.Join(errNoMailbox, ctx.Err())
	}
	m := &mailStream{stream: s, in: transport.NewReader(s), node: key}
	m.stop = context.AfterFunc(ctx, func() { _ = s.Reset() })
	f, err := m.read()
	if hello, ok := f.(*mailbox.Hello); ok && err == nil {
		m.hello = hello
		return m, nil
	}
	m.close()
	return nil, errors.Join(errNoMailbox, ctx.Err())
}

// nodeKey is the Ed25519 key that a node's peer id holds.
func nodeKey(id peer.ID) (key [32]byte, err error) {
	pub, err := id.ExtractPublicKey()
	if err != nil {
		return key, err
	}
	raw, err := pub.Raw()
	if err != nil || pub.Type() != crypto.Ed25519 || len(raw) != len(key) {
		return key, errors.New("not an Ed25519 peer")
	}
	return [32]byte(raw), nil
}

func (m *mailStream) key() [32]byte { return m.node }

func (m *mailStream) direct() bool { return true }

func (m *mailStream) close() {
	m.stop()
	_ = m.stream.Reset()
}

// read reads the next answer.
func (m *mailStream) read() (mailbox.Frame, error) {
	m.in.Begin()
	return mailbox.ReadAnswer(m.in.Reader)
}

// write sends requests in one turn.
func (m *mailStream) write(frames ...mailbox.Frame) error {
	var b []byte
	for _, f := range frames {
		b = mailbox.AppendFrame(b, f)
	}
	for len(b) > 0 {
		n := min(len(b), writePiece)
		if err := m.stream.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
			return err
		}
		if _, err := m.stream.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// ask sends one request and returns the answer; a refusal is an error.
func (m *mailStream) ask(f mailbox.Frame) (mailbox.Frame, error) {
	m.in.SetIdle(mailAnswerTime)
	if err := m.write(f); err != nil {
		return nil, err
	}
	answer, err := m.read()
	if err != nil {
		return nil, err
	}
	if r, ok := answer.(*mailbox.Refused); ok {
		return nil, &refusal{*r}
	}
	return answer, nil
}

// open proves that a box is ours.
func (m *mailStream) open(key *mailbox.BoxKey, create bool) (*mailbox.Opened, error) {
	answer, err := m.ask(mailbox.SignOpen(key, m.node, m.hello.Nonce, create))
	if err != nil {
		return nil, err
	}
	opened, ok := answer.(*mailbox.Opened)
	if !ok {
		return nil, errOddAnswer
	}
	return opened, nil
}

// register makes the tags those of the box's next generation, and no others if
// prune is set.
func (m *mailStream) register(generation uint64, tags []mailbox.Registration, prune bool) error {
	for {
		n := min(len(tags), mailbox.MaxTags)
		f := &mailbox.Tags{Generation: generation, Tags: tags[:n], Prune: prune && n == len(tags)}
		answer, err := m.ask(f)
		if err != nil {
			return err
		}
		if r, ok := answer.(*mailbox.Registered); !ok || r.Generation != generation {
			return errOddAnswer
		}
		if tags = tags[n:]; len(tags) == 0 {
			return nil
		}
	}
}

// errOddAnswer means that a node answered what was not asked: it is broken, or
// it lies.
var errOddAnswer = errors.New("the mailbox answers what was not asked")

// nonce makes a nonce.
func nonce(rand io.Reader) (n mailbox.Nonce, err error) {
	if _, err := io.ReadFull(rand, n[:]); err != nil {
		return n, fmt.Errorf("make a nonce: %w", err)
	}
	return n, nil
}

// toldInfo reads the address of a node that somebody told us, which may be its
// name alone.
func toldInfo(address []byte) (peer.AddrInfo, error) {
	a, err := ma.NewMultiaddrBytes(address)
	if err != nil || len(address) > protocol.MaxAddress || transport.HasPath(a) {
		return peer.AddrInfo{}, errNoMailbox
	}
	info, err := peer.AddrInfoFromP2pAddr(a)
	if err != nil {
		return peer.AddrInfo{}, errNoMailbox
	}
	return *info, nil
}

// mailInfo reads the address of a node.
func mailInfo(address []byte) (peer.AddrInfo, error) {
	a, err := ma.NewMultiaddrBytes(address)
	if err != nil || len(address) > protocol.MaxAddress {
		return peer.AddrInfo{}, errNoMailbox
	}
	info, err := peer.AddrInfoFromP2pAddr(a)
	if err != nil || len(info.Addrs) == 0 {
		return peer.AddrInfo{}, errNoMailbox
	}
	return *info, nil
}
