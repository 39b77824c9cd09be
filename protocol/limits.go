package protocol

import "time"

// Limits that both ends must agree on. A limit that only concerns this
// implementation stands beside the code it protects.
const (
	// MaxText is the longest text of a message, in bytes of UTF-8. Longer
	// content is an attachment.
	MaxText = 64 << 10

	// MinEnvelope and MaxEnvelope bound the sizes on the wire: an envelope,
	// tag included, is exactly MinEnvelope·2^k bytes. The largest takes the
	// longest text together with a handshake prefix.
	MinEnvelope = 1 << 10
	MaxEnvelope = 128 << 10

	// MaxDevices bounds a device list. Revoked devices stay on it, so it is
	// well above what a person owns at one time.
	MaxDevices = 64

	// MaxHints bounds the ways in that an invite carries, and MaxAddress a way
	// in or an address: a binary multiaddr, whose length takes one byte.
	MaxHints   = 3
	MaxAddress = 255

	// MaxSharedWays bounds the bridges that one contact passes on to another: one
	// may be blocked and one on its way to be, and no more burn with one leak.
	MaxSharedWays = 3

	// RecordSize is the size of every rendezvous record: all look alike, a
	// bundle and a few addresses fit, and nodes of the DHT take no more.
	RecordSize = 4096

	// MaxRecordAddresses bounds the dials that one record can cause.
	MaxRecordAddresses = 8

	// MaxRecordFields bounds the typed fields of a record's body.
	MaxRecordFields = 16

	// MaxRecordLife bounds how far ahead of the reader's clock a record may
	// expire: a day of life and a day of difference between clocks.
	MaxRecordLife = 48 * time.Hour

	// LANSlots is how many devices a packet on a local network speaks to: as
	// many as fit the least MTU of IPv6, 1,280 bytes, with its headers. LANEpoch
	// is how long its keys serve; a reader accepts the epochs beside its own, so
	// clocks may differ by two hours at least.
	LANSlots = 20
	LANEpoch = 2 * time.Hour

	// MaxSkipGap bounds the messages one message may pass over, and MaxSkipped
	// the keys of passed-over messages in one session: 32 bytes and one HMAC
	// each. A sender resends until a receipt, so real gaps are far smaller.
	MaxSkipGap = 1000
	MaxSkipped = 2000

	// SkippedKeyLife is how long, in seconds of receive time, the key of a
	// message that never came is kept: as long as a sender retries.
	SkippedKeyLife = 30 * 24 * 60 * 60

	// CargoStall is how many messages in a row may leave the key exchange in
	// the padding no room before the sender rounds up a bucket.
	CargoStall = 32

	// MaxTagAhead is how far a sender's tag index may run ahead of the last
	// one that a receipt confirmed, and TagWindow how many the recipient
	// accepts beyond it: twice as many, for receipts that are on their way.
	// TagPeriod is how long a tag serves, and TagsBehind how many older ones
	// stay good: a sender retries the same bytes for 30 days.
	MaxTagAhead = 32
	TagWindow   = 64
	TagPeriod   = 24 * time.Hour
	TagsBehind  = 32

	// BundlePart is the size of every part of a bundle: what is lost with one
	// flipped bit, and the least a file holds; about thirty texts fit. A larger
	// envelope than BundlePiece is cut into pieces of that size.
	BundlePart  = 32 << 10
	BundlePiece = 16 << 10

	// MaxBundle bounds a file, and with it the work of looking for what is ours
	// in it: a file of any larger size is none.
	MaxBundle = 1 << 30

	// MaxSlip bounds the envelope that fits on paper: the largest whose text a
	// QR code still holds.
	MaxSlip = 2 << 10

	// MaxParents bounds the heads a message names; a conversation of two
	// rarely has more than one.
	MaxParents = 8

	// MaxContent bounds the encoded content of a message: the longest text
	// with its reply and expiry.
	MaxContent = MaxText + 256

	// MaxBatch bounds the message ids of one receipt and the ranges of one
	// request to send again.
	MaxBatch = 256

	// MaxName bounds a name that people chose, in characters of at most four
	// bytes each.
	MaxName = 64
)
