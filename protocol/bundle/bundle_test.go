package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
)

var update = flag.Bool("update", false, "rewrite the vectors in testdata")

var (
	secret = protocol.CarryKey{1}
	device = identity.DeviceHash{2}
	reader = To(secret, device)
)

func random(seed byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{seed}) }

func envelopeOf(seed byte, log int) []byte {
	b := make([]byte, protocol.MinEnvelope<<log)
	_, _ = io.ReadFull(random(seed), b)
	return b
}

// pack puts envelopes into parts.
func pack(t testing.TB, k Key, envelopes ...[]byte) (parts [][]byte) {
	t.Helper()
	p := NewPacker(random(9), k)
	for _, e := range envelopes {
		needs, began := p.Needs(Split(e)), len(parts)
		open := len(p.items) > 0
		for _, it := range Split(e) {
			full, err := p.Add(it)
			if err != nil {
				t.Fatal(err)
			}
			if full != nil {
				parts = append(parts, full)
			}
		}
		if got := len(parts) - began; got != needs && (open || got+1 != needs) {
			t.Errorf("%d parts were said to be begun, and %d were filled", needs, got)
		}
	}
	last, err := p.Flush()
	if err != nil {
		t.Fatal(err)
	}
	if last != nil {
		parts = append(parts, last)
	}
	return parts
}

// unpack reads the envelopes that parts hold for a key, and skips what is not
// whole.
func unpack(k Key, parts ...[]byte) (envelopes [][]byte) {
	var j Joiner
	for _, part := range parts {
		if _, ok := Find([]Key{k}, part); !ok {
			continue
		}
		items, err := Open(k, part)
		if err != nil {
			continue
		}
		for _, it := range items {
			switch it.Kind {
			case Envelope:
				envelopes = append(envelopes, it.Body)
			case Piece:
				if e := j.Add(it); e != nil {
					envelopes = append(envelopes, e)
				}
			case Record:
			}
		}
	}
	return envelopes
}

func TestRoundTrip(t *testing.T) {
	for name, logs := range map[string][]int{
		"one text":       {0},
		"a full part":    slices.Repeat([]int{0}, 31),
		"two parts":      slices.Repeat([]int{0}, 32),
		"first words":    {3, 3, 3, 3},
		"every size":     {0, 1, 2, 3, 4, 5, 6, 7},
		"large ones":     {7, 7, 0, 6, 5, 7},
		"many of a kind": slices.Repeat([]int{4}, 9),
	} {
		t.Run(name, func(t *testing.T) {
			var all [][]byte
			for i, log := range logs {
				all = append(all, envelopeOf(byte(i), log))
			}
			parts := pack(t, reader, all...)
			for _, p := range parts {
				if len(p) != protocol.BundlePart {
					t.Fatalf("a part has %d bytes, want %d", len(p), protocol.BundlePart)
				}
			}
			if got := unpack(reader, parts...); !slices.EqualFunc(got, all, bytes.Equal) {
				t.Errorf("%d envelopes came out in their order, want %d", len(got), len(all))
			}
		})
	}
}

// Only the reader finds a part, and each key is for one direction, one device
// and one secret.
func TestKeys(t *testing.T) {
	keys := []Key{
		reader, From(secret, device), To(protocol.CarryKey{3}, device), To(secret, identity.DeviceHash{3}),
	}
	for i, k := range keys {
		part := pack(t, k, envelopeOf(1, 0))[0]
		if got, ok := Find(keys, part); !ok || got != i {
			t.Errorf("key %d: found %d, %v", i, got, ok)
		}
		for j, other := range keys {
			if _, err := Open(other, part); (err == nil) != (i == j) {
				t.Errorf("what key %d sealed opens with key %d: %v", i, j, err)
			}
		}
		if _, ok := Find(keys, part[1:]); ok {
			t.Error("something that is no part was found")
		}
	}
}

// A damaged part costs what it holds, and nothing beside it: the rest is noise
// (docs/spec/bundle.md, section 3).
func TestDamage(t *testing.T) {
	var all [][]byte
	for i := range 100 {
		all = append(all, envelopeOf(byte(i), i%7/6*7)) // one of seven is large
	}
	parts := pack(t, reader, all...)
	file := slices.Concat(parts...)
	rng := rand.New(random(3))
	for range 200 {
		b := bytes.Clone(file)
		at := rng.IntN(len(b))
		b[at] ^= 1 << rng.IntN(8)
		got := unpack(reader, slices.Collect(slices.Chunk(b, protocol.BundlePart))...)
		hurt := at / protocol.BundlePart
		i := 0
		for _, e := range got { // in order, and nothing that was not there
			for i < len(all) && !bytes.Equal(all[i], e) {
				i++
			}
			if i++; i > len(all) {
				t.Fatalf("damage at %d: an envelope came out that nobody put in", at)
			}
		}
		if want := len(all) - len(unpack(reader, parts[hurt])) - 2; len(got) < want {
			t.Fatalf("damage at %d: %d envelopes are left, want at least %d", at, len(got), want)
		}
	}
	for _, size := range []int{1, protocol.BundlePart - 1, 5*protocol.BundlePart + 7, len(file) - 1} {
		got := unpack(reader, slices.Collect(slices.Chunk(file[:size], protocol.BundlePart))...)
		want := unpack(reader, parts[:size/protocol.BundlePart]...)
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("of %d bytes %d envelopes are left, want %d", size, len(got), len(want))
		}
	}
}

// Pieces come together in any order and however often, and a lost one leaves
// nothing behind but room that the next ones take.
func TestJoin(t *testing.T) {
	e := envelopeOf(1, 7)
	items := Split(e)
	slices.Reverse(items)
	var j Joiner
	for i, it := range items[:7] {
		if j.Add(it) != nil || j.Add(it) != nil {
			t.Fatalf("an envelope came out after %d pieces", i+1)
		}
	}
	if !bytes.Equal(j.Add(items[7]), e) {
		t.Error("all pieces did not make the envelope")
	}
	for i := range 3 * maxJoining {
		j.Add(Split(envelopeOf(byte(10+i), 5))[0])
	}
	if len(j.open) != maxJoining {
		t.Errorf("pieces of %d envelopes are kept, want %d", len(j.open), maxJoining)
	}
	last := Split(envelopeOf(byte(10+3*maxJoining-1), 5))
	if j.Add(last[1]) == nil {
		t.Error("the newest was forgotten")
	}
	wrong := Split(e)
	wrong[3].Body = make([]byte, protocol.BundlePiece)
	for _, it := range wrong {
		if j.Add(it) != nil {
			t.Error("an envelope came out that is not the one that was split")
		}
	}
}

// To everybody else a file is noise: no two blocks of it are the same though
// it holds the same again and again, and its bytes are spread as chance spreads them.
func TestLooksLikeNoise(t *testing.T) {
	same := bytes.Repeat([]byte{1}, protocol.MinEnvelope) // what no envelope is
	file := slices.Concat(pack(t, reader, slices.Repeat([][]byte{same}, 500)...)...)
	blocks := make(map[[16]byte]bool)
	var counts [256]float64
	for block := range slices.Chunk(file, 16) {
		if blocks[[16]byte(block)] {
			t.Fatal("a block of 16 bytes comes twice")
		}
		blocks[[16]byte(block)] = true
		for _, b := range block {
			counts[b]++
		}
	}
	chi, want := 0.0, float64(len(file))/256
	for _, n := range counts {
		chi += (n - want) * (n - want) / want
	}
	if sigma := (chi - 255) / math.Sqrt(2*255); math.Abs(sigma) > 5 {
		t.Errorf("the bytes' distribution is %.1f standard deviations off", sigma)
	}
}

func TestSizes(t *testing.T) {
	for _, c := range []struct{ parts, padding int }{{0, 0}, {1, 0}, {2, 0}, {3, 1}, {5, 3}, {33, 31}, {64, 0}} {
		if got := Padding(c.parts); got != c.padding {
			t.Errorf("%d parts lack %d, want %d", c.parts, got, c.padding)
		}
	}
	for _, c := range []struct {
		size  int64
		parts int
	}{{0, 0}, {protocol.BundlePart - 1, 0}, {protocol.BundlePart, 1}, {64_000_000, 1024}, {64 << 20, 2048}, {1 << 40, 1 << 15}} {
		if got := MaxParts(c.size); got != c.parts {
			t.Errorf("a file of %d bytes has at most %d parts, want %d", c.size, got, c.parts)
		}
	}
	for size, want := range map[int64]bool{0: false, 1 << 15: true, 1<<15 + 1: false, 3 << 15: false, 1 << 30: true, 1 << 31: false} {
		if got := IsSize(size); got != want {
			t.Errorf("a file of %d bytes: %v, want %v", size, got, want)
		}
	}
}

func TestText(t *testing.T) {
	for log := range 2 {
		e := envelopeOf(1, log)
		text, err := SealText(random(2), reader, e)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 4296 || strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
			t.Errorf("a slip of %d letters does not fit into a QR code", len(text))
		}
		for _, written := range []string{text, strings.ToLower(text), " " + text[:100] + "\r\n\t" + text[100:] + "\n"} {
			slip, err := ParseText(written)
			if err != nil {
				t.Fatal(err)
			}
			if got := unpack(reader, slip); len(got) != 1 || !bytes.Equal(got[0], e) {
				t.Error("another envelope came out")
			}
		}
		for i := range len(text) {
			bad := []byte(text)
			if bad[i] = 'A'; text[i] == 'A' {
				bad[i] = 'B'
			}
			if _, err := ParseText(string(bad)); !errors.Is(err, ErrMisread) {
				t.Fatalf("letter %d is wrong: %v", i, err)
			}
		}
		for _, bad := range []string{"", "A", text[1:], text + "A", text + text, strings.Replace(text, text[5:6], "1", 1), "kith:" + text} {
			if _, err := ParseText(bad); !errors.Is(err, ErrNotSlip) {
				t.Errorf("%d letters: %v", len(bad), err)
			}
		}
	}
	if _, err := SealText(random(2), reader, envelopeOf(1, 2)); err == nil {
		t.Error("an envelope that is too large was written on paper")
	}
}

func contents() [][]Item {
	var first, last []Item
	for i := range 31 {
		first = append(first, Split(envelopeOf(byte(i), 0))...)
	}
	for i := range 8 {
		last = append(last, Split(envelopeOf(byte(i), 7))[i])
	}
	return [][]Item{
		first,
		last[:1],
		{last[7], {Kind: Envelope, Body: envelopeOf(2, 3), Log: 3}},
		{{Kind: Record, Body: []byte("x")}, {Kind: Envelope, Body: envelopeOf(3, 0)}},
		{{Kind: Record, Body: make([]byte, protocol.RecordSize)}},
	}
}

func TestParseContentRefuses(t *testing.T) {
	whole := func(head ...byte) []byte {
		b := make([]byte, contentSize)
		copy(b, head)
		return b
	}
	trailing := whole(1, 0)
	trailing[contentSize-1] = 1
	for name, content := range map[string][]byte{
		"nothing":                    {},
		"zeros":                      whole(),
		"bytes after the end":        trailing,
		"an unknown kind":            whole(4),
		"a large envelope":           whole(1, 5),
		"an envelope cut short":      {1, 0, 7},
		"a piece of a small one":     whole(2, 4, 0),
		"a piece of too large a one": whole(2, 8, 0),
		"a piece beyond the last":    whole(2, 5, 2),
		"a piece cut short":          {2, 5, 0, 1},
		"an empty record":            whole(3, 0, 0),
		"a large record":             whole(3, 0x10, 1),
		"a record cut short":         {3, 0, 9, 1},
	} {
		if _, err := ParseContent(content); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseContent(f *testing.F) {
	for _, items := range contents() {
		content, err := marshalContent(items, contentSize)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		items, err := ParseContent(content)
		if err != nil {
			return
		}
		again, err := marshalContent(items, len(content))
		if err != nil || !bytes.Equal(again, content) {
			t.Errorf("a content has two encodings: %v", err)
		}
		var j Joiner
		for _, it := range items {
			if it.Kind == Piece {
				j.Add(it)
			}
		}
	})
}

func FuzzParseText(f *testing.F) {
	for log := range 2 {
		text, err := SealText(random(2), reader, envelopeOf(1, log))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		slip, err := ParseText(text)
		if err != nil {
			return
		}
		if again := encoding.EncodeToString(append(bytes.Clone(slip), checksum(slip)...)); again != strings.ToUpper(strings.Join(strings.Fields(text), "")) {
			t.Error("a slip has two texts")
		}
		_, _ = Open(reader, slip)
	})
}

// FuzzOpen shows that nothing opens but what was sealed.
func FuzzOpen(f *testing.F) {
	part := pack(f, reader, envelopeOf(1, 0))[0]
	f.Add(part)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Open(reader, b); err == nil && !bytes.Equal(b, part) {
			t.Error("a part that nobody sealed opens")
		}
	})
}

// TestVectors holds parts and slips against testdata. Randomness is the output of
// ChaCha8 under the seed that is named, so salts are the first 16 bytes of a part.
func TestVectors(t *testing.T) {
	type vector struct {
		Secret, Device, Direction, Key string
		Envelopes                      []int // sizes; each byte is the envelope's place, from 0
		Salts, Marks                   []string
		SHA256                         string // of the parts, one after the other
	}
	type slip struct{ Key, Envelope, Text string }
	var v struct {
		Parts []vector
		Slips []slip
	}
	for i, logs := range [][]int{{0}, {0, 3, 0, 4}, {7, 0, 5}} {
		s := protocol.CarryKey(envelopeOf(byte(i), 0)[:32])
		d := identity.DeviceHash(envelopeOf(byte(i), 0)[32:64])
		k, direction := To(s, d), "to"
		if i == 1 {
			k, direction = From(s, d), "from"
		}
		one := vector{Secret: hex.EncodeToString(s[:]), Device: hex.EncodeToString(d[:]), Direction: direction, Key: hex.EncodeToString(k[:])}
		var all [][]byte
		for j, log := range logs {
			all = append(all, bytes.Repeat([]byte{byte(j)}, protocol.MinEnvelope<<log))
			one.Envelopes = append(one.Envelopes, protocol.MinEnvelope<<log)
		}
		parts := pack(t, k, all...)
		for _, p := range parts {
			one.Salts = append(one.Salts, hex.EncodeToString(p[:saltSize]))
			one.Marks = append(one.Marks, hex.EncodeToString(p[saltSize:saltSize+markSize]))
		}
		sum := sha256.Sum256(slices.Concat(parts...))
		one.SHA256 = hex.EncodeToString(sum[:])
		v.Parts = append(v.Parts, one)
		if i == 0 {
			text, err := SealText(random(5), k, all[0])
			if err != nil {
				t.Fatal(err)
			}
			v.Slips = append(v.Slips, slip{one.Key, "1024 zeros", text})
		}
	}
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", "bundle.json")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
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

// Looking through a file costs a MAC for each part and key.
func BenchmarkFind(b *testing.B) {
	keys := make([]Key, 100)
	for i := range keys {
		keys[i] = Key{byte(i)}
	}
	part := pack(b, reader, envelopeOf(1, 0))[0]
	b.SetBytes(protocol.BundlePart)
	for b.Loop() {
		if _, ok := Find(keys, part); ok {
			b.Fatal("found under a wrong key")
		}
	}
}
