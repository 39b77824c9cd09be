package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
)

// TestMain lets the test binary be kith, for tests that need processes.
func TestMain(m *testing.M) {
	if os.Getenv("KITH_TEST_MAIN") != "" {
		main()
		return
	}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "KITH_") || strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

// cli runs one command line in this process.
func cli(t testing.TB, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

// shortDir is a temporary folder with a path short enough for a socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kith")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// teller is a daemon that says what a test wants said, such as what no honest
// node would: the commands must cope with that. The methods it lacks panic.
type teller struct {
	api.Backend
	fail error

	name, text string // used for whatever others chose

	mu     sync.Mutex
	link   string // the last that was accepted
	sent   []*apiv1.SendRequest
	events []*apiv1.Event
	acked  []uint64

	limits   *apiv1.NodeLimits // as they were last set
	draining *bool
}

func (b *teller) contact() *apiv1.Contact {
	return &apiv1.Contact{Id: "c1" + b.name, Name: b.name, State: "established", FirstText: b.text, Alarm: b.text, Fingerprint: b.text, Conversation: "c1", AddedMs: 1, LastSeenMs: 2, Devices: 1}
}

func (b *teller) message() *apiv1.Message {
	return &apiv1.Message{Id: "m1" + b.name, Conversation: "c1", From: b.name, FromId: b.name, Text: b.text, State: "received", TimeMs: 1, Seq: 1, Kind: "text", MissingBefore: 2, Reason: b.text, Holding: &apiv1.Holding{Held: 2, Of: 3, UntilMs: 5}}
}

func (b *teller) Status(context.Context, *apiv1.StatusRequest) (*apiv1.StatusResponse, error) {
	return &apiv1.StatusResponse{
		Ready: true, Role: "user", Version: b.name, Account: b.text, Listen: []string{b.text}, Roads: map[string]string{b.name: b.text},
		Budget:    &apiv1.Budget{Preset: b.text, Usage: []*apiv1.Usage{{Subsystem: b.text, Sent: 1, Received: 2}}},
		Mailboxes: &apiv1.MailboxCount{Mode: b.text, Healthy: 2, Total: 3, Needed: 2},
	}, b.fail
}

func (b *teller) SetLan(_ context.Context, req *apiv1.SetLanRequest) (*apiv1.SetLanResponse, error) {
	return &apiv1.SetLanResponse{Lan: &apiv1.Lan{On: req.On, Networks: 1, Devices: 2, Nodes: 3, Problem: b.text}}, b.fail
}

func (b *teller) Netcheck(context.Context, *apiv1.NetcheckRequest) (*apiv1.NetcheckResponse, error) {
	return &apiv1.NetcheckResponse{
		Checks: []*apiv1.Check{{Name: b.name, Ok: false, Text: b.text, Hint: b.text}}, Blocked: []string{b.text}, Network: b.text, TimeMs: 1,
	}, b.fail
}

func (b *teller) Doctor(context.Context, *apiv1.DoctorRequest) (*apiv1.DoctorResponse, error) {
	return &apiv1.DoctorResponse{Checks: []*apiv1.Check{{Name: b.name, Ok: false, Text: b.text, Hint: b.text}}}, b.fail
}

func (b *teller) GetIdentity(context.Context, *apiv1.GetIdentityRequest) (*apiv1.GetIdentityResponse, error) {
	return &apiv1.GetIdentityResponse{Name: b.name, Fingerprint: b.text, Devices: []*apiv1.Device{{Id: b.text, Name: b.name}}}, b.fail
}

func (b *teller) invite() *apiv1.Invite {
	return &apiv1.Invite{Id: b.text, Link: "kith:" + b.text, Name: b.name, State: "open"}
}

func (b *teller) CreateInvite(context.Context, *apiv1.CreateInviteRequest) (*apiv1.CreateInviteResponse, error) {
	return &apiv1.CreateInviteResponse{Invite: b.invite()}, b.fail
}

func (b *teller) ListInvites(context.Context, *apiv1.ListInvitesRequest) (*apiv1.ListInvitesResponse, error) {
	return &apiv1.ListInvitesResponse{Invites: []*apiv1.Invite{b.invite()}}, b.fail
}

func (b *teller) RevokeInvite(context.Context, *apiv1.RevokeInviteRequest) (*apiv1.RevokeInviteResponse, error) {
	return &apiv1.RevokeInviteResponse{}, b.fail
}

func (b *teller) AcceptInvite(_ context.Context, req *apiv1.AcceptInviteRequest) (*apiv1.AcceptInviteResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.link = req.Link
	return &apiv1.AcceptInviteResponse{Contact: b.contact()}, b.fail
}

func (b *teller) ListRequests(context.Context, *apiv1.ListRequestsRequest) (*apiv1.ListRequestsResponse, error) {
	return &apiv1.ListRequestsResponse{Requests: []*apiv1.Contact{b.contact()}}, b.fail
}

func (b *teller) ApproveRequest(context.Context, *apiv1.ApproveRequestRequest) (*apiv1.ApproveRequestResponse, error) {
	return &apiv1.ApproveRequestResponse{Contact: b.contact()}, b.fail
}

func (b *teller) RejectRequest(context.Context, *apiv1.RejectRequestRequest) (*apiv1.RejectRequestResponse, error) {
	return &apiv1.RejectRequestResponse{}, b.fail
}

func (b *teller) ListContacts(context.Context, *apiv1.ListContactsRequest) (*apiv1.ListContactsResponse, error) {
	return &apiv1.ListContactsResponse{Contacts: []*apiv1.Contact{b.contact()}}, b.fail
}

func (b *teller) RenameContact(context.Context, *apiv1.RenameContactRequest) (*apiv1.RenameContactResponse, error) {
	return &apiv1.RenameContactResponse{Contact: b.contact()}, b.fail
}

func (b *teller) SetBlocked(context.Context, *apiv1.SetBlockedRequest) (*apiv1.SetBlockedResponse, error) {
	return &apiv1.SetBlockedResponse{Contact: b.contact()}, b.fail
}

func (b *teller) HideAddress(context.Context, *apiv1.HideAddressRequest) (*apiv1.HideAddressResponse, error) {
	return &apiv1.HideAddressResponse{Contact: b.contact()}, b.fail
}

func (b *teller) GetSafetyNumber(context.Context, *apiv1.GetSafetyNumberRequest) (*apiv1.GetSafetyNumberResponse, error) {
	return &apiv1.GetSafetyNumberResponse{Contact: b.contact(), Number: strings.Repeat("12345", 12), Qr: "kith"}, b.fail
}

func (b *teller) SetVerified(context.Context, *apiv1.SetVerifiedRequest) (*apiv1.SetVerifiedResponse, error) {
	return &apiv1.SetVerifiedResponse{Contact: b.contact()}, b.fail
}

func (b *teller) Send(_ context.Context, req *apiv1.SendRequest) (*apiv1.SendResponse, error) {
	if b.fail != nil {
		return nil, b.fail
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent = append(b.sent, req)
	res := &apiv1.SendResponse{}
	for _, text := range req.Texts {
		res.Messages = append(res.Messages, &apiv1.Message{Id: "id of " + text, Conversation: b.name, State: "queued", TimeMs: 1})
	}
	return res, nil
}

func (b *teller) ListMessages(context.Context, *apiv1.ListMessagesRequest) (*apiv1.ListMessagesResponse, error) {
	mine := b.message()
	mine.FromMe, mine.State = true, b.name
	return &apiv1.ListMessagesResponse{Messages: []*apiv1.Message{b.message(), mine}}, b.fail
}

func (b *teller) ListConversations(context.Context, *apiv1.ListConversationsRequest) (*apiv1.ListConversationsResponse, error) {
	return &apiv1.ListConversationsResponse{Conversations: []*apiv1.Conversation{{Id: "c1", Name: b.name, Last: b.message(), Contact: b.contact(), Messages: 1}}}, b.fail
}

func (b *teller) Trace(context.Context, *apiv1.TraceRequest) (*apiv1.TraceResponse, error) {
	return &apiv1.TraceResponse{Message: b.message(), Devices: []*apiv1.Delivery{{
		Device: b.name, State: b.text, NextMs: 5, Holding: &apiv1.Holding{Of: 3}, Attempts: []*apiv1.Attempt{{TimeMs: 1, Road: b.name, Result: b.text}},
	}}}, b.fail
}

func (b *teller) Cancel(context.Context, *apiv1.CancelRequest) (*apiv1.CancelResponse, error) {
	return &apiv1.CancelResponse{Message: b.message()}, b.fail
}

func (b *teller) Ping(context.Context, *apiv1.PingRequest) (*apiv1.PingResponse, error) {
	return &apiv1.PingResponse{Ms: 1.5, Road: b.name, Address: b.text}, b.fail
}

func (b *teller) WatchEvents(ctx context.Context, req *apiv1.WatchEventsRequest, emit func(*apiv1.Event) error) error {
	for _, e := range b.events {
		if err := emit(e); err != nil {
			return err
		}
	}
	if b.fail != nil {
		return b.fail
	}
	<-ctx.Done()
	return ctx.Err()
}

func (b *teller) AckEvents(_ context.Context, req *apiv1.AckEventsRequest) (*apiv1.AckEventsResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acked = append(b.acked, req.Id)
	return &apiv1.AckEventsResponse{}, nil
}

func (b *teller) mailbox() *apiv1.Mailbox {
	return &apiv1.Mailbox{Id: b.name, Address: b.text, State: b.text, Evidence: []string{b.text}, Quota: 64e6, Probes: 3, ProbesLost: 1, AddedBy: b.text}
}

func (b *teller) ListMailboxes(context.Context, *apiv1.ListMailboxesRequest) (*apiv1.ListMailboxesResponse, error) {
	return &apiv1.ListMailboxesResponse{Mailboxes: []*apiv1.Mailbox{b.mailbox()}, Mode: "auto", Healthy: 1, Needed: 2}, b.fail
}

func (b *teller) AddMailbox(context.Context, *apiv1.AddMailboxRequest) (*apiv1.AddMailboxResponse, error) {
	return &apiv1.AddMailboxResponse{Mailbox: b.mailbox()}, b.fail
}

func (b *teller) RemoveMailbox(context.Context, *apiv1.RemoveMailboxRequest) (*apiv1.RemoveMailboxResponse, error) {
	return &apiv1.RemoveMailboxResponse{Mailbox: b.mailbox()}, b.fail
}

func (b *teller) TestMailbox(context.Context, *apiv1.TestMailboxRequest) (*apiv1.TestMailboxResponse, error) {
	return &apiv1.TestMailboxResponse{Results: []*apiv1.MailboxTest{{Id: b.name, Ok: true, Sentence: b.text, Ms: 3}, {Id: b.text, Sentence: b.name}}}, b.fail
}

func (b *teller) node() *apiv1.NodeStatusResponse {
	return &apiv1.NodeStatusResponse{State: b.text, Limits: b.limits, Used: 1e6, Envelopes: 2, OldestS: 7200, Refusals: map[string]int64{b.name: 3}}
}

func (b *teller) NodeStatus(context.Context, *apiv1.NodeStatusRequest) (*apiv1.NodeStatusResponse, error) {
	return b.node(), b.fail
}

func (b *teller) SetNode(_ context.Context, req *apiv1.SetNodeRequest) (*apiv1.SetNodeResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits, b.draining = req.Limits, req.Draining
	return &apiv1.SetNodeResponse{Status: b.node()}, b.fail
}

func (b *teller) bridgeInvite() *apiv1.BridgeInvite {
	return &apiv1.BridgeInvite{Id: b.name, Name: b.text, Address: b.text, CreatedMs: 1}
}

func (b *teller) CreateBridgeInvite(context.Context, *apiv1.CreateBridgeInviteRequest) (*apiv1.CreateBridgeInviteResponse, error) {
	return &apiv1.CreateBridgeInviteResponse{Invite: b.bridgeInvite()}, b.fail
}

func (b *teller) ListBridgeInvites(context.Context, *apiv1.ListBridgeInvitesRequest) (*apiv1.ListBridgeInvitesResponse, error) {
	return &apiv1.ListBridgeInvitesResponse{Invites: []*apiv1.BridgeInvite{b.bridgeInvite()}}, b.fail
}

func (b *teller) RevokeBridgeInvite(context.Context, *apiv1.RevokeBridgeInviteRequest) (*apiv1.RevokeBridgeInviteResponse, error) {
	return &apiv1.RevokeBridgeInviteResponse{}, b.fail
}

// serve runs b as the daemon of a fresh home.
func serve(t testing.TB, b api.Backend) (home string) {
	t.Helper()
	home = shortDir(t)
	socket := filepath.Join(home, "run", "api.sock")
	ln, err := api.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	cfg := api.ServerConfig{Backend: b, Stop: func() { cancel(); os.Remove(socket) }, Log: slog.New(slog.DiscardHandler)}
	cfg.Mailboxes, _ = b.(api.Mailboxes)
	cfg.Operator, _ = b.(api.Operator)
	cfg.Bridge, _ = b.(api.BridgeOperator)
	server := api.NewServer(cfg)
	go func() { done <- server.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return home
}

// verbs is every command that asks the daemon something.
var verbs = [][]string{
	{"budget"},
	{"netcheck"},
	{"doctor", "--report"},
	{"lan"},
	{"lan", "on"},
	{"lan", "off"},
	{"status"},
	{"doctor"},
	{"id"},
	{"invite"},
	{"invite", "--qr"},
	{"invite", "revoke", "x"},
	{"invites"},
	{"accept", "kith:x"},
	{"accept", "kith:x", "--wait"},
	{"requests"},
	{"approve", "x"},
	{"reject", "x"},
	{"contacts"},
	{"rename", "x", "y"},
	{"block", "x"},
	{"unblock", "x"},
	{"verify", "x"},
	{"verify", "x", "--yes", "--qr"},
	{"ping", "x"},
	{"send", "x", "hi"},
	{"read", "x"},
	{"chats"},
	{"trace", "x"},
	{"cancel", "x"},
	{"watch", "-n", "4"},
	{"mailbox", "list"},
	{"bridge", "invite"},
	{"bridge", "list"},
	{"bridge", "revoke", "x"},
	{"mailbox", "add", "/ip4/127.0.0.1/tcp/1/p2p/x"},
	{"mailbox", "remove", "x"},
	{"mailbox", "test"},
	{"mailbox", "test", "x"},
	{"node", "status"},
	{"node", "drain"},
	{"node", "drain", "--undo"},
	{"node", "set", "--quota", "5GB"},
	{"wait"},
	{"down"},
}

func TestNotRunning(t *testing.T) {
	home := shortDir(t)
	for _, verb := range verbs {
		want := exitNotRunning
		if verb[0] == "wait" {
			verb, want = append(slices.Clip(verb), "--timeout", "30ms"), exitTimeout
		}
		args := append([]string{"--home", home}, verb...)
		code, stdout, stderr := cli(t, "", args...)
		if code != want || stdout != "" || !strings.Contains(stderr, "kith up --home "+home) {
			t.Errorf("kith %s: exit %d, stdout %q, stderr %q, want exit %d and how to start", strings.Join(verb, " "), code, stdout, stderr, want)
		}
		code, stdout, stderr = cli(t, "", append(args, "--json")...)
		var e struct {
			Error struct{ Code, Message, Hint string }
		}
		if err := json.Unmarshal([]byte(stderr), &e); err != nil || code != want || stdout != "" || e.Error.Message == "" || e.Error.Hint == "" {
			t.Errorf("kith %s --json: exit %d, stdout %q, stderr %q: %v", strings.Join(verb, " "), code, stdout, stderr, err)
		}
	}
}

func TestUsage(t *testing.T) {
	home := shortDir(t)
	for _, test := range []struct {
		args string
		want string // in the message
	}{
		{"frobnicate", "frobnicate"},
		{"statsu", "did you mean: kith status"},
		{"status extra", "kith status"},
		{"status --frob", `there is no flag "--frob"; see: kith status --help`},
		{"status --frob=1", `there is no flag "--frob"; see: kith status --help`},
		{"invite revoke --frob", `there is no flag "--frob"; see: kith invite revoke --help`},
		{"status -xq", `there is no flag "-xq"; see: kith status --help`},
		{"status ---json", `there is no flag "---json"; see: kith status --help`},
		{"invite --name", "--name needs a value; see: kith invite --help"},
		{"ping bob -c", "--count needs a number; see: kith ping --help"},
		{"send", "kith send"},
		{"send bob", "--stdin"},
		{"send bob hi --stdin", "--stdin"},
		{"send bob hi --wait tomorrow", "sent, held or delivered"},
		{"send bob hi --wait read", "read receipts are off in this version; use --wait delivered"},
		{"send bob hi --expire soon", "--expire 12h"},
		{"send bob hi --expire 9999d", "365d"},
		{"invite --expires never", "never"},
		{"invite --expires 0d", "--expires 12h"},
		{"invite revoke", "revoke"},
		{"verify bob --yes --no", "--no"},
		{"read bob --last -1", "--last takes a number of messages, 1 or more"},
		{"read bob --last x", `--last takes a number, not "x"; see: kith read --help`},
		{"invite --qr=maybe", "--qr takes no value"},
		{"completion tcsh", "bash"},
		{"watch --ack sometimes", "manual"},
		{"watch --ack manual", "--cursor"},
		{"watch ack bot x", "x"},
		{"ping bob -c -1", "negative"},
		{"status --timeout -1s", "negative"},
		{"status --timeout never", `--timeout takes a time such as 30s or 5m, not "never"`},
		{"lan maybe", `the local network is either on or off, not "maybe"; use kith lan on`},
		{"lan on off", "kith lan on"},
		{"help frob", `there is no command "frob"; see all commands with: kith help`},
		{"help node frob", `there is no command "node frob"`},
		{"mailbox frob", `there is no command "mailbox frob"; see: kith mailbox --help`},
		{"node frob", `there is no command "node frob"; see: kith node --help`},
		{"mailbox add", "kith mailbox add ADDRESS"},
		{"mailbox remove", "kith mailbox remove ID"},
		{"mailbox test a b", "kith mailbox test [ID]"},
		{"node set --quota much", `"much" is no size; for example --quota 5GB`},
		{"node set --box-quota 0", "--box-quota 64MiB"},
		{"node set --source-rate fast", "--source-rate 256KiB"},
		{"node set --quota 9999TB", "--quota is too large"},
		{"node set --retention never", "--retention 30d"},
		{"node set --boxes 0", "1 or more"},
		{"node set --boxes many", `--boxes takes a number, not "many"`},
		{"up --role king", "king"},
		{"up --mailbox maybe", `mailbox is either auto or none, not "maybe"`},
		{"up --quota 5GB", "--quota is for a community node; add --role community"},
		{"up --metrics 127.0.0.1:9090", "--metrics is for a community node; add --role community"},
		{"up --role community --mailbox none", "a community node has no mailboxes of its own"},
		{"up --role community --quota much", `"much" is no size`},
		{"up --role community --quota 1kB", "too little to keep mail; for example --quota 5GB; the least is 16MiB"},
		{"up --role community --metrics :9090", "for example --metrics 127.0.0.1:9090"},
		{"up --role community --metrics localhost:9090", "not an IP address with a port"},
		{"up --proxy tor", "the proxy's URL has no host with a port; use socks5://HOST:PORT or http://HOST:PORT"},
		{"up --proxy ftp://h:1", "neither socks5:// nor http://"},
		{"up --proxy socks5://h:1 --listen /ip4/127.0.0.1/udp/0/quic-v1", "past the proxy, which carries only TCP; listen on TCP"},
		{"up --role community --proxy socks5://h:1", "a community node has to be reachable"},
		{"up --site .", "--site is for a bridge; add --bridge"},
		{"up --role community --bridge-behind", "--bridge-behind is for a bridge"},
		{"up --bridge --site .", "--bridge is for a community node; add --role community"},
		{"up --role community --bridge", "a web site that everybody else sees; add --site DIR"},
		{"up --role community --bridge --site /nonexistent", "there is no folder /nonexistent; check --site"},
		{"up --role community --bridge --site ftp://x", "neither http:// nor https://"},
		{"up --role community --bridge --site http://127.0.0.1:1 --cert x", "--cert and --key belong together"},
		{"up --role community --bridge --site http://127.0.0.1:1 --acme", "add --domain NAME"},
		{"up --role community --bridge --site http://127.0.0.1:1 --acme --domain a.example --cert x --key y", "exclude each other"},
		{"up --role community --bridge --site http://127.0.0.1:1 --bridge-behind", "add --domain NAME"},
		{"up --role community --bridge --site http://127.0.0.1:1 --bridge-behind --domain a.example --cert x --key y", "no certificate of its own"},
		{"up --role community --bridge --site http://127.0.0.1:1 --bridge-behind --domain a.example --bridge-listen /ip4/0.0.0.0/tcp/80", "on loopback"},
		{"up --role community --bridge --site http://127.0.0.1:1 --bridge-listen /ip4/0.0.0.0/udp/443", "nowhere a bridge can listen"},
		{"up --role community --bridge --site http://127.0.0.1:1 --bridge-listen /dns4/a.example/tcp/443", "nowhere a bridge can listen"},
		{"up --role community --bridge --site http://127.0.0.1:1 --bridge-address /ip4/1.2.3.4", "--bridge-address /ip4/203.0.113.7/tcp/443"},
		{"up --role community --bridge --site http://127.0.0.1:1 --domain Not_One", "no domain"},
		{"up --role community --bridge --site http://127.0.0.1:1 --cert /nonexistent --key /nonexistent", "does not exist; check --cert and --key"},
		{"up --preset fast", `there is no preset "fast"; use laptop`},
		{"up --role community --metered", "--metered is for a user: a community node is there to serve others; leave it away"},
		{"up --bytes-per-day much", "--bytes-per-day 200MB"},
		{"up --memory 1kB", "memory of 1.0 kB is too little; the least is"},
		{"up --connections none", `connections takes a number from 1 to 65535, not "none"; for example --connections 60`},
		{"up --dials-per-minute 0", "--dials-per-minute 60"},
		{"up --mode closed", `the mode is auto, open or censored, not "closed"`},
		{"bridge revoke", "kith bridge revoke ID"},
		{"bridge frob", `there is no command "bridge frob"; see: kith bridge --help`},
		{"up --web 127.0.0.1:8080", "web"},
		{"up --listen localhost:1", "localhost:1"},
		{"up --bootstrap /ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1"},
		{"up --passphrase-file /nonexistent", "the passphrase file does not exist; check"},
		{"up --passphrase", "terminal"},
	} {
		code, stdout, stderr := cli(t, "", append([]string{"--home", home}, strings.Fields(test.args)...)...)
		if strings.Contains(stderr, "strconv") || strings.Contains(stderr, "invalid") || strings.Contains(stderr, "shorthand") {
			t.Errorf("kith %s: %q is about Go", test.args, stderr)
		}
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, test.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("kith %s: exit %d, stdout %q, stderr %q, want exit %d and one line with %q", test.args, code, stdout, stderr, exitUsage, test.want)
		}
	}
	entries, err := os.ReadDir(home)
	if err != nil || len(entries) != 0 {
		t.Errorf("usage errors left %v, %v behind", entries, err)
	}
}

func TestExitCodes(t *testing.T) {
	b := &teller{name: "bob"}
	home := serve(t, b)
	for code, want := range map[api.Code]int{
		api.CodeRefused: 1, api.CodeUsage: 2, api.CodeNotRunning: 3, api.CodeNetwork: 4, api.CodeQuota: 5,
		api.CodeKeyUntrusted: 6, api.CodeTimeout: 7, api.CodeLocked: 8, api.CodeNotFound: 9, api.CodeInternal: 1,
	} {
		b.fail = &api.Error{Code: code, Message: "what failed", Hint: "what to do"}
		got, stdout, stderr := cli(t, "", "--home", home, "contacts", "--json")
		var e struct {
			Error struct{ Code, Message, Hint string }
		}
		if err := json.Unmarshal([]byte(stderr), &e); err != nil {
			t.Fatal(err)
		}
		if got != want || stdout != "" || e.Error.Code != string(code) || e.Error.Message != "what failed" {
			t.Errorf("%s: exit %d, %+v, want exit %d", code, got, e, want)
		}
		got, _, stderr = cli(t, "", "--home", home, "contacts")
		if code != api.CodeNotRunning && (got != want || stderr != "kith: what failed; what to do\n") {
			t.Errorf("%s: exit %d, stderr %q", code, got, stderr)
		}
	}
}

// TestH15_EveryVerb lets a daemon pass on what attackers chose, through every
// command, in words and as JSON.
func TestH15_EveryVerb(t *testing.T) {
	for _, attack := range attacks {
		attack = strings.ToValidUTF8(attack, "?") // the schema allows nothing else
		data, err := json.Marshal(map[string]string{"id": attack, "from": attack, "text": attack, "state": attack, "name": attack, "reason": attack})
		if err != nil {
			t.Fatal(err)
		}
		b := &teller{name: attack, text: attack, events: []*apiv1.Event{
			{Id: 1, Type: "message", Data: string(data)},
			{Id: 2, Type: "ledger", Data: string(data)},
			{Id: 3, Type: attack, Data: string(data)},
			{Id: 4, Type: "message", Data: attack},
		}}
		home := serve(t, b)
		for _, verb := range verbs {
			for _, form := range [][]string{nil, {"--json"}, {"-v"}} {
				if verb[0] == "down" {
					continue
				}
				args := append(append([]string{"--home", home}, verb...), form...)
				_, stdout, stderr := cli(t, "", args...)
				for _, line := range strings.Split(stdout+stderr, "\n") {
					if strings.ContainsFunc(line, acts) {
						t.Fatalf("kith %s prints %q", strings.Join(args[2:], " "), line)
					}
				}
				if len(form) == 1 && form[0] == "--json" {
					in := json.NewDecoder(strings.NewReader(stdout + stderr))
					for {
						var v any
						if err := in.Decode(&v); err == io.EOF {
							break
						} else if err != nil {
							t.Fatalf("kith %s prints no JSON: %v\n%s", strings.Join(args[2:], " "), err, stdout+stderr)
						}
					}
				}
			}
		}
		home = serve(t, &teller{fail: &api.Error{Code: api.CodeRefused, Message: attack, Hint: attack}})
		for _, form := range []string{"--json", "-v"} {
			_, _, stderr := cli(t, "", "--home", home, "contacts", form)
			if strings.ContainsFunc(strings.TrimSuffix(stderr, "\n"), acts) {
				t.Errorf("the error is printed as %q", stderr)
			}
		}
	}
}

// TestContract holds the JSON fields that programs rely on.
func TestContract(t *testing.T) {
	b := &teller{name: "bob", text: "hi", events: []*apiv1.Event{{Id: 7, Type: "message", TimeMs: 1, Data: `{"id":"m1"}`}}}
	home := serve(t, b)
	for _, test := range []struct {
		args   string
		array  bool
		fields string
	}{
		{"status", false, "ready role version account uptime_s listen peers dht roads outbox rss_bytes mailboxes lan budget"},
		{"budget", false, "preset metered memory connections_max connections dials_per_minute bytes_per_day bytes_today usage dials refused"},
		{"netcheck", false, "blocked nodes bridges network time checks"},
		{"lan", false, "on networks devices nodes"},
		{"lan on", false, "on networks devices nodes problem"},
		{"lan off", false, "on networks devices nodes"},
		{"mailbox list", true, "id address state evidence items bytes quota retention_s last_seen probes probes_lost added_by"},
		{"mailbox add /ip4/127.0.0.1/tcp/1/p2p/x", false, "id address state"},
		{"mailbox remove x", false, "id address state"},
		{"mailbox test", true, "id ok sentence ms"},
		{"node status", false, "state limits used boxes tags envelopes envelope_bytes request_bytes oldest_s streams deposits collected expired refusals"},
		{"node drain", false, "state limits"},
		{"node set --quota 5GB", false, "state limits"},
		{"bridge invite", false, "id name address created"},
		{"bridge list", true, "id name address created"},
		{"bridge revoke x", false, "id state"},
		{"id", false, "name fingerprint devices"},
		{"invite", false, "id link expires uses"},
		{"accept kith:x", false, "contact"},
		{"contacts", true, "id name state verified devices"},
		{"send bob hi", false, "id conversation state time"},
		{"read bob --last 1", false, "id conversation from from_me text time received state seq"},
		{"trace m1", false, "id state devices"},
		{"watch -n 1", false, "id type time data"},
		{"watch ack bot 7", false, "cursor acked"},
		{"ping bob", false, "ms road address"},
		{"verify bob", false, "contact number qr"},
		{"doctor", false, "ok checks"},
		{"chats", true, "id name kind messages last"},
		{"invites", true, "id link expires uses state"},
		{"requests", true, "id name first_text"},
		{"version", false, "version protocol"},
		{"paths", false, "config data api"},
		{"config", false, "name role listen bootstrap api web mailbox quota metrics"},
	} {
		_, stdout, _ := cli(t, "", append([]string{"--home", home, "--json"}, strings.Fields(test.args)...)...)
		line, _, _ := strings.Cut(stdout, "\n")
		object := map[string]any{}
		if test.array {
			var list []map[string]any
			if err := json.Unmarshal([]byte(line), &list); err != nil || len(list) == 0 {
				t.Errorf("kith %s: %q is no filled array: %v", test.args, line, err)
				continue
			}
			object = list[0]
		} else if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Errorf("kith %s: %q: %v", test.args, line, err)
			continue
		}
		for _, field := range strings.Fields(test.fields) {
			if _, ok := object[field]; !ok {
				t.Errorf("kith %s has no %q: %s", test.args, field, line)
			}
		}
	}
	home = serve(t, empty{})
	for _, verb := range []string{"contacts", "invites", "requests", "chats", "mailbox list", "mailbox test", "bridge list"} {
		if code, stdout, _ := cli(t, "", append([]string{"--home", home, "--json"}, strings.Fields(verb)...)...); code != 0 || stdout != "[]\n" {
			t.Errorf("kith %s without any: exit %d, %q, want []", verb, code, stdout)
		}
	}
}

// empty is a daemon that has nothing yet.
type empty struct{ api.Backend }

func (empty) ListContacts(context.Context, *apiv1.ListContactsRequest) (*apiv1.ListContactsResponse, error) {
	return &apiv1.ListContactsResponse{}, nil
}

func (empty) ListRequests(context.Context, *apiv1.ListRequestsRequest) (*apiv1.ListRequestsResponse, error) {
	return &apiv1.ListRequestsResponse{}, nil
}

func (empty) ListInvites(context.Context, *apiv1.ListInvitesRequest) (*apiv1.ListInvitesResponse, error) {
	return &apiv1.ListInvitesResponse{}, nil
}

func (empty) ListConversations(context.Context, *apiv1.ListConversationsRequest) (*apiv1.ListConversationsResponse, error) {
	return &apiv1.ListConversationsResponse{}, nil
}

func (empty) ListMailboxes(context.Context, *apiv1.ListMailboxesRequest) (*apiv1.ListMailboxesResponse, error) {
	return &apiv1.ListMailboxesResponse{}, nil
}

func (empty) CreateBridgeInvite(context.Context, *apiv1.CreateBridgeInviteRequest) (*apiv1.CreateBridgeInviteResponse, error) {
	return nil, &api.Error{Code: api.CodeRefused, Message: "no", Hint: "none"}
}

func (empty) ListBridgeInvites(context.Context, *apiv1.ListBridgeInvitesRequest) (*apiv1.ListBridgeInvitesResponse, error) {
	return &apiv1.ListBridgeInvitesResponse{}, nil
}

func (empty) RevokeBridgeInvite(context.Context, *apiv1.RevokeBridgeInviteRequest) (*apiv1.RevokeBridgeInviteResponse, error) {
	return nil, &api.Error{Code: api.CodeNotFound, Message: "not here"}
}

func (empty) AddMailbox(context.Context, *apiv1.AddMailboxRequest) (*apiv1.AddMailboxResponse, error) {
	return nil, &api.Error{Code: api.CodeRefused, Message: "there is no such node", Hint: "check the address"}
}

func (empty) RemoveMailbox(context.Context, *apiv1.RemoveMailboxRequest) (*apiv1.RemoveMailboxResponse, error) {
	return nil, &api.Error{Code: api.CodeNotFound, Message: "not here"}
}

func (empty) TestMailbox(_ context.Context, req *apiv1.TestMailboxRequest) (*apiv1.TestMailboxResponse, error) {
	if req.Id != "" {
		return nil, &api.Error{Code: api.CodeNotFound, Message: "not here"}
	}
	return &apiv1.TestMailboxResponse{}, nil
}

func TestTimeout(t *testing.T) {
	b := &teller{name: "bob"}
	home := serve(t, b)
	start := time.Now()
	code, _, stderr := cli(t, "", "--home", home, "send", "bob", "hi", "--wait", "delivered", "--timeout", "50ms")
	if code != exitTimeout || !strings.Contains(stderr, "kith trace") {
		t.Errorf("exit %d, stderr %q, want exit %d and how to follow it", code, stderr, exitTimeout)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
}
