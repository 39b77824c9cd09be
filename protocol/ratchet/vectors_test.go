package ratchet

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"testing"
	"testing/cryptotest"
)

var update = flag.Bool("update", false, "write the vectors anew")

const vectorsFile = "testdata/ratchet.json"

// vectors is the form of testdata/ratchet.json (docs/spec/ratchet.md, section
// 12). All values are hexadecimal but the numbers.
type vectors struct {
	RK, HKA, HKB, AD, Prekey, S3 string
	Messages                     []vector
}

// A vector is one message in the order in which they are sent and received. Of
// the secrets, those are given that a reader of the message cannot compute:
// the ratchet key of a chain that begins, the seed of a KEM key that is offered
// from here on, and the shared secret of an answer.
type vector struct {
	From       string // "initiator" or "responder"
	Plaintext  string
	DHS        string `json:",omitempty"`
	KEMSeed    string `json:",omitempty"`
	KEMSecret  string `json:",omitempty"`
	RK         string // after this message, on both sides
	MK         string
	Ciphertext string
}

func makeVectors(t *testing.T) vectors {
	cryptotest.SetGlobalRandom(t, 1) // for ML-KEM's encapsulation
	r := stream(77)
	k := Keys{RK: fill(r), HKA: fill(r), HKB: fill(r), AD: bytes.Repeat([]byte{0xad}, 80)}
	prekey, s3 := fill(r), fill(r)
	b, err := Responder(k, prekey)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Initiator(k, [32]byte(b.dhs.PublicKey().Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	a, b = a.MixRecv(s3), b.MixSend(s3)
	v := vectors{
		RK: hex.EncodeToString(k.RK[:]), HKA: hex.EncodeToString(k.HKA[:]), HKB: hex.EncodeToString(k.HKB[:]),
		AD: hex.EncodeToString(k.AD), Prekey: hex.EncodeToString(prekey[:]), S3: hex.EncodeToString(s3[:]),
	}
	// Two messages a turn, so that a whole exchange fits in small files; the
	// second ciphertext is also skipped and opened late by the replay below.
	for turn := range 8 {
		from, to, name := &a, &b, "initiator"
		if turn%2 == 1 {
			from, to, name = &b, &a, "responder"
		}
		for range 2 {
			before := *from
			text := []byte(name)
			size := 2*MinCiphertext + 700
			ct := mustEncrypt(t, from, r, string(text), size)
			m := vector{From: name, Plaintext: hex.EncodeToString(text), Ciphertext: hex.EncodeToString(ct)}
			cks := before.cks
			if before.needStep {
				m.DHS = hex.EncodeToString(from.dhs.Bytes())
				cks = [32]byte{}
			}
			if from.kem.phase == offering && before.kem.phase != offering {
				m.KEMSeed = hex.EncodeToString(from.kem.seed[:])
			}
			if from.kem.phase == answering && before.kem.phase != answering {
				m.KEMSecret = hex.EncodeToString(from.kem.ready[:])
			}
			mustDecrypt(t, to, ct, string(text))
			if from.rk != to.rk {
				t.Fatal("root keys differ")
			}
			m.RK = hex.EncodeToString(from.rk[:])
			if cks != [32]byte{} {
				_, mk := chainKDF(&cks)
				m.MK = hex.EncodeToString(mk[:])
			}
			v.Messages = append(v.Messages, m)
		}
	}
	return v
}

func TestVectors(t *testing.T) {
	got, err := json.MarshalIndent(makeVectors(t), "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorsFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the vectors changed: a peer of an older build would not understand this one")
	}
}

// TestVectorsOpen reads the frozen file, not what this build makes: with the
// secrets of the file each side opens all messages of the other, those of a
// turn in the opposite order.
func TestVectorsOpen(t *testing.T) {
	data, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	dec := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	k := Keys{RK: [32]byte(dec(v.RK)), HKA: [32]byte(dec(v.HKA)), HKB: [32]byte(dec(v.HKB)), AD: dec(v.AD)}
	b, err := Responder(k, [32]byte(dec(v.Prekey)))
	if err != nil {
		t.Fatal(err)
	}
	a, err := Initiator(k, [32]byte(b.dhs.PublicKey().Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	s3 := [32]byte(dec(v.S3))
	a, b = a.MixRecv(s3), b.MixSend(s3)

	// send puts from into the state it was in after it had sent m.
	send := func(from *Session, m vector) {
		if m.DHS != "" {
			dhs, err := ecdh.X25519().NewPrivateKey(dec(m.DHS))
			if err != nil {
				t.Fatal(err)
			}
			if err := from.beginChain(dhs); err != nil {
				t.Fatal(err)
			}
		}
		if m.KEMSeed != "" {
			from.kem.offer([mlkem.SeedSize]byte(dec(m.KEMSeed)))
		}
		if m.KEMSecret != "" {
			from.kem.move(answering)
			from.kem.ready = [mlkem.SharedKeySize]byte(dec(m.KEMSecret))
		}
		var mk [32]byte
		from.cks, mk = chainKDF(&from.cks)
		from.ns++
		if m.MK != "" && m.MK != hex.EncodeToString(mk[:]) {
			t.Fatalf("message key %x, want %s", mk, m.MK)
		}
	}
	opened, mixed := 0, 0
	for turn := range slices.Chunk(v.Messages, 2) {
		from, to := &a, &b
		if turn[0].From == "responder" {
			from, to = &b, &a
		}
		for _, m := range turn {
			send(from, m)
		}
		for _, m := range slices.Backward(turn) {
			mustDecrypt(t, to, dec(m.Ciphertext), string(dec(m.Plaintext)))
			if got := hex.EncodeToString(to.rk[:]); got != m.RK {
				t.Fatalf("message %d: root key %s, want %s", opened, got, m.RK)
			}
			opened++
		}
		mixed += int(to.recvFlags & flagMixed)
	}
	if opened != 16 || mixed < 2 || len(a.skipped)+len(b.skipped) > 0 {
		t.Fatalf("%d messages opened, %d KEM secrets mixed, %d keys left", opened, mixed, len(a.skipped)+len(b.skipped))
	}
}
