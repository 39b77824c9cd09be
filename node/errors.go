package node

import "fmt"

// Code says what kind of refusal an Error is. The local API maps it to a status
// and the command line to an exit code.
type Code string

// The codes of the local API (docs: product words, exit codes).
const (
	CodeRefused      Code = "refused"
	CodeUsage        Code = "usage"
	CodeNetwork      Code = "network"
	CodeQuota        Code = "quota"
	CodeKeyUntrusted Code = "key_untrusted"
	CodeTimeout      Code = "timeout"
	CodeNotFound     Code = "not_found"
)

// Error is an answer meant for a person: one sentence and the next step. It
// never carries text that came from the network.
type Error struct {
	Code    Code
	Message string
	Hint    string
}

// Error returns the sentence.
func (e *Error) Error() string { return e.Message }

// ErrorCode returns the code under which the local API reports e.
func (e *Error) ErrorCode() string { return string(e.Code) }

// ErrorHint returns the next step.
func (e *Error) ErrorHint() string { return e.Hint }

func refuse(code Code, hint, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}
