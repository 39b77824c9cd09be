package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

const (
	// drainTime is how long calls under way may take once the server stops.
	// The daemon as a whole has five seconds.
	drainTime = 2 * time.Second
	// headerTime bounds a client that connects and says nothing.
	headerTime = 10 * time.Second
	// idleTime is how long a quiet connection is kept for its next call.
	idleTime = 5 * time.Minute
	// maxHeader bounds the memory of one request's header.
	maxHeader = 16 << 10
	// callTime bounds a call that has no reason to take long.
	callTime = 30 * time.Second
	// networkCallTime bounds calls that ask the network something.
	networkCallTime = 2 * time.Minute
)

// Server serves a Backend. Make one with NewServer.
type Server struct {
	service service
	http    http.Server
	// closing ends streams and long polls when the server stops.
	closing chan struct{}
}

// ServerConfig is what a Server needs. All fields are required but Mailboxes,
// which a user's daemon has, Operator, which a community node has, and Bridge,
// which a bridge has.
type ServerConfig struct {
	Backend   Backend
	Bundles   Bundles
	Mailboxes Mailboxes
	Operator  Operator
	Bridge    BridgeOperator
	// Stop is called when a client asks the daemon to stop. It must not wait
	// for the server.
	Stop func()
	Log  *slog.Logger
}

// NewServer returns a server that serves nothing yet.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{closing: make(chan struct{})}
	s.service = service{
		Backend: cfg.Backend, Bundles: cfg.Bundles, Mailboxes: cfg.Mailboxes, Operator: cfg.Operator, BridgeOperator: cfg.Bridge,
		stop: cfg.Stop, log: cfg.Log, closing: s.closing,
	}
	if cfg.Mailboxes == nil {
		s.service.Mailboxes = notUser{}
	}
	if cfg.Operator == nil {
		s.service.Operator = notOperator{}
	}
	if cfg.Bridge == nil {
		s.service.BridgeOperator = notBridge{}
	}
	_, handler := apiv1.NewKithServiceHandler(&s.service,
		// A local socket gains nothing from compression, and what is not
		// unpacked can not explode.
		connect.WithCompression("gzip", nil, nil),
		connect.WithConditionalHandlerOptions(func(spec connect.Spec) []connect.HandlerOption {
			most := maxRequest
			switch spec.Procedure {
			case apiv1.KithServiceSendProcedure:
				most = maxSendRequest
			case apiv1.KithServiceImportBundleProcedure:
				most = maxImportRequest
			}
			return []connect.HandlerOption{connect.WithReadMaxBytes(most)}
		}),
		connect.WithInterceptors(connect.UnaryInterceptorFunc(s.service.unary)),
		connect.WithRecover(s.service.recovered),
	)
	s.http = http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		// net/http reports broken connections with their content.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	// Whose stream ends finds nobody under the old address any more.
	s.http.RegisterOnShutdown(func() { close(s.closing) })
	return s
}

// Serve answers on ln until ctx ends, then lets calls under way finish for a
// moment, ends streams and returns. It closes ln. A server serves once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if s.http.Shutdown(drain) != nil {
			s.http.Close()
		}
	})
	err := s.http.Serve(ln)
	if stop() { // Serve failed by itself
		s.http.Close()
		return fmt.Errorf("local API: %w", err)
	}
	<-drained
	return nil
}

// service is a Backend and its companions as the generated handler wants them:
// their own methods for every plain call, and those that need more.
type service struct {
	Backend
	Bundles
	Mailboxes
	Operator
	BridgeOperator
	stop    func()
	log     *slog.Logger
	closing <-chan struct{}
}

var _ apiv1.KithServiceHandler = (*service)(nil)

func (s *service) Stop(context.Context, *apiv1.StopRequest) (*apiv1.StopResponse, error) {
	s.stop()
	return &apiv1.StopResponse{}, nil
}

func (s *service) WatchEvents(ctx context.Context, req *apiv1.WatchEventsRequest, stream *connect.ServerStream[apiv1.Event]) error {
	if e := check(req); e != nil {
		return toConnect(e)
	}
	ctx, cancel := s.untilClosing(ctx)
	defer cancel()
	// The header goes out at once, so that a client knows it is connected
	// before the first event.
	if err := stream.Send(nil); err != nil {
		return err
	}
	err := s.Backend.WatchEvents(ctx, req, stream.Send)
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return s.failed(apiv1.KithServiceWatchEventsProcedure, err)
}

// unary bounds, checks and translates every plain call.
func (s *service) unary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if e := check(req.Any()); e != nil {
			return nil, toConnect(e)
		}
		var cancel context.CancelFunc
		switch r := req.Any().(type) {
		case *apiv1.ListEventsRequest:
			if r.WaitMs > 0 {
				ctx, cancel = s.untilClosing(ctx)
				defer cancel()
			}
			ctx, cancel = context.WithTimeout(ctx, time.Duration(r.WaitMs)*time.Millisecond+callTime)
		case *apiv1.AcceptInviteRequest, *apiv1.PingRequest, *apiv1.DoctorRequest, *apiv1.AddMailboxRequest, *apiv1.TestMailboxRequest:
			ctx, cancel = context.WithTimeout(ctx, networkCallTime)
		default:
			ctx, cancel = context.WithTimeout(ctx, callTime)
		}
		defer cancel()
		res, err := next(ctx, req)
		if err != nil {
			return nil, s.failed(req.Spec().Procedure, err)
		}
		return res, nil
	}
}

func (s *service) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// untilClosing returns a context that also ends when the server stops.
func (s *service) untilClosing(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// failed logs that a call failed for reasons the caller is not told, without
// anything of its content, and returns what the caller is told.
func (s *service) failed(procedure string, err error) error {
	if errors.Is(err, context.Canceled) && s.isClosing() {
		return toConnect(ErrNotRunning)
	}
	shown, known := describe(err)
	if !known {
		s.log.Error("api: call failed", "procedure", procedure, "type", fmt.Sprintf("%T", root(err)))
	}
	return toConnect(shown)
}

func root(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// recovered contains a panic to the call it happened in. The value of the
// panic may hold content; its type and the stack do not.
func (s *service) recovered(_ context.Context, spec connect.Spec, _ http.Header, value any) error {
	s.log.Error("api: panic", "procedure", spec.Procedure, "type", fmt.Sprintf("%T", value), "stack", string(debug.Stack()))
	return toConnect(errInternal)
}
