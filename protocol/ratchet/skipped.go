package ratchet

import (
	"sort"

	"github.com/kith-im/kith/protocol"
)

const (
	// maxCounter bounds message numbers and chain counts (threats: overflow);
	// no session of people reaches it, and no sum of two overflows.
	maxCounter = 1<<31 - 1

	// maxAD bounds the associated data: its length is one byte in storage.
	maxAD = 255

	// recentSize is how many opened messages are remembered so that a second,
	// different message with the same number is known as a copy's, and a
	// replay of the same one is not. Older pairs show in the counters.
	recentSize = 64

	// keptChains is how many ended chains keep their header key although they
	// own no skipped key, to recognise a copy that went on in one of them.
	keptChains = 8

	// maxChains bounds all ended chains that are kept: each costs one trial
	// decryption of 57 bytes per message that fits no other key.
	maxChains = 32

	// maxTick bounds what one message may add to the receive clock, so that a
	// wall clock that jumps by years expires nothing.
	maxTick = 24 * 60 * 60
)

// used remembers one opened message by the start of its nonce.
type used struct {
	chain, n uint32
	mark     [4]byte
}

// oldChain is a receiving chain that the peer ended after end messages.
type oldChain struct {
	id  uint32
	hk  [32]byte
	dh  [32]byte
	end uint32
}

// skippedKey is the key of a message that was passed over at clock time at.
type skippedKey struct {
	chain, n uint32
	at       int64
	mk       [32]byte
}

func mark(ct []byte) [4]byte { return [4]byte(ct[encHeaderSize:]) }

// remember notes an opened message in the ring.
func (s *Session) remember(chain, n uint32, ct []byte) {
	copy(s.recent[1:], s.recent[:recentSize-1])
	s.recent[0] = used{chain, n, mark(ct)}
}

// tick advances the receive clock and drops skipped keys that are too old. It
// runs on the copy that an error throws away.
func (s *Session) tick(now int64) {
	if s.lastNow != 0 && now > s.lastNow {
		s.clock += min(now-s.lastNow, maxTick)
	}
	s.lastNow = now
	expired := 0
	for expired < len(s.skipped) && s.clock-s.skipped[expired].at >= protocol.SkippedKeyLife {
		expired++
	}
	s.dropOldest(expired)
}

// dropOldest forgets the n oldest skipped keys. The rest is copied, so that
// nothing keeps the forgotten ones alive.
func (s *Session) dropOldest(n int) {
	if n > 0 {
		s.skipped = append([]skippedKey(nil), s.skipped[n:]...)
	}
}

// skipTo stores the keys of the current chain from nr up to n. The header is
// authenticated by now; the cap is checked before anything is derived.
func (s *Session) skipTo(n uint32) error {
	if n <= s.nr {
		return nil
	}
	gap := int(n - s.nr)
	if gap > protocol.MaxSkipGap {
		return ErrDecrypt
	}
	keep := s.skipped
	if over := len(keep) + gap - protocol.MaxSkipped; over > 0 {
		keep = keep[over:]
	}
	skipped := append(make([]skippedKey, 0, len(keep)+gap), keep...)
	for s.nr < n {
		k := skippedKey{chain: s.recvChains, n: s.nr, at: s.clock}
		s.ckr, k.mk = chainKDF(&s.ckr)
		skipped = append(skipped, k)
		s.nr++
	}
	s.skipped = skipped
	return nil
}

// takeSkipped removes and returns the key of a message that was passed over.
// If the key was used, by another message than ct, the peer's state forked.
func (s *Session) takeSkipped(chain, n uint32, ct []byte) (mk [32]byte, err error) {
	i := sort.Search(len(s.skipped), func(i int) bool {
		k := &s.skipped[i]
		return k.chain > chain || k.chain == chain && k.n >= n
	})
	if i == len(s.skipped) || s.skipped[i].chain != chain || s.skipped[i].n != n {
		for _, u := range s.recent {
			if u.chain == chain && u.n == n && u.mark != mark(ct) {
				return mk, ErrPeerCopied
			}
		}
		return mk, ErrDecrypt
	}
	mk = s.skipped[i].mk
	rest := make([]skippedKey, 0, len(s.skipped)-1)
	s.skipped = append(append(rest, s.skipped[:i]...), s.skipped[i+1:]...)
	return mk, nil
}

// endChain files the current receiving chain among the ended ones and drops
// those that are neither recent nor own a skipped key, then the oldest with
// their keys.
func (s *Session) endChain() {
	old := make([]oldChain, 0, len(s.old)+1)
	for i, c := range s.old {
		if i >= len(s.old)+1-keptChains || s.ownsSkipped(c.id) {
			old = append(old, c)
		}
	}
	old = append(old, oldChain{id: s.recvChains, hk: s.hkr, dh: s.dhr, end: s.nr})
	if len(old) > maxChains {
		first := sort.Search(len(s.skipped), func(i int) bool { return s.skipped[i].chain >= old[1].id })
		s.dropOldest(first)
		old = old[1:]
	}
	s.old = old
}

// ownsSkipped reports whether a chain still has skipped keys.
func (s *Session) ownsSkipped(chain uint32) bool {
	i := sort.Search(len(s.skipped), func(i int) bool { return s.skipped[i].chain >= chain })
	return i < len(s.skipped) && s.skipped[i].chain == chain
}
