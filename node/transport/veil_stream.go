package transport

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A veil stream is a net.Conn whose bytes travel in HTTP exchanges. The journey
// of a byte (docs/spec/veil.md, section 3), here from a client to a server:
//
//  1. Write puts it into the outgoing buffer; its place there is its offset.
//  2. The client's engine (veil_client.go) copies it into a request.
//  3. The server (veil_server.go) puts the request's data behind what it has:
//     what it has already it drops, and what would leave a gap waits.
//  4. Its answer says how much it has. That much leaves the outgoing buffer;
//     if no answer comes, another request takes the same bytes again.
//  5. Read takes it out of the incoming buffer; the next answer lets more come.
//
// The other way it is the same, with the answer to a request as the carrier.

// veilBuffer bounds the bytes that wait in each direction at each end.
const veilBuffer = 1 << 20

// veilStream is one end of a stream.
type veilStream struct {
	mu      sync.Mutex
	changed chan struct{} // closed at every change, then replaced

	out    []byte // written, not yet known to be at the other side
	base   uint64 // offset of out[0]
	closed bool   // by Close
	ended  bool   // the other side has everything and our end

	in     []byte // arrived in order, not yet read
	got    uint64 // offset behind in
	finned bool   // nothing comes behind it
	broken error  // nothing will arrive or leave any more

	read, write   deadline
	local, remote net.Addr
}

func newVeilStream(local, remote net.Addr) *veilStream {
	s := &veilStream{changed: make(chan struct{}), local: local, remote: remote}
	s.read.init()
	s.write.init()
	return s
}

// end is the offset behind the last byte written. The caller holds mu.
func (s *veilStream) end() uint64 { return s.base + uint64(len(s.out)) }

// limit is the offset up to which bytes are taken. The caller holds mu.
func (s *veilStream) limit() uint64 { return s.got + uint64(veilBuffer-len(s.in)) }

// wake tells everyone who waits that something changed. The caller holds mu.
func (s *veilStream) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// arrived takes bytes at an offset and reports whether they left no gap; what is
// there already, or beyond the limit, is dropped. The caller holds mu.
func (s *veilStream) arrived(offset uint64, data []byte, fin bool) bool {
	end := offset + uint64(len(data))
	if offset > s.got {
		return false
	}
	if end > s.got && !s.finned {
		data = data[s.got-offset:]
		if room := veilBuffer - len(s.in); len(data) > room {
			data, fin = data[:room], false
		}
		if s.broken == nil && !s.closed {
			s.in = append(s.in, data...)
		}
		s.got += uint64(len(data))
		s.wake()
	}
	if fin && end == s.got && !s.finned {
		s.finned = true
		s.wake()
	}
	return true
}

// acknowledged drops what the other side has and reports whether it can have
// it. The caller holds mu.
func (s *veilStream) acknowledged(upTo uint64) bool {
	if upTo > s.end() {
		return false
	}
	if upTo > s.base {
		s.out = s.out[upTo-s.base:]
		s.base = upTo
		if len(s.out) == 0 {
			s.out = nil // a buffer that was full once isn't kept for ever
		}
		s.wake()
	}
	return true
}

// slice returns a copy of up to most written bytes from an offset on, or nil
// if they are gone or not yet there. The caller holds mu.
func (s *veilStream) slice(from uint64, most int) []byte {
	if from < s.base || from >= s.end() {
		return nil
	}
	out := s.out[from-s.base:]
	return append([]byte(nil), out[:min(most, len(out))]...)
}

// fail breaks the stream. The caller holds mu.
func (s *veilStream) fail(err error) {
	if s.broken == nil {
		s.broken = err
		s.wake()
	}
}

// Read returns what arrived in order, waiting for it; io.EOF after the other
// side's Close.
func (s *veilStream) Read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		changed := s.changed
		switch {
		case s.closed:
			s.mu.Unlock()
			return 0, net.ErrClosed
		case s.read.passed():
			s.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case len(s.in) > 0:
			n := copy(p, s.in)
			full := len(s.in) > veilBuffer/2
			s.in = s.in[n:]
			if len(s.in) == 0 {
				s.in = nil
			}
			if full && len(s.in) <= veilBuffer/2 {
				s.wake() // there is room again
			}
			s.mu.Unlock()
			return n, nil
		case s.finned:
			s.mu.Unlock()
			return 0, io.EOF
		case s.broken != nil:
			err := s.broken
			s.mu.Unlock()
			return 0, err
		case len(p) == 0:
			s.mu.Unlock()
			return 0, nil
		}
		s.mu.Unlock()
		select {
		case <-changed:
		case <-s.read.wait():
		}
	}
}

// Write takes p into the buffer, waiting for room. That it returns doesn't mean
// that anything arrived.
func (s *veilStream) Write(p []byte) (int, error) {
	n := 0
	for {
		s.mu.Lock()
		changed := s.changed
		var err error
		switch {
		case s.closed:
			err = net.ErrClosed
		case s.broken != nil:
			err = s.broken
		case s.write.passed():
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			s.mu.Unlock()
			return n, err
		}
		if room := veilBuffer - len(s.out); room > 0 && n < len(p) {
			m := min(room, len(p)-n)
			s.out = append(s.out, p[n:n+m]...)
			n += m
			s.wake()
		}
		s.mu.Unlock()
		if n == len(p) {
			return n, nil
		}
		select {
		case <-changed:
		case <-s.write.wait():
		}
	}
}

// Close ends the stream in both directions. What was written is still
// delivered if that works within the time the engine allows.
func (s *veilStream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.in = nil
	s.wake()
	return nil
}

func (s *veilStream) LocalAddr() net.Addr  { return s.local }
func (s *veilStream) RemoteAddr() net.Addr { return s.remote }

func (s *veilStream) SetDeadline(t time.Time) error {
	s.read.set(t)
	s.write.set(t)
	return nil
}

func (s *veilStream) SetReadDeadline(t time.Time) error {
	s.read.set(t)
	return nil
}

func (s *veilStream) SetWriteDeadline(t time.Time) error {
	s.write.set(t)
	return nil
}

// deadline is a moment that can be moved while others wait for it.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	over  chan struct{} // closed when it has passed
}

func (d *deadline) init() { d.over = make(chan struct{}) }

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

func (d *deadline) passed() bool {
	select {
	case <-d.wait():
		return true
	default:
		return false
	}
}

// set moves the deadline; the zero time is never. Those who wait for the old
// one look again.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	old := d.over
	d.over = make(chan struct{})
	select {
	case <-old:
	default:
		close(old)
	}
	if t.IsZero() {
		return
	}
	over := d.over
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.over == over {
				select {
				case <-over:
				default:
					close(over)
				}
			}
		})
		return
	}
	close(over)
}
