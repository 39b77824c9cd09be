package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"syscall"

	"connectrpc.com/connect"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

// Client calls a daemon. It is the one way every front end takes. Every error
// it returns is an *Error or a context's. It is safe for concurrent use; a
// connection is made at the first call and kept for the next.
type Client struct {
	apiv1.KithServiceClient
	transport *http.Transport
}

var (
	_ Backend   = (*Client)(nil)
	_ Mailboxes = (*Client)(nil)
	_ Operator  = (*Client)(nil)

	_ BridgeOperator = (*Client)(nil)
)

// NewClient returns a client of the daemon behind the unix socket at path.
// Nothing is dialled yet. Close it when done.
func NewClient(path string) *Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, path)
		},
		DisableCompression:  true,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     idleTime / 2, // gives up first, so no call meets a connection the server just closed
	}
	return &Client{
		transport: t,
		KithServiceClient: apiv1.NewKithServiceClient(&http.Client{Transport: t}, "http://kith",
			connect.WithAcceptCompression("gzip", nil, nil),
			connect.WithReadMaxBytes(maxResponse),
			connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
				return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
					res, err := next(ctx, req)
					return res, fromConnect(ctx, err)
				}
			})),
		),
	}
}

// WatchEvents calls emit for each event until ctx ends or emit fails, and
// returns that error. A daemon that stops ends the stream with ErrNotRunning.
func (c *Client) WatchEvents(ctx context.Context, req *apiv1.WatchEventsRequest, emit func(*apiv1.Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before Close, which else waits for the stream's end
	stream, err := c.KithServiceClient.WatchEvents(ctx, req)
	if err != nil {
		return fromConnect(ctx, err)
	}
	for stream.Receive() {
		if err := emit(stream.Msg()); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return fromConnect(ctx, err)
	}
	return ErrNotRunning
}

// Close ends the client's idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

func dial(ctx context.Context, path string) (net.Conn, error) {
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNotRunning
	case errors.Is(err, os.ErrPermission):
		return nil, &Error{Code: CodeRefused, Message: "this daemon belongs to another user", Hint: "run the command as the user who started it"}
	case err != nil:
		return nil, err
	}
	// Whoever else could put a socket at that path would read what we send.
	if err := checkPeer(conn); err != nil {
		conn.Close()
		return nil, &Error{Code: CodeRefused, Message: "the socket at this path is served by another user", Hint: "check --api and --home"}
	}
	return conn, nil
}
