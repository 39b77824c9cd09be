package ratchet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// start is the time at which tests begin.
var start = time.Unix(1_700_000_000, 0)

// stream is a deterministic source of randomness.
func stream(seed uint64) *rand.ChaCha8 {
	var s [32]byte
	binary.BigEndian.PutUint64(s[:], seed)
	return rand.NewChaCha8(s)
}

func fill(r *rand.ChaCha8) (b [32]byte) {
	_, _ = r.Read(b[:]) // never fails
	return b
}

// handshake returns the two ends of a new session, s3 mixed in as after HX2.
func handshake(t testing.TB, r *rand.ChaCha8) (a, b Session) {
	t.Helper()
	k := Keys{RK: fill(r), HKA: fill(r), HKB: fill(r), AD: bytes.Repeat([]byte{7}, 80)}
	b, err := Responder(k, fill(r))
	if err != nil {
		t.Fatal(err)
	}
	a, err = Initiator(k, [32]byte(b.dhs.PublicKey().Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	s3 := fill(r)
	return a.MixRecv(s3), b.MixSend(s3)
}

func mustEncrypt(t testing.TB, s *Session, r *rand.ChaCha8, text string, size int) []byte {
	t.Helper()
	next, ct, err := s.Encrypt(r, []byte(text), size)
	if err != nil {
		t.Fatalf("encrypt: %v", err)
	}
	if len(ct) != size {
		t.Fatalf("ciphertext has %d bytes, want %d", len(ct), size)
	}
	*s = next
	return ct
}

func mustDecrypt(t testing.TB, s *Session, ct []byte, want string) {
	t.Helper()
	next, got, err := s.Decrypt(ct, start)
	if err != nil {
		t.Fatalf("decrypt %q: %v", want, err)
	}
	if string(got) != want {
		t.Fatalf("decrypted %q, want %q", got, want)
	}
	*s = next
}

const small = 1024 - 16 // a 1 KiB envelope without its tag

func TestConversation(t *testing.T) {
	r := stream(1)
	a, b := handshake(t, r)
	if a.HeardPeer() || b.HeardPeer() {
		t.Fatal("a new session has heard its peer")
	}
	for i := range 50 {
		for j := range i%3 + 1 {
			text := fmt.Sprint("a", i, j)
			mustDecrypt(t, &b, mustEncrypt(t, &a, r, text, small), text)
		}
		if got, want := b.PeerConfirmed(), i > 0; got != want {
			t.Fatalf("turn %d: responder has the second chain: %v, want %v", i, got, want)
		}
		for j := range (i+1)%3 + 1 {
			text := fmt.Sprint("b", i, j)
			mustDecrypt(t, &a, mustEncrypt(t, &b, r, text, small), text)
		}
		if !a.HeardPeer() || !b.HeardPeer() {
			t.Fatal("a session has not heard its peer")
		}
	}
	if a.kem.epoch < 10 || a.kem.epoch != b.kem.epoch {
		t.Fatalf("KEM epochs %d and %d", a.kem.epoch, b.kem.epoch)
	}
}

// marshal is the stored form of a session.
func marshal(t testing.TB, s Session) []byte {
	t.Helper()
	b, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mustFail checks that a ciphertext is refused with want and changes nothing.
func mustFail(t testing.TB, s *Session, ct []byte, want error) {
	t.Helper()
	before := marshal(t, *s)
	next, got, err := s.Decrypt(ct, start)
	if err != want || got != nil {
		t.Fatalf("decrypt: %q, error %v, want %v", got, err, want)
	}
	if !bytes.Equal(before, marshal(t, next)) || !bytes.Equal(before, marshal(t, *s)) {
		t.Fatal("a failed decryption changed the session")
	}
}

// talk lets two sessions exchange n messages, each answering the last.
func talk(t testing.TB, a, b *Session, r *rand.ChaCha8, n int) {
	t.Helper()
	for i := range n {
		mustDecrypt(t, b, mustEncrypt(t, a, r, fmt.Sprint(i), small), fmt.Sprint(i))
		a, b = b, a
	}
}

// TestNothingPrints: a session stays out of logs however it is printed.
func TestNothingPrints(t *testing.T) {
	a, _ := handshake(t, stream(1))
	for _, verb := range []string{"%v", "%s", "%x", "%+v", "%#v"} {
		if got := fmt.Sprintf(verb+verb+verb, a, &a, Keys{AD: []byte("ad")}); got != "(session)(session)(session keys)" {
			t.Errorf("%s prints %.80s", verb, got)
		}
	}
}
