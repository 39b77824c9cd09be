package node_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/mailbox"
)

// mailLog is all that community nodes can know who work together and throw
// nothing away: every frame that passes, with the names and addresses of who is
// at the other end of its connection.
type mailLog struct {
	mu      sync.Mutex
	entries []logged
}

// logged is a frame as a node that keeps mail sees it.
type logged struct {
	at    time.Time
	node  peer.ID
	peer  peer.ID
	ip    netip.Addr
	box   mailbox.BoxID // that the stream has opened; zero: none
	frame mailbox.Frame
}

// logMail has the community nodes write down what they see.
func logMail(w *world) *mailLog {
	l := &mailLog{}
	for _, c := range w.ways {
		c.Host.SetStreamHandler(mailbox.Protocol, func(s network.Stream) {
			c.Mail.Handle(&loggedStream{Stream: s, log: l, node: c.Info.ID})
		})
	}
	return l
}

// since returns the entries from a time on, in their order.
func (l *mailLog) since(t time.Time) []logged {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, _ := slices.BinarySearchFunc(l.entries, t, func(e logged, t time.Time) int { return e.at.Compare(t) })
	return slices.Clone(l.entries[i:])
}

// loggedStream is a client's stream to a node that writes down what passes.
type loggedStream struct {
	network.Stream
	log  *mailLog
	node peer.ID

	mu                sync.Mutex
	requests, answers []byte // that do not yet make a frame
	asked, box        mailbox.BoxID
}

func (s *loggedStream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = s.note(append(s.requests, b[:n]...), mailbox.ReadRequest)
	return n, err
}

func (s *loggedStream) Write(b []byte) (int, error) {
	s.mu.Lock()
	s.answers = s.note(append(s.answers, b...), mailbox.ReadAnswer)
	s.mu.Unlock()
	return s.Stream.Write(b)
}

// note writes down the whole frames in b and returns what is left of it.
func (s *loggedStream) note(b []byte, read func(*bufio.Reader) (mailbox.Frame, error)) (rest []byte) {
	for len(b) > 0 {
		in := bytes.NewReader(b)
		buffered := bufio.NewReader(in)
		f, err := read(buffered)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return b
		}
		if err != nil {
			return nil
		}
		b = b[len(b)-in.Len()-buffered.Buffered():]
		switch f := f.(type) {
		case *mailbox.Open:
			s.asked = f.Box
		case *mailbox.Opened:
			s.box = s.asked
		}
		e := logged{node: s.node, peer: s.Conn().RemotePeer(), box: s.box, frame: f}
		if ip, err := manet.ToIP(s.Conn().RemoteMultiaddr()); err == nil {
			e.ip, _ = netip.AddrFromSlice(ip)
			e.ip = e.ip.Unmap()
		}
		s.log.mu.Lock()
		e.at = time.Now()
		s.log.entries = append(s.log.entries, e)
		s.log.mu.Unlock()
	}
	return nil
}

// boxesOf returns a user's boxes, by the names that nodes know them by.
func boxesOf(t *testing.T, u *nodetest.User) map[mailbox.BoxID]peer.ID {
	t.Helper()
	out := make(map[mailbox.BoxID]peer.ID)
	if err := u.Store.View(context.Background(), func(tx *store.Tx) error {
		boxes, err := tx.Boxes()
		for _, b := range boxes {
			key := mailbox.BoxKey(b.Key)
			out[key.ID()] = peer.ID(b.Node)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// owner is what the nodes know of one owner together: the boxes at different
// nodes that take the same tags.
type owner struct {
	boxes map[mailbox.BoxID]bool
	tags  map[envelope.Tag]bool
}

// joined puts together the boxes that belong to one owner.
func joined(entries []logged) (all []*owner, of map[mailbox.BoxID]*owner) {
	of = make(map[mailbox.BoxID]*owner)
	by := make(map[envelope.Tag]*owner)
	for _, e := range entries {
		f, ok := e.frame.(*mailbox.Tags)
		if !ok {
			continue
		}
		a := of[e.box]
		if a == nil {
			a = &owner{boxes: map[mailbox.BoxID]bool{e.box: true}, tags: make(map[envelope.Tag]bool)}
			of[e.box] = a
		}
		for _, r := range f.Tags {
			if b := by[r.Tag]; b != nil && b != a {
				maps.Copy(a.boxes, b.boxes)
				maps.Copy(a.tags, b.tags)
				for box := range b.boxes {
					of[box] = a
				}
				for tag := range b.tags {
					by[tag] = a
				}
			}
			a.tags[r.Tag], by[r.Tag] = true, a
		}
	}
	for _, a := range of {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all, of
}
