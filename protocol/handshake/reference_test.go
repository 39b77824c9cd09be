package handshake

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
)

// The reference is a second HX, written from docs/spec/handshake.md alone: byte
// slices in, byte slices out, its own HMAC, HKDF and (in part of the runs) its own
// X25519, and no function, label or constant of this module.

func refHMAC(key []byte, message ...[]byte) []byte {
	block := make([]byte, 128)
	if len(key) > 128 {
		h := sha512.Sum512(key)
		key = h[:]
	}
	copy(block, key)
	inner, outer := make([]byte, 128), make([]byte, 128)
	for i, b := range block {
		inner[i], outer[i] = b^0x36, b^0x5c
	}
	h := sha512.Sum512(append(inner, bytes.Join(message, nil)...))
	h = sha512.Sum512(append(outer, h[:]...))
	return h[:]
}

func refHKDF(ikm, salt, info []byte, n int) []byte {
	prk := refHMAC(salt, ikm)
	var out, last []byte
	for i := byte(1); len(out) < n; i++ {
		last = refHMAC(prk, last, info, []byte{i})
		out = append(out, last...)
	}
	return out[:n]
}

// refX25519 is RFC 7748, section 5, in big integers. It is slow.
func refX25519(k, u []byte) []byte {
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	mod := func(n *big.Int) *big.Int { return n.Mod(n, p) }
	add := func(a, b *big.Int) *big.Int { return mod(new(big.Int).Add(a, b)) }
	sub := func(a, b *big.Int) *big.Int { return mod(new(big.Int).Sub(a, b)) }
	mul := func(a, b *big.Int) *big.Int { return mod(new(big.Int).Mul(a, b)) }

	scalar := slices.Clone(k)
	scalar[0] &= 248
	scalar[31] = scalar[31]&127 | 64
	reversed := slices.Clone(u)
	slices.Reverse(reversed)
	x1 := mod(new(big.Int).SetBytes(reversed))
	x2, z2, x3, z3 := big.NewInt(1), big.NewInt(0), x1, big.NewInt(1)
	for t := 254; t >= 0; t-- {
		bit := scalar[t/8]>>(t%8)&1 == 1
		if bit {
			x2, x3, z2, z3 = x3, x2, z3, z2
		}
		a, b := add(x2, z2), sub(x2, z2)
		aa, bb := mul(a, a), mul(b, b)
		e := sub(aa, bb)
		da, cb := mul(sub(x3, z3), a), mul(add(x3, z3), b)
		x3, z3 = mul(add(da, cb), add(da, cb)), mul(x1, mul(sub(da, cb), sub(da, cb)))
		x2, z2 = mul(aa, bb), mul(e, add(aa, mul(big.NewInt(121665), e)))
		if bit {
			x2, x3, z2, z3 = x3, x2, z3, z2
		}
	}
	out := mul(x2, new(big.Int).Exp(z2, new(big.Int).Sub(p, big.NewInt(2)), p)).FillBytes(make([]byte, 32))
	slices.Reverse(out)
	return out
}

func fastX25519(k, u []byte) []byte {
	private, err := ecdh.X25519().NewPrivateKey(k)
	if err != nil {
		panic(err)
	}
	public, err := ecdh.X25519().NewPublicKey(u)
	if err != nil {
		panic(err)
	}
	out, err := private.ECDH(public)
	if err != nil {
		panic(err)
	}
	return out
}

func refEncapsulate(ek, m []byte) (shared, ct []byte) {
	key, err := mlkem.NewEncapsulationKey1024(ek)
	if err != nil {
		panic(err)
	}
	shared, ct, err = mlkemtest.Encapsulate1024(key, m)
	if err != nil {
		panic(err)
	}
	return shared, ct
}

// refInput is all that goes into a handshake, as bytes.
type refInput struct {
	PSK        []byte
	DeviceA    []byte // public, 1664 bytes
	XA         []byte // private
	DeviceB    []byte // public
	PrekeyID   []byte
	SpX, SpEK  []byte // public
	E          []byte // private
	M1, M2, M3 []byte // what the three encapsulations draw
}

type refOutput struct {
	HX1, Root, HeaderA, HeaderB, HX2Key, SID, TagA, TagB, Pair, AD, HX2, S3 []byte
}

func reference(in refInput, x25519 func(k, u []byte) []byte) refOutput {
	hash := func(parts ...[]byte) []byte {
		h := sha512.Sum512(bytes.Join(parts, nil))
		return h[:]
	}
	seal := func(key, nonce, plain, ad []byte) []byte {
		aead, err := chacha20poly1305.New(key)
		if err != nil {
			panic(err)
		}
		return aead.Seal(nil, nonce, plain, ad)
	}
	nine := append([]byte{9}, make([]byte, 31)...)
	idA := hash([]byte("kith device v1"), in.DeviceA)[:32]
	idB := hash([]byte("kith device v1"), in.DeviceB)[:32]
	e := x25519(in.E, nine)
	s1, ct1 := refEncapsulate(in.SpEK, in.M1)
	s2, ct2 := refEncapsulate(in.DeviceB[96:], in.M2)
	t := hash([]byte("kith hx v1"), []byte{1}, []byte{0, 1}, idB, in.PrekeyID, in.SpX, in.SpEK, e, ct1, ct2)
	ikm := slices.Concat(x25519(in.E, in.SpX), x25519(in.E, in.DeviceB[64:96]), s1, s2)
	salt := refHMAC(in.PSK, []byte("kith hx salt"))[:32]
	k1 := refHKDF(ikm, salt, append([]byte("kith hx id"), t...), 32)
	sealed := seal(k1, make([]byte, 12), in.DeviceA, nil)
	final := hash([]byte("kith hx final"), t, sealed, idA)
	sk := refHKDF(append(ikm, x25519(in.XA, in.SpX)...), salt, append([]byte("kith hx sk"), final...), 240)
	hx1 := slices.Concat([]byte{1}, in.PrekeyID, e, ct1, ct2, sealed)
	hx1 = append(hx1, refHMAC(in.PSK, []byte("kith hx gate"), hx1)[:32]...)

	out := refOutput{
		HX1: hx1, Root: sk[:32], HeaderA: sk[32:64], HeaderB: sk[64:96], HX2Key: sk[96:128],
		SID: sk[128:144], TagA: sk[144:176], TagB: sk[176:208], Pair: sk[208:240],
	}
	out.AD = slices.Concat(out.SID, idA, idB)
	s3, ct3 := refEncapsulate(in.DeviceA[96:], in.M3)
	nonce := refHMAC(out.HX2Key, []byte("kith hx2 nonce"), out.AD, ct3)[:12]
	out.HX2 = append(slices.Clone(nonce), seal(out.HX2Key, nonce, ct3, out.AD)...)
	out.S3 = s3
	return out
}

// run is one handshake from one seed, by the product and by the reference.
func run(t *testing.T, n uint64, x25519 func(k, u []byte) []byte) (refInput, refOutput) {
	t.Helper()
	p := newPair(t, n)
	coins := make([]byte, 4*32)
	_, _ = io.ReadFull(rand.NewChaCha8([32]byte{1, byte(n), byte(n >> 8)}), coins)
	e, m1, m2, m3 := coins[:32], coins[32:64], coins[64:96], coins[96:]

	in := refInput{
		PSK: p.psk[:], DeviceA: p.a.Public().Marshal(), XA: p.a.Marshal()[64:96], DeviceB: p.b.Public().Marshal(),
		PrekeyID: p.prekey.id[:], SpX: p.prekey.x.PublicKey().Bytes(), SpEK: p.prekey.kem.EncapsulationKey().Bytes(),
		E: e, M1: m1, M2: m2, M3: m3,
	}
	want := reference(in, x25519)

	hx1, ka, err := initiate(bytes.NewReader(e), derandomized(bytes.NewReader(slices.Concat(m1, m2))), p.a, p.bundle, p.psk)
	if err != nil {
		t.Fatal(err)
	}
	peer, kb, err := Respond(p.b, p.prekey, p.psk, hx1)
	if err != nil {
		t.Fatal(err)
	}
	hx2, s3 := makeHX2(derandomized(bytes.NewReader(m3)), kb, peer)
	got := refOutput{
		hx1, ka.Root[:], ka.HeaderA[:], ka.HeaderB[:], ka.HX2[:], ka.SID[:], ka.TagA[:], ka.TagB[:], ka.Pair[:], ka.AD[:],
		hx2, s3[:],
	}
	if *ka != *kb {
		t.Fatalf("seed %d: the sides disagree", n)
	}
	for _, f := range []struct {
		name      string
		got, want []byte
	}{
		{"HX1", got.HX1, want.HX1},
		{"RK", got.Root, want.Root},
		{"HK_A", got.HeaderA, want.HeaderA},
		{"HK_B", got.HeaderB, want.HeaderB},
		{"k2", got.HX2Key, want.HX2Key},
		{"sid", got.SID, want.SID},
		{"tag_A", got.TagA, want.TagA},
		{"tag_B", got.TagB, want.TagB},
		{"pair", got.Pair, want.Pair},
		{"AD", got.AD, want.AD},
		{"HX2", got.HX2, want.HX2},
		{"s3", got.S3, want.S3},
	} {
		if !bytes.Equal(f.got, f.want) {
			t.Fatalf("seed %d: %s differs from the reference", n, f.name)
		}
	}
	return in, want
}

// A11: no step of the key schedule is forgotten or misplaced.
func TestA11_Reference(t *testing.T) {
	seeds := uint64(1000)
	if testing.Short() {
		seeds = 50
	}
	for n := range seeds {
		x := fastX25519
		if n%250 == 0 {
			x = refX25519
		}
		run(t, n, x)
	}
}

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

func TestVectors(t *testing.T) {
	type vector struct {
		PSK, DeviceKeyA, DeviceKeyB, Prekey, E, M1, M2, M3                      string
		BundleKey                                                               string
		Epoch, Expiry                                                           uint64
		Bundle                                                                  string
		HX1, Root, HeaderA, HeaderB, HX2Key, SID, TagA, TagB, Pair, AD, HX2, S3 string
	}
	var vectors []vector
	h := hex.EncodeToString
	for n := uint64(5000); n < 5003; n++ {
		p := newPair(t, n)
		in, out := run(t, n, refX25519)
		vectors = append(vectors, vector{
			PSK: h(in.PSK), DeviceKeyA: h(p.a.Marshal()), DeviceKeyB: h(p.b.Marshal()), Prekey: h(p.prekey.Marshal()),
			E: h(in.E), M1: h(in.M1), M2: h(in.M2), M3: h(in.M3),
			BundleKey: h(p.bundleKey[:]), Epoch: p.bundle.Epoch, Expiry: uint64(p.bundle.Expiry.Unix()), Bundle: h(p.bundle.Marshal()),
			HX1: h(out.HX1), Root: h(out.Root), HeaderA: h(out.HeaderA), HeaderB: h(out.HeaderB), HX2Key: h(out.HX2Key),
			SID: h(out.SID), TagA: h(out.TagA), TagB: h(out.TagB), Pair: h(out.Pair), AD: h(out.AD), HX2: h(out.HX2), S3: h(out.S3),
		})
	}
	golden(t, "handshake.json", vectors)
}

func FuzzParseBundle(f *testing.F) {
	p := newPair(f, 300)
	f.Add(p.bundle.Marshal(), false)
	f.Add(make([]byte, BundleSize), true)
	f.Fuzz(func(t *testing.T, wire []byte, renew bool) {
		if renew && len(wire) == BundleSize { // let the fuzzer past the MAC
			mac := refHMAC(p.bundleKey[:], []byte("kith prekey mac"), wire[:bundleUnMACked])
			copy(wire[bundleUnMACked:], mac)
		}
		b, err := ParseBundle(wire, p.b.Hash(), p.bundleKey, 0, now)
		if err == nil && !bytes.Equal(b.Marshal(), wire) {
			t.Error("a bundle has two encodings")
		}
	})
}

func FuzzUnmarshalPrekey(f *testing.F) {
	f.Add(newPair(f, 301).prekey.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := UnmarshalPrekey(b)
		if err == nil && !bytes.Equal(p.Marshal(), b) {
			t.Error("a prekey has two encodings")
		}
	})
}

func FuzzRespond(f *testing.F) {
	p := newPair(f, 302)
	hx1, ka, err := initiate(random(303), derandomized(random(304)), p.a, p.bundle, p.psk)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hx1, false)
	f.Add(hx1[:HX1Size-1], true)
	f.Fuzz(func(t *testing.T, b []byte, renew bool) {
		if renew && len(b) == HX1Size {
			gate := gateMAC(p.psk, b[:gateAt])
			copy(b[gateAt:], gate[:])
		}
		_, kb, err := Respond(p.b, p.prekey, p.psk, b)
		if err == nil && *ka == *kb && !bytes.Equal(b, hx1) {
			t.Error("two messages give the same keys")
		}
	})
}

func FuzzOpenHX2(f *testing.F) {
	p := newPair(f, 305)
	_, keys := p.initiate(f, random(306))
	hx2, _ := makeHX2(derandomized(random(307)), keys, p.a.Public())
	f.Add(hx2)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := OpenHX2(p.a, keys, b); err == nil && len(b) != HX2Size {
			t.Error("an HX2 of a wrong size opened")
		}
	})
}
