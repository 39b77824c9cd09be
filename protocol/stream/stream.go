// Package stream is what two devices say on a conversation stream before and
// around their envelopes: the stream's secret name, the hello that proves to each that the
// other holds their shared key, and the frames. docs/spec/stream.md is its
// specification.
//
//	hello:  I → R  nonce 32
//	        R → I  nonce 32 | mac 32
//	        I → R  mac 32
//	frame:  length uvarint | type 1 | body
package stream

import (
	"crypto/hmac"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kith-im/kith/protocol"
)

// Name returns the name of the libp2p protocol under which two devices meet on
// the day (rendezvous.Day): meaningless to others, and new every day.
// A device answers to the names of yesterday, today and tomorrow
// (docs/spec/stream.md, section 2).
func Name(key protocol.StreamKey, day int64) string {
	m := protocol.MAC(key[:], protocol.LabelStreamName, binary.BigEndian.AppendUint64(nil, uint64(day)))
	return "/" + strings.ToLower(base32.StdEncoding.EncodeToString(m[:20]))
}

// Lengths of the three hello messages.
const (
	Hello1Size = nonceSize
	Hello2Size = nonceSize + macSize
	Hello3Size = macSize

	nonceSize = 32
	macSize   = 32
)

// ErrHello means that the other side did not prove that it holds the key: a
// stranger, a message carried over from elsewhere, or a transport connection
// that ends in another place than it seems to. Say nothing to it.
var ErrHello = errors.New("stream: the other side is not who the stream is for")

// Initiator is a hello begun by the side that opened the stream.
type Initiator struct {
	key        protocol.StreamKey
	nonce      [nonceSize]byte
	self, peer []byte
}

// Initiate begins a hello; hello1 is to be sent. self and peer are the transport's
// names (libp2p peer ids, as bytes) of this side and of the other.
func Initiate(rand io.Reader, key protocol.StreamKey, self, peer []byte) (i *Initiator, hello1 []byte, err error) {
	i = &Initiator{key: key, self: self, peer: peer}
	if _, err := io.ReadFull(rand, i.nonce[:]); err != nil {
		return nil, nil, fmt.Errorf("begin a hello: %w", err)
	}
	return i, append([]byte(nil), i.nonce[:]...), nil
}

// Finish checks the responder's proof. hello3 is to be sent, and frames may
// follow at once.
func (i *Initiator) Finish(hello2 []byte) (hello3 []byte, err error) {
	if len(hello2) != Hello2Size {
		return nil, ErrHello
	}
	h := helloMACs(i.key, i.nonce[:], hello2[:nonceSize], i.self, i.peer)
	if !hmac.Equal(h.responder[:], hello2[nonceSize:]) {
		return nil, ErrHello
	}
	return h.initiator[:], nil
}

// Responder is a hello answered by the side that accepted the stream.
type Responder struct {
	want [macSize]byte
}

// Respond answers hello1; hello2 is to be sent. The other side has proved
// nothing until Finish.
func Respond(rand io.Reader, key protocol.StreamKey, self, peer, hello1 []byte) (r *Responder, hello2 []byte, err error) {
	if len(hello1) != Hello1Size {
		return nil, nil, ErrHello
	}
	hello2 = make([]byte, nonceSize, Hello2Size)
	if _, err := io.ReadFull(rand, hello2); err != nil {
		return nil, nil, fmt.Errorf("answer a hello: %w", err)
	}
	h := helloMACs(key, hello1, hello2, peer, self)
	return &Responder{want: h.initiator}, append(hello2, h.responder[:]...), nil
}

// Finish checks the initiator's proof.
func (r *Responder) Finish(hello3 []byte) error {
	if !hmac.Equal(r.want[:], hello3) {
		return ErrHello
	}
	return nil
}

// The roles under a hello's MACs: one side's proof is never the other's.
const (
	roleInitiator = 1
	roleResponder = 2
)

type macs struct{ initiator, responder [macSize]byte }

// helloMACs implements docs/spec/stream.md, section 3.
func helloMACs(key protocol.StreamKey, nonceI, nonceR, peerI, peerR []byte) macs {
	mac := func(role byte) [macSize]byte {
		return protocol.MAC(key[:], protocol.LabelStreamHello,
			[]byte{protocol.Version, role}, nonceI, nonceR,
			binary.BigEndian.AppendUint32(nil, uint32(len(peerI))), peerI,
			binary.BigEndian.AppendUint32(nil, uint32(len(peerR))), peerR)
	}
	return macs{initiator: mac(roleInitiator), responder: mac(roleResponder)}
}
