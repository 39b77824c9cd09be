package transport

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math"
	"os"
	"testing"
)

var updateVeil = flag.Bool("update-veil", false, "write testdata/veil.json anew")

const veilVectors = "testdata/veil.json"

// veilVector is one frame of docs/spec/veil.md, sections 4.1 and 4.2.
type veilVector struct {
	Kind    string `json:"kind"`
	Session string `json:"session,omitempty"`
	Numbers []int  `json:"numbers"` // the integers before flags, in their order
	Flags   byte   `json:"flags"`
	Data    string `json:"data"`
	Padding int    `json:"padding"`
	Frame   string `json:"frame"`
}

func sampleFrames() []veilVector {
	var vs []veilVector
	for _, r := range []veilRequest{
		{session: sessionID{1, 2, 3}, data: []byte("first")},
		{session: sessionID{15: 9}, number: 7, offset: 5, received: 6, from: 8, written: 11, most: 4096, hold: 20_000, flags: veilFin | veilAbort, data: []byte("and so on"), padding: 3},
	} {
		vs = append(vs, veilVector{
			Kind: "request", Session: hex.EncodeToString(r.session[:]),
			Numbers: []int{int(r.number), int(r.offset), int(r.received), int(r.from), int(r.written), int(r.most), int(r.hold)},
			Flags:   r.flags, Data: string(r.data), Padding: r.padding, Frame: hex.EncodeToString(r.marshal()),
		})
	}
	for _, a := range []veilAnswer{
		{limit: veilBuffer},
		{accepted: 14, limit: 1000, written: 40, offset: 8, flags: veilFin, data: []byte("answer"), padding: 2},
	} {
		vs = append(vs, veilVector{
			Kind:    "answer",
			Numbers: []int{int(a.accepted), int(a.limit), int(a.written), int(a.offset)},
			Flags:   a.flags, Data: string(a.data), Padding: a.padding, Frame: hex.EncodeToString(a.marshal()),
		})
	}
	return vs
}

// TestVeilVectors holds the frames to the vectors of docs/spec/veil.md,
// sections 4.1 and 4.2.
func TestVeilVectors(t *testing.T) {
	got, err := json.MarshalIndent(sampleFrames(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *updateVeil {
		if err := os.WriteFile(veilVectors, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(veilVectors)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("frames differ from %s", veilVectors)
	}
}

// TestVeilFrameRefused follows docs/spec/veil.md, section 4.3.
func TestVeilFrameRefused(t *testing.T) {
	good := veilRequest{data: []byte("x"), padding: 1}
	answer := veilAnswer{data: []byte("x"), padding: 1}
	for name, change := range map[string]func(b []byte) []byte{
		"short":           func(b []byte) []byte { return b[:len(b)-3] },
		"empty":           func([]byte) []byte { return nil },
		"padding of ones": func(b []byte) []byte { b[len(b)-1] = 1; return b },
		"much padding":    func(b []byte) []byte { return append(b, make([]byte, maxVeilPad)...) },
		"unknown flag":    func(b []byte) []byte { b[len(b)-6] = 4; return b },
		"long data": func(b []byte) []byte {
			b[len(b)-5] = maxVeilData >> 16
			return append(b, make([]byte, maxVeilData)...)
		},
	} {
		if err := new(veilRequest).unmarshal(change(good.marshal())); err == nil {
			t.Errorf("request, %s: accepted", name)
		}
		if err := new(veilAnswer).unmarshal(change(answer.marshal())); err == nil {
			t.Errorf("answer, %s: accepted", name)
		}
	}
	for _, offset := range []uint64{math.MaxUint64, math.MaxUint64 - 1} {
		r := veilRequest{offset: offset, data: []byte("x")}
		if err := new(veilRequest).unmarshal(r.marshal()); (err == nil) != (offset < math.MaxUint64) {
			t.Errorf("a byte at offset %d: %v", offset, err)
		}
	}
	for n := range 3 * maxVeilPad {
		if pad := padTo(n); pad < 0 || pad > maxVeilPad || n+pad > max(n, maxVeilPad) {
			t.Fatalf("%d bytes get %d of padding", n, pad)
		}
	}
}

func FuzzVeilRequest(f *testing.F) {
	for _, v := range sampleFrames() {
		b, _ := hex.DecodeString(v.Frame)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r veilRequest
		if r.unmarshal(b) == nil && !bytes.Equal(r.marshal(), b) {
			t.Error("another encoding of the same request")
		}
		if len(r.data) > maxVeilData || r.padding > maxVeilPad {
			t.Error("over the limits")
		}
	})
}

func FuzzVeilAnswer(f *testing.F) {
	for _, v := range sampleFrames() {
		b, _ := hex.DecodeString(v.Frame)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a veilAnswer
		if a.unmarshal(b) == nil && !bytes.Equal(a.marshal(), b) {
			t.Error("another encoding of the same answer")
		}
		if len(a.data) > maxVeilData || a.padding > maxVeilPad {
			t.Error("over the limits")
		}
	})
}
