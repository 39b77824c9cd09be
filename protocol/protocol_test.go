package protocol

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

var update = flag.Bool("update", false, "rewrite the vectors in testdata")

// golden compares v, as JSON, with a file in testdata.
func golden(t *testing.T, name string, v any) {
	t.Helper()
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the code no longer produces the frozen vectors", path)
	}
}

func random(n byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{n}) }

func bytesOf(r io.Reader, n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		panic(err)
	}
	return b
}

func TestVectors(t *testing.T) {
	type shared struct{ Secret, Label, Context, Rendezvous, PSK, Bundle, Stream, Carry string }
	type hedge struct {
		RNG, Secret string
		Counter     uint64
		Reads       []int
		Output      string
	}
	var v struct {
		Shared []shared
		Hedge  []hedge
	}
	for i := range 4 {
		r := random(byte(i))
		secret, context := bytesOf(r, 32), bytesOf(r, 8*i)
		s := DeriveShared(secret, LabelPair, context)
		v.Shared = append(v.Shared, shared{
			hex.EncodeToString(secret), LabelPair, hex.EncodeToString(context),
			hex.EncodeToString(s.Rendezvous[:]), hex.EncodeToString(s.PSK[:]),
			hex.EncodeToString(s.Bundle[:]), hex.EncodeToString(s.Stream[:]), hex.EncodeToString(s.Carry[:]),
		})
		rng := bytesOf(r, 96)
		h := NewHedge(bytes.NewReader(rng), HedgeSecret(secret), uint64(i))
		out := append(bytesOf(h, 32), bytesOf(h, 100)...)
		v.Hedge = append(v.Hedge, hedge{
			hex.EncodeToString(rng), hex.EncodeToString(secret), uint64(i), []int{32, 100}, hex.EncodeToString(out),
		})
	}
	golden(t, "overview.json", v)
}

func TestSharedFromPair(t *testing.T) {
	pair := PairSecret(bytesOf(random(1), 32))
	s := SharedFromPair(pair)
	seen := map[[32]byte]bool{pair: true, s.Rendezvous: true, s.PSK: true, s.Bundle: true, s.Stream: true, s.Carry: true}
	if len(seen) != 6 {
		t.Error("two shared secrets are the same")
	}
	if s != SharedFromPair(pair) {
		t.Error("the same pair secret gave other shared secrets")
	}
}

// A secret shows under no verb and in no document.
func TestSecretRedacted(t *testing.T) {
	s := PSK(bytes.Repeat([]byte{0xab}, 32))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o"} {
		for _, arg := range []any{s, struct{ Key PSK }{s}, []PSK{s}} {
			got := strings.ToLower(fmt.Sprintf(verb, arg))
			if strings.Contains(got, "ab") || strings.Contains(got, "171") || strings.Contains(got, "253") {
				t.Errorf("%s shows a secret: %s", verb, got)
			}
		}
	}
	if b, err := json.Marshal(s); err == nil {
		t.Errorf("a secret marshalled as %s", b)
	}
	if !s.Equal(s) || s.Equal(PSK{}) || s.IsZero() || !(PSK{}).IsZero() {
		t.Error("Equal or IsZero is wrong")
	}
}

type constant byte

func (c constant) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(c)
	}
	return len(p), nil
}

// A generator that always returns the same never makes a Hedge repeat, within
// one and across restarts, each of which has its own counter; and two devices
// with the same counter and generator do not meet.
// See docs/spec/overview.md, section 7.
func TestA20_HedgeNeverRepeats(t *testing.T) {
	reads, restarts := 2000, 50
	if testing.Short() {
		reads = 200
	}
	seen := make(map[[32]byte]bool)
	for device := range 2 {
		for counter := range restarts {
			h := NewHedge(constant(0), HedgeSecret{byte(device + 1)}, uint64(counter))
			for range reads / restarts {
				k := [32]byte(bytesOf(h, 32))
				if seen[k] {
					t.Fatal("the hedged generator repeated itself")
				}
				seen[k] = true
			}
		}
	}
}

// With a sound generator the secret need not be one.
func TestA20_HedgeUsesGenerator(t *testing.T) {
	a := bytesOf(NewHedge(random(1), HedgeSecret{}, 1), 64)
	b := bytesOf(NewHedge(random(2), HedgeSecret{}, 1), 64)
	if bytes.Equal(a, b) {
		t.Error("the output does not depend on the generator")
	}
	if c := bytesOf(NewHedge(random(1), HedgeSecret{}, 1), 64); !bytes.Equal(a, c) {
		t.Error("the output depends on something else")
	}
}

func TestHedgeError(t *testing.T) {
	want := errors.New("no entropy")
	if _, err := io.ReadFull(NewHedge(iotest.ErrReader(want), HedgeSecret{}, 1), make([]byte, 32)); !errors.Is(err, want) {
		t.Errorf("got %v, want the generator's error", err)
	}
	long := bytesOf(NewHedge(random(1), HedgeSecret{}, 1), 3*hedgeBlock+1)
	if bytes.Equal(long[:64], long[hedgeBlock:hedgeBlock+64]) {
		t.Error("a long read repeats itself")
	}
}
