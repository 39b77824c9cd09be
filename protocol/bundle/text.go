package bundle

import (
	"encoding/base32"
	"errors"
	"io"
	"strings"

	"github.com/kith-im/kith/protocol"
)

// Why ParseText refuses.
var (
	// ErrNotSlip means that a text has letters or a length that no slip has.
	ErrNotSlip = errors.New("bundle: the text is not a slip")
	// ErrMisread means that a text has a slip's length and a wrong checksum.
	ErrMisread = errors.New("bundle: a letter of the text is wrong")
)

const checksumSize = 4

var encoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// SealText seals one envelope of at most protocol.MaxSlip bytes for paper: upper
// case letters and digits, in QR's alphanumeric mode.
func SealText(rand io.Reader, k Key, envelope []byte) (string, error) {
	if len(envelope) > protocol.MaxSlip {
		return "", errors.New("bundle: the envelope is too large for a slip")
	}
	slip, err := seal(rand, k, Split(envelope), len(envelope)+slipRoom+overhead)
	if err != nil {
		return "", err
	}
	return encoding.EncodeToString(append(slip, checksum(slip)...)), nil
}

// ParseText reads the text of a slip, in either case, with white space anywhere,
// and returns the slip for Find and Open.
func ParseText(text string) (slip []byte, err error) {
	text = strings.ToUpper(strings.Join(strings.Fields(text), ""))
	if n := encoding.DecodedLen(len(text)) - checksumSize; !isSlip(n) || encoding.EncodedLen(n+checksumSize) != len(text) {
		return nil, ErrNotSlip
	}
	b, err := encoding.DecodeString(text)
	if err != nil {
		return nil, ErrNotSlip
	}
	slip = b[:len(b)-checksumSize]
	if string(checksum(slip)) != string(b[len(slip):]) || encoding.EncodeToString(b) != text {
		return nil, ErrMisread
	}
	return slip, nil
}

func checksum(slip []byte) []byte {
	h := protocol.Hash(protocol.LabelBundleChecksum, slip)
	return h[:checksumSize]
}
