package ratchet

import (
	"bytes"
	"crypto/sha512"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestHealing counts, in strict ping-pong, the messages from one post-quantum
// mix to the next, the one that mixes included.
func TestHealing(t *testing.T) {
	for _, tt := range []struct {
		envelope, text, turns int
	}{
		{1024, 0, 7},
		{1024, 300, 7},
		{2048, 0, 3},
		{2048, 740, 3},
		{4096, 2000, 3},
	} {
		t.Run(fmt.Sprintf("%d bytes with %d of text", tt.envelope, tt.text), func(t *testing.T) {
			r := stream(1)
			a, b := handshake(t, r)
			from, to := &a, &b
			text := string(make([]byte, tt.text))
			since, mixes := 0, 0
			for mixes < 20 {
				before := from.kem.epoch
				ct := mustEncrypt(t, from, r, text, tt.envelope-16)
				since++
				if from.kem.epoch > before {
					if since > tt.turns {
						t.Fatalf("mix %d took %d turns, want at most %d", mixes, since, tt.turns)
					}
					since = 0
					mixes++
				}
				mustDecrypt(t, to, ct, text)
				if turns, _ := to.PQAge(start); int(turns) > tt.turns {
					t.Fatalf("post-quantum age is %d turns", turns)
				}
				from, to = to, from
			}
		})
	}
}

// TestDamagedOffer: a peer whose KEM key is not one gets no answer, and the
// session goes on without.
func TestDamagedOffer(t *testing.T) {
	r := stream(1)
	a, b := handshake(t, r)
	talk(t, &a, &b, r, 1)
	for i := range a.kem.out {
		a.kem.out[i] = 0xff
	}
	refused := 0
	for range 10 {
		if b.kem.phase == offered {
			refused++
		}
		talk(t, &b, &a, r, 1)
		if b.kem.phase != listening || a.kem.phase != offering || b.kem.epoch != 1 {
			t.Fatalf("phases %v and %v", a.kem.phase, b.kem.phase)
		}
		checkForgotten(t, &b.kem)
		talk(t, &a, &b, r, 1)
	}
	if refused < 3 {
		t.Fatalf("%d keys refused: the answerer did not start over", refused)
	}
}

// TestNotCanonicalKey: ratchet keys have one encoding.
func TestNotCanonicalKey(t *testing.T) {
	r := stream(1)
	k := Keys{RK: fill(r), HKA: fill(r), HKB: fill(r), AD: []byte("ad")}
	for name, bad := range map[string][32]byte{
		"zero":        {},
		"low order":   {1},
		"top bit":     {0: 9, 31: 0x80},
		"field prime": {0: 0xed, 31: 0x7f, 1: 0xff, 2: 0xff, 3: 0xff, 4: 0xff, 5: 0xff, 6: 0xff, 7: 0xff, 8: 0xff, 9: 0xff, 10: 0xff, 11: 0xff, 12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff, 16: 0xff, 17: 0xff, 18: 0xff, 19: 0xff, 20: 0xff, 21: 0xff, 22: 0xff, 23: 0xff, 24: 0xff, 25: 0xff, 26: 0xff, 27: 0xff, 28: 0xff, 29: 0xff, 30: 0xff},
	} {
		if _, err := Initiator(k, bad); err == nil {
			t.Errorf("%s: accepted as a prekey", name)
		}
		b, err := Responder(k, fill(r))
		if err != nil {
			t.Fatal(err)
		}
		ct := make([]byte, small)
		seal(ct, &k.HKA, &k.RK, k.AD, initiator, &header{dh: bad})
		mustFail(t, &b, ct, ErrDecrypt)
	}
	if _, err := Initiator(Keys{}, fill(r)); err == nil {
		t.Error("keys without associated data are accepted")
	}
	b, _ := Responder(k, fill(r))
	if _, _, err := b.Encrypt(r, nil, small); err == nil {
		t.Error("a responder that heard nothing sends")
	}
	a, _ := Initiator(k, fill(r))
	if _, _, err := a.Encrypt(io.LimitReader(r, 5), nil, small); err == nil {
		t.Error("sends without randomness")
	}
}

// TestHeaderIsChecked: a peer that does not keep to the protocol is refused.
func TestHeaderIsChecked(t *testing.T) {
	r := stream(1)
	a, b := handshake(t, r)
	odd := a
	odd.ns = 1 // becomes the length of a chain that never was
	mustFail(t, &b, mustEncrypt(t, &odd, r, "x", small), ErrDecrypt)
	talk(t, &a, &b, r, 3)
	for _, flags := range []uint8{flagMixed, 2, 0x80} {
		odd = a
		odd.sendFlags ^= flags
		mustFail(t, &b, mustEncrypt(t, &odd, r, "x", small), ErrDecrypt)
	}
	odd = a
	talk(t, &b, &odd, r, 1)
	mustEncrypt(t, &odd, r, "begin", small)
	odd.sendFlags = flagMixed // without an answer
	mustFail(t, &b, mustEncrypt(t, &odd, r, "x", small), ErrDecrypt)
}

// TestMixTooLate: s3 only ever enters the first step.
func TestMixTooLate(t *testing.T) {
	r := stream(1)
	a, b := handshake(t, r)
	talk(t, &a, &b, r, 2)
	for _, s := range []Session{a, b} {
		if !bytes.Equal(marshal(t, s), marshal(t, s.MixRecv(fill(r)).MixSend(fill(r)))) {
			t.Fatal("a late s3 changed the session")
		}
	}
	// Without s3 the initiator cannot read the responder.
	a, b = handshake(t, r)
	talk(t, &a, &b, r, 1)
	a.mix, a.mixState = [32]byte{}, mixNone
	mustFail(t, &a, mustEncrypt(t, &b, r, "x", small), ErrDecrypt)
}

// A flight is a ciphertext on its way.
type flight struct {
	ct, text []byte
}

// A schedule runs two parties and a network that an adversary directs.
type schedule struct {
	t         testing.TB
	r         *rand.ChaCha8
	party     [2]Session
	stored    [2][]byte // what survives a crash
	snapshots [2][][]byte
	wire      [2][]flight // by recipient
	opened    [2][]flight
	mayCopy   bool // whether the adversary may put states back
	copied    bool // a state was put back or copied: alarms are right from now on
	nonces    map[[nonceSize]byte]bool
	keys      map[[32]byte]bool // hashes of message keys
	sent      int
}

func newSchedule(t testing.TB, seed uint64) *schedule {
	s := &schedule{t: t, r: stream(seed), nonces: map[[nonceSize]byte]bool{}, keys: map[[32]byte]bool{}}
	s.party[0], s.party[1] = handshake(t, s.r)
	for p := range s.party {
		s.stored[p] = marshal(t, s.party[p])
	}
	return s
}

// send encrypts, stores, then transmits; with crash, it dies in between.
func (s *schedule) send(p int, crash bool) {
	from := s.party[p]
	if from.sendChains == 0 && !from.needStep {
		return // a responder that has heard nothing
	}
	s.sent++
	text := fmt.Appendf(nil, "message %d", s.sent)
	size := small
	if s.sent%5 == 0 {
		size = 2048 - 16
	}
	mk := s.messageKey(from)
	next, ct, err := from.Encrypt(s.r, text, size)
	if err != nil {
		s.t.Fatalf("encrypt: %v", err)
	}
	if crash {
		s.crash(p)
		return
	}
	s.party[p], s.stored[p] = next, marshal(s.t, next)

	nonce := [nonceSize]byte(ct[encHeaderSize:])
	if s.nonces[nonce] {
		s.t.Fatal("a nonce repeats")
	}
	s.nonces[nonce] = true
	if s.keys[mk] && !s.copied {
		s.t.Fatal("a message key was used twice")
	}
	s.keys[mk] = true
	s.wire[1-p] = append(s.wire[1-p], flight{ct, text})
}

// messageKey is the hash of the key that the next message will use.
func (s *schedule) messageKey(from Session) [32]byte {
	r := *s.r
	if from.needStep {
		if err := from.stepSend(&r); err != nil {
			s.t.Fatal(err)
		}
	}
	_, mk := chainKDF(&from.cks)
	h := sha512.Sum512(mk[:])
	return [32]byte(h[:32])
}

// crash restarts a party from what it stored.
func (s *schedule) crash(p int) {
	restored, err := UnmarshalSession(s.stored[p])
	if err != nil {
		s.t.Fatalf("restart: %v", err)
	}
	s.party[p] = restored
}

// deliver hands flight i to p. Unless a state was copied, what arrives first is
// opened and what arrives again is not.
func (s *schedule) deliver(p, i int, keep bool) {
	f := s.wire[p][i]
	if !keep {
		s.wire[p] = append(s.wire[p][:i:i], s.wire[p][i+1:]...)
	}
	again := false
	for _, o := range s.opened[p] {
		again = again || bytes.Equal(o.ct, f.ct)
	}
	next, text, err := s.open(p, f.ct)
	switch {
	case err == nil && again && !s.copied:
		s.t.Fatal("a replay was opened")
	case err == nil && !bytes.Equal(text, f.text):
		s.t.Fatalf("opened %q, want %q", text, f.text)
	case err == nil:
		s.party[p], s.stored[p] = next, marshal(s.t, next)
		s.opened[p] = append(s.opened[p], f)
	case s.copied:
	case alarm(err):
		s.t.Fatalf("false alarm: %v", err)
	case !again:
		s.t.Fatalf("message %q does not open: %v", f.text, err)
	}
}

// open decrypts and checks what holds for every failure.
func (s *schedule) open(p int, ct []byte) (Session, []byte, error) {
	before := s.party[p]
	next, text, err := before.Decrypt(ct, start)
	if err != nil {
		if text != nil || err != ErrDecrypt && err != ErrPeerCopied && err != ErrOwnCopied {
			s.t.Fatalf("failure with %q: %v", text, err)
		}
		if !bytes.Equal(marshal(s.t, next), s.stored[p]) || !bytes.Equal(marshal(s.t, before), s.stored[p]) {
			s.t.Fatal("a failed decryption changed the session")
		}
	}
	return next, text, err
}

// forge changes one bit of a flight, or makes one up.
func (s *schedule) forge(p int, at uint16) {
	ct := make([]byte, small)
	if n := len(s.wire[p]); n > 0 {
		ct = bytes.Clone(s.wire[p][int(at)%n].ct)
		i := int(at) % (8 * len(ct))
		ct[i/8] ^= 1 << (i % 8)
	}
	if _, _, err := s.open(p, ct); err == nil || alarm(err) && !s.copied {
		s.t.Fatalf("a forgery: %v", err)
	}
}

// step takes one command: two bytes.
func (s *schedule) step(op, arg byte) {
	p := int(op & 1)
	n := len(s.wire[p])
	switch op >> 1 % 12 {
	case 0, 1, 2:
		s.send(p, false)
	case 3, 4:
		if n > 0 {
			s.deliver(p, 0, false)
		}
	case 5:
		if n > 0 {
			s.deliver(p, int(arg)%n, false) // out of order
		}
	case 6:
		if n > 0 {
			s.deliver(p, int(arg)%n, true) // it will come again
		}
	case 7:
		if n > 0 {
			i := int(arg) % n // lost
			s.wire[p] = append(s.wire[p][:i:i], s.wire[p][i+1:]...)
		}
	case 8:
		s.forge(p, uint16(arg)*257+uint16(op))
	case 9:
		s.send(p, true)
		s.crash(p)
	case 10:
		s.snapshots[p] = append(s.snapshots[p], s.stored[p])
	case 11:
		if !s.mayCopy || len(s.snapshots[p]) == 0 {
			return
		}
		// Put an old state back: the same to a peer as a thief's copy.
		old := s.snapshots[p][int(arg)%len(s.snapshots[p])]
		s.copied = true
		s.stored[p] = old
		s.crash(p)
	}
	checkForgotten(s.t, &s.party[0].kem)
	checkForgotten(s.t, &s.party[1].kem)
	if a, b := s.party[0].kem.epoch, s.party[1].kem.epoch; !s.copied && max(a, b)-min(a, b) > 1 {
		s.t.Fatalf("KEM epochs %d and %d", a, b)
	}
}

// checkForgotten checks that an exchange holds nothing its phase has no use for,
// least of all a key pair or a secret that was used.
func checkForgotten(t testing.TB, k *kem) {
	t.Helper()
	for _, f := range []struct {
		name  string
		bytes []byte
		used  []phase
	}{
		{"seed", k.seed[:], []phase{offering, collecting}},
		{"out", append(k.out[:], k.outPos), []phase{offering, answering}},
		{"in", k.in[:], []phase{collecting, offered, listening}},
		{"ready", k.ready[:], []phase{answered, answering}},
	} {
		if used := slices.Contains(f.used, k.phase); !used && !allZero(f.bytes) {
			t.Fatalf("%v: %s is not forgotten", k.phase, f.name)
		}
	}
	if k.have == 0 && k.phase == listening && !allZero(k.in[:]) {
		t.Fatal("listening: in is not forgotten")
	}
}

// settle delivers everything and lets both sides talk: whatever the network
// did, a session that nobody copied works.
func (s *schedule) settle() {
	if s.copied {
		return
	}
	for p := range s.wire {
		for len(s.wire[p]) > 0 {
			s.deliver(p, len(s.wire[p])-1, false)
		}
	}
	for i := range 4 {
		s.send(i%2, false)
		for p := range s.wire {
			for len(s.wire[p]) > 0 {
				s.deliver(p, 0, false)
			}
		}
	}
}

// seeds is how many seeds to try: n, or a tenth of it in a short run.
func seeds(n uint64) uint64 {
	if testing.Short() {
		return n / 10
	}
	return n
}

// TestSchedules runs random schedules.
func TestSchedules(t *testing.T) {
	for seed := range seeds(250) {
		s := newSchedule(t, seed)
		s.mayCopy = seed%3 == 0
		ops := make([]byte, 240)
		_, _ = s.r.Read(ops)
		for i := 0; i < len(ops); i += 2 {
			s.step(ops[i], ops[i+1])
		}
		s.settle()
	}
}

func FuzzSchedule(f *testing.F) {
	for seed := range uint64(8) {
		ops := make([]byte, 120)
		_, _ = stream(seed).Read(ops)
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		s := newSchedule(t, 1)
		s.mayCopy = len(ops)%2 == 1 // an odd byte at the end
		ops = ops[:min(len(ops), 400)]
		for i := 0; i+1 < len(ops); i += 2 {
			s.step(ops[i], ops[i+1])
		}
		s.settle()
	})
}

// FuzzDecrypt: no ciphertext but a genuine one opens, and none changes anything.
func FuzzDecrypt(f *testing.F) {
	r := stream(1)
	a, b := handshake(f, r)
	talk(f, &a, &b, r, 6)
	mustEncrypt(f, &a, r, "skipped", small)
	mustDecrypt(f, &b, mustEncrypt(f, &a, r, "x", small), "x")
	good := mustEncrypt(f, &a, r, "good", small)
	f.Add(good)
	f.Add(good[:MinCiphertext])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, ct []byte) {
		if bytes.Equal(ct, good) {
			mustDecrypt(t, ptr(b), ct, "good")
			return
		}
		mustFail(t, ptr(b), ct, ErrDecrypt)
	})
}

// FuzzFrame: a frame that parses has one encoding.
func FuzzFrame(f *testing.F) {
	frame := make([]byte, 400)
	k := kem{phase: offering, epoch: 3, outPos: 35}
	(&Session{nr: 9, kem: k}).fill(frame, []byte("text"))
	f.Add(frame)
	f.Add(make([]byte, lengthSize+seenSize))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < lengthSize+seenSize {
			return // Decrypt has checked the size
		}
		text, seen, c, ok := parseFrame(frame)
		if !ok {
			return
		}
		again := make([]byte, len(frame))
		s := Session{nr: seen}
		switch c.kind {
		case offerCargo:
			s.kem.phase = offering
		case answerCargo:
			s.kem.phase = answering
		default:
			s.kem.phase = listening
		}
		s.kem.epoch, s.kem.outPos = c.epoch, c.first
		total := max(1, c.kind.blocks())
		for i := 0; i*blockSize < len(c.data); i++ {
			copy(s.kem.out[(int(c.first)+i)%total*blockSize:], c.data[i*blockSize:(i+1)*blockSize])
		}
		// The sender fills the room; a frame with less cargo is cut to it.
		end := lengthSize + len(text) + seenSize
		if c.kind != noCargo {
			end += cargoHeaderSize + len(c.data)
		}
		s.fill(again[:end], text)
		if !bytes.Equal(frame, again) {
			t.Fatalf("%x parses, and encodes as %x", frame, again)
		}
	})
}

// FuzzUnmarshalSession: a stored session that is accepted has one encoding, and
// survives use.
func FuzzUnmarshalSession(f *testing.F) {
	r := stream(1)
	a, b := handshake(f, r)
	f.Add(marshal(f, a))
	f.Add(marshal(f, b))
	talk(f, &a, &b, r, 7)
	mustEncrypt(f, &a, r, "skipped", small)
	ct := mustEncrypt(f, &a, r, "x", small)
	mustDecrypt(f, &b, ct, "x")
	f.Add(marshal(f, a))
	f.Add(marshal(f, b))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := UnmarshalSession(data)
		if err != nil {
			return
		}
		if !bytes.Equal(data, marshal(t, s)) {
			t.Fatal("a stored session has two encodings")
		}
		_, _, _ = s.Encrypt(stream(1), []byte("x"), small)
		_, _, _ = s.Decrypt(ct, start)
	})
}

// TestUnmarshalRefuses: what is cut, longer or of another version is no session.
func TestUnmarshalRefuses(t *testing.T) {
	r := stream(1)
	a, b := handshake(t, r)
	talk(t, &a, &b, r, 3)
	good := marshal(t, a)
	for n := range good {
		if _, err := UnmarshalSession(good[:n]); err == nil {
			t.Fatalf("accepted when cut to %d bytes", n)
		}
	}
	if _, err := UnmarshalSession(append(bytes.Clone(good), 0)); err == nil {
		t.Fatal("accepted with a byte more")
	}
	good[0]++
	if _, err := UnmarshalSession(good); err == nil {
		t.Fatal("accepted with another version")
	}
}
