package ratchet

import (
	"crypto/ecdh"
	"crypto/mlkem"
	"testing"
	"time"
)

// The floor: the public-key operations that a turn cannot do without, so that
// figures from different machines compare.

func BenchmarkX25519(b *testing.B) {
	r := stream(1)
	priv, _ := ecdh.X25519().NewPrivateKey(ptr(fill(r))[:])
	for b.Loop() {
		if _, err := priv.ECDH(priv.PublicKey()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMLKEM768Encapsulate(b *testing.B) {
	dk, err := mlkem.GenerateKey768()
	if err != nil {
		b.Fatal(err)
	}
	ek := dk.EncapsulationKey()
	for b.Loop() {
		ek.Encapsulate()
	}
}

func ptr[T any](v T) *T { return &v }

// BenchmarkEncryptInChain is one message of a chain in a 1 KiB envelope.
func BenchmarkEncryptInChain(b *testing.B) {
	r := stream(1)
	s, _ := handshake(b, r)
	mustEncrypt(b, &s, r, "begin", small)
	text := make([]byte, 200)
	b.ReportAllocs()
	var err error
	for b.Loop() {
		if s, _, err = s.Encrypt(r, text, small); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecryptInChain is its counterpart; the state moves on.
func BenchmarkDecryptInChain(b *testing.B) {
	r := stream(1)
	from, to := handshake(b, r)
	const batch = 1024
	text := string(make([]byte, 200))
	cts := make([][]byte, batch)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%batch == 0 {
			b.StopTimer()
			for j := range cts {
				cts[j] = mustEncrypt(b, &from, r, text, small)
			}
			b.StartTimer()
		}
		var err error
		if to, _, err = to.Decrypt(cts[i%batch], start); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTurn is strict ping-pong: every message begins a chain. It reports
// its two halves apart; key exchange work falls on the sender.
func BenchmarkTurn(b *testing.B) {
	r := stream(1)
	from, to := handshake(b, r)
	text := make([]byte, 200)
	var encrypt, decrypt time.Duration
	b.ReportAllocs()
	for b.Loop() {
		t0 := time.Now()
		next, ct, err := from.Encrypt(r, text, small)
		t1 := time.Now()
		if err != nil {
			b.Fatal(err)
		}
		if to, _, err = to.Decrypt(ct, start); err != nil {
			b.Fatal(err)
		}
		decrypt += time.Since(t1)
		encrypt += t1.Sub(t0)
		from, to = to, next
	}
	b.ReportMetric(float64(encrypt.Nanoseconds())/float64(b.N), "encrypt-ns/op")
	b.ReportMetric(float64(decrypt.Nanoseconds())/float64(b.N), "decrypt-ns/op")
}

// BenchmarkMarshal is what a node pays to store a session.
func BenchmarkMarshal(b *testing.B) {
	s, _ := handshake(b, stream(1))
	for b.Loop() {
		data, _ := s.MarshalBinary()
		b.ReportMetric(float64(len(data)), "B/session")
	}
}
