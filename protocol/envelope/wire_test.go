package envelope_test

import (
	"bytes"
	"crypto/ecdh"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/message"
	"github.com/kith-im/kith/protocol/ratchet"
)

// TestD07_WireSizes sends every kind of message, as short and as long as it may
// be, with and without the handshake prefixes: on the wire there are the sizes
// of the list and no other, and most of what people send has the smallest.
func TestD07_WireSizes(t *testing.T) {
	r := rand.NewChaCha8([32]byte{7})
	prekey, _ := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{1}, 32))
	k := ratchet.Keys{AD: make([]byte, 80)}
	a, err := ratchet.Initiator(k, [32]byte(prekey.PublicKey().Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	b, err := ratchet.Responder(k, [32]byte(prekey.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	onList := map[int]bool{}
	for size := protocol.MinEnvelope; size <= protocol.MaxEnvelope; size *= 2 {
		onList[size] = true
	}
	id := message.ID{1}
	ids := make([]message.ID, protocol.MaxBatch)
	ranges := make([]message.Range, protocol.MaxBatch)
	for i := range ids {
		ids[i] = message.ID{byte(i >> 8), byte(i), 1}
		ranges[i] = message.Range{First: uint64(3*i + 1), Last: uint64(3*i + 1)}
	}
	opaque := make([]byte, protocol.MaxContent)
	long := strings.Repeat("x", protocol.MaxText)
	contents := []struct {
		content  message.Content
		smallest bool // fits the smallest envelope
	}{
		{&message.Text{Body: "x"}, true},
		{&message.Text{Body: strings.Repeat("x", 600)}, true},
		{&message.Text{Body: long, ReplyTo: id, Expire: 1}, false},
		{&message.Delivered{IDs: ids[:1]}, true},
		{&message.Delivered{IDs: ids[:20]}, true},
		{&message.Delivered{IDs: ids}, false},
		{&message.Read{IDs: ids[:20]}, true},
		{&message.Read{IDs: ids}, false},
		{&message.Edit{Target: id, Body: "x"}, true},
		{&message.Edit{Target: id, Body: long}, false},
		{&message.Delete{Target: id}, true},
		{&message.Reaction{Target: id, Sign: "👍"}, true},
		{&message.Typing{Active: true}, true},
		{&message.Expiry{Seconds: 3600}, true},
		{&message.Profile{Name: strings.Repeat("界", protocol.MaxName)}, true},
		{&message.DeviceList{Signed: opaque[:300]}, true},
		{&message.DeviceList{Signed: opaque}, false},
		{&message.Prekey{Bundle: opaque[:4000]}, false},
		{&message.Rendezvous{Record: opaque[:300]}, true},
		{&message.Attachment{Key: [32]byte{1}, Digest: [32]byte{1}, Size: 1, Name: strings.Repeat("x", 255)}, true},
		{&message.Group{Operation: opaque}, false},
		{&message.Resend{Ranges: ranges[:30]}, true},
		{&message.Resend{Ranges: ranges}, false},
		{&message.Gone{Seq: 1, ID: id, Reason: message.Expired}, true},
		{&message.Unknown{Number: 999, Raw: opaque}, false},
	}
	for _, tt := range contents {
		m := message.Message{Content: tt.content, Time: 1_700_000_000_000}
		if tt.content.Kind().Historical() {
			m.Seq, m.Depth, m.Prev = 2, 2, id
			m.Parents = []message.ID{{2}}
		}
		encoded, err := m.Encode()
		if err != nil {
			t.Fatalf("%v: %v", m.Kind(), err)
		}
		for _, prefix := range []int{0, 1584, 4889} { // none, HX2, HX1
			t.Run(fmt.Sprintf("%v of %d bytes after %d", m.Kind(), len(encoded), prefix), func(t *testing.T) {
				size, err := envelope.SizeFor(prefix + ratchet.MinCiphertext + len(encoded))
				if err != nil {
					t.Fatal(err)
				}
				next, ct, err := a.Encrypt(r, encoded, size-envelope.TagSize-prefix)
				if err != nil {
					t.Fatal(err)
				}
				a = next
				wire, err := envelope.New(envelope.Tag{}, make([]byte, prefix), ct)
				if err != nil {
					t.Fatal(err)
				}
				if !onList[len(wire)] {
					t.Fatalf("%d bytes on the wire", len(wire))
				}
				if prefix == 0 && tt.smallest != (len(wire) == protocol.MinEnvelope) {
					t.Fatalf("%d bytes on the wire", len(wire))
				}
				_, payload, err := envelope.Parse(wire)
				if err != nil {
					t.Fatal(err)
				}
				var got []byte
				if b, got, err = b.Decrypt(payload[prefix:], time.Unix(1, 0)); err != nil || !bytes.Equal(got, encoded) {
					t.Fatalf("opening: %v", err)
				}
			})
		}
	}
}
