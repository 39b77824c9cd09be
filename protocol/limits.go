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
)
