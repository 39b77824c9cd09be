package bridge_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/node/bridge"
)

// certificate writes a certificate for a name and its key as PEM files.
func certificate(t testing.TB, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})))
	return filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
}

func TestCertificateFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := bridge.CertificateFiles(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), ""); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("without files: %v", err)
	}
	certFile, keyFile := certificate(t, dir, "a.example")
	c, err := bridge.CertificateFiles(certFile, keyFile, "a.example")
	if err != nil {
		t.Fatal(err)
	}
	if c.Trusted {
		t.Error("a certificate that nobody vouches for is trusted")
	}
	leaf := func() []byte {
		t.Helper()
		cert, err := c.Get(&tls.ClientHelloInfo{ServerName: "other.example"})
		if err != nil {
			t.Fatal(err)
		}
		return cert.Certificate[0]
	}
	first := leaf()
	if again, err := c.Leaf(); err != nil || !bytes.Equal(again, first) {
		t.Errorf("Leaf: %v", err)
	}

	// Half of a renewal changes nothing, and nor does rubbish.
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	certificate(t, dir, "b.example")
	newKey, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "key.pem", string(key))
	if !bytes.Equal(leaf(), first) {
		t.Error("half a renewal is shown")
	}
	write(t, dir, "key.pem", "rubbish")
	if !bytes.Equal(leaf(), first) {
		t.Error("rubbish is shown")
	}
	write(t, dir, "key.pem", string(newKey))
	if err := os.Chtimes(keyFile, time.Now(), time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(leaf(), first) {
		t.Error("the renewed certificate is not shown")
	}
	if _, err := bridge.CertificateFiles(certFile, certFile, ""); err == nil || !strings.Contains(err.Error(), "belong together") {
		t.Errorf("a certificate as key: %v", err)
	}
}

func TestSelfSigned(t *testing.T) {
	for _, name := range []string{"www.example.org", "203.0.113.7", "2001:db8::7"} {
		dir := t.TempDir()
		c, err := bridge.SelfSigned(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		der, err := c.Leaf()
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if err := leaf.VerifyHostname(name); err != nil || c.Trusted {
			t.Errorf("%s: %v, trusted %v", name, err, c.Trusted)
		}
		if strings.Contains(strings.ToLower(string(der)), "kith") {
			t.Errorf("%s: the certificate names its program", name)
		}
		again, err := bridge.SelfSigned(dir, "another.example")
		if err != nil {
			t.Fatal(err)
		}
		if kept, err := again.Leaf(); err != nil || !bytes.Equal(kept, der) {
			t.Errorf("%s: the certificate was replaced (%v)", name, err)
		}
		info, err := os.Stat(filepath.Join(dir, "bridge.pem"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		write(t, dir, "bridge.pem", "rubbish")
		if _, err := bridge.SelfSigned(dir, name); err == nil {
			t.Errorf("%s: a damaged file is replaced, and with it every address", name)
		}
	}
}
