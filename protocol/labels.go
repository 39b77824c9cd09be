package protocol

// Labels separate every use of a hash, MAC, KDF or signature from every other.
// They live here, in one place, so that a test can show that all are distinct
// and that none is a prefix of another. A label written anywhere else is a bug
// that the same test finds.
const (
	// Randomness and shared secrets (docs/spec/overview.md).
	LabelHedge            = "kith hedge"
	LabelPair             = "kith pair v1"
	LabelSharedRendezvous = "kith shared rendezvous"
	LabelSharedPSK        = "kith shared psk"
	LabelSharedBundle     = "kith shared bundle"
	LabelSharedStream     = "kith shared stream"
	LabelSharedCarry      = "kith shared carry"

	// Identities (docs/spec/identity.md).
	LabelAccount     = "kith account v1"
	LabelDevice      = "kith device v1"
	LabelDeviceList  = "kith device list v1"
	LabelSafety      = "kith safety number v1"
	LabelSafetyRound = "kith safety round"

	// Invites (docs/spec/invite.md).
	LabelInvite         = "kith invite v1"
	LabelInviteChecksum = "kith invite checksum"
	LabelInviteTag      = "kith invite tag"

	// Rendezvous (docs/spec/rendezvous.md).
	LabelPoint       = "kith rendezvous point v1"
	LabelRecord      = "kith rendezvous record v1"
	LabelRecordNonce = "kith rendezvous nonce"

	// Local networks (docs/spec/lan.md).
	LabelLAN       = "kith lan v1"
	LabelLANOpen   = "kith lan open v1"
	LabelLANTag    = "kith lan tag"
	LabelLANRecord = "kith lan record"

	// Handshake (docs/spec/handshake.md).
	LabelPrekey       = "kith prekey v1"
	LabelPrekeyMAC    = "kith prekey mac"
	LabelHXGate       = "kith hx gate"
	LabelHXSalt       = "kith hx salt"
	LabelHXTranscript = "kith hx v1"
	LabelHXIdentity   = "kith hx id"
	LabelHXFinal      = "kith hx final"
	LabelHXSession    = "kith hx sk"
	LabelHX2Nonce     = "kith hx2 nonce"

	// Ratchet (docs/spec/ratchet.md).
	LabelRatchetRootDH  = "kith root dh"
	LabelRatchetRootKEM = "kith root kem"
	LabelRatchetNonce   = "kith ratchet nonce"
	LabelRatchetHedge   = "kith ratchet hedge"

	// Envelope and message (docs/spec/envelope.md, docs/spec/message.md).
	LabelTag          = "kith envelope tag"
	LabelMessage      = "kith message v1"
	LabelConversation = "kith conversation v1"

	// Conversation stream (docs/spec/stream.md).
	LabelStreamName  = "kith stream name"
	LabelStreamHello = "kith stream hello v1"

	// Mailboxes (docs/spec/mailbox.md).
	LabelMailboxOpen   = "kith mailbox open v1"
	LabelMailboxStored = "kith mailbox stored v1"
	LabelMailboxDigest = "kith mailbox digest"
	LabelMailboxProof  = "kith mailbox proof"

	// Bundles (docs/spec/bundle.md).
	LabelBundleKey      = "kith bundle key"
	LabelBundleMark     = "kith bundle mark"
	LabelBundlePart     = "kith bundle part"
	LabelBundlePiece    = "kith bundle piece"
	LabelBundleChecksum = "kith bundle checksum"

	// Local state, never on a wire (docs/decisions).
	LabelStorePages  = "kith store pages"
	LabelStoreRows   = "kith store rows"
	LabelQUICKeys    = "kith quic keys"
	LabelNetworkName = "kith network name"
)
