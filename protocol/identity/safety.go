package identity

import (
	"bytes"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/kith-im/kith/protocol"
)

// Party is one side of a safety number: an account, and its devices in session.
type Party struct {
	Account AccountPublic
	Devices []DeviceHash // any order; at least one
}

// safetyRounds makes every guess of someone who looks for a key with a given
// half cost 2^12 hashes, at a few milliseconds for those who compare.
const safetyRounds = 1 << 12

// SafetyNumber returns the 60 digits that two people compare, in twelve groups
// of five: two halves, one for each party, the smaller first
// (docs/spec/identity.md, section 6). Both sides get the same.
func SafetyNumber(a, b Party) string {
	halves := safetyHalves(a, b)
	var groups []string
	for _, h := range halves {
		for i := range 6 {
			var five [8]byte
			copy(five[3:], h[5*i:5*i+5])
			groups = append(groups, fmt.Sprintf("%05d", binary.BigEndian.Uint64(five[:])%100_000))
		}
	}
	return strings.Join(groups, " ")
}

// safetyScheme cannot begin an invite: "KITH:" is another scheme.
const safetyScheme = "KITH-SAFETY:"

// SafetyQR returns the text of the QR code for the same comparison, in
// characters of QR's alphanumeric mode. Two people have verified each other
// when one's code, scanned, equals the other's own.
func SafetyQR(a, b Party) string {
	halves := safetyHalves(a, b)
	payload := append([]byte{protocol.Version}, halves[0][:32]...)
	payload = append(payload, halves[1][:32]...)
	return safetyScheme + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(payload)
}

func safetyHalves(a, b Party) [2][64]byte {
	halves := [2][64]byte{a.safetyHalf(), b.safetyHalf()}
	if bytes.Compare(halves[0][:], halves[1][:]) > 0 {
		halves[0], halves[1] = halves[1], halves[0]
	}
	return halves
}

func (p Party) safetyHalf() [64]byte {
	devices := slices.Clone(p.Devices)
	slices.SortFunc(devices, func(a, b DeviceHash) int { return bytes.Compare(a[:], b[:]) })
	f := p.Account.Fingerprint()
	input := binary.BigEndian.AppendUint16(f[:], uint16(len(devices)))
	for _, d := range devices {
		input = append(input, d[:]...)
	}
	h := protocol.Hash(protocol.LabelSafety, input)
	for range safetyRounds {
		h = protocol.Hash(protocol.LabelSafetyRound, h[:], input)
	}
	return h
}
