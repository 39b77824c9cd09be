package api

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

// Bundles does what the API asks for about files that people carry, under the
// rules of Backend.
type Bundles interface {
	MarkBundle(context.Context, *apiv1.MarkBundleRequest) (*apiv1.MarkBundleResponse, error)
	// ExportBundle calls emit for one piece of the files after another, from one
	// goroutine, until all are whole or emit fails, and returns that error.
	ExportBundle(ctx context.Context, req *apiv1.ExportBundleRequest, emit func(*apiv1.ExportBundleResponse) error) error
	NoteBundle(context.Context, *apiv1.NoteBundleRequest) (*apiv1.NoteBundleResponse, error)
	// ImportBundle calls next for one piece of a file after another, from one
	// goroutine, until it returns io.EOF or another error, which it returns.
	ImportBundle(ctx context.Context, next func() (*apiv1.ImportBundleRequest, error)) (*apiv1.ImportBundleResponse, error)
}

var _ Bundles = (*Client)(nil)

func (s *service) ExportBundle(ctx context.Context, req *apiv1.ExportBundleRequest, stream *connect.ServerStream[apiv1.ExportBundleResponse]) error {
	if e := check(req); e != nil {
		return toConnect(e)
	}
	ctx, cancel := s.untilClosing(ctx)
	defer cancel()
	if err := s.Bundles.ExportBundle(ctx, req, stream.Send); err != nil {
		return s.failed(apiv1.KithServiceExportBundleProcedure, err)
	}
	return nil
}

func (s *service) ImportBundle(ctx context.Context, stream *connect.ClientStream[apiv1.ImportBundleRequest]) (*apiv1.ImportBundleResponse, error) {
	ctx, cancel := s.untilClosing(ctx)
	defer cancel()
	res, err := s.Bundles.ImportBundle(ctx, func() (*apiv1.ImportBundleRequest, error) {
		switch {
		case stream.Receive():
			return stream.Msg(), nil
		case stream.Err() != nil:
			return nil, stream.Err()
		}
		return nil, io.EOF
	})
	if err != nil {
		return nil, s.failed(apiv1.KithServiceImportBundleProcedure, err)
	}
	return res, nil
}

// ExportBundle calls emit for each piece that the daemon makes. If emit fails the
// daemon stops, and the error is returned.
func (c *Client) ExportBundle(ctx context.Context, req *apiv1.ExportBundleRequest, emit func(*apiv1.ExportBundleResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.KithServiceClient.ExportBundle(ctx, req)
	if err != nil {
		return fromConnect(ctx, err)
	}
	for stream.Receive() {
		if err := emit(stream.Msg()); err != nil {
			return err
		}
	}
	return errors.Join(fromConnect(ctx, stream.Err()), stream.Close())
}

// ImportBundle sends what next returns until io.EOF. If next fails the daemon
// keeps what it has received, and the error is returned.
func (c *Client) ImportBundle(ctx context.Context, next func() (*apiv1.ImportBundleRequest, error)) (*apiv1.ImportBundleResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.KithServiceClient.ImportBundle(ctx)
	if err != nil {
		return nil, fromConnect(ctx, err)
	}
	for {
		piece, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if stream.Send(piece) != nil {
			break // the answer says why
		}
	}
	res, err := stream.CloseAndReceive()
	return res, fromConnect(ctx, err)
}
