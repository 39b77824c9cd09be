package protocol

// Labels separate every use of a hash, MAC, KDF or signature from every other.
// They live here, in one place, so that a test can show that all are distinct
// and that none is a prefix of another. A label written anywhere else is a bug
// that the same test finds.
const ()
