package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
)

func readCopies(t *testing.T, dir string) (copies [2][]byte) {
	t.Helper()
	for i, name := range keyFileNames {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		copies[i] = data
	}
	return copies
}

// Changing the passphrase may stop at any write of any copy: the data key
// stays within reach of the old passphrase or the new one.
func TestKeyFileChangeInterrupted(t *testing.T) {
	dir := t.TempDir()
	k, err := createKeyFile(dir, []byte("old"), cheapKDF)
	if err != nil {
		t.Fatal(err)
	}
	old := readCopies(t, dir)[0]
	first := 1 - k.newest // which copy the change overwrites first
	if err := k.change([]byte("old"), []byte("new"), cheapKDF); err != nil {
		t.Fatal(err)
	}
	changed := readCopies(t, dir)
	if !bytes.Equal(changed[0], changed[1]) || bytes.Equal(changed[0], old) {
		t.Fatal("both copies should have changed alike")
	}
	torn := append(bytes.Clone(changed[0][:100]), old[100:]...)
	for _, test := range []struct {
		name          string
		first, second []byte
		opens, not    string
	}{
		{"nothing written", old, old, "old", "new"},
		{"first copy torn", torn, old, "old", "new"},
		{"first copy emptied", nil, old, "old", "new"},
		{"first copy written", changed[0], old, "new", "old"},
		{"second copy torn", changed[0], torn, "new", "old"},
		{"done", changed[0], changed[0], "new", "old"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for i, name := range keyFileNames {
				data := test.second
				if i == first {
					data = test.first
				}
				if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := openKeyFile(dir, []byte(test.not)); !errors.Is(err, ErrPassphrase) {
				t.Errorf("%q: got %v, want ErrPassphrase", test.not, err)
			}
			got, err := openKeyFile(dir, []byte(test.opens))
			if err != nil {
				t.Fatal(err)
			}
			if got.key != k.key {
				t.Error("another data key")
			}
			if c := readCopies(t, dir); !bytes.Equal(c[0], c[1]) {
				t.Error("the copies were not made alike")
			}
		})
	}
}

// A repair that is itself interrupted never touches the only good copy first.
func TestKeyFileRepairOrder(t *testing.T) {
	for good := range keyFileNames {
		dir := t.TempDir()
		if _, err := createKeyFile(dir, nil, cheapKDF); err != nil {
			t.Fatal(err)
		}
		bad := filepath.Join(dir, keyFileNames[1-good])
		if err := os.Remove(bad); err != nil {
			t.Fatal(err)
		}
		// The copy to be repaired cannot be written, as if the power went there.
		if err := os.Mkdir(bad, 0o700); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(filepath.Join(dir, keyFileNames[good]))
		if err != nil {
			t.Fatal(err)
		}
		c, err := parseKeyCopy(before)
		if err != nil {
			t.Fatal(err)
		}
		k := &keyFile{dir: dir, copy: keyCopy{generation: c.generation + 1, slots: c.slots}, newest: good}
		if err := k.save(); err == nil {
			t.Fatal("wrote to a folder")
		}
		after, err := os.ReadFile(filepath.Join(dir, keyFileNames[good]))
		if err != nil || !bytes.Equal(before, after) {
			t.Errorf("copy %d was overwritten before the other was safe", good)
		}
	}
}

// FS-05: no bit of a copy can be changed unnoticed, and with both copies
// damaged the store is.
func TestFS05_KeyFile(t *testing.T) {
	for _, pass := range []string{"", "secret"} {
		dir := t.TempDir()
		if _, err := createKeyFile(dir, []byte(pass), cheapKDF); err != nil {
			t.Fatal(err)
		}
		whole := readCopies(t, dir)[0]
		for bit := range len(whole) * 8 {
			data := bytes.Clone(whole)
			data[bit/8] ^= 1 << (bit % 8)
			if _, err := parseKeyCopy(data); err == nil {
				t.Fatalf("bit %d flipped: parsed", bit)
			}
		}
		for n := range whole {
			if _, err := parseKeyCopy(whole[:n]); err == nil {
				t.Fatalf("cut to %d bytes: parsed", n)
			}
		}
		for _, name := range keyFileNames {
			if err := os.WriteFile(filepath.Join(dir, name), whole[:300], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := openKeyFile(dir, []byte(pass)); !errors.Is(err, ErrDamaged) {
			t.Errorf("both copies damaged: got %v, want ErrDamaged", err)
		}
	}
}

// What a file may ask of Argon2id is bounded before it is asked.
func TestKeyFileBoundsParameters(t *testing.T) {
	for _, p := range []kdfParams{
		{passes: 0, kib: 64, lanes: 1},
		{passes: maxPasses + 1, kib: 64, lanes: 1},
		{passes: 1, kib: 7, lanes: 1},
		{passes: 1, kib: maxKiB + 1, lanes: 1},
		{passes: 1, kib: math.MaxUint32, lanes: 1},
		{passes: 1, kib: 64, lanes: 0},
		{passes: 1, kib: 1024, lanes: maxLanes + 1},
		{passes: 1, kib: 8, lanes: 2},
	} {
		k := keyCopy{slots: []slot{{kind: slotPassword, kdf: p}}}
		if _, err := parseKeyCopy(k.marshal()); err == nil {
			t.Errorf("%+v was accepted", p)
		}
	}
	if p := defaultKDF(); !p.valid() || p.kib < 64<<10 || p.passes != 3 || p.lanes != 4 {
		t.Errorf("default parameters are %+v", p)
	}
}

func FuzzKeyFile(f *testing.F) {
	for _, slots := range [][]slot{
		{newSlot(make([]byte, dataKeySize), nil, cheapKDF)},
		{newSlot(make([]byte, dataKeySize), []byte("pass"), cheapKDF)},
		{newSlot(make([]byte, dataKeySize), []byte("pass"), cheapKDF), newSlot(make([]byte, dataKeySize), nil, cheapKDF)},
	} {
		k := keyCopy{generation: 7, slots: slots}
		f.Add(k.marshal()[:keyBodySize])
	}
	f.Add([]byte(keyMagic))
	f.Fuzz(func(t *testing.T, body []byte) {
		// The checksum is computed here: fuzzing would never find one.
		data := withChecksum(body)
		k, err := parseKeyCopy(data)
		if err != nil {
			return
		}
		if got := k.marshal(); !bytes.Equal(got, data) {
			t.Fatalf("parsed from\n%x\nwritten as\n%x", data, got)
		}
		for i := range k.slots {
			if s := &k.slots[i]; s.kind == slotPassword && !s.kdf.valid() {
				t.Fatalf("parameters %+v", s.kdf)
			}
		}
	})
}

// withChecksum cuts or fills body to its length and appends the checksum.
func withChecksum(body []byte) []byte {
	data := make([]byte, keyFileSize)
	copy(data[:keyBodySize], body)
	sum := sha256.Sum256(data[:keyBodySize])
	copy(data[keyBodySize:], sum[:])
	return data
}
