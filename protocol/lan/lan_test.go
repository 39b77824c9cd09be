package lan

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
)

var update = flag.Bool("update", false, "rewrite the vectors in testdata")

var (
	secret = protocol.RendezvousSecret{1}
	device = identity.DeviceHash{2}
	source = Source{10: 0xff, 11: 0xff, 12: 192, 13: 168, 14: 1, 15: 7}
)

func random(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed, 0x1a}) }

func place(seed byte) Here {
	h := Here{TCP: 4001, QUIC: 4002}
	copy(h.Peer[:], ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))[32:])
	return h
}

func keys(n int) (all []Key) {
	for i := range n {
		all = append(all, Derive(protocol.RendezvousSecret{byte(i), 9}, device, 5))
	}
	return all
}

func sealed(t testing.TB, rand io.Reader, keys ...Key) []byte {
	t.Helper()
	p, err := Seal(rand, source, place(1), keys)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRoundTrip: what is sealed opens (docs/spec/lan.md, section 3).
func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, Slots} {
		all := keys(n)
		p := sealed(t, random(1), all...)
		if len(p) != PacketSize {
			t.Errorf("%d keys: %d bytes, want %d", n, len(p), PacketSize)
		}
		for i, k := range all {
			if here, ok := k.Open(p, source); !ok || here != place(1) {
				t.Errorf("key %d of %d finds %v, %v", i, n, here, ok)
			}
		}
	}
	if _, err := Seal(random(1), source, place(1), keys(Slots+1)); err == nil {
		t.Error("sealed for more keys than there are slots")
	}
	for name, here := range map[string]Here{
		"no port": {Peer: place(1).Peer},
		"no key":  {TCP: 1},
	} {
		if _, err := Seal(random(1), source, here, nil); err == nil {
			t.Errorf("sealed a place with %s", name)
		}
	}
}

// TestNobodyElse: a packet opens for whom it was made (docs/spec/lan.md, section 2), in its epoch, whole, and
// from where it was sent.
func TestNobodyElse(t *testing.T) {
	epoch := Epoch(time.Unix(1_800_000_000, 0))
	k := Derive(secret, device, epoch)
	p := sealed(t, random(1), k)
	for name, other := range map[string]Key{
		"another secret":      Derive(protocol.RendezvousSecret{3}, device, epoch),
		"the other direction": Derive(secret, identity.DeviceHash{3}, epoch),
		"another epoch":       Derive(secret, device, epoch+1),
		"everybody":           DeriveOpen(epoch),
	} {
		if _, ok := other.Open(p, source); ok {
			t.Errorf("%s opens it", name)
		}
	}
	elsewhere := source
	elsewhere[15]++
	if _, ok := k.Open(p, elsewhere); ok {
		t.Error("it opens when it comes from elsewhere")
	}
	for _, size := range []int{0, nonceSize, PacketSize - 1} {
		if _, ok := k.Open(p[:size], source); ok {
			t.Errorf("its first %d bytes open", size)
		}
	}
	if _, ok := k.Open(append(bytes.Clone(p), 0), source); ok {
		t.Error("it opens with a byte behind it")
	}
	at := bytes.Index(p, tagBytes(k, p))
	for i := range PacketSize {
		p[i] ^= 1
		_, ok := k.Open(p, source)
		p[i] ^= 1
		if mine := i < nonceSize || i >= at && i < at+slotSize; ok == mine {
			t.Fatalf("byte %d changed: opens is %v", i, ok)
		}
	}
	if open := DeriveOpen(epoch); open == k || open == DeriveOpen(epoch+1) {
		t.Error("keys for everybody do not change")
	}
}

func tagBytes(k Key, packet []byte) []byte {
	tag := k.tagOf(packet[:nonceSize])
	return tag[:]
}

// TestD16_NothingStable: two packets have no eight bytes in common at any
// offset of a slot, whether their slots are used or not, and the used ones are
// anywhere.
func TestD16_NothingStable(t *testing.T) {
	rng := random(4)
	seen := make(map[string]bool)
	places := make(map[int]int)
	k := Derive(secret, device, 5)
	for range 400 {
		p := sealed(t, rng, k)
		places[(bytes.Index(p, tagBytes(k, p))-nonceSize)/slotSize]++
		for at := nonceSize; at < PacketSize; at += slotSize {
			for _, field := range [][]byte{p[at : at+tagSize], p[at+tagSize : at+2*tagSize]} {
				if seen[string(field)] {
					t.Fatal("bytes came back")
				}
				seen[string(field)] = true
			}
		}
	}
	for i := range Slots {
		if places[i] == 0 {
			t.Errorf("slot %d is never used", i)
		}
	}
}

func TestEpoch(t *testing.T) {
	for _, c := range []struct{ unix, want int64 }{{0, 0}, {7199, 0}, {7200, 1}, {-1, -1}, {-7200, -1}, {-7201, -2}} {
		if got := Epoch(time.Unix(c.unix, 0)); got != c.want {
			t.Errorf("Epoch(%d) = %d, want %d", c.unix, got, c.want)
		}
	}
}

func TestVectors(t *testing.T) {
	type vector struct {
		Secret, Publisher, Source string
		Epoch                     int64
		Peer                      string
		TCP, QUIC                 uint16
		Packet, Open, RecordName  string
	}
	k := Derive(secret, device, 250_000)
	here := place(1)
	v := vector{
		Secret: hex.EncodeToString(secret[:]), Publisher: hex.EncodeToString(device[:]), Source: hex.EncodeToString(source[:]),
		Epoch: 250_000, Peer: hex.EncodeToString(here.Peer[:]), TCP: here.TCP, QUIC: here.QUIC,
		Packet:     hex.EncodeToString(sealed(t, random(7), k)),
		Open:       hex.EncodeToString(sealed(t, random(8), DeriveOpen(250_000))),
		RecordName: RecordName(protocol.StreamKey{1}, 20_000),
	}
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", "lan.json")
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

func TestKeysDoNotPrint(t *testing.T) {
	if s := fmt.Sprintf("%v %+v %x", DeriveOpen(1), DeriveOpen(1), DeriveOpen(1)); s != "(key) (key) (key)" {
		t.Errorf("a key prints as %s", s)
	}
}

// FuzzOpen: what opens is what its sender would have written.
func FuzzOpen(f *testing.F) {
	k := Derive(secret, device, 5)
	f.Add(sealed(f, random(1), k))
	f.Add(sealed(f, random(2)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if here, ok := k.Open(b, source); ok && here.check() != nil {
			t.Errorf("opened a place that cannot be: %v", here)
		}
	})
}

// FuzzHere: decoding is the inverse of encoding.
func FuzzHere(f *testing.F) {
	good, err := place(1).marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(make([]byte, hereSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHere(b)
		if err != nil {
			return
		}
		again, err := h.marshal()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x becomes %x, %v", b, again, err)
		}
	})
}
