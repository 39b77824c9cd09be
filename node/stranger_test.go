package node_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/invite"
	"github.com/kith-im/kith/protocol/message"
	"github.com/kith-im/kith/protocol/ratchet"
	"github.com/kith-im/kith/protocol/rendezvous"
	"github.com/kith-im/kith/protocol/stream"
)

// line is a conversation stream that a test holds one end of: it speaks
// docs/spec/stream.md and sends whatever the test wants.
type line struct {
	host   *transport.Host
	stream network.Stream
	sent   uint64
	acks   chan uint64
	heard  [][]byte // envelopes that came back; read it after hangUp
	done   chan struct{}
}

// dial opens a line to u with a key that u takes streams under.
func (w *world) dial(t *testing.T, u *nodetest.User, key protocol.StreamKey) *line {
	t.Helper()
	return w.dialAt(t, u, key, time.Now())
}

// dialAt is dial to a user whose clock shows at.
func (w *world) dialAt(t *testing.T, u *nodetest.User, key protocol.StreamKey, at time.Time) *line {
	t.Helper()
	l, err := w.tryDial(t, u, key, at)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (w *world) tryDial(t *testing.T, u *nodetest.User, key protocol.StreamKey, at time.Time) (*line, error) {
	t.Helper()
	host := w.Host(t, transport.Config{}, nodetest.IP(w.machine()))
	s, err := greet(t, host, u, key, at)
	if err != nil {
		return nil, err
	}
	l := &line{host: host, stream: s, acks: make(chan uint64, 1<<16), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer close(l.acks)
		in := bufio.NewReader(s)
		for got := uint64(0); ; {
			f, err := stream.ReadFrame(in)
			if err != nil {
				return
			}
			switch f.Type {
			case stream.TypeEnvelope:
				l.heard = append(l.heard, f.Envelope)
				got++
				if _, err := s.Write(stream.AppendFrame(nil, stream.Frame{Type: stream.TypeAck, Count: got})); err != nil {
					return
				}
			case stream.TypeAck:
				l.acks <- f.Count
			case stream.TypePing, stream.TypePong, stream.TypeClose:
			}
		}
	}()
	t.Cleanup(func() { s.Reset() })
	return l, nil
}

// greet opens a stream from host to u, whose clock shows at, and says hello.
func greet(t *testing.T, host *transport.Host, u *nodetest.User, key protocol.StreamKey, at time.Time) (network.Stream, error) {
	t.Helper()
	if err := host.Connect(context.Background(), nodetest.AddrInfo(t, u.Contacts)); err != nil {
		return nil, err
	}
	s, err := host.NewStream(context.Background(), u.Contacts.ID(), libp2p.ID(stream.Name(key, rendezvous.Day(at))))
	if err != nil {
		return nil, err
	}
	hello, first, err := stream.Initiate(rand.Reader, key, []byte(host.ID()), []byte(u.Contacts.ID()))
	if err != nil {
		return nil, err
	}
	if _, err := s.Write(first); err != nil {
		return nil, err
	}
	second := make([]byte, stream.Hello2Size)
	if _, err := io.ReadFull(s, second); err != nil {
		return nil, err
	}
	third, err := hello.Finish(second)
	if err != nil {
		return nil, err
	}
	_, err = s.Write(third)
	return s, err
}

// send sends envelopes and waits until all are acknowledged.
func (l *line) send(t *testing.T, envelopes ...[]byte) {
	t.Helper()
	if !l.offer(t, envelopes...) {
		t.Fatal("the line broke")
	}
}

// offer is send, but false if the other side ends the line instead.
func (l *line) offer(t *testing.T, envelopes ...[]byte) bool {
	t.Helper()
	for window := range slices.Chunk(envelopes, 64) {
		var b []byte
		for _, e := range window {
			b = stream.AppendFrame(b, stream.Frame{Type: stream.TypeEnvelope, Envelope: e})
		}
		if _, err := l.stream.Write(b); err != nil {
			return false
		}
		l.sent += uint64(len(window))
		for count := uint64(0); count < l.sent; {
			var ok bool
			if count, ok = <-l.acks; !ok {
				return false
			}
			if count > l.sent {
				t.Fatalf("%d envelopes of %d were acknowledged", count, l.sent)
			}
		}
	}
	return true
}

// hangUp ends the line and returns the envelopes that came back.
func (l *line) hangUp() [][]byte {
	l.stream.Reset()
	<-l.done
	l.host.Close()
	return l.heard
}

// probe opens a stream under a name that nobody gave out and returns what u
// says to it.
func (w *world) probe(t *testing.T, u *nodetest.User) []byte {
	t.Helper()
	var key protocol.StreamKey
	if _, err := rand.Read(key[:]); err != nil {
		t.Fatal(err)
	}
	host := w.Host(t, transport.Config{}, nodetest.IP(w.machine()))
	if err := host.Connect(context.Background(), nodetest.AddrInfo(t, u.Contacts)); err != nil {
		t.Fatal(err)
	}
	conn := host.Network().ConnsToPeer(u.Contacts.ID())[0]
	s, err := conn.NewStream(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	name := stream.Name(key, rendezvous.Day(time.Now()))
	var ask bytes.Buffer
	for _, p := range []string{"/multistream/1.0.0", name} {
		ask.WriteByte(byte(len(p) + 1))
		ask.WriteString(p + "\n")
	}
	if _, err := s.Write(ask.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := s.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(s)
	return answer
}

// pairKey is the key of the streams between u and a contact.
func pairKey(t *testing.T, u *nodetest.User, contact string) protocol.StreamKey {
	t.Helper()
	return protocol.SharedFromPair(pairs(t, u, contact)[0]).Stream
}

// pairs returns the secrets that u shares with a contact, one for each session.
func pairs(t *testing.T, u *nodetest.User, contact string) (all []protocol.PairSecret) {
	t.Helper()
	ds := devices(t, u, contact)
	if err := u.Store.View(context.Background(), func(tx *store.Tx) error {
		for _, d := range ds {
			secrets, err := tx.Pairs(d.Hash)
			if err != nil {
				return err
			}
			for _, p := range secrets {
				all = append(all, protocol.PairSecret(p))
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// knock opens a line to u as the holder of an invite's link.
func (w *world) knock(t *testing.T, u *nodetest.User, link string) *line {
	t.Helper()
	return w.dial(t, u, parseLink(t, link).Keys().Stream)
}

func parseLink(t *testing.T, link string) *invite.Invite {
	t.Helper()
	inv, err := invite.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

// bundleOf is the newest prekey bundle that u shows the holders of a link.
func bundleOf(t *testing.T, u *nodetest.User, link string) *handshake.Bundle {
	t.Helper()
	inv := parseLink(t, link)
	day := rendezvous.Day(time.Now())
	points := rendezvous.Derive(inv.Keys().Rendezvous, inv.Device, day)
	var b *handshake.Bundle
	u.Until("its keys are found", func() bool {
		found, err := u.Dir.Find(context.Background(), points[:])
		if err != nil {
			return false
		}
		b, err = handshake.ParseBundle(found.Body.Bundle, inv.Device, inv.Keys().Bundle, 0, time.Now())
		return err == nil
	})
	return b
}

// stranger is somebody with keys of their own and a link, made of the protocol's
// parts alone.
type stranger struct {
	account *identity.Account
	device  *identity.DeviceKey
	list    []byte

	inv     *invite.Invite
	victim  identity.AccountPublic
	hx1     []byte
	session ratchet.Session
	seq     uint64
	prev    message.ID
}

func newStranger(t *testing.T, victim *nodetest.User, link string) *stranger {
	t.Helper()
	account, err := identity.NewAccount(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	device, err := identity.NewDeviceKey(rand.Reader, account.Public())
	if err != nil {
		t.Fatal(err)
	}
	list, err := identity.NewDeviceList(account, 1, []identity.DeviceEntry{{ID: 1, Device: device.Hash(), Added: 1}})
	if err != nil {
		t.Fatal(err)
	}
	return newStrangerAs(t, account, device, list.Marshal(), bundleOf(t, victim, link), link)
}

func newStrangerAs(t *testing.T, account *identity.Account, device *identity.DeviceKey, list []byte, bundle *handshake.Bundle, link string) *stranger {
	t.Helper()
	s := &stranger{account: account, device: device, list: list, inv: parseLink(t, link), victim: bundle.Device.Account()}
	hx1, keys, err := handshake.Initiate(rand.Reader, device, bundle, s.inv.Keys().PSK)
	if err != nil {
		t.Fatal(err)
	}
	s.hx1 = hx1
	s.session, err = ratchet.Initiator(ratchet.Keys{RK: keys.Root, HKA: keys.HeaderA, HKB: keys.HeaderB, AD: keys.AD[:]}, [32]byte(bundle.X().Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// seal seals content as the stranger's next message.
func (s *stranger) seal(t *testing.T, m *message.Message) []byte {
	t.Helper()
	m.Conversation = message.ConversationOf(s.account.Public(), s.victim)
	wire, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if m.Seq > 0 {
		s.prev = message.NewID(s.device.Hash(), wire)
	}
	size, err := envelope.SizeFor(len(s.hx1) + ratchet.MinCiphertext + len(wire))
	if err != nil {
		t.Fatal(err)
	}
	next, ciphertext, err := s.session.Encrypt(rand.Reader, wire, size-envelope.TagSize-len(s.hx1))
	if err != nil {
		t.Fatal(err)
	}
	s.session = next
	sealed, err := envelope.New(envelope.Tag(s.inv.Keys().Tag), s.hx1, ciphertext)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func (s *stranger) text(t *testing.T, body string) []byte {
	t.Helper()
	s.seq++
	return s.seal(t, &message.Message{Seq: s.seq, Prev: s.prev, Depth: s.seq, Time: 1, Content: &message.Text{Body: body}})
}

func (s *stranger) introduction(t *testing.T) [][]byte {
	t.Helper()
	return [][]byte{
		s.seal(t, &message.Message{Time: 1, Content: &message.DeviceList{Signed: s.list}}),
		s.seal(t, &message.Message{Time: 1, Content: &message.Profile{Name: "stranger"}}),
	}
}

// selfOf reads the account and the device that a stopped user's home holds, as
// somebody who copied it could.
func selfOf(t *testing.T, home string) (*identity.Account, *identity.DeviceKey, []byte) {
	t.Helper()
	st, err := store.Open(store.Options{Dir: home})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var row store.AccountRow
	if err := st.View(context.Background(), func(tx *store.Tx) (err error) {
		row, err = tx.Account()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	const seed = 32
	account, err1 := identity.UnmarshalAccount(row.Secret[:seed])
	device, err2 := identity.UnmarshalDeviceKey(row.Secret[seed:])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return account, device, row.List
}
