package protocol

// Version is the protocol version this tree speaks. One version means one
// suite of primitives: nothing is negotiated inside a version, so there is
// nothing to downgrade (docs/spec/overview.md).
const Version = 1

// Suite names the primitives of Version in everything that is signed or mixed
// into a key: X25519, Ed25519, ML-KEM-1024 (ML-KEM-768 in the ratchet),
// ChaCha20-Poly1305 and SHA-512.
const Suite uint16 = 1
