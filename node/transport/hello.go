package transport

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"

	utls "github.com/refraction-networking/utls"
)

// MaxHello bounds a recorded ClientHello; today's with a post-quantum share
// have about 1,800 bytes.
const MaxHello = 8 << 10

// Hello is the first message of a TLS connection, by which censors tell
// programs apart. The zero value is none.
type Hello struct {
	Name   string // remembered with what worked; unique in a list
	id     utls.ClientHelloID
	record []byte // if set: a TLS record with the hello to send, with fresh randomness
}

// BuiltInHellos are those that need nothing recorded, in order of preference.
// The last is small enough for one packet.
func BuiltInHellos() []Hello {
	return []Hello{
		{Name: "firefox", id: utls.HelloFirefox_Auto},
		{Name: "safari", id: utls.HelloSafari_Auto},
		{Name: "chrome", id: utls.HelloChrome_Auto},
		{Name: "ios", id: utls.HelloIOS_Auto},
	}
}

// RecordedHello makes a hello of what a browser sent: a whole TLS record with a
// ClientHello in it. One that resumes a session is refused: its ticket would
// tie us to that browser. So is one that names no server: browsers leave the
// name out for IP addresses alone, and bridges mostly have one.
func RecordedHello(name string, record []byte) (Hello, error) {
	h := Hello{Name: name, record: record}
	if len(record) > MaxHello {
		return Hello{}, fmt.Errorf("recorded hello has %d bytes, more than %d", len(record), MaxHello)
	}
	spec, err := h.spec()
	if err != nil {
		return Hello{}, err
	}
	named := false
	for _, e := range spec.Extensions {
		switch e.(type) {
		case utls.PreSharedKeyExtension:
			return Hello{}, errors.New("recorded hello resumes a session: record one from a new private window")
		case *utls.SNIExtension:
			named = true
		}
	}
	if !named {
		return Hello{}, errors.New("recorded hello names no server: record one that was sent to a name, not to an IP address")
	}
	return h, nil
}

// handshake speaks TLS on raw, which carries nothing yet. When it returns
// without an error, the certificate is the bridge's (docs/spec/veil.md,
// section 5.1). With only set, HTTP/1.1 is offered and nothing else, as
// browsers do for a WebSocket.
func (h Hello) handshake(ctx context.Context, raw net.Conn, addr VeilAddr, roots *x509.CertPool, only bool) (*utls.UConn, error) {
	spec, err := h.spec()
	if err != nil {
		return nil, err
	}
	if only {
		spec.Extensions = slices.DeleteFunc(spec.Extensions, func(e utls.TLSExtension) bool {
			switch e := e.(type) {
			case *utls.ALPNExtension:
				e.AlpnProtocols = []string{"http/1.1"}
			case *utls.ApplicationSettingsExtension, *utls.ApplicationSettingsExtensionNew:
				return true // settings of HTTP/2
			}
			return false
		})
	}
	conn := utls.UClient(raw, &utls.Config{
		ServerName:                  addr.ServerName(),
		RootCAs:                     roots,
		InsecureSkipVerify:          addr.Pin != nil, // the pin is checked instead
		DynamicRecordSizingDisabled: true,            // fewer packets
		VerifyConnection: func(state utls.ConnectionState) error {
			if addr.Pin == nil {
				return nil // checked by name
			}
			if got := PinOf(state.PeerCertificates[0].Raw); subtle.ConstantTimeCompare(got[:], addr.Pin[:]) != 1 {
				return errWrongCertificate
			}
			return nil
		},
	}, utls.HelloCustom)
	if err := conn.ApplyPreset(spec); err != nil {
		return nil, fmt.Errorf("hello %s: %w", h.Name, err)
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		var invalid *utls.CertificateVerificationError
		if errors.As(err, &invalid) {
			return nil, errWrongCertificate
		}
		return nil, err
	}
	return conn, nil
}

// errWrongCertificate says that someone else answers at a bridge's address.
var errWrongCertificate = errors.New("the certificate isn't the bridge's")

// spec returns what utls sends; a spec is good for one connection.
func (h Hello) spec() (*utls.ClientHelloSpec, error) {
	if h.record == nil {
		spec, err := utls.UTLSIdToSpec(h.id)
		if err != nil {
			return nil, fmt.Errorf("hello of a browser: %w", err)
		}
		return &spec, nil
	}
	spec, err := (&utls.Fingerprinter{AllowBluntMimicry: true}).RawClientHello(h.record)
	if err != nil {
		return nil, fmt.Errorf("recorded hello: %w", err)
	}
	// What utls does not know it repeats byte for byte. That gives nothing away
	// where a browser does the same.
	for _, e := range spec.Extensions {
		if e, ok := e.(*utls.GenericExtension); ok && !slices.Contains(repeatable, e.Id) {
			return nil, fmt.Errorf("recorded hello has extension %d, which this version of kith does not know", e.Id)
		}
	}
	return spec, nil
}

// repeatable are extensions unknown to utls that a browser fills alike in every
// hello to servers it knows nothing of.
var repeatable = []uint16{
	0xca34, // trust_anchors: draft-ietf-tls-trust-anchor-ids; empty unless DNS named some
}
