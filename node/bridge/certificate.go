package bridge

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/crypto/acme/autocert"
)

// selfSignedLife is how long a self-signed certificate is valid: as long as those
// that Debian makes.
const selfSignedLife = 10 * 365 * 24 * time.Hour

// Certificate is where a bridge has its certificate from.
type Certificate struct {
	get func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Trusted says that browsers trust the certificate for the bridge's name;
	// else those who come are told which one it is.
	Trusted bool
}

// Get returns the certificate to show; it is what tls.Config.GetCertificate wants.
func (c *Certificate) Get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return c.get(hello) }

// Leaf returns the certificate that is shown now, in DER.
func (c *Certificate) Leaf() ([]byte, error) {
	cert, err := c.get(&tls.ClientHelloInfo{})
	if err != nil {
		return nil, err
	}
	return cert.Certificate[0], nil
}

// CertificateFiles reads a certificate with its chain, and its key, from PEM
// files, and reads them again when one of them changes. Until both fit again the
// old ones stay. The error is a sentence for the operator.
func CertificateFiles(certFile, keyFile, domain string) (*Certificate, error) {
	f := &files{names: [2]string{certFile, keyFile}}
	cert, err := f.get(nil)
	if err != nil {
		return nil, err
	}
	return &Certificate{get: f.get, Trusted: domain != "" && trusted(cert, domain)}, nil
}

// files is a certificate in files.
type files struct {
	names [2]string

	mu     sync.Mutex
	cert   *tls.Certificate
	stamps [2]stamp
}

// stamp tells one state of a file from another.
type stamp struct {
	time time.Time
	size int64
}

func (f *files) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var now [2]stamp
	for i, name := range f.names {
		if info, err := os.Stat(name); err == nil {
			now[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	if f.cert != nil && now == f.stamps {
		return f.cert, nil
	}
	cert, err := tls.LoadX509KeyPair(f.names[0], f.names[1])
	switch {
	case err == nil:
		f.cert, f.stamps = &cert, now
	case f.cert == nil && errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("the certificate or its key does not exist")
	case f.cert == nil && errors.Is(err, fs.ErrPermission):
		return nil, errors.New("the certificate or its key may not be read by this user")
	case f.cert == nil:
		return nil, errors.New("the certificate and its key are not PEM, or do not belong together")
	}
	return f.cert, nil
}

// trusted reports whether this machine trusts a certificate for a name.
func trusted(cert *tls.Certificate, domain string) bool {
	chain := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			chain.AddCert(c)
		}
	}
	_, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: domain, Intermediates: chain})
	return err == nil
}

// ACME gets certificates for a domain by itself, from Let's Encrypt, and keeps
// them in a folder. The first connection waits for the first one.
func ACME(dir, domain string) *Certificate {
	m := &autocert.Manager{Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(dir), HostPolicy: autocert.HostWhitelist(domain)}
	return &Certificate{Trusted: true, get: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		// Whoever asks for no name, or another, sees the one site there is, as at
		// any server with one certificate.
		if hello.ServerName != domain {
			named := *hello
			named.ServerName = domain
			hello = &named
		}
		return m.GetCertificate(hello)
	}}
}

// SelfSigned returns the certificate that is kept in a folder. If there is none
// yet it makes one for name, a domain or an IP address. One that is there stays
// whatever the name: every address that was given out holds its pin.
func SelfSigned(dir, name string) (*Certificate, error) {
	cert, err := readSelfSigned(dir)
	if errors.Is(err, fs.ErrNotExist) {
		cert, err = writeSelfSigned(dir, name)
	}
	if err != nil {
		return nil, fmt.Errorf("the bridge's own certificate: %w", err)
	}
	return &Certificate{get: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }}, nil
}

// selfSignedFile holds the certificate and its key.
const selfSignedFile = "bridge.pem"

func readSelfSigned(dir string) (*tls.Certificate, error) {
	b, err := os.ReadFile(filepath.Join(dir, selfSignedFile))
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil, err
	}
	return &cert, nil
}

func writeSelfSigned(dir, name string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159)) // RFC 5280, section 4.1.2.2
	if err != nil {
		return nil, err
	}
	now := time.Now().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now, NotAfter: now.Add(selfSignedLife),
		BasicConstraintsValid: true,
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, block := range []*pem.Block{{Type: "CERTIFICATE", Bytes: der}, {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := pem.Encode(&b, block); err != nil {
			return nil, err
		}
	}
	if err := writeFile(filepath.Join(dir, selfSignedFile), b.Bytes()); err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(b.Bytes(), b.Bytes())
	return &cert, err
}

// writeFile replaces a file at once or not at all; only its owner may read it.
func writeFile(name string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error that made us give up is the one to report
		}
	}()
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
