package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/node/transport"
)

// ja4 is the fingerprint that FoxIO's JA4 gives a ClientHello over TCP, in a TLS
// record.
func ja4(record []byte) (string, error) {
	bad := errors.New("not a ClientHello")
	s := cryptobyte.String(record)
	var kind uint8
	var version, legacy uint16
	var fragment, hello, session, suites, compression, extensions cryptobyte.String
	if !s.ReadUint8(&kind) || !s.ReadUint16(&version) || !s.ReadUint16LengthPrefixed(&fragment) ||
		!fragment.ReadUint8(&kind) || kind != 1 || !fragment.ReadUint24LengthPrefixed(&hello) ||
		!hello.ReadUint16(&legacy) || !hello.Skip(32) || !hello.ReadUint8LengthPrefixed(&session) ||
		!hello.ReadUint16LengthPrefixed(&suites) || !hello.ReadUint8LengthPrefixed(&compression) ||
		!hello.ReadUint16LengthPrefixed(&extensions) {
		return "", bad
	}
	grease := func(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }
	words := func(s cryptobyte.String) (out []string) {
		var v uint16
		for s.ReadUint16(&v) {
			if !grease(v) {
				out = append(out, fmt.Sprintf("%04x", v))
			}
		}
		return out
	}
	name, alpn, newest := "i", "00", legacy
	var hashed, signatures []string
	count := 0
	for !extensions.Empty() {
		var id uint16
		var data, list cryptobyte.String
		if !extensions.ReadUint16(&id) || !extensions.ReadUint16LengthPrefixed(&data) {
			return "", bad
		}
		if grease(id) {
			continue
		}
		count++
		switch id {
		case 0:
			name = "d"
			continue
		case 16:
			var first cryptobyte.String
			if !data.ReadUint16LengthPrefixed(&list) || !list.ReadUint8LengthPrefixed(&first) || len(first) == 0 {
				return "", bad
			}
			alpn = string([]byte{first[0], first[len(first)-1]})
			continue
		case 13:
			if !data.ReadUint16LengthPrefixed(&list) {
				return "", bad
			}
			signatures = words(list)
		case 43:
			if !data.ReadUint8LengthPrefixed(&list) {
				return "", bad
			}
			var v uint16
			for newest = 0; list.ReadUint16(&v); {
				if !grease(v) {
					newest = max(newest, v)
				}
			}
		}
		hashed = append(hashed, fmt.Sprintf("%04x", id))
	}
	ciphers := words(suites)
	a := fmt.Sprintf("t%d%s%02d%02d%s", 10+int(newest-0x0301), name, len(ciphers), count, alpn)
	short := func(s string) string {
		h := sha256.Sum256([]byte(s))
		return hex.EncodeToString(h[:6])
	}
	slices.Sort(ciphers)
	slices.Sort(hashed)
	return a + "_" + short(strings.Join(ciphers, ",")) + "_" + short(strings.Join(hashed, ",")+"_"+strings.Join(signatures, ",")), nil
}

// TestLearnHello_Browser learns from a real browser and holds what goes to a
// bridge afterwards against it.
func TestLearnHello_Browser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed: apt-get install chromium")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	record, err := learn(t, func(address string) {
		_, port, _ := net.SplitHostPort(address)
		// It fails: nobody answers. What counts is what it sent.
		_ = exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
			"--disable-background-networking", "--disable-component-update", "--disable-sync", "--ignore-certificate-errors",
			"--user-data-dir="+t.TempDir(), "--dump-dom", "https://localhost:"+port+"/").Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	want, err := ja4(record)
	if err != nil {
		t.Fatal(err)
	}
	hello, err := transport.RecordedHello("browser", record)
	if err != nil {
		t.Fatal(err)
	}

	// What a bridge sees of a daemon that learnt it, several times over.
	for range 3 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan []byte, 1)
		go func() {
			defer close(sent)
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if b, err := readHello(conn); err == nil {
				sent <- b
			}
		}()
		greet(t, ln.Addr().String(), hello)
		ln.Close()
		got, err := ja4(<-sent)
		if err != nil || got != want {
			t.Errorf("a bridge sees %s (%v), the browser sends %s", got, err, want)
		}
	}
	t.Logf("the browser's JA4 is %s", want)
}

// greet dials an address as a bridge, with one hello.
func greet(t *testing.T, address string, hello transport.Hello) {
	t.Helper()
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := transport.New(transport.Config{
		Key: key, Role: transport.Errands, Memory: transport.MinMemory, Dial: transport.Loopback,
		Veil: transport.VeilClient{Hellos: []transport.Hello{hello}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	_, port, _ := net.SplitHostPort(address)
	path, err := transport.NewPath(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pin := base64.RawURLEncoding.EncodeToString(append([]byte{0x12, 32}, make([]byte, 32)...))
	a, err := ma.NewMultiaddr("/ip4/127.0.0.1/tcp/" + port + "/tls/sni/www.example.org/certhash/u" + pin + "/http-path/" + path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	other, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	_ = h.Connect(ctx, peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{a}}) // nobody answers
}
