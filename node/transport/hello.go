package transport

import (
	"errors"
	"fmt"

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
// tie us to that browser.
func RecordedHello(name string, record []byte) (Hello, error) {
	h := Hello{Name: name, record: record}
	if len(record) > MaxHello {
		return Hello{}, fmt.Errorf("recorded hello has %d bytes, more than %d", len(record), MaxHello)
	}
	spec, err := h.spec()
	if err != nil {
		return Hello{}, err
	}
	for _, e := range spec.Extensions {
		if _, ok := e.(utls.PreSharedKeyExtension); ok {
			return Hello{}, errors.New("recorded hello resumes a session: record one from a new private window")
		}
	}
	return h, nil
}

// spec returns what utls sends; a spec is good for one connection.
func (h Hello) spec() (*utls.ClientHelloSpec, error) {
	if h.record == nil {
		spec, err := utls.UTLSIdToSpec(h.id)
		if err != nil {
			return nil, fmt.Errorf("hello of a browser: %w", err)
		}
		return &spec, nil
	}
	spec, err := (&utls.Fingerprinter{}).RawClientHello(h.record)
	if err != nil {
		return nil, fmt.Errorf("recorded hello: %w", err)
	}
	return spec, nil
}
