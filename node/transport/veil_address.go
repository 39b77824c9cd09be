package transport

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
)

// Limits of a bridge's address (docs/spec/veil.md, section 2).
const (
	minPathBytes = 16  // 128 bits: nobody guesses one
	maxPathBytes = 32  // an invite carries three addresses
	maxNameLen   = 253 // RFC 1035, section 2.3.4, without the final dot
	maxLabelLen  = 63
)

// sha256Multihash is what stands before a SHA-256 digest in a multihash: code
// and length.
var sha256Multihash = []byte{0x12, sha256.Size}

// Pin is the SHA-256 of a bridge's leaf certificate in DER.
type Pin [sha256.Size]byte

// PinOf returns the pin of a certificate in DER.
func PinOf(der []byte) Pin { return sha256.Sum256(der) }

// VeilAddr is a bridge's address. It holds the secret path, so it prints
// without it.
type VeilAddr struct {
	Host string // an IP address in its shortest form, or a lower-case host name
	// Family is 4 or 6: of the IP address, or which to look up for a name.
	Family int
	Port   uint16
	SNI    string // "" if the host's own name goes into the hello, or, with an IP address, none
	Pin    *Pin   // nil: the certificate is checked as browsers do, for ServerName
	Path   string // the secret: base64url without padding, no slash in front
}

// NewPath makes a secret path of 16 bytes of rand.
func NewPath(rand io.Reader) (string, error) {
	b := make([]byte, minPathBytes)
	if _, err := io.ReadFull(rand, b); err != nil {
		return "", fmt.Errorf("make a secret path: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// ValidPath reports whether a secret path has the form that addresses carry.
func ValidPath(path string) bool {
	if n := base64.RawURLEncoding.EncodedLen(maxPathBytes); len(path) > n {
		return false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(path)
	return err == nil && len(b) >= minPathBytes && !strings.ContainsAny(path, "\r\n")
}

// errNotVeil says that an address isn't a bridge's, without repeating it.
var errNotVeil = errors.New("not a bridge's address")

// ParseVeil reads a bridge's address, with or without /p2p/ID at its end
// (docs/spec/veil.md, section 2). The error doesn't repeat the address.
func ParseVeil(a ma.Multiaddr) (VeilAddr, error) {
	var v VeilAddr
	rest := a
	// next takes the first component if it is of one of the kinds.
	next := func(codes ...int) (string, []byte, int) {
		if len(rest) == 0 || !slices.Contains(codes, rest[0].Protocol().Code) {
			return "", nil, 0
		}
		c := rest[0]
		rest = rest[1:]
		return c.Value(), c.RawValue(), c.Protocol().Code
	}
	fail := func(what string) (VeilAddr, error) {
		return VeilAddr{}, fmt.Errorf("%w: %s", errNotVeil, what)
	}

	host, raw, code := next(ma.P_IP4, ma.P_IP6, ma.P_DNS4, ma.P_DNS6)
	switch code {
	case ma.P_IP4, ma.P_IP6:
		ip, ok := netip.AddrFromSlice(raw)
		if !ok || ip.Is4In6() {
			return fail("unusual IP address")
		}
		host = ip.String()
	case ma.P_DNS4, ma.P_DNS6:
		if !validName(host) {
			return fail("bad host name")
		}
	default:
		return fail("it begins with an IP address or a name")
	}
	v.Host, v.Family = host, 4
	if code == ma.P_IP6 || code == ma.P_DNS6 {
		v.Family = 6
	}
	port, _, code := next(ma.P_TCP)
	n, err := strconv.ParseUint(port, 10, 16)
	if code == 0 || err != nil || n == 0 {
		return fail("no TCP port")
	}
	v.Port = uint16(n)
	if _, _, code := next(ma.P_TLS); code == 0 {
		return fail("no TLS")
	}
	if name, _, code := next(ma.P_SNI); code != 0 {
		if !validName(name) || name == v.Host {
			return fail("bad or needless server name")
		}
		v.SNI = name
	}
	if _, raw, code := next(ma.P_CERTHASH); code != 0 {
		digest, ok := strings.CutPrefix(string(raw), string(sha256Multihash))
		if !ok || len(digest) != sha256.Size {
			return fail("the pin isn't a SHA-256")
		}
		v.Pin = (*Pin)([]byte(digest))
	}
	_, raw, code = next(ma.P_HTTP_PATH)
	if code == 0 || !ValidPath(string(raw)) {
		return fail("no secret path")
	}
	v.Path = string(raw)
	next(ma.P_P2P)
	switch {
	case len(rest) > 0:
		return fail("something follows it")
	case v.Pin == nil && v.named() && v.SNI != "":
		return fail("a name other than the host's wants a pin")
	case v.Pin == nil && !v.named() && v.SNI == "":
		return fail("an IP address wants a pin or a server name")
	}
	return v, nil
}

// Multiaddr returns the address as others parse it, without /p2p/ID.
func (v VeilAddr) Multiaddr() (ma.Multiaddr, error) {
	var b strings.Builder
	kind := "ip"
	if v.named() {
		kind = "dns"
	}
	fmt.Fprintf(&b, "/%s%d/%s/tcp/%d/tls", kind, v.Family, v.Host, v.Port)
	if v.SNI != "" {
		fmt.Fprintf(&b, "/sni/%s", v.SNI)
	}
	if v.Pin != nil {
		// "u" is multibase's letter for base64url without padding.
		fmt.Fprintf(&b, "/certhash/u%s", base64.RawURLEncoding.EncodeToString(append(slices.Clone(sha256Multihash), v.Pin[:]...)))
	}
	fmt.Fprintf(&b, "/http-path/%s", v.Path)
	a, err := ma.NewMultiaddr(b.String())
	if err != nil {
		return nil, errNotVeil // the cause repeats the path
	}
	if _, err := ParseVeil(a); err != nil {
		return nil, err
	}
	return a, nil
}

// named reports whether the host is a name rather than an IP address.
func (v VeilAddr) named() bool {
	_, err := netip.ParseAddr(v.Host)
	return err != nil
}

// ServerName is the name that goes into the hello and, without a pin, the one
// that the certificate must be for; "" sends none.
func (v VeilAddr) ServerName() string {
	if v.SNI == "" && v.named() {
		return v.Host
	}
	return v.SNI
}

// hostPort is where to connect, as package net takes it.
func (v VeilAddr) hostPort() string { return net.JoinHostPort(v.Host, strconv.Itoa(int(v.Port))) }

// authority is the host of the URL, as a browser that typed it would send it.
func (v VeilAddr) authority() string {
	name := v.ServerName()
	switch {
	case v.named():
		name = v.Host
	case name == "" && v.Family == 6:
		name = "[" + v.Host + "]"
	case name == "":
		name = v.Host
	}
	if v.Port != 443 {
		name += ":" + strconv.Itoa(int(v.Port))
	}
	return name
}

// String tells nothing: an address is a secret.
func (VeilAddr) String() string { return "VeilAddr(…)" }

// GoString tells nothing.
func (VeilAddr) GoString() string { return "VeilAddr(…)" }

// LogValue tells nothing.
func (VeilAddr) LogValue() slog.Value { return slog.StringValue("VeilAddr(…)") }

// IsVeil reports whether a is a bridge's address.
func IsVeil(a ma.Multiaddr) bool {
	_, err := ParseVeil(a)
	return err == nil
}

// HasPath reports whether a carries a path anywhere: such an address is never
// published, whether or not it is a bridge's in full (threats D06).
func HasPath(a ma.Multiaddr) bool {
	return slices.ContainsFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_HTTP_PATH })
}

// validName accepts a lower-case host name of letters, digits and hyphens
// (RFC 1123, section 2.1) that no resolver reads as an IP address.
func validName(name string) bool {
	if name == "" || len(name) > maxNameLen {
		return false
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if l == "" || len(l) > maxLabelLen || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for _, c := range []byte(l) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	// Inet_aton reads a last label of digits, or of 0x and digits, as a number.
	last := labels[len(labels)-1]
	_, err := strconv.ParseUint(last, 0, 64)
	return err != nil && (last[0] < '0' || last[0] > '9')
}
