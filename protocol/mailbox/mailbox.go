// Package mailbox is what a mailbox and those who use it say to each other
// (docs/spec/mailbox.md): a community node keeps envelopes for people who are
// away. Whoever knows a tag that the owner of a box has registered may leave
// an envelope under it (Deposit) and later ask for a proof that it is still
// there (Audit); only the owner, by the box's own key, may register tags (Tags),
// collect and delete (Collect).
//
//	node → client   Hello                    once, when the stream opens
//	client → node   Deposit Audit Open Tags Collect
//	node → client   Stored Proof Opened Registered Page, or Refused
//
// Requests are answered in their order; several may be on their way at one time.
// A node learns which tags belong to one box and nothing about whose they are.
package mailbox

import (
	"crypto/ed25519"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
)

// Protocol is the name of the libp2p protocol under which a node serves
// mailboxes.
const Protocol = "/lan/mailbox/1.0.0"

// BoxKey is the private key of a box at one node: an Ed25519 seed, unrelated to
// every other key of its owner.
type BoxKey [32]byte

// BoxID is the public half of a BoxKey, and what the node knows a box by.
type BoxID [32]byte

// Nonce makes a signature or a proof good for one time.
type Nonce [32]byte

// Digest names an envelope to the node that holds it.
type Digest [32]byte

// ID returns the public half.
func (k *BoxKey) ID() BoxID { return BoxID(ed25519.NewKeyFromSeed(k[:]).Public().(ed25519.PublicKey)) }

// Format hides the key under every verb.
func (BoxKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(box key)") }

// MarshalText refuses: a box key belongs in sealed storage, as bytes.
func (BoxKey) MarshalText() ([]byte, error) {
	return nil, errors.New("mailbox: a box key has no text form")
}

// DigestOf implements docs/spec/mailbox.md, section 4.
func DigestOf(env []byte) Digest {
	h := protocol.Hash(protocol.LabelMailboxDigest, env)
	return Digest(h[:len(Digest{})])
}

// SignOpen makes the request by which the owner of a box proves that they are,
// to one node, on one stream (docs/spec/mailbox.md, section 5). node is the
// node's Ed25519 transport key, nonce that of its Hello.
func SignOpen(key *BoxKey, node [32]byte, nonce Nonce, create bool) *Open {
	o := &Open{Box: key.ID(), Create: create}
	o.Signature = [64]byte(ed25519.Sign(ed25519.NewKeyFromSeed(key[:]), openMessage(o, node, nonce)))
	return o
}

// Verify reports whether the request was made for this node and this nonce by
// who holds the box's key.
func (o *Open) Verify(node [32]byte, nonce Nonce) bool {
	return ed25519.Verify(o.Box[:], openMessage(o, node, nonce), o.Signature[:])
}

func openMessage(o *Open, node [32]byte, nonce Nonce) []byte {
	m := append([]byte(protocol.LabelMailboxOpen), node[:]...)
	m = append(m, nonce[:]...)
	m = append(m, o.Box[:]...)
	if o.Create {
		return append(m, 1)
	}
	return append(m, 0)
}

// SignStored makes a node's receipt: it has the envelope on its disk and keeps
// it for so many hours, or until its owner deletes it (section 4). Duration and not
// date: clocks are wrong.
func SignStored(node ed25519.PrivateKey, env []byte, hours uint16) *Stored {
	s := &Stored{Hours: hours}
	s.Signature = [64]byte(ed25519.Sign(node, storedMessage(DigestOf(env), hours)))
	return s
}

// Verify reports whether the receipt is the node's and for this envelope.
func (s *Stored) Verify(node [32]byte, env []byte) bool {
	return ed25519.Verify(node[:], storedMessage(DigestOf(env), s.Hours), s.Signature[:])
}

func storedMessage(d Digest, hours uint16) []byte {
	m := append([]byte(protocol.LabelMailboxStored), d[:]...)
	return binary.BigEndian.AppendUint16(m, hours)
}

// AuditFor asks whether a node still holds an envelope.
func AuditFor(env []byte, nonce Nonce) *Audit {
	return &Audit{Tag: envelope.Tag(env[:envelope.TagSize]), Digest: DigestOf(env), Nonce: nonce}
}

// Prove answers an audit; only who has the whole envelope can (section 4).
func Prove(env []byte, nonce Nonce) *Proof {
	return &Proof{MAC: protocol.MAC(nonce[:], protocol.LabelMailboxProof, env)}
}

// Verify reports whether the proof is for this envelope and this nonce.
func (p *Proof) Verify(env []byte, nonce Nonce) bool {
	want := Prove(env, nonce)
	return hmac.Equal(want.MAC[:], p.MAC[:])
}
