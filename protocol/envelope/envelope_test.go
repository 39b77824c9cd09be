package envelope

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math"
	"os"
	"testing"
	"time"

	"github.com/kith-im/kith/protocol"
)

var update = flag.Bool("update", false, "write the vectors anew")

func TestSizes(t *testing.T) {
	for _, tt := range []struct{ payload, size int }{
		{0, 1024},
		{1008, 1024},
		{1009, 2048},
		{2032, 2048},
		{2033, 4096},
		{64 << 10, 128 << 10},
		{protocol.MaxEnvelope - TagSize, protocol.MaxEnvelope},
	} {
		if got, err := SizeFor(tt.payload); err != nil || got != tt.size {
			t.Errorf("SizeFor(%d) = %d, %v, want %d", tt.payload, got, err, tt.size)
		}
	}
	for _, n := range []int{-1, protocol.MaxEnvelope - TagSize + 1, math.MaxInt} {
		if got, err := SizeFor(n); err == nil {
			t.Errorf("SizeFor(%d) = %d", n, got)
		}
	}
	// Every payload there is gets the smallest size that is on the list.
	for n := 0; n <= protocol.MaxEnvelope-TagSize; n++ {
		size, err := SizeFor(n)
		if err != nil || !valid(size) || size < n+TagSize || size > protocol.MinEnvelope && size/2 >= n+TagSize {
			t.Fatalf("SizeFor(%d) = %d, %v", n, size, err)
		}
	}
}

// TestF06_LengthFirst: a length that is not on the list is refused before
// anything is copied.
func TestF06_LengthFirst(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 1023, 1025, 3072, 128<<10 + 1, 256 << 10} {
		b := make([]byte, n)
		if _, _, err := Parse(b); err == nil {
			t.Errorf("an envelope of %d bytes is accepted", n)
		}
		if n := testing.AllocsPerRun(10, func() { _, _, _ = Parse(b) }); n > 0 {
			t.Errorf("refusing took %v allocations", n)
		}
		if n >= TagSize {
			if _, err := New(Tag{}, b[:n-TagSize], nil); err == nil {
				t.Errorf("an envelope of %d bytes is made", n)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, 1024))
	f.Add(make([]byte, 1000))
	f.Fuzz(func(t *testing.T, b []byte) {
		tag, payload, err := Parse(b)
		if err != nil {
			return
		}
		again, err := New(tag, payload[:len(payload)/2], payload[len(payload)/2:])
		if err != nil || !bytes.Equal(b, again) {
			t.Fatalf("an envelope has two forms: %v", err)
		}
	})
}

func TestTagsDiffer(t *testing.T) {
	seen := map[Tag]bool{}
	for key := range byte(4) {
		for i := range uint32(1000) {
			tag := DeriveTag([32]byte{key}, i)
			if seen[tag] {
				t.Fatalf("tag %d of key %d repeats", i, key)
			}
			seen[tag] = true
		}
	}
}

var day0 = time.Unix(1_700_000_000, 0)

func TestSender(t *testing.T) {
	day := func(n float64) time.Time { return day0.Add(time.Duration(n * 24 * float64(time.Hour))) }
	s := Sender{}
	steps := []struct {
		name    string
		at      time.Time
		confirm uint32
		want    uint32
	}{
		{"begins at 1", day(0), 0, 1},
		{"keeps its tag for a day", day(0.99), 0, 1},
		{"advances after a day", day(1), 0, 2},
		{"at most once, however long it was", day(10), 0, 3},
		{"a clock put back restarts the day", day(-100), 0, 3},
		{"and it ends as any", day(-99), 3, 4},
		{"a clock far ahead moves one step", day(40_000), 0, 5},
		{"and back again none", day(10), 0, 5},
	}
	for _, tt := range steps {
		if tt.confirm > 0 {
			s = s.Confirm(tt.confirm)
		}
		if s = s.Advance(tt.at); s.Current() != tt.want {
			t.Fatalf("%s: index %d, want %d", tt.name, s.Current(), tt.want)
		}
	}
	for i := range 100 {
		s = s.Advance(day(float64(11 + i)))
	}
	if want := 3 + uint32(protocol.MaxTagAhead); s.Current() != want {
		t.Fatalf("without receipts the index ran to %d, want %d", s.Current(), want)
	}
	if s = s.Confirm(s.Current() + 1); s.Confirmed != 3 {
		t.Fatal("a receipt for an index never used counts")
	}
	s = s.Confirm(20).Confirm(10)
	if s = s.Advance(day(200)); s.Current() != 36 || s.Confirmed != 20 {
		t.Fatalf("index %d, confirmed %d", s.Current(), s.Confirmed)
	}
	s = Sender{Index: math.MaxUint32 - protocol.TagWindow, Confirmed: math.MaxUint32 - 100, Advanced: day(0)}
	if got := s.Advance(day(9)).Current(); got != s.Index {
		t.Fatalf("the index wrapped to %d", got)
	}
}

func TestReceiver(t *testing.T) {
	for _, tt := range []struct{ highest, first, last uint32 }{
		{0, 1, 64},
		{1, 1, 65},
		{33, 1, 97},
		{34, 2, 98},
		{1000, 968, 1064},
		{math.MaxUint32 - 10, math.MaxUint32 - 42, math.MaxUint32},
	} {
		r := Receiver{Highest: tt.highest}
		if first, last := r.Window(); first != tt.first || last != tt.last {
			t.Errorf("window after %d is %d to %d, want %d to %d", tt.highest, first, last, tt.first, tt.last)
		}
		if r.Accepts(tt.first-1) || !r.Accepts(tt.first) || !r.Accepts(tt.last) ||
			tt.last < math.MaxUint32 && r.Accepts(tt.last+1) {
			t.Errorf("window after %d has other ends than it says", tt.highest)
		}
	}
	r := Receiver{}.Opened(65)
	if r.Highest != 0 {
		t.Error("an index outside moved the window")
	}
	if r = r.Opened(64).Opened(40); r.Highest != 64 {
		t.Errorf("highest %d, want 64", r.Highest)
	}
}

// TestWindows: whatever is lost, and with receipts as late as may be, the
// recipient accepts every tag the sender uses.
func TestWindows(t *testing.T) {
	var s Sender
	var r Receiver
	receipts := []uint32{}
	for n := range 2000 {
		s = s.Advance(day0.Add(time.Duration(n) * 24 * time.Hour))
		if !r.Accepts(s.Current()) {
			t.Fatalf("day %d: index %d is refused after %d", n, s.Current(), r.Highest)
		}
		if n%29 == 0 {
			r = r.Opened(s.Current())
			receipts = append(receipts, s.Current())
		}
		if n%50 == 0 && len(receipts) > 0 {
			s = s.Confirm(receipts[0])
			receipts = receipts[1:]
		}
	}
}

// tagVectors is the form of testdata/tags.json.
type tagVectors struct {
	Key  string
	Tags []tagVector
}

type tagVector struct {
	Index uint32
	Tag   string
}

func TestVectors(t *testing.T) {
	var key [32]byte
	for i := range key {
		key[i] = byte(i)
	}
	v := tagVectors{Key: hex.EncodeToString(key[:])}
	for _, i := range []uint32{0, 1, 2, 64, 65536, math.MaxUint32} {
		tag := DeriveTag(key, i)
		v.Tags = append(v.Tags, tagVector{i, hex.EncodeToString(tag[:])})
	}
	got, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/tags.json"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the vectors changed: peers would not know each other's tags")
	}
}
