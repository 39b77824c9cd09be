package message

import "golang.org/x/crypto/cryptobyte"

// Kind says what a content is. The numbers are on the wire and are never used
// again for anything else.
type Kind uint16

// The kinds of content (docs/spec/message.md, section 4).
const (
	KindText       Kind = 1
	KindDelivered  Kind = 2
	KindRead       Kind = 3
	KindEdit       Kind = 4
	KindDelete     Kind = 5
	KindReaction   Kind = 6
	KindTyping     Kind = 7
	KindExpiry     Kind = 8
	KindProfile    Kind = 9
	KindDeviceList Kind = 10
	KindPrekey     Kind = 11
	KindRendezvous Kind = 12
	KindAttachment Kind = 13
	KindGroup      Kind = 14
	KindResend     Kind = 15
	KindGone       Kind = 16
	KindHeld       Kind = 17
)

// Sender is what the author of a message is to us in its conversation.
type Sender uint8

// The classes of senders.
const (
	OwnDevice Sender = 1 << iota // another device of our account
	Contact                      // the other one in a conversation of two
	Member                       // of the group that the conversation belongs to
	Admin                        // of that group
	Stranger                     // whose request we have not accepted
)

// info is what there is to know about a kind.
type info struct {
	name       string
	known      bool
	historical bool   // part of the history: has a sequence number
	from       Sender // who may send it, as a sum
	unmarshal  func(Kind, cryptobyte.String) (Content, bool)
}

const (
	history = true
	passing = false

	inPerson = OwnDevice | Contact
	inGroup  = Member | Admin
	anybody  = inPerson | inGroup | Stranger
)

// info is the one table of the kinds: what may not be sent by whom is decided
// here and nowhere else (docs/spec/message.md, section 5). A kind without a row
// is unknown, and a test looks for it.
func (k Kind) info() info {
	switch k {
	case KindText:
		return row[Text]("text", history, anybody)
	case KindDelivered:
		return row[Delivered]("delivered", passing, inPerson|inGroup)
	case KindRead:
		return row[Read]("read", passing, inPerson|inGroup)
	case KindEdit:
		return row[Edit]("edit", history, inPerson|inGroup)
	case KindDelete:
		return row[Delete]("delete", history, inPerson|inGroup)
	case KindReaction:
		return row[Reaction]("reaction", history, inPerson|inGroup)
	case KindTyping:
		return row[Typing]("typing", passing, inPerson|inGroup)
	case KindExpiry:
		return row[Expiry]("expiry setting", history, inPerson|Admin)
	case KindProfile:
		return row[Profile]("profile", passing, anybody)
	case KindDeviceList:
		return row[DeviceList]("device list", passing, anybody)
	case KindPrekey:
		return row[Prekey]("prekey stash", passing, inPerson)
	case KindRendezvous:
		return row[Rendezvous]("rendezvous update", passing, inPerson)
	case KindAttachment:
		return row[Attachment]("attachment", history, inPerson|inGroup)
	case KindGroup:
		return row[Group]("group operation", history, inPerson|inGroup)
	case KindResend:
		return row[Resend]("resend", passing, inPerson|inGroup)
	case KindGone:
		return row[Gone]("gone", passing, inPerson|inGroup)
	case KindHeld:
		return row[Held]("held", passing, inPerson)
	}
	return info{name: "unknown", from: inPerson | inGroup, unmarshal: unmarshalUnknown}
}

// row is a line of the table for content type C.
func row[C any, P interface {
	*C
	unmarshal(*cryptobyte.String) bool
	Content
}](name string, historical bool, from Sender) info {
	return info{name, true, historical, from, func(_ Kind, in cryptobyte.String) (Content, bool) {
		c := P(new(C))
		return c, c.unmarshal(&in) && in.Empty()
	}}
}

// String is the name of the kind.
func (k Kind) String() string { return k.info().name }

// Known reports whether this version knows the kind.
func (k Kind) Known() bool { return k.info().known }

// Historical reports whether messages of this kind are part of the history. It
// is false for an unknown kind: there, a Seq above 0 says so.
func (k Kind) Historical() bool { return k.info().historical }

// AllowedFrom reports whether a sender of this class may send the kind. A node
// asks before it looks at the content, and drops what is not allowed.
func (k Kind) AllowedFrom(s Sender) bool {
	return s != 0 && k.info().from&s == s
}
