package protocol

import (
	"bufio"
	"errors"
	"io"
)

// Streams are cut into frames: a length, a type and a body, where the length is
// a minimal uvarint of at most FrameLengthSize bytes and counts the other two
// (docs/spec/stream.md, section 4; docs/spec/mailbox.md, section 3).

// FrameLengthSize is the longest length of a frame, in bytes.
const FrameLengthSize = 3

// ErrFrame means that the other side broke the framing; the stream is to be
// reset.
var ErrFrame = errors.New("malformed frame")

// ReadFrameLength reads a frame's length, 1 to limit. It returns io.EOF if the
// stream ended before, io.ErrUnexpectedEOF if within it, and ErrFrame for a
// length that is too long or has another form than the shortest.
func ReadFrameLength(r *bufio.Reader, limit int) (int, error) {
	var n int
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			if shift > 0 {
				err = MidFrame(err)
			}
			return 0, err
		}
		n |= int(b&0x7f) << shift
		switch {
		case n > limit, b == 0: // too long; a zero byte is an empty frame or padding
			return 0, ErrFrame
		case b < 0x80:
			return n, nil
		case shift == 7*(FrameLengthSize-1):
			return 0, ErrFrame
		}
	}
}

// FirstRead is what is allocated for a body before any of it arrived.
const FirstRead = 4 << 10

// ReadFrameBody reads n bytes of a frame, into memory that doubles as they
// arrive: who claims much and sends little takes little.
func ReadFrameBody(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, min(n, FirstRead))
	for read := 0; ; {
		m, err := io.ReadFull(r, b[read:])
		if err != nil {
			return nil, MidFrame(err)
		}
		if read += m; read == n {
			return b, nil
		}
		b = append(make([]byte, 0, min(n, 2*read)), b...)
		b = b[:cap(b)]
	}
}

// MidFrame is what an error of reading means in the middle of a frame.
func MidFrame(err error) error {
	if err == io.EOF { //nolint:errorlint // io promises io.EOF itself
		return io.ErrUnexpectedEOF
	}
	return err
}
