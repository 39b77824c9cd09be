package transport

import (
	"bufio"
	"cmp"
	"io"
	"time"
)

// Deadlines of a stream's frames (threats F05).
const (
	FirstByteTimeout = 5 * time.Second  // from opening to the first byte
	FrameTimeout     = 10 * time.Second // from a frame's first byte to its last
	IdleTimeout      = 60 * time.Second // between frames
)

// ReadBuffer is what a Reader buffers; reserve it with the stream's scope.
const ReadBuffer = 16 << 10

// deadlineReader is what a Reader needs of a network.Stream or net.Conn.
type deadlineReader interface {
	io.Reader
	SetReadDeadline(time.Time) error
}

// Reader reads frames from a stream and gives a slow peer no more time than
// FirstByteTimeout, FrameTimeout and IdleTimeout. Call Begin before each frame,
// then read the frame from the embedded reader. A deadline missed is
// os.ErrDeadlineExceeded; the caller resets the stream. It isn't safe for
// concurrent use.
type Reader struct {
	*bufio.Reader
	pace pace
}

// NewReader returns a Reader on s, which has just been opened.
func NewReader(s deadlineReader) *Reader {
	r := &Reader{pace: pace{s: s, wait: FirstByteTimeout}}
	r.Reader = bufio.NewReaderSize(&r.pace, ReadBuffer)
	return r
}

// SetIdle replaces IdleTimeout from the next Begin on, for streams that both
// sides keep open on purpose.
func (r *Reader) SetIdle(d time.Duration) { r.pace.idle = d }

// SetFrame replaces FrameTimeout from the next Begin on, for large frames on
// links of any speed.
func (r *Reader) SetFrame(d time.Duration) { r.pace.frame = d }

// Begin says that everything read so far was whole frames.
func (r *Reader) Begin() {
	r.pace.begin(r.Buffered() > 0)
}

// pace sets the deadline of the stream's next read.
type pace struct {
	s       deadlineReader
	idle    time.Duration // between frames; 0: IdleTimeout
	frame   time.Duration // for a whole frame; 0: FrameTimeout
	wait    time.Duration // for a frame's first byte
	begun   bool          // part of a frame is here
	started bool          // a first frame was asked for
	until   time.Time     // when the frame begun has to be whole; zero: not set yet
}

func (p *pace) begin(buffered bool) {
	if p.started {
		p.wait = cmp.Or(p.idle, IdleTimeout)
	}
	p.started, p.begun, p.until = true, buffered, time.Time{}
}

func (p *pace) Read(b []byte) (int, error) {
	if p.begun && p.until.IsZero() {
		p.until = time.Now().Add(cmp.Or(p.frame, FrameTimeout))
	}
	deadline := p.until
	if !p.begun {
		deadline = time.Now().Add(p.wait)
	}
	if err := p.s.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	n, err := p.s.Read(b)
	p.begun = p.begun || n > 0
	return n, err
}
