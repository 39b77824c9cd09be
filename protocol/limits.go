package protocol

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
)
