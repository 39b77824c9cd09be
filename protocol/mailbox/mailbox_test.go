package mailbox

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"io"
	"reflect"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
)

var (
	node    = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	nodeKey = [32]byte(node.Public().(ed25519.PublicKey))
	boxKey  = BoxKey{9}
)

func newEnvelope(seed byte, n int) []byte { return randomBytes(random(seed), n) }

// requests and answers have every type, with the limits of each.
func requests() []Frame {
	env := newEnvelope(1, protocol.MinEnvelope)
	full := &Tags{Generation: 1<<64 - 1, Prune: true}
	for i := range MaxTags {
		full.Tags = append(full.Tags, Registration{Tag: envelope.Tag{byte(i >> 8), byte(i)}, Class: ClassRequest})
	}
	done := &Collect{After: 1<<64 - 1, Wait: MaxWait}
	for i := range uint64(MaxItems) {
		done.Done = append(done.Done, i+1)
	}
	return []Frame{
		&Deposit{Envelope: env},
		&Deposit{Envelope: newEnvelope(2, protocol.MaxEnvelope)},
		AuditFor(env, Nonce{1}),
		SignOpen(&boxKey, nodeKey, Nonce{1}, false),
		SignOpen(&boxKey, nodeKey, Nonce{1}, true),
		&Tags{Generation: 1},
		&Tags{Generation: 2, Tags: []Registration{{envelope.Tag{1}, ClassContact}, {envelope.Tag{2}, ClassRequest}}},
		full,
		&Collect{},
		&Collect{Done: []uint64{1, 2, 1<<64 - 1}, After: 7, Wait: time.Second},
		done,
	}
}

func answers() []Frame {
	small, large := newEnvelope(1, protocol.MinEnvelope), newEnvelope(2, protocol.MaxEnvelope)
	many, much := &Page{More: true}, &Page{}
	for i := range uint64(MaxItems) {
		many.Items = append(many.Items, Item{ID: i + 1, Envelope: small})
	}
	for i := range uint64(MaxPage / protocol.MaxEnvelope) {
		much.Items = append(much.Items, Item{ID: 1<<64 - 100 + i, Envelope: large})
	}
	f := []Frame{
		&Hello{},
		&Hello{Nonce: Nonce{1, 2}, Draining: true, Hours: 336},
		SignStored(node, small, 720),
		Prove(small, Nonce{3}),
		&Opened{},
		&Opened{Generation: 1, Tags: 2, Items: 3, Bytes: 4, Quota: 5},
		&Registered{Generation: 1, Tags: 2},
		&Page{},
		&Page{Items: []Item{{1, small}, {9, newEnvelope(3, 2048)}}},
		many,
		much,
		&Refused{Why: RefusedBusy, Wait: MaxWait},
	}
	for why := RefusedUnknown; why <= RefusedLimit; why++ {
		f = append(f, &Refused{Why: why})
	}
	return f
}

type reader struct {
	name   string
	read   func(*bufio.Reader) (Frame, error)
	frames []Frame
}

func readers() []reader {
	return []reader{{"request", ReadRequest, requests()}, {"answer", ReadAnswer, answers()}}
}

func TestFrames(t *testing.T) {
	for _, side := range readers() {
		var wire []byte
		for _, f := range side.frames {
			wire = AppendFrame(wire, f)
		}
		for _, src := range []io.Reader{bytes.NewReader(wire), iotest.OneByteReader(bytes.NewReader(wire)), iotest.DataErrReader(bytes.NewReader(wire))} {
			r := bufio.NewReader(src)
			for i, want := range side.frames {
				got, err := side.read(r)
				if err != nil || !reflect.DeepEqual(got, want) {
					t.Fatalf("%s %d: got %v, %v", side.name, i, got, err)
				}
			}
			if _, err := side.read(r); err != io.EOF { //nolint:errorlint // the readers promise io.EOF itself
				t.Errorf("%s: at the end: got %v, want io.EOF", side.name, err)
			}
		}
	}
}
