package api

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

// Code says what kind of error it is, for programs. The command line turns
// each into its exit code.
type Code string

// The codes, and what the command line exits with.
const (
	// CodeRefused: not possible as things stand; the hint says what to change. 1.
	CodeRefused Code = "refused"
	// CodeUsage: the request itself is malformed. 2.
	CodeUsage Code = "usage"
	// CodeNotRunning: nobody serves the socket. 3.
	CodeNotRunning Code = "not_running"
	// CodeNetwork: no road leads there now. 4.
	CodeNetwork Code = "network"
	// CodeQuota: a limit or the disk is full. 5.
	CodeQuota Code = "quota"
	// CodeKeyUntrusted: a contact's key changed or is not trusted. 6.
	CodeKeyUntrusted Code = "key_untrusted"
	// CodeTimeout: it did not happen in time. 7.
	CodeTimeout Code = "timeout"
	// CodeLocked: the store needs a passphrase. 8.
	CodeLocked Code = "locked"
	// CodeNotFound: there is no such contact, message, invite or cursor. 9.
	CodeNotFound Code = "not_found"
	// CodeInternal: a fault inside the daemon. 1.
	CodeInternal Code = "internal"
)

// connectCodes gives each code its place in the Connect protocol, which is
// what clients see that do not read ErrorDetail.
var connectCodes = map[Code]connect.Code{
	CodeRefused:      connect.CodeFailedPrecondition,
	CodeUsage:        connect.CodeInvalidArgument,
	CodeNotRunning:   connect.CodeUnavailable,
	CodeNetwork:      connect.CodeUnavailable,
	CodeQuota:        connect.CodeResourceExhausted,
	CodeKeyUntrusted: connect.CodePermissionDenied,
	CodeTimeout:      connect.CodeDeadlineExceeded,
	CodeLocked:       connect.CodeUnauthenticated,
	CodeNotFound:     connect.CodeNotFound,
	CodeInternal:     connect.CodeInternal,
}

// Error is an error of the API as a front end sees it: one sentence, and
// what to do next.
type Error struct {
	Code    Code
	Message string
	Hint    string
}

// Error returns the sentence, without the hint.
func (e *Error) Error() string { return e.Message }

// ErrorCode returns the code.
func (e *Error) ErrorCode() string { return string(e.Code) }

// ErrorHint returns the next step.
func (e *Error) ErrorHint() string { return e.Hint }

// Coded is implemented by errors of a Backend that a person may read.
// ErrorCode returns one of the Code values.
type Coded interface {
	error
	ErrorCode() string
	ErrorHint() string
}

// ErrNotRunning is returned by every method of a Client when nobody serves
// its socket.
var ErrNotRunning = &Error{
	Code:    CodeNotRunning,
	Message: "kith is not running",
	Hint:    "start it with: kith up",
}

var errInternal = &Error{
	Code:    CodeInternal,
	Message: "kith could not do this because of a fault inside the daemon",
	Hint:    "run: kith doctor",
}

// describe reduces any error of a backend to what may be shown. known is false
// if the error was not meant for people.
func describe(err error) (shown *Error, known bool) {
	var coded Coded
	switch {
	case errors.As(err, &coded):
		code := Code(coded.ErrorCode())
		if _, ok := connectCodes[code]; !ok {
			return errInternal, false
		}
		return &Error{Code: code, Message: coded.Error(), Hint: coded.ErrorHint()}, true
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: CodeTimeout, Message: "this took too long and was given up", Hint: "try again, or run: kith doctor"}, true
	case errors.Is(err, context.Canceled):
		return &Error{Code: CodeRefused, Message: "this was interrupted before it was done", Hint: "try again"}, true
	}
	return errInternal, false
}

// toConnect puts an error into the form that travels.
func toConnect(e *Error) error {
	out := connect.NewError(connectCodes[e.Code], e)
	if detail, err := connect.NewErrorDetail(&apiv1.ErrorDetail{Code: string(e.Code), Message: e.Message, Hint: e.Hint}); err == nil {
		out.AddDetail(detail)
	}
	return out
}

// fromConnect is the inverse of toConnect. It also covers what goes wrong
// between client and handler: no daemon, a daemon that went away, a request
// the HTTP layer refused. ctx is the caller's.
func fromConnect(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var shown *Error
	if errors.As(err, &shown) { // of our own dialler
		return shown
	}
	var wire *connect.Error
	if !errors.As(err, &wire) {
		return err
	}
	for _, d := range wire.Details() {
		v, err := d.Value()
		if err != nil {
			continue
		}
		if d, ok := v.(*apiv1.ErrorDetail); ok {
			return &Error{Code: Code(d.Code), Message: d.Message, Hint: d.Hint}
		}
	}
	code := wire.Code()
	if code == connect.CodeCanceled && ctx.Err() == nil {
		code = connect.CodeUnavailable // not by the caller: by a daemon that stops
	}
	switch code {
	case connect.CodeDeadlineExceeded:
		return &Error{Code: CodeTimeout, Message: "the daemon did not answer in time", Hint: "try again with a longer --timeout"}
	case connect.CodeCanceled:
		return context.Canceled
	case connect.CodeInvalidArgument:
		return &Error{Code: CodeUsage, Message: "the daemon did not understand the request", Hint: "check that kith and its daemon have the same version: kith version, kith status"}
	case connect.CodeUnimplemented:
		return &Error{Code: CodeRefused, Message: "the running daemon does not know this command", Hint: "restart it with this version: kith down, kith up"}
	case connect.CodeResourceExhausted:
		return &Error{Code: CodeQuota, Message: "the request is larger than the daemon accepts", Hint: "send less at once"}
	case connect.CodeUnavailable:
		return &Error{Code: CodeNotRunning, Message: "the daemon went away before it answered", Hint: "start it with: kith up"}
	}
	return errInternal
}
