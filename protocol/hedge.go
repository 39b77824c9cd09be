package protocol

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Hedge is a source of randomness that stays unpredictable while either the
// system's generator is sound or the secret is unknown, and that does not
// repeat while the counter does not, even if the generator does
// (docs/spec/overview.md, section 7).
//
// It is not safe for concurrent use.
type Hedge struct {
	rng     io.Reader
	secret  HedgeSecret
	counter uint64
	block   uint64
}

// NewHedge mixes rng with a secret of this device and a counter. The caller
// must have written a higher counter to stable storage before it uses the
// result, so that no two Hedges ever share one.
func NewHedge(rng io.Reader, secret HedgeSecret, counter uint64) *Hedge {
	return &Hedge{rng: rng, secret: secret, counter: counter}
}

// Read fills p. Each call consumes 32 bytes of the underlying generator, whose
// errors it returns.
func (h *Hedge) Read(p []byte) (int, error) {
	var fresh [32]byte
	for n := 0; n < len(p); {
		if _, err := io.ReadFull(h.rng, fresh[:]); err != nil {
			return n, fmt.Errorf("read the system's generator: %w", err)
		}
		info := binary.BigEndian.AppendUint64([]byte(LabelHedge), h.counter)
		info = binary.BigEndian.AppendUint64(info, h.block)
		h.block++
		n += copy(p[n:], KDF(append(fresh[:], h.secret[:]...), nil, string(info), min(len(p)-n, hedgeBlock)))
	}
	return len(p), nil
}

// hedgeBlock is what one derivation yields: ample for any key, and well below
// the 255 hashes that HKDF allows.
const hedgeBlock = 4096
