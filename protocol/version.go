package protocol

// Version is the protocol version this tree speaks. One version means one
// suite of primitives: nothing is negotiated inside a version, so there is
// nothing to downgrade (docs/spec/overview.md).
const Version = 1
