package mailbox

import (
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/protocol/envelope"
)

// Type says what a frame is.
type Type uint8

// The frames of docs/spec/mailbox.md, section 3. A node never sends a type
// below 64, a client never one from there on.
const (
	TypeDeposit Type = 1
	TypeAudit   Type = 2
	TypeOpen    Type = 3
	TypeTags    Type = 4
	TypeCollect Type = 5

	TypeHello      Type = 64
	TypeStored     Type = 65
	TypeProof      Type = 66
	TypeOpened     Type = 67
	TypeRegistered Type = 68
	TypePage       Type = 69
	TypeRefused    Type = 70
)

// firstAnswer is where the types of a node's frames begin.
const firstAnswer = TypeHello

// Frame is one of the frame types below.
type Frame interface {
	Type() Type
	marshal(b []byte) []byte
	unmarshal(in *cryptobyte.String) bool
	valid() bool
}

// Hello opens every stream: what the node offers.
type Hello struct {
	Nonce    Nonce  // to sign in Open
	Draining bool   // it takes nothing new: deposit elsewhere, move your box
	Hours    uint16 // how long it keeps what nobody collects
}

// Deposit leaves an envelope. The answer is Stored, which is sent only when the
// envelope is on the node's disk, or Refused. To deposit the same envelope
// again is harmless: there is one copy and a new receipt.
type Deposit struct {
	Envelope []byte // an envelope, whole
}

// Stored is the node's signed receipt.
type Stored struct {
	Hours     uint16
	Signature [64]byte
}

// Audit asks for a proof that an envelope is still there. The answer is Proof, or
// Refused with RefusedUnknown: never stored, collected, lost or expired.
type Audit struct {
	Tag    envelope.Tag
	Digest Digest
	Nonce  Nonce
}

// Proof shows that the node has the envelope.
type Proof struct {
	MAC [32]byte
}

// Open proves that the client owns a box, and makes the box if it does not
// exist and Create is set. It comes once on a stream, before Tags and Collect.
// The answer is Opened or Refused.
type Open struct {
	Box       BoxID
	Create    bool
	Signature [64]byte
}

// Opened is the state of a box.
type Opened struct {
	Generation uint64 // of the newest Tags request; 0: none
	Tags       uint32 // registered
	Items      uint32 // waiting
	Bytes      uint64 // waiting
	Quota      uint64 // bytes it may hold now
}

// Class says whose mail comes under a tag.
type Class uint8

// The classes of docs/spec/mailbox.md, section 6: what strangers send has a
// small share of its own.
const (
	ClassContact Class = 1 // a session's tag
	ClassRequest Class = 2 // an invite's tag
)

// Registration is a tag under which a box takes envelopes.
type Registration struct {
	Tag   envelope.Tag
	Class Class
}

// Tags registers tags. All of a request belong to its generation, which never
// goes back; with Prune, those of older generations are forgotten. So a whole
// set is replaced, over several requests, without a moment in which a tag of both
// sets is unknown. The answer is Registered or Refused.
type Tags struct {
	Generation uint64 // from 1 on
	Prune      bool
	Tags       []Registration // at most MaxTags, in ascending order of the tag, each once
}

// Registered says how many tags the box has now.
type Registered struct {
	Generation uint64
	Tags       uint32
}

// Collect deletes what is done with, and asks for what waits after an item:
// the oldest first. If there is nothing the node holds the answer back until
// something comes or Wait is over; a request that follows ends the wait. The answer is Page.
type Collect struct {
	Done  []uint64      // items to delete, ascending, at most MaxItems
	After uint64        // 0: from the beginning
	Wait  time.Duration // whole seconds, at most MaxWait
}

// Page is a part of what waits: at most MaxItems envelopes, and at most MaxPage
// bytes of them.
type Page struct {
	Items []Item
	More  bool // there is more after the last one
}

// Item is an envelope and the number that the node gave it in its box.
// Numbers rise, and none is used twice in a box.
type Item struct {
	ID       uint64
	Envelope []byte
}

// Refusal says why a request was not met.
type Refusal uint8

// The refusals of docs/spec/mailbox.md, section 7. Busy and Draining do not depend on
// what was asked for, so they tell nobody whether a tag or a box exists; Full is
// said only about a tag that is registered.
const (
	RefusedUnknown  Refusal = 1 // no such tag, or nothing under it
	RefusedFull     Refusal = 2 // the box, or the tag's or the class's share of it, is full
	RefusedBusy     Refusal = 3 // too much at one time: wait
	RefusedDraining Refusal = 4 // the node retires: go elsewhere
	RefusedNoBox    Refusal = 5 // the node does not have this box (any more), or was not asked to open one
	RefusedProof    Refusal = 6 // the signature is not good
	RefusedLimit    Refusal = 7 // more tags, or boxes, than the node allows
)

// Refused answers a request that is not met.
type Refused struct {
	Why  Refusal
	Wait time.Duration // of RefusedBusy: whole seconds, at most MaxWait
}

// Limits of docs/spec/mailbox.md, sections 3 and 10.
const (
	// MaxItems and MaxPage bound a page; one largest envelope always fits.
	MaxItems = 64
	MaxPage  = 1 << 20
	// MaxTags bounds the registrations of one request.
	MaxTags = 1024
	// MaxWait bounds how long an answer may be held back.
	MaxWait = 10 * time.Minute
	// MaxSet bounds the mailboxes of one device.
	MaxSet = 5
)

// Type is TypeHello.
func (*Hello) Type() Type { return TypeHello }

// Type is TypeDeposit.
func (*Deposit) Type() Type { return TypeDeposit }

// Type is TypeStored.
func (*Stored) Type() Type { return TypeStored }

// Type is TypeAudit.
func (*Audit) Type() Type { return TypeAudit }

// Type is TypeProof.
func (*Proof) Type() Type { return TypeProof }

// Type is TypeOpen.
func (*Open) Type() Type { return TypeOpen }

// Type is TypeOpened.
func (*Opened) Type() Type { return TypeOpened }

// Type is TypeTags.
func (*Tags) Type() Type { return TypeTags }

// Type is TypeRegistered.
func (*Registered) Type() Type { return TypeRegistered }

// Type is TypeCollect.
func (*Collect) Type() Type { return TypeCollect }

// Type is TypePage.
func (*Page) Type() Type { return TypePage }

// Type is TypeRefused.
func (*Refused) Type() Type { return TypeRefused }
