package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/protocol"
)

// scripted is the smallest backend that shows what the handlers do around it:
// it answers Send and WatchEvents, and fails elsewhere as it is told. The
// methods it does not have panic, as a fault in a backend would.
type scripted struct {
	Backend
	fail  error
	sent  chan *apiv1.SendRequest
	watch func(ctx context.Context, emit func(*apiv1.Event) error) error
}

func (s *scripted) Status(context.Context, *apiv1.StatusRequest) (*apiv1.StatusResponse, error) {
	return &apiv1.StatusResponse{Ready: true}, s.fail
}

func (s *scripted) Send(_ context.Context, req *apiv1.SendRequest) (*apiv1.SendResponse, error) {
	if s.sent != nil {
		s.sent <- req
	}
	return &apiv1.SendResponse{Messages: []*apiv1.Message{{Id: "1", State: "queued"}}}, s.fail
}

func (s *scripted) ListEvents(ctx context.Context, _ *apiv1.ListEventsRequest) (*apiv1.ListEventsResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s *scripted) WatchEvents(ctx context.Context, _ *apiv1.WatchEventsRequest, emit func(*apiv1.Event) error) error {
	return s.watch(ctx, emit)
}

// serve runs a server of b on a fresh socket and returns a client of it. The
// server's end is part of every test.
func serve(t testing.TB, b Backend, log *slog.Logger) (*Client, string, context.CancelFunc) {
	t.Helper()
	path := filepath.Join(shortDir(t), "run", "api.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewServer(ServerConfig{Backend: b, Stop: cancel, Log: log}).Serve(ctx, ln) }()
	c := NewClient(path)
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	})
	return c, path, cancel
}

// shortDir is t.TempDir with a path that leaves room for a socket's name.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kith")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestRoundTrip(t *testing.T) {
	sent := make(chan *apiv1.SendRequest, 1)
	c, _, _ := serve(t, &scripted{sent: sent}, nil)
	res, err := c.Send(t.Context(), &apiv1.SendRequest{Conversation: "bob", Texts: []string{"hi\n\tthere", "ünï"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Messages) != 1 || res.Messages[0].State != "queued" {
		t.Errorf("got %v, want one queued message", res)
	}
	if got := <-sent; got.Conversation != "bob" || len(got.Texts) != 2 || got.Texts[0] != "hi\n\tthere" {
		t.Errorf("the backend saw %v", got)
	}
}

func TestLargestSend(t *testing.T) {
	sent := make(chan *apiv1.SendRequest, 1)
	c, _, _ := serve(t, &scripted{sent: sent}, nil)
	texts := make([]string, MaxTexts)
	for i := range texts {
		texts[i] = strings.Repeat("x", protocol.MaxText)
	}
	if _, err := c.Send(t.Context(), &apiv1.SendRequest{Conversation: "bob", Texts: texts}); err != nil {
		t.Fatal(err)
	}
	if got := <-sent; len(got.Texts) != MaxTexts {
		t.Errorf("the backend saw %d texts, want %d", len(got.Texts), MaxTexts)
	}
}

// coded is an error a backend means for people.
type coded struct{ code, text, hint string }

func (e coded) Error() string     { return e.text }
func (e coded) ErrorCode() string { return e.code }
func (e coded) ErrorHint() string { return e.hint }

func TestErrorsReachTheClient(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want Error
	}{
		{"refused", coded{"refused", "bob is blocked", "unblock him"}, Error{CodeRefused, "bob is blocked", "unblock him"}},
		{"wrapped", fmt.Errorf("send: %w", coded{"not_found", "no such contact", "look"}), Error{CodeNotFound, "no such contact", "look"}},
		{"network", coded{"network", "no road", "wait"}, Error{CodeNetwork, "no road", "wait"}},
		{"quota", coded{"quota", "full", "delete"}, Error{CodeQuota, "full", "delete"}},
		{"key", coded{"key_untrusted", "the key changed", "verify"}, Error{CodeKeyUntrusted, "the key changed", "verify"}},
		{"locked", coded{"locked", "the store is locked", "unlock"}, Error{CodeLocked, "the store is locked", "unlock"}},
		{"timeout", coded{"timeout", "too slow", "wait"}, Error{CodeTimeout, "too slow", "wait"}},
		{"deadline", context.DeadlineExceeded, Error{CodeTimeout, "this took too long and was given up", "try again, or run: kith doctor"}},
		{"plain", errors.New("sqlite: secret"), *errInternal},
		{"unknown code", coded{"nonsense", "secret", "secret"}, *errInternal},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log bytes.Buffer
			c, _, _ := serve(t, &scripted{fail: test.err}, slog.New(slog.NewTextHandler(&log, nil)))
			_, err := c.Status(t.Context(), &apiv1.StatusRequest{})
			var got *Error
			if !errors.As(err, &got) || *got != test.want {
				t.Errorf("got %#v, want %#v", err, test.want)
			}
			if strings.Contains(log.String(), "secret") {
				t.Errorf("the log repeats the error: %s", log.String())
			}
			if wantLog := test.want == *errInternal; wantLog != (log.Len() > 0) {
				t.Errorf("log is %q", log.String())
			}
		})
	}
}

// TestWrongKindOfDaemon: a daemon without mailboxes, or without an operator,
// says so in one sentence.
func TestWrongKindOfDaemon(t *testing.T) {
	c, _, _ := serve(t, &scripted{}, nil)
	for _, test := range []struct {
		name string
		call func() error
		want *Error
	}{
		{"list", func() error { _, err := c.ListMailboxes(t.Context(), &apiv1.ListMailboxesRequest{}); return err }, errNotUser},
		{"add", func() error { _, err := c.AddMailbox(t.Context(), &apiv1.AddMailboxRequest{Address: "/x"}); return err }, errNotUser},
		{"remove", func() error { _, err := c.RemoveMailbox(t.Context(), &apiv1.RemoveMailboxRequest{Id: "x"}); return err }, errNotUser},
		{"test", func() error { _, err := c.TestMailbox(t.Context(), &apiv1.TestMailboxRequest{}); return err }, errNotUser},
		{"node status", func() error { _, err := c.NodeStatus(t.Context(), &apiv1.NodeStatusRequest{}); return err }, errNotOperator},
		{"node set", func() error {
			_, err := c.SetNode(t.Context(), &apiv1.SetNodeRequest{Draining: new(bool)})
			return err
		}, errNotOperator},
	} {
		var got *Error
		if err := test.call(); !errors.As(err, &got) || *got != *test.want {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
}

func TestPanicIsContained(t *testing.T) {
	var log bytes.Buffer
	c, _, _ := serve(t, &scripted{}, slog.New(slog.NewTextHandler(&log, nil)))
	_, err := c.GetIdentity(t.Context(), &apiv1.GetIdentityRequest{}) // scripted has none
	var got *Error
	if !errors.As(err, &got) || *got != *errInternal {
		t.Errorf("got %v, want the internal error", err)
	}
	if !strings.Contains(log.String(), "GetIdentity") {
		t.Errorf("the log does not name the call: %q", log.String())
	}
	if _, err := c.Status(t.Context(), &apiv1.StatusRequest{}); err != nil {
		t.Errorf("the next call fails: %v", err)
	}
}

func TestWatchEvents(t *testing.T) {
	const n = 1000
	b := &scripted{watch: func(ctx context.Context, emit func(*apiv1.Event) error) error {
		for i := range uint64(n) {
			if err := emit(&apiv1.Event{Id: i + 1, Type: "message", Data: "{}"}); err != nil {
				return err
			}
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	c, _, _ := serve(t, b, nil)
	var last uint64
	errEnough := errors.New("enough")
	err := c.WatchEvents(t.Context(), &apiv1.WatchEventsRequest{From: "start"}, func(e *apiv1.Event) error {
		if e.Id != last+1 {
			t.Errorf("event %d after %d", e.Id, last)
		}
		if last = e.Id; last == n {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || last != n {
		t.Errorf("got %v after event %d, want %v after %d", err, last, errEnough, n)
	}
}

func TestStopEndsStreamsAndPolls(t *testing.T) {
	b := &scripted{watch: func(ctx context.Context, emit func(*apiv1.Event) error) error {
		if err := emit(&apiv1.Event{Id: 1}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	c, path, _ := serve(t, b, nil)
	var wg sync.WaitGroup
	up := make(chan struct{})
	wg.Go(func() {
		err := c.WatchEvents(t.Context(), &apiv1.WatchEventsRequest{}, func(*apiv1.Event) error { close(up); return nil })
		if !errors.Is(err, ErrNotRunning) {
			t.Errorf("the stream ended with %v, want %v", err, ErrNotRunning)
		}
	})
	<-up
	wg.Go(func() {
		_, err := c.ListEvents(t.Context(), &apiv1.ListEventsRequest{WaitMs: MaxWait})
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeNotRunning {
			t.Errorf("the poll ended with %v, want %v", err, CodeNotRunning)
		}
	})
	start := time.Now()
	if _, err := c.Stop(t.Context(), &apiv1.StopRequest{}); err != nil {
		t.Errorf("Stop = %v", err)
	}
	wg.Wait()
	if d := time.Since(start); d > drainTime {
		t.Errorf("stopping took %v", d)
	}
	if _, err := NewClient(path).Status(t.Context(), &apiv1.StatusRequest{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the stop: %v, want %v", err, ErrNotRunning)
	}
}

func TestNotRunning(t *testing.T) {
	dir := shortDir(t)
	dead := filepath.Join(dir, "dead.sock") // as kill -9 leaves it
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	for _, path := range []string{filepath.Join(dir, "none.sock"), filepath.Join(dir, "no", "folder.sock"), dead} {
		c := NewClient(path)
		defer c.Close()
		if _, err := c.Status(t.Context(), &apiv1.StatusRequest{}); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: got %v, want %v", filepath.Base(path), err, ErrNotRunning)
		}
		if err := c.WatchEvents(t.Context(), &apiv1.WatchEventsRequest{}, nil); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: watching: got %v, want %v", filepath.Base(path), err, ErrNotRunning)
		}
	}
}

func TestClientDeadline(t *testing.T) {
	c, _, _ := serve(t, &scripted{}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.ListEvents(ctx, &apiv1.ListEventsRequest{WaitMs: MaxWait})
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeTimeout {
		t.Errorf("got %v, want a timeout", err)
	}
}

func TestPlainHTTP(t *testing.T) {
	_, path, _ := serve(t, &scripted{}, nil)
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	defer client.CloseIdleConnections()
	for _, test := range []struct {
		name, method, body string
		want               int
	}{
		{"a bot with curl", "Send", `{"conversation":"bob","texts":["hi"]}`, http.StatusOK},
		{"no JSON", "Send", `{`, http.StatusBadRequest},
		{"bad form", "Send", `{"conversation":"bob"}`, http.StatusBadRequest},
		{"too large", "Trace", `{"id":"` + strings.Repeat("x", maxRequest) + `"}`, http.StatusTooManyRequests},
		{"no such method", "Format", `{}`, http.StatusNotFound},
	} {
		res, err := client.Post("http://kith/kith.v1.KithService/"+test.method, "application/json", strings.NewReader(test.body))
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		res.Body.Close()
		if res.StatusCode != test.want {
			t.Errorf("%s: status %d, want %d", test.name, res.StatusCode, test.want)
		}
	}
}

func BenchmarkSend(b *testing.B) {
	c, _, _ := serve(b, &scripted{}, nil)
	req := &apiv1.SendRequest{Conversation: "bob", Texts: []string{strings.Repeat("x", 100)}}
	for b.Loop() {
		if _, err := c.Send(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWatchEvents(b *testing.B) {
	n := 0
	s := &scripted{watch: func(ctx context.Context, emit func(*apiv1.Event) error) error {
		for ctx.Err() == nil {
			if err := emit(&apiv1.Event{Id: 1, Type: "message", Data: strings.Repeat("x", 300)}); err != nil {
				return err
			}
		}
		return ctx.Err()
	}}
	c, _, _ := serve(b, s, nil)
	err := c.WatchEvents(b.Context(), &apiv1.WatchEventsRequest{}, func(*apiv1.Event) error {
		if n++; !b.Loop() {
			return context.Canceled
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		b.Fatal(err)
	}
}
