package identity

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/mlkem"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
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

func TestVectors(t *testing.T) {
	type device struct{ Key, Public, Hash string }
	type list struct {
		Version uint64
		Devices []struct {
			ID             uint32
			Device         string
			Added, Revoked uint64
		}
		Wire string
	}
	type vector struct {
		AccountSeed, Account, Fingerprint string
		Device                            device
		List                              list
	}
	var v struct {
		People []vector
		Safety struct{ Number, QR string }
	}
	var parties []Party
	for i := range uint16(2) {
		r := random(100 + i)
		a := newAccount(t, r)
		k := newDevice(t, r, a.Public())
		entries := []DeviceEntry{{1, DeviceHash{7}, 1, 2}, {2, k.Hash(), 2, 0}}
		l, err := NewDeviceList(a, 2, entries)
		if err != nil {
			t.Fatal(err)
		}
		p, h := a.Public(), k.Hash()
		x := vector{
			AccountSeed: hex.EncodeToString(a.Marshal()),
			Account:     hex.EncodeToString(p[:]),
			Fingerprint: p.Fingerprint().Text(),
			Device:      device{hex.EncodeToString(k.Marshal()), hex.EncodeToString(k.Public().Marshal()), h.Hex()},
			List:        list{Version: 2, Wire: hex.EncodeToString(l.Marshal())},
		}
		for _, e := range entries {
			x.List.Devices = append(x.List.Devices, struct {
				ID             uint32
				Device         string
				Added, Revoked uint64
			}{e.ID, e.Device.Hex(), e.Added, e.Revoked})
		}
		v.People = append(v.People, x)
		parties = append(parties, Party{p, []DeviceHash{h}})
	}
	v.Safety.Number = SafetyNumber(parties[0], parties[1])
	v.Safety.QR = SafetyQR(parties[0], parties[1])
	golden(t, "identity.json", v)
}

// a16 is a public key, signature or ciphertext that must be refused, or, for ML-KEM's
// implicit rejection, must give a secret that is not the sender's.
type a16 struct{ Kind, Comment, Key, Message, Signature string }

// TestA16_NegativeVectors refuses every bad key we know of, through the same
// functions the protocol uses. The file is frozen, for other implementations.
// See docs/spec/identity.md, sections 3 and 4.
func TestA16_NegativeVectors(t *testing.T) {
	vectors := negativeVectors(t)
	golden(t, "negative.json", vectors)
	for _, v := range vectors {
		key, err := hex.DecodeString(v.Key)
		if err != nil {
			t.Fatal(err)
		}
		refused := false
		switch v.Kind {
		case "x25519":
			_, err := ParseX25519(key)
			refused = err != nil
		case "ed25519":
			refused = CheckEd25519(key) != nil
		case "mlkem1024":
			_, err := ParseEncapsulationKey(key)
			refused = err != nil
		case "ed25519 signature":
			message, _ := hex.DecodeString(v.Message)
			signature, _ := hex.DecodeString(v.Signature)
			refused = !verify(key, "", message, signature)
		default:
			t.Fatalf("unknown kind %q", v.Kind)
		}
		if !refused {
			t.Errorf("accepted %s: %s", v.Kind, v.Comment)
		}
	}
}

func negativeVectors(t *testing.T) []a16 {
	var out []a16
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	little := func(n *big.Int, top byte) string {
		b := make([]byte, 32)
		n.FillBytes(b)
		slices.Reverse(b)
		b[31] |= top
		return hex.EncodeToString(b)
	}
	add := func(kind, comment, key string) { out = append(out, a16{Kind: kind, Comment: comment, Key: key}) }

	// Wycheproof's x25519 groups: small order, non-canonical, top bit set.
	for _, u := range smallOrderX25519 {
		add("x25519", "small order", hex.EncodeToString(u[:]))
		u[31] |= 0x80
		add("x25519", "small order, top bit set", hex.EncodeToString(u[:]))
	}
	for i := range int64(19) {
		add("x25519", "u = p + "+big.NewInt(i).String(), little(new(big.Int).Add(p, big.NewInt(i)), 0))
	}
	good := newDevice(t, random(20), AccountPublic{})
	x := slices.Clone(good.Public().X().Bytes())
	x[31] |= 0x80
	add("x25519", "a good key with the top bit set", hex.EncodeToString(x))
	add("x25519", "31 bytes", hex.EncodeToString(x[:31]))
	add("x25519", "33 bytes", hex.EncodeToString(append(slices.Clone(x), 0)))
	add("x25519", "empty", "")

	for _, y := range smallOrderEd25519 {
		add("ed25519", "small order", hex.EncodeToString(y[:]))
		y[31] |= 0x80
		add("ed25519", "small order, sign set", hex.EncodeToString(y[:]))
	}
	for i := range int64(19) {
		for _, sign := range []byte{0, 0x80} {
			add("ed25519", "y = p + "+big.NewInt(i).String(), little(new(big.Int).Add(p, big.NewInt(i)), sign))
		}
	}
	add("ed25519", "31 bytes", hex.EncodeToString(make([]byte, 31)))

	// A signature is (R, S): S + L is refused, as is a small-order key with the
	// signature that fits every message under it.
	message := []byte("a message")
	public := good.ed.Public().(ed25519.PublicKey)
	signature := ed25519.Sign(good.ed, message)
	if !verify(public, "", message, signature) {
		t.Fatal("a good signature does not verify")
	}
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	s := slices.Clone(signature[32:])
	slices.Reverse(s)
	sum, _ := hex.DecodeString(little(new(big.Int).Add(new(big.Int).SetBytes(s), order), 0))
	sigs := []a16{
		{Comment: "S + L", Key: hex.EncodeToString(public), Signature: hex.EncodeToString(append(slices.Clone(signature[:32]), sum...))},
		{Comment: "63 bytes", Key: hex.EncodeToString(public), Signature: hex.EncodeToString(signature[:63])},
		{Comment: "65 bytes", Key: hex.EncodeToString(public), Signature: hex.EncodeToString(append(slices.Clone(signature), 0))},
		{Comment: "R of another signature", Key: hex.EncodeToString(public), Signature: hex.EncodeToString(append(slices.Clone(ed25519.Sign(good.ed, []byte("another"))[:32]), signature[32:]...))},
		{Comment: "neutral key, R neutral, S = 0", Key: little(big.NewInt(1), 0), Signature: little(big.NewInt(1), 0) + little(big.NewInt(0), 0)},
		{Comment: "empty", Key: hex.EncodeToString(public), Signature: ""},
	}
	for _, v := range sigs {
		v.Kind, v.Message = "ed25519 signature", hex.EncodeToString(message)
		out = append(out, v)
	}

	// FIPS 203, section 7.2: a coefficient of q = 3329 or more.
	ek := good.Public().EncapsulationKey().Bytes()
	for _, at := range []int{0, 384, 1533} {
		for _, value := range []uint16{3329, 4095} {
			bad := slices.Clone(ek)
			bad[at], bad[at+1] = byte(value), bad[at+1]&0xf0|byte(value>>8)
			add("mlkem1024", "coefficient "+big.NewInt(int64(value)).String(), hex.EncodeToString(bad))
		}
	}
	add("mlkem1024", "a byte short", hex.EncodeToString(ek[:len(ek)-1]))
	add("mlkem1024", "a byte long", hex.EncodeToString(append(slices.Clone(ek), 0)))
	k768, err := mlkem.NewDecapsulationKey768(make([]byte, mlkem.SeedSize))
	if err != nil {
		t.Fatal(err)
	}
	add("mlkem1024", "a key of ML-KEM-768", hex.EncodeToString(k768.EncapsulationKey().Bytes()))
	return out
}

// ML-KEM rejects a changed ciphertext implicitly: with another secret.
func TestA16_ImplicitRejection(t *testing.T) {
	k := newDevice(t, random(21), AccountPublic{})
	shared, ct := k.Public().EncapsulationKey().Encapsulate()
	if got, err := k.Decapsulate(ct); err != nil || !bytes.Equal(got, shared) {
		t.Fatalf("decapsulation failed: %v", err)
	}
	for _, at := range []int{0, 700, 1408, mlkem.CiphertextSize1024 - 1} {
		bad := slices.Clone(ct)
		bad[at] ^= 1
		got, err := k.Decapsulate(bad)
		if err != nil || bytes.Equal(got, shared) {
			t.Errorf("byte %d changed: got the sender's secret, or %v", at, err)
		}
	}
	for _, n := range []int{0, mlkem.CiphertextSize1024 - 1, mlkem.CiphertextSize768} {
		if _, err := k.Decapsulate(make([]byte, n)); err == nil {
			t.Errorf("decapsulated %d bytes", n)
		}
	}
}

// Every u that Go's X25519 would refuse at the time of use is refused when it
// is parsed, and keys that only look unusual are not.
func TestA16_X25519Boundaries(t *testing.T) {
	private, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{9}, 32))
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range smallOrderX25519 {
		public, err := ecdh.X25519().NewPublicKey(u[:])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := private.ECDH(public); err == nil {
			t.Errorf("%x is not of small order", u)
		}
	}
	for _, good := range [][32]byte{{2}, {9}, {31: 0x7f}, {0: 0xeb, 31: 0x7f}} {
		if _, err := ParseX25519(good[:]); err != nil {
			t.Errorf("refused the canonical key %x: %v", good, err)
		}
	}
}
