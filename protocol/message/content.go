package message

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/protocol"
)

// Content is one of the content types of this package. A switch over them
// needs a default only for *Unknown.
type Content interface {
	Kind() Kind
	marshal(*cryptobyte.Builder)
	valid() error
}

// Text is something a person wrote.
type Text struct {
	Body    string // 1 to protocol.MaxText bytes of UTF-8
	ReplyTo ID     // zero if it answers nothing
	Expire  uint32 // seconds after reading until it disappears; 0: never
}

// Delivered says that messages are stored on the recipient's device. Only
// messages of the history get one.
type Delivered struct {
	IDs []ID // 1 to protocol.MaxBatch, ascending
}

// Read says that a person has seen messages.
type Read struct {
	IDs []ID // 1 to protocol.MaxBatch, ascending
}

// Edit replaces the text of an earlier message of the same author.
type Edit struct {
	Target ID
	Body   string // as in Text
}

// Delete withdraws an earlier message of the same author.
type Delete struct {
	Target ID
}

// Reaction puts a sign on a message.
type Reaction struct {
	Target ID
	Sign   string // up to 64 bytes of UTF-8; empty takes it back
}

// Typing says that a person began or stopped to write.
type Typing struct {
	Active bool
}

// Expiry sets, for a whole conversation, when new messages disappear.
type Expiry struct {
	Seconds uint32 // after reading; 0: never
}

// Profile is what a person wants to be called.
type Profile struct {
	Name string // up to protocol.MaxName characters
}

// DeviceList carries an account's signed device list.
type DeviceList struct {
	Signed []byte // an identity.DeviceList
}

// Prekey carries a fresh prekey bundle, for the one new session that may
// replace a lost one.
type Prekey struct {
	Bundle []byte // a handshake.Bundle
}

// Rendezvous carries where to look for the sender from now on: the fields of a
// record's body, alone (docs/spec/rendezvous.md, section 4).
type Rendezvous struct {
	Record []byte // the body of a rendezvous record
}

// Attachment refers to a file that is sealed with a key of its own. The digest
// is over the sealed bytes; with the key, it is part of the message's id, so
// one file cannot be two to two people.
type Attachment struct {
	Key    [32]byte
	Digest [32]byte
	Size   uint64 // of the sealed bytes, 1 to 2⁴⁸
	Name   string // up to 255 bytes of UTF-8; empty if the sender shares none
	Expire uint32 // as in Text
}

// Group carries an operation on a group.
type Group struct {
	Operation []byte
}

// Resend asks the sender of a conversation's messages for those that are
// missing.
type Resend struct {
	Ranges []Range // 1 to protocol.MaxBatch, ascending, with gaps between them
}

// A Range is the sequence numbers from First to Last.
type Range struct {
	First, Last uint64
}

// Gone answers a Resend: the message Seq with this ID will not come.
type Gone struct {
	Seq    uint64
	ID     ID
	Reason Reason
}

// Reason says why a message will not come.
type Reason uint8

// The reasons of Gone.
const (
	Cancelled Reason = 1 // recalled before it left
	Expired   Reason = 2 // its time was over before it arrived
	Deleted   Reason = 3 // withdrawn by its author
)

// String is the name of the reason.
func (r Reason) String() string {
	switch r {
	case Cancelled:
		return "cancelled"
	case Expired:
		return "expired"
	case Deleted:
		return "deleted"
	}
	return "invalid"
}

// Held says which of the recipient's mailboxes gave receipts for envelopes that
// its author left there, so that the recipient knows what each should have
// handed out (docs/spec/mailbox.md, section 9).
type Held struct {
	Nodes [][32]byte // the Ed25519 keys of nodes, 1 to 5, ascending
	Left  []Left     // 1 to protocol.MaxBatch, ascending
}

// Left is an envelope that was left at mailboxes.
type Left struct {
	Envelope [16]byte // the beginning of its digest (docs/spec/mailbox.md, section 4)
	Nodes    uint8    // bit i for Held.Nodes[i]; not 0
}

// Unknown is content that a newer version made. It is stored and shown as
// "needs a newer kith".
type Unknown struct {
	Number Kind
	Raw    []byte // up to protocol.MaxContent
}

const (
	maxSign     = 64
	maxFileName = 255
	maxFileSize = 1 << 48
	maxHeldAt   = 5 // nodes, as many as a set of mailboxes may name
)

// Each type's Kind, marshal and unmarshal, then valid, in the order of the
// kinds. unmarshal reads the form; valid, which Encode and Decode share, checks
// the values.

// Kind is KindText.
func (*Text) Kind() Kind { return KindText }

func (c *Text) marshal(b *cryptobyte.Builder) {
	addOptionalID(b, c.ReplyTo)
	b.AddUint32(c.Expire)
	b.AddBytes([]byte(c.Body))
}

func (c *Text) unmarshal(in *cryptobyte.String) bool {
	return readOptionalID(in, &c.ReplyTo) && in.ReadUint32(&c.Expire) && readRest(in, &c.Body)
}

func (c *Text) valid() error { return validBody(c.Body) }

// Kind is KindDelivered.
func (*Delivered) Kind() Kind { return KindDelivered }

func (c *Delivered) marshal(b *cryptobyte.Builder)        { addBatch(b, c.IDs) }
func (c *Delivered) unmarshal(in *cryptobyte.String) bool { return readBatch(in, &c.IDs) }
func (c *Delivered) valid() error                         { return validBatch(c.IDs) }

// Kind is KindRead.
func (*Read) Kind() Kind { return KindRead }

func (c *Read) marshal(b *cryptobyte.Builder)        { addBatch(b, c.IDs) }
func (c *Read) unmarshal(in *cryptobyte.String) bool { return readBatch(in, &c.IDs) }
func (c *Read) valid() error                         { return validBatch(c.IDs) }

// Kind is KindEdit.
func (*Edit) Kind() Kind { return KindEdit }

func (c *Edit) marshal(b *cryptobyte.Builder) {
	b.AddBytes(c.Target[:])
	b.AddBytes([]byte(c.Body))
}

func (c *Edit) unmarshal(in *cryptobyte.String) bool {
	return in.CopyBytes(c.Target[:]) && readRest(in, &c.Body)
}

func (c *Edit) valid() error { return errors.Join(validTarget(c.Target), validBody(c.Body)) }

// Kind is KindDelete.
func (*Delete) Kind() Kind { return KindDelete }

func (c *Delete) marshal(b *cryptobyte.Builder)        { b.AddBytes(c.Target[:]) }
func (c *Delete) unmarshal(in *cryptobyte.String) bool { return in.CopyBytes(c.Target[:]) }
func (c *Delete) valid() error                         { return validTarget(c.Target) }

// Kind is KindReaction.
func (*Reaction) Kind() Kind { return KindReaction }

func (c *Reaction) marshal(b *cryptobyte.Builder) {
	b.AddBytes(c.Target[:])
	b.AddBytes([]byte(c.Sign))
}

func (c *Reaction) unmarshal(in *cryptobyte.String) bool {
	return in.CopyBytes(c.Target[:]) && readRest(in, &c.Sign)
}

func (c *Reaction) valid() error {
	return errors.Join(validTarget(c.Target), validText(c.Sign, maxSign))
}

// Kind is KindTyping.
func (*Typing) Kind() Kind { return KindTyping }

func (c *Typing) marshal(b *cryptobyte.Builder) {
	if c.Active {
		b.AddUint8(1)
	} else {
		b.AddUint8(0)
	}
}

func (c *Typing) unmarshal(in *cryptobyte.String) bool {
	var v uint8
	if !in.ReadUint8(&v) || v > 1 {
		return false
	}
	c.Active = v == 1
	return true
}

func (c *Typing) valid() error { return nil }

// Kind is KindExpiry.
func (*Expiry) Kind() Kind { return KindExpiry }

func (c *Expiry) marshal(b *cryptobyte.Builder)        { b.AddUint32(c.Seconds) }
func (c *Expiry) unmarshal(in *cryptobyte.String) bool { return in.ReadUint32(&c.Seconds) }
func (c *Expiry) valid() error                         { return nil }

// Kind is KindProfile.
func (*Profile) Kind() Kind { return KindProfile }

func (c *Profile) marshal(b *cryptobyte.Builder)        { b.AddBytes([]byte(c.Name)) }
func (c *Profile) unmarshal(in *cryptobyte.String) bool { return readRest(in, &c.Name) }

func (c *Profile) valid() error {
	if utf8.RuneCountInString(c.Name) > protocol.MaxName {
		return fmt.Errorf("message: a name has at most %d characters", protocol.MaxName)
	}
	return validText(c.Name, protocol.MaxName*utf8.UTFMax)
}

// Kind is KindDeviceList.
func (*DeviceList) Kind() Kind { return KindDeviceList }

func (c *DeviceList) marshal(b *cryptobyte.Builder)        { b.AddBytes(c.Signed) }
func (c *DeviceList) unmarshal(in *cryptobyte.String) bool { return readOpaque(in, &c.Signed) }
func (c *DeviceList) valid() error                         { return validOpaque(c.Signed) }

// Kind is KindPrekey.
func (*Prekey) Kind() Kind { return KindPrekey }

func (c *Prekey) marshal(b *cryptobyte.Builder)        { b.AddBytes(c.Bundle) }
func (c *Prekey) unmarshal(in *cryptobyte.String) bool { return readOpaque(in, &c.Bundle) }
func (c *Prekey) valid() error                         { return validOpaque(c.Bundle) }

// Kind is KindRendezvous.
func (*Rendezvous) Kind() Kind { return KindRendezvous }

func (c *Rendezvous) marshal(b *cryptobyte.Builder)        { b.AddBytes(c.Record) }
func (c *Rendezvous) unmarshal(in *cryptobyte.String) bool { return readOpaque(in, &c.Record) }
func (c *Rendezvous) valid() error                         { return validOpaque(c.Record) }

// Kind is KindAttachment.
func (*Attachment) Kind() Kind { return KindAttachment }

func (c *Attachment) marshal(b *cryptobyte.Builder) {
	b.AddBytes(c.Key[:])
	b.AddBytes(c.Digest[:])
	b.AddUint64(c.Size)
	b.AddUint32(c.Expire)
	b.AddBytes([]byte(c.Name))
}

func (c *Attachment) unmarshal(in *cryptobyte.String) bool {
	return in.CopyBytes(c.Key[:]) && in.CopyBytes(c.Digest[:]) && in.ReadUint64(&c.Size) &&
		in.ReadUint32(&c.Expire) && readRest(in, &c.Name)
}

func (c *Attachment) valid() error {
	if c.Size == 0 || c.Size > maxFileSize {
		return errors.New("message: file size is out of range")
	}
	if c.Key == [32]byte{} || c.Digest == [32]byte{} {
		return errors.New("message: file has no key or no digest")
	}
	return validText(c.Name, maxFileName)
}

// Kind is KindGroup.
func (*Group) Kind() Kind { return KindGroup }

func (c *Group) marshal(b *cryptobyte.Builder)        { b.AddBytes(c.Operation) }
func (c *Group) unmarshal(in *cryptobyte.String) bool { return readOpaque(in, &c.Operation) }
func (c *Group) valid() error                         { return validOpaque(c.Operation) }

// Kind is KindResend.
func (*Resend) Kind() Kind { return KindResend }

func (c *Resend) marshal(b *cryptobyte.Builder) {
	b.AddUint16(uint16(len(c.Ranges)))
	for _, r := range c.Ranges {
		b.AddUint64(r.First)
		b.AddUint64(r.Last)
	}
}

func (c *Resend) unmarshal(in *cryptobyte.String) bool {
	var n uint16
	if !in.ReadUint16(&n) || n > protocol.MaxBatch || len(*in) != int(n)*16 {
		return false
	}
	c.Ranges = make([]Range, n)
	for i := range c.Ranges {
		in.ReadUint64(&c.Ranges[i].First)
		in.ReadUint64(&c.Ranges[i].Last)
	}
	return true
}

func (c *Resend) valid() error {
	if len(c.Ranges) == 0 || len(c.Ranges) > protocol.MaxBatch {
		return fmt.Errorf("message: %d ranges to send again", len(c.Ranges))
	}
	next := uint64(1) // the least that First may be
	for _, r := range c.Ranges {
		if r.First < next || r.Last < r.First || r.Last > MaxDepth {
			return errors.New("message: ranges to send again are not in order")
		}
		next = r.Last + 2
	}
	return nil
}

// Kind is KindGone.
func (*Gone) Kind() Kind { return KindGone }

func (c *Gone) marshal(b *cryptobyte.Builder) {
	b.AddUint64(c.Seq)
	b.AddBytes(c.ID[:])
	b.AddUint8(uint8(c.Reason))
}

func (c *Gone) unmarshal(in *cryptobyte.String) bool {
	return in.ReadUint64(&c.Seq) && in.CopyBytes(c.ID[:]) && in.ReadUint8((*uint8)(&c.Reason))
}

func (c *Gone) valid() error {
	if c.Seq == 0 || c.Seq > MaxDepth {
		return errors.New("message: sequence number is out of range")
	}
	if c.Reason < Cancelled || c.Reason > Deleted {
		return errors.New("message: no such reason")
	}
	return validTarget(c.ID)
}

// Kind is KindHeld.
func (*Held) Kind() Kind { return KindHeld }

func (c *Held) marshal(b *cryptobyte.Builder) {
	b.AddUint8(uint8(len(c.Nodes)))
	for i := range c.Nodes {
		b.AddBytes(c.Nodes[i][:])
	}
	b.AddUint16(uint16(len(c.Left)))
	for i := range c.Left {
		b.AddBytes(c.Left[i].Envelope[:])
		b.AddUint8(c.Left[i].Nodes)
	}
}

func (c *Held) unmarshal(in *cryptobyte.String) bool {
	var nodes uint8
	if !in.ReadUint8(&nodes) || nodes > maxHeldAt || len(*in) < int(nodes)*32 {
		return false
	}
	c.Nodes = make([][32]byte, nodes)
	for i := range c.Nodes {
		in.CopyBytes(c.Nodes[i][:])
	}
	var n uint16
	if !in.ReadUint16(&n) || n > protocol.MaxBatch || len(*in) != int(n)*17 {
		return false
	}
	c.Left = make([]Left, n)
	for i := range c.Left {
		in.CopyBytes(c.Left[i].Envelope[:])
		in.ReadUint8(&c.Left[i].Nodes)
	}
	return true
}

func (c *Held) valid() error {
	if len(c.Nodes) == 0 || len(c.Nodes) > maxHeldAt || len(c.Left) == 0 || len(c.Left) > protocol.MaxBatch {
		return fmt.Errorf("message: %d envelopes held at %d nodes", len(c.Left), len(c.Nodes))
	}
	for i := 1; i < len(c.Nodes); i++ {
		if bytes.Compare(c.Nodes[i-1][:], c.Nodes[i][:]) >= 0 {
			return errors.New("message: nodes are not in order")
		}
	}
	var named uint8
	for i, l := range c.Left {
		if i > 0 && bytes.Compare(c.Left[i-1].Envelope[:], l.Envelope[:]) >= 0 || l.Nodes == 0 {
			return errors.New("message: held envelopes are not in order, or held nowhere")
		}
		named |= l.Nodes
	}
	if named != 1<<len(c.Nodes)-1 {
		return errors.New("message: a node is named that holds nothing, or one holds that is not named")
	}
	return nil
}

// Kind is the number that this version does not know.
func (c *Unknown) Kind() Kind { return c.Number }

func (c *Unknown) marshal(b *cryptobyte.Builder) { b.AddBytes(c.Raw) }

func unmarshalUnknown(k Kind, in cryptobyte.String) (Content, bool) {
	c := &Unknown{Number: k, Raw: append([]byte(nil), in...)}
	return c, true
}

func (c *Unknown) valid() error {
	if c.Number == 0 || c.Number.Known() || len(c.Raw) > protocol.MaxContent {
		return errors.New("message: not content of a newer version")
	}
	return nil
}

// The parts that several contents share.

func addOptionalID(b *cryptobyte.Builder, id ID) {
	if id.IsZero() {
		b.AddUint8(0)
		return
	}
	b.AddUint8(1)
	b.AddBytes(id[:])
}

func readOptionalID(in *cryptobyte.String, id *ID) bool {
	var present uint8
	if !in.ReadUint8(&present) || present > 1 {
		return false
	}
	return present == 0 || in.CopyBytes(id[:]) && !id.IsZero()
}

func addBatch(b *cryptobyte.Builder, ids []ID) {
	b.AddUint16(uint16(len(ids)))
	for i := range ids {
		b.AddBytes(ids[i][:])
	}
}

func readBatch(in *cryptobyte.String, ids *[]ID) bool {
	var n uint16
	return in.ReadUint16(&n) && n <= protocol.MaxBatch && readIDs(in, int(n), ids)
}

// readRest reads what is left as text. Its length is capped before the copy.
func readRest(in *cryptobyte.String, text *string) bool {
	if len(*in) > protocol.MaxContent {
		return false
	}
	*text = string(*in)
	*in = nil
	return true
}

func readOpaque(in *cryptobyte.String, b *[]byte) bool {
	if len(*in) > protocol.MaxContent {
		return false
	}
	*b = append([]byte(nil), *in...)
	*in = nil
	return true
}

func validTarget(id ID) error {
	if id.IsZero() {
		return errors.New("message: names no message")
	}
	return nil
}

func validBatch(ids []ID) error {
	if len(ids) == 0 || len(ids) > protocol.MaxBatch || !ascending(ids) {
		return fmt.Errorf("message: receipt for %d messages is empty, too long or not in order", len(ids))
	}
	return nil
}

func validOpaque(b []byte) error {
	if len(b) == 0 || len(b) > protocol.MaxContent {
		return fmt.Errorf("message: content of %d bytes", len(b))
	}
	return nil
}

// ErrTextTooLong and ErrTextInvalid are what a person's own text can be refused
// for.
var (
	ErrTextTooLong = errors.New("message: the text is too long, send it as a file")
	ErrTextInvalid = errors.New("message: the text is empty or not valid UTF-8")
)

func validBody(s string) error {
	switch {
	case len(s) > protocol.MaxText:
		return ErrTextTooLong
	case s == "" || !utf8.ValidString(s):
		return ErrTextInvalid
	}
	return nil
}

func validText(s string, limit int) error {
	if len(s) > limit || !utf8.ValidString(s) {
		return errors.New("message: a name or sign is too long or not valid UTF-8")
	}
	return nil
}
