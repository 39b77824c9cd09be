package ratchet

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/protocol"
)

// The tests of this file are named after the rows of the threat table that this
// package answers for.

// A stuck generator yields one byte for ever.
type stuck byte

func (s stuck) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(s)
	}
	return len(p), nil
}

func TestA20_StuckGenerator(t *testing.T) {
	a, b := handshake(t, stream(20))
	seen := map[string]string{}
	note := func(what string, x []byte) {
		t.Helper()
		if seen[string(x)] != "" {
			t.Fatalf("%s repeats an earlier %s", what, seen[string(x)])
		}
		seen[string(x)] = what
	}
	from, to := &a, &b
	for i := range 200 {
		for range i%3 + 1 {
			next, ct, err := from.Encrypt(stuck(0), []byte("same"), small)
			if err != nil {
				t.Fatal(err)
			}
			note("nonce", ct[encHeaderSize:bodyOffset])
			note("chain key", next.cks[:])
			*from = next
			mustDecrypt(t, to, ct, "same")
		}
		note("ephemeral", from.dhs.Bytes())
		if from.kem.phase == offering && from.kem.seed != [64]byte{} && i < 2 {
			note("KEM seed", from.kem.seed[:])
		}
		from, to = to, from
	}
	// A state that was put back meets the same generator: another text gets
	// another nonce, the same text the same bytes.
	next, _, _ := from.Encrypt(stuck(0), []byte("begin"), small)
	from = &next
	_, one, _ := from.Encrypt(stuck(0), []byte("one"), small)
	_, again, _ := from.Encrypt(stuck(0), []byte("one"), small)
	_, two, _ := from.Encrypt(stuck(0), []byte("two"), small)
	if bytes.Equal(one[encHeaderSize:bodyOffset], two[encHeaderSize:bodyOffset]) {
		t.Fatal("two texts of one state share a nonce")
	}
	if !bytes.Equal(one, again) {
		t.Fatal("one text of one state has two ciphertexts")
	}
}

// alarm reports whether err is one of the two alarms.
func alarm(err error) bool { return errors.Is(err, ErrPeerCopied) || errors.Is(err, ErrOwnCopied) }

func TestB01_Clone(t *testing.T) {
	for seed := range seeds(200) {
		r := stream(seed)
		pick := rand.New(r)
		a, b := handshake(t, r)
		victim, peer := &a, &b
		talk(t, victim, peer, r, 2+2*pick.IntN(6))
		for range pick.IntN(3) {
			mustDecrypt(t, peer, mustEncrypt(t, victim, r, "x", small), "x")
		}
		if pick.IntN(2) == 0 {
			// the victim has an unanswered message of the peer's
			mustDecrypt(t, victim, mustEncrypt(t, peer, r, "y", small), "y")
		}
		if pick.IntN(2) == 0 {
			victim, peer = peer, victim
			for range pick.IntN(2) {
				mustDecrypt(t, peer, mustEncrypt(t, victim, r, "z", small), "z")
			}
		}
		thief := *victim
		alarmed := false
		deliver := func(to *Session, ct []byte) {
			next, _, err := to.Decrypt(ct, start)
			alarmed = alarmed || alarm(err)
			*to = next
		}
		for range 1 + pick.IntN(5) {
			deliver(peer, mustEncrypt(t, &thief, r, "from the thief", small))
			if pick.IntN(2) == 0 {
				ct := mustEncrypt(t, peer, r, "answer", small)
				deliver(&thief, ct)
				if pick.IntN(2) == 0 {
					deliver(victim, ct)
				}
			}
		}
		if pick.IntN(2) == 0 {
			deliver(victim, mustEncrypt(t, peer, r, "answer", small))
		}
		deliver(peer, mustEncrypt(t, victim, r, "from the victim", small))
		deliver(victim, mustEncrypt(t, peer, r, "answer", small))
		if !alarmed {
			t.Fatalf("seed %d: a cloned state sent, and nobody noticed", seed)
		}
	}
}

// TestB01_Signs shows each sign of docs/spec/ratchet.md, section 9, by itself.
func TestB01_Signs(t *testing.T) {
	r := stream(1)
	begin := func() (a, b, thief Session) {
		a, b = handshake(t, r)
		talk(t, &a, &b, r, 4)
		mustDecrypt(t, &b, mustEncrypt(t, &a, r, "x", small), "x")
		return a, b, a
	}
	t.Run("more received than sent", func(t *testing.T) {
		a, b, thief := begin()
		mustDecrypt(t, &b, mustEncrypt(t, &thief, r, "x", small), "x")
		mustFail(t, &a, mustEncrypt(t, &b, r, "answer", small), ErrOwnCopied)
	})
	t.Run("an answer to nothing", func(t *testing.T) {
		a, b := handshake(t, r)
		old := a
		talk(t, &a, &b, r, 1)
		mustFail(t, &old, mustEncrypt(t, &b, r, "answer", small), ErrOwnCopied)
	})
	t.Run("one number twice", func(t *testing.T) {
		a, b, thief := begin()
		mustDecrypt(t, &b, mustEncrypt(t, &thief, r, "x", small), "x")
		mustFail(t, &b, mustEncrypt(t, &a, r, "y", small), ErrPeerCopied)
	})
	t.Run("two keys for one chain", func(t *testing.T) {
		a, b, thief := begin()
		ct := mustEncrypt(t, &b, r, "answer", small)
		mustDecrypt(t, &a, ct, "answer")
		mustDecrypt(t, &thief, ct, "answer")
		mustDecrypt(t, &b, mustEncrypt(t, &thief, r, "x", small), "x")
		mustFail(t, &b, mustEncrypt(t, &a, r, "x", small), ErrPeerCopied)
	})
	t.Run("fewer sent than received", func(t *testing.T) {
		a, b, thief := begin()
		mustDecrypt(t, &thief, mustEncrypt(t, &b, r, "answer", small), "answer")
		mustDecrypt(t, &b, mustEncrypt(t, &a, r, "x", small), "x")
		mustFail(t, &b, mustEncrypt(t, &thief, r, "x", small), ErrPeerCopied)
	})
	t.Run("an ended chain goes on", func(t *testing.T) {
		a, b, thief := begin()
		talk(t, &b, &a, r, 2*keptChains)
		mustFail(t, &b, mustEncrypt(t, &thief, r, "x", small), ErrPeerCopied)
	})
}

func TestB01_HealedCloneReadsNothing(t *testing.T) {
	for seed := range uint64(20) {
		r := stream(seed)
		a, b := handshake(t, r)
		talk(t, &a, &b, r, int(seed))
		thief := a
		talk(t, &a, &b, r, 2-int(seed%2)+2)
		for i := range 6 {
			ct := mustEncrypt(t, &b, r, "secret", small)
			if _, got, err := thief.Decrypt(ct, start); err == nil {
				t.Fatalf("seed %d, message %d: the clone read %q after healing", seed, i, got)
			}
			mustDecrypt(t, &a, ct, "secret")
			mustDecrypt(t, &b, mustEncrypt(t, &a, r, "ok", small), "ok")
		}
	}
}

func TestB02_GarbageChangesNothing(t *testing.T) {
	r := stream(2)
	a, b := handshake(t, r)
	talk(t, &a, &b, r, 21)
	before := marshal(t, b)
	junk := make([]byte, small)
	for range 10_000 {
		_, _ = r.Read(junk)
		next, _, err := b.Decrypt(junk, start)
		if err != ErrDecrypt {
			t.Fatalf("junk: %v", err)
		}
		b = next
	}
	if !bytes.Equal(before, marshal(t, b)) {
		t.Fatal("junk changed the session")
	}
	talk(t, &b, &a, r, 4)
}

func TestB03_GapIsRefusedBeforeAnyWork(t *testing.T) {
	r := stream(3)
	a, b := handshake(t, r)
	talk(t, &a, &b, r, 5)
	for _, tt := range []struct {
		name   string
		ns, pn uint32
		step   bool
		ok     bool
	}{
		{"gap at the limit", b.nr + protocol.MaxSkipGap, a.pn, false, true},
		{"gap over the limit", b.nr + protocol.MaxSkipGap + 1, a.pn, false, false},
		{"last number", maxCounter - 1, a.pn, false, false},
		{"gap at the end of a chain", protocol.MaxSkipGap, 0, true, true},
		{"gap at the start of a chain", protocol.MaxSkipGap + 1, 0, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from, to := a, b
			if tt.step {
				talk(t, &to, &from, r, 1)
				mustEncrypt(t, &from, r, "begin", small)
			} else {
				// A sender at message ns; the keys before it do not matter
				// to a receiver that refuses to derive them.
				for tt.ok && from.ns < tt.ns {
					from.cks, _ = chainKDF(&from.cks)
					from.ns++
				}
			}
			for tt.step && from.ns < tt.ns {
				from.cks, _ = chainKDF(&from.cks)
				from.ns++
			}
			from.ns = tt.ns
			ct := mustEncrypt(t, &from, r, "far", small)
			if tt.ok {
				mustDecrypt(t, &to, ct, "far")
				return
			}
			mustFail(t, &to, ct, ErrDecrypt)
			if n := testing.AllocsPerRun(10, func() { _, _, _ = to.Decrypt(ct, start) }); n > 20 {
				t.Errorf("refusing took %v allocations", n)
			}
		})
	}
}

func TestB04_SkippedKeysAreForgotten(t *testing.T) {
	r := stream(4)
	a, b := handshake(t, r)
	talk(t, &a, &b, r, 2)

	t.Run("number", func(t *testing.T) {
		a, b := a, b
		var first []byte
		var oldest [32]byte
		for i := range 3 {
			for range protocol.MaxSkipGap {
				ct := mustEncrypt(t, &a, r, "lost", small)
				if first == nil {
					first = ct
				}
			}
			mustDecrypt(t, &b, mustEncrypt(t, &a, r, "arrives", small), "arrives")
			if i == 0 {
				oldest = b.skipped[0].mk
			}
		}
		if len(b.skipped) != protocol.MaxSkipped {
			t.Fatalf("%d skipped keys, want %d", len(b.skipped), protocol.MaxSkipped)
		}
		if bytes.Contains(marshal(t, b), oldest[:]) {
			t.Fatal("the oldest key is still stored")
		}
		mustFail(t, &b, first, ErrDecrypt)
	})

	t.Run("age", func(t *testing.T) {
		a, b := a, b
		late := mustEncrypt(t, &a, r, "late", small)
		now := start
		receive := func() {
			t.Helper()
			next, _, err := b.Decrypt(mustEncrypt(t, &a, r, "daily", small), now)
			if err != nil {
				t.Fatal(err)
			}
			b = next
		}
		receive()
		key := b.skipped[0].mk
		// Neither a clock that jumps ahead by years nor one that falls back
		// expires anything by itself.
		now = now.AddDate(30, 0, 0)
		receive()
		now = start.AddDate(-30, 0, 0)
		receive()
		for range 28 {
			now = now.Add(24 * time.Hour)
			receive()
		}
		if len(b.skipped) != 1 {
			t.Fatal("the key was forgotten before its time")
		}
		now = now.Add(24 * time.Hour)
		receive()
		if bytes.Contains(marshal(t, b), key[:]) {
			t.Fatal("the key is kept after its time")
		}
		mustFail(t, &b, late, ErrDecrypt)
	})

	t.Run("chains", func(t *testing.T) {
		a, b := a, b
		for range maxChains + 5 {
			mustEncrypt(t, &a, r, "lost", small)
			mustDecrypt(t, &b, mustEncrypt(t, &a, r, "x", small), "x")
			talk(t, &b, &a, r, 1)
		}
		if len(b.old) != maxChains {
			t.Fatalf("%d ended chains, want %d", len(b.old), maxChains)
		}
		for _, k := range b.skipped {
			if k.chain < b.old[0].id {
				t.Fatal("a key outlived its chain")
			}
		}
	})
}

func TestB05_RestoredState(t *testing.T) {
	r := stream(5)
	for turns := range 6 {
		a, b := handshake(t, r)
		talk(t, &a, &b, r, 2+turns*2)
		snapshot := marshal(t, a)
		nonces := map[string]bool{}
		for i := range 10 {
			ct := mustEncrypt(t, &a, r, fmt.Sprint("before", i), small)
			nonces[string(ct[encHeaderSize:bodyOffset])] = true
			mustDecrypt(t, &b, ct, fmt.Sprint("before", i))
		}
		restored, err := UnmarshalSession(snapshot)
		if err != nil {
			t.Fatal(err)
		}
		ct := mustEncrypt(t, &restored, r, "after", small)
		if nonces[string(ct[encHeaderSize:bodyOffset])] {
			t.Fatal("a restored state repeats a nonce")
		}
		mustFail(t, &b, ct, ErrPeerCopied)
	}
}

// TestB10_Repeated: an envelope that comes again at once does not open again,
// whether it came in its turn or its key had been kept for it.
func TestB10_Repeated(t *testing.T) {
	r := stream(10)
	a, b := handshake(t, r)
	talk(t, &a, &b, r, 2)
	var cts [][]byte
	for i := range 8 {
		cts = append(cts, mustEncrypt(t, &a, r, fmt.Sprint("once ", i), small))
	}
	var came []int
	for _, i := range []int{0, 1, 4, 2, 7, 3, 6, 5} {
		mustDecrypt(t, &b, cts[i], fmt.Sprint("once ", i))
		came = append(came, i)
		for _, j := range came {
			mustFail(t, &b, cts[j], ErrDecrypt)
		}
	}
}

// TestB11_ReplayedLater: nor does it when both sides have long moved on, or the
// session has been stored.
func TestB11_ReplayedLater(t *testing.T) {
	r := stream(10)
	a, b := handshake(t, r)
	var all [][]byte
	for range 20 {
		late := mustEncrypt(t, &a, r, "late", small)
		for range 4 {
			ct := mustEncrypt(t, &a, r, "once", small)
			mustDecrypt(t, &b, ct, "once")
			all = append(all, ct)
		}
		talk(t, &b, &a, r, 1)
		talk(t, &a, &b, r, 1) // the chain of the late one has ended
		mustDecrypt(t, &b, late, "late")
		all = append(all, late)
	}
	for i, ct := range all {
		mustFail(t, &b, ct, ErrDecrypt)
		if i%8 == 0 {
			stored, err := UnmarshalSession(marshal(t, b))
			if err != nil {
				t.Fatal(err)
			}
			mustFail(t, &stored, ct, ErrDecrypt)
		}
	}
}

func TestB12_StarvedExchange(t *testing.T) {
	r := stream(12)
	pick := rand.New(r)
	a, b := handshake(t, r)
	// Nine of ten messages are lost; each side repeats until one arrives.
	from, to := &a, &b
	for range 60 {
		for {
			ct := mustEncrypt(t, from, r, "x", small)
			if pick.IntN(10) == 0 {
				mustDecrypt(t, to, ct, "x")
				break
			}
		}
		from, to = to, from
	}
	if a.kem.epoch < 4 {
		t.Fatalf("epoch %d after 60 turns with loss", a.kem.epoch)
	}

	// No room at all: the age grows, and the session asks for room.
	a, b = handshake(t, r)
	tight := MinCiphertext + 1
	for range protocol.CargoStall / 2 {
		mustDecrypt(t, &b, mustEncrypt(t, &a, r, "x", tight), "x")
		mustDecrypt(t, &a, mustEncrypt(t, &b, r, "y", tight), "y")
	}
	if a.NeedsRoom() {
		t.Fatal("asks for room too early")
	}
	for range protocol.CargoStall / 2 {
		mustDecrypt(t, &b, mustEncrypt(t, &a, r, "x", tight), "x")
		mustDecrypt(t, &a, mustEncrypt(t, &b, r, "y", tight), "y")
	}
	if !a.NeedsRoom() {
		t.Fatal("does not ask for room")
	}
	if b.NeedsRoom() {
		t.Fatal("asks for room with nothing to carry")
	}
	turns, age := a.PQAge(start.Add(48 * time.Hour))
	if turns < 2*protocol.CargoStall-2 || age != 48*time.Hour {
		t.Fatalf("post-quantum age is %d turns and %v", turns, age)
	}
	mustDecrypt(t, &b, mustEncrypt(t, &a, r, "x", small), "x")
	if a.NeedsRoom() {
		t.Fatal("asks for room after finding it")
	}
}

func TestB13_NothingStableOnTheWire(t *testing.T) {
	r := stream(13)
	a, b := handshake(t, r)
	const n = 1000
	seen := make(map[[8]byte]int, n*small)
	var counts [encHeaderSize][256]int
	for i := range n {
		ct := mustEncrypt(t, &a, r, "the same text every time", small)
		if i%50 == 49 {
			mustDecrypt(t, &b, ct, "the same text every time")
			talk(t, &b, &a, r, 1)
		}
		for j := range counts {
			counts[j][ct[j]]++
		}
		for j := 0; j+8 <= len(ct); j++ {
			w := [8]byte(ct[j:])
			if was, ok := seen[w]; ok && was != i {
				t.Fatalf("ciphertexts %d and %d share 8 bytes", was, i)
			}
			seen[w] = i
		}
	}
	// Each byte of the header is uniform: chi-square with 255 degrees of
	// freedom has mean 255 and deviation 22.6; six deviations for 57 places.
	for j := range counts {
		var chi float64
		for _, c := range counts[j] {
			d := float64(c) - n/256.0
			chi += d * d / (n / 256.0)
		}
		if math.Abs(chi-255) > 6*22.6 {
			t.Errorf("byte %d of the header: chi-square %.0f", j, chi)
		}
	}
}

func TestB14_OneError(t *testing.T) {
	r := stream(14)
	a, b := handshake(t, r)
	talk(t, &a, &b, r, 9)
	consumed := mustEncrypt(t, &b, r, "consumed", small)
	mustDecrypt(t, &a, consumed, "consumed")
	good := mustEncrypt(t, &b, r, "good", small)
	flip := func(i int) []byte {
		ct := bytes.Clone(good)
		ct[i] ^= 1
		return ct
	}
	other, _ := handshake(t, r)
	foreign := mustEncrypt(t, &other, r, "foreign", small)
	for _, tt := range []struct {
		name string
		ct   []byte
	}{
		{"empty", nil},
		{"short", good[:MinCiphertext-1]},
		{"cut", good[:len(good)-1]},
		{"long", append(bytes.Clone(good), 0)},
		{"over the limit", make([]byte, protocol.MaxEnvelope+1)},
		{"header", flip(0)},
		{"nonce", flip(encHeaderSize)},
		{"body", flip(bodyOffset)},
		{"tag", flip(len(good) - 1)},
		{"replay", consumed},
		{"other session", foreign},
		{"reflection", mustEncrypt(t, ptr(a), r, "mine", small)},
	} {
		t.Run(tt.name, func(t *testing.T) { mustFail(t, &a, tt.ct, ErrDecrypt) })
	}
	mustDecrypt(t, &a, good, "good")
}

// TestB14_EqualWork: what a damaged message costs depends on where it was
// damaged, which whoever did so knows, and on whose turns it follows; not on the
// keys, not on the text, and not on what the damage looks like.
func TestB14_EqualWork(t *testing.T) {
	texts := []string{"", "yes", strings.Repeat("no", MaxPlaintext(small)/2-10)}
	cost := make(map[string]float64)
	for seed := range uint64(9) {
		r, text := stream(seed), texts[seed%3]
		a, b := handshake(t, r)
		for turn := range 4 {
			talk(t, &a, &b, r, 2*turn+1)
			for n := range 2 { // the first begins a chain
				ct := mustEncrypt(t, &b, r, text, small)
				for place, at := range map[string]int{"header": 0, "nonce": encHeaderSize, "body": bodyOffset + 7, "tag": len(ct) - 1} {
					bad := bytes.Clone(ct)
					bad[at] ^= byte(1 + seed)
					mustFail(t, &a, bad, ErrDecrypt)
					allocs := testing.AllocsPerRun(5, func() { _, _, _ = a.Decrypt(bad, start) })
					kind := fmt.Sprintf("%s of message %d of turn %d", place, n, turn)
					if want, ok := cost[kind]; ok && allocs != want {
						t.Errorf("%s, seed %d: %v allocations, others cost %v", kind, seed, allocs, want)
					}
					cost[kind] = allocs
				}
				mustDecrypt(t, &a, ct, text)
			}
		}
	}
}

func TestB15_FrameIsCanonical(t *testing.T) {
	for _, n := range []int{0, 1, 255, 256, 65535, 65536, 100_000} {
		frame := make([]byte, lengthSize+n+seenSize+5)
		s := Session{nr: 77}
		s.kem.phase = listening
		s.fill(frame, bytes.Repeat([]byte{9}, n))
		text, seen, c, ok := parseFrame(frame)
		if !ok || len(text) != n || seen != 77 || c.kind != noCargo {
			t.Fatalf("frame with %d bytes: %d bytes, seen %d, ok %v", n, len(text), seen, ok)
		}
		for i := range 5 {
			frame[len(frame)-1-i] = 4
			if _, _, _, ok := parseFrame(frame); ok {
				t.Fatalf("padding byte %d may be anything", i)
			}
			frame[len(frame)-1-i] = 0
		}
		frame[0], frame[1], frame[2] = 0xff, 0xff, 0xff
		if _, _, _, ok := parseFrame(frame); ok {
			t.Fatal("a length beyond the frame is accepted")
		}
	}
	for _, tt := range []struct {
		name  string
		cargo []byte
		ok    bool
	}{
		{"offer", append([]byte{1, 0, 0, 0, 1, 36, 1}, make([]byte, 32)...), true},
		{"padding", append([]byte{1, 0, 0, 0, 1, 36, 1}, append(make([]byte, 32), 0, 1)...), false},
		{"unknown kind", append([]byte{3, 0, 0, 0, 1, 0, 1}, make([]byte, 32)...), false},
		{"first block out of range", append([]byte{1, 0, 0, 0, 1, 37, 1}, make([]byte, 32)...), false},
		{"first answer block out of range", append([]byte{2, 0, 0, 0, 1, 34, 1}, make([]byte, 32)...), false},
		{"no blocks", append([]byte{1, 0, 0, 0, 1, 0, 0}, make([]byte, 32)...), false},
		{"more than there are", append([]byte{2, 0, 0, 0, 1, 0, 35}, make([]byte, 35*32)...), false},
		{"cut", append([]byte{1, 0, 0, 0, 1, 0, 2}, make([]byte, 63)...), false},
		{"kind without room", []byte{1}, false},
	} {
		if _, ok := parseCargo(tt.cargo); ok != tt.ok {
			t.Errorf("%s: accepted %v", tt.name, ok)
		}
	}
}

func TestB19_CountersEnd(t *testing.T) {
	r := stream(19)
	a, b := handshake(t, r)
	talk(t, &a, &b, r, 2)

	last := a
	mustEncrypt(t, &last, r, "begin", small)
	last.ns = maxCounter - 1
	mustEncrypt(t, &last, r, "the last one", small)
	before := marshal(t, last)
	next, _, err := last.Encrypt(r, []byte("one more"), small)
	if err != ErrExhausted || !bytes.Equal(before, marshal(t, next)) {
		t.Fatalf("message past the last number: %v", err)
	}

	chains := a
	chains.sendChains = maxCounter
	if _, _, err := chains.Encrypt(r, []byte("one more"), small); err != ErrExhausted {
		t.Fatalf("chain past the last number: %v", err)
	}
	chains = b
	chains.recvChains = maxCounter
	ct := mustEncrypt(t, &a, r, "next chain", small)
	mustFail(t, &chains, ct, ErrDecrypt)
}

func TestF06_SizeIsCheckedFirst(t *testing.T) {
	r := stream(6)
	a, b := handshake(t, r)
	before := marshal(t, a)
	for _, size := range []int{-1, 0, MinCiphertext, protocol.MaxEnvelope + 1, math.MaxInt} {
		next, ct, err := a.Encrypt(r, []byte("x"), size)
		if err == nil || ct != nil || !bytes.Equal(before, marshal(t, next)) {
			t.Fatalf("size %d: error %v", size, err)
		}
	}
	if n := testing.AllocsPerRun(10, func() { _, _, _ = b.Decrypt(make([]byte, 0), start) }); n > 0 {
		t.Errorf("refusing an empty ciphertext took %v allocations", n)
	}
}
