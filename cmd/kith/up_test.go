package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kith-im/kith/node/api"
	"github.com/kith-im/kith/node/store"
)

// daemonProcess is a kith up in a process of its own.
type daemonProcess struct {
	*exec.Cmd
	home  string
	ready struct {
		Account, API string
		Web          *string
		Listen       []string
	}
	exited chan error
}

// up starts kith up and returns when it is ready. The test's end kills it.
func up(t *testing.T, home string, args ...string) *daemonProcess {
	t.Helper()
	d := &daemonProcess{home: home, exited: make(chan error, 1)}
	d.Cmd = exec.Command(os.Args[0], append([]string{"up", "--json", "--home", home, "--listen", "/ip4/127.0.0.1/tcp/0"}, args...)...)
	d.Env = append(os.Environ(), "KITH_TEST_MAIN=1")
	var errs tail
	d.Stderr = &errs
	out, err := d.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Process.Kill() })
	lines := bufio.NewScanner(out)
	events := []string{}
	for lines.Scan() {
		var stage struct{ Event string }
		if err := json.Unmarshal(lines.Bytes(), &stage); err != nil {
			t.Fatalf("kith up --json prints %q", lines.Text())
		}
		if events = append(events, stage.Event); stage.Event == "ready" {
			if err := json.Unmarshal(lines.Bytes(), &d.ready); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = io.Copy(io.Discard, out)
				d.exited <- d.Wait()
			}()
			return d
		}
	}
	t.Fatalf("kith up ended after %v: %v, %s", events, d.Wait(), errs.String())
	return nil
}

// wait returns how the process ended.
func (d *daemonProcess) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-d.exited:
		return err
	case <-time.After(2 * stopTime):
		t.Fatal("the daemon does not stop")
		return nil
	}
}

func TestUp(t *testing.T) {
	home := shortDir(t)
	notified := make(chan string, 8)
	socket := filepath.Join(shortDir(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		for buf := make([]byte, 64); ; {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			notified <- string(buf[:n])
		}
	}()
	t.Setenv("NOTIFY_SOCKET", socket)
	d := up(t, home, "--name", "alice")
	if got := <-notified; got != "READY=1" {
		t.Errorf("systemd is told %q", got)
	}
	if d.ready.Account == "" || d.ready.API != filepath.Join(home, "run", "api.sock") || d.ready.Web != nil || len(d.ready.Listen) != 1 || !strings.Contains(d.ready.Listen[0], "/p2p/") {
		t.Errorf("ready is %+v", d.ready)
	}
	_, stdout, stderr := cli(t, "", "--home", home, "--json", "id")
	var id struct{ Name, Fingerprint string }
	if err := json.Unmarshal([]byte(stdout), &id); err != nil || id.Fingerprint != d.ready.Account || id.Name != "alice" {
		t.Errorf("kith id: %q, %s", stdout, stderr)
	}
	if code, _, stderr := cli(t, "", "--home", home, "wait"); code != 0 {
		t.Errorf("kith wait: exit %d, %s", code, stderr)
	}
	for _, path := range []string{home, filepath.Join(home, "run"), filepath.Join(home, "store")} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %v, %v: open to others", path, info.Mode(), err)
		}
	}

	t.Run("I08_a_second_daemon", func(t *testing.T) {
		code, stdout, stderr := cli(t, "", "--home", home, "up")
		if code != exitOK || stderr != "" || !strings.Contains(stdout, "kith runs already") || !strings.Contains(stdout, d.ready.Listen[0]) {
			t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
		}
		if !strings.Contains(stdout, fmt.Sprintf("(process %d)", d.Process.Pid)) || strings.Contains(stdout, "is ready") || strings.Contains(stdout, "Ctrl-C") {
			t.Errorf("of the one that runs it says %q", stdout)
		}
		_, stdout, _ = cli(t, "", "--home", home, "up", "--json")
		for _, e := range decodeLines[struct {
			Event string
			PID   int
			Since int64
		}](t, stdout) {
			if started := time.UnixMilli(e.Since); e.Event == "running" && (e.PID != d.Process.Pid || time.Since(started) > time.Minute) {
				t.Errorf("kith up --json says that process %d runs since %v", e.PID, started)
			}
		}
		lines := decodeLines[readyJSON](t, stdout)
		if last := lines[len(lines)-1]; last.Event != "ready" || last.Account != d.ready.Account || last.API != d.ready.API {
			t.Errorf("kith up --json prints %q", stdout)
		}
		if code, _, stderr := cli(t, "", "--home", home, "status"); code != 0 {
			t.Errorf("the first one is gone: %s", stderr)
		}
	})

	start := time.Now()
	if err := d.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.wait(t); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if took := time.Since(start); took > stopTime {
		t.Errorf("stopping took %v", took)
	}
	if got := <-notified; got != "STOPPING=1" {
		t.Errorf("systemd is told %q", got)
	}
	if _, err := os.Lstat(d.ready.API); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}

	again := up(t, home)
	if again.ready.Account != d.ready.Account {
		t.Errorf("the account is %q after a restart, want %q", again.ready.Account, d.ready.Account)
	}
	if err := again.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	again.wait(t)
	if code, _, _ := cli(t, "", "--home", home, "status"); code != exitNotRunning {
		t.Errorf("after kill -9: exit %d, want %d", code, exitNotRunning)
	}
	third := up(t, home)
	if code, _, stderr := cli(t, "", "--home", home, "down"); code != 0 {
		t.Errorf("kith down: exit %d, %s", code, stderr)
	}
	if err := third.wait(t); err != nil || third.ready.Account != d.ready.Account {
		t.Errorf("after kith down: %v, account %q", err, third.ready.Account)
	}
}

// TestUpElsewhere serves its API at a socket of its own choice; clients of the
// home find it all the same.
func TestUpElsewhere(t *testing.T) {
	home, elsewhere := shortDir(t), filepath.Join(shortDir(t), "k.sock")
	d := up(t, home, "--api", elsewhere)
	for _, args := range [][]string{{"--home", home}, {"--home", home, "--api", elsewhere}} {
		if code, _, stderr := cli(t, "", append(args, "status")...); code != 0 {
			t.Errorf("%v: exit %d, %s", args, code, stderr)
		}
	}
	if code, _, stderr := cli(t, "", "--home", home, "down"); code != 0 {
		t.Errorf("kith down: exit %d, %s", code, stderr)
	}
	if err := d.wait(t); err != nil {
		t.Error(err)
	}
	for _, path := range []string{elsewhere, filepath.Join(home, "run", "api.sock")} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind: %v", path, err)
		}
	}
}

func TestCommunityNode(t *testing.T) {
	home := shortDir(t)
	d := up(t, home, "--role", "community", "--quota", "100MB")
	if d.ready.Account != "" || len(d.ready.Listen) == 0 {
		t.Errorf("ready is %+v", d.ready)
	}
	_, id, _ := strings.Cut(d.ready.Listen[0], "/p2p/")
	_, stdout, _ := cli(t, "", "--home", home, "--json", "status")
	var s statusJSON
	if err := json.Unmarshal([]byte(stdout), &s); err != nil || s.Role != "community" || s.DHT.Mode != "server" || !s.Ready {
		t.Errorf("kith status: %s", stdout)
	}
	if code, _, stderr := cli(t, "", "--home", home, "send", "bob", "hi"); code != exitRefused && code != exitNotFound {
		t.Errorf("kith send: exit %d, %s", code, stderr)
	}
	if code, _, stderr := cli(t, "", "--home", home, "down"); code != 0 {
		t.Errorf("kith down: exit %d, %s", code, stderr)
	}
	d.wait(t)
	if _, _, stderr := cli(t, "", "--home", home, "status"); !strings.Contains(stderr, "start it with: kith up --home "+home+" --role community") {
		t.Errorf("the hint is %q", stderr)
	}
	again := up(t, home, "--role", "community")
	if _, got, _ := strings.Cut(again.ready.Listen[0], "/p2p/"); got != id {
		t.Errorf("the peer id changed from %s to %s", id, got)
	}
	_, stdout, _ = cli(t, "", "--home", home, "--json", "node", "status")
	var kept nodeJSON
	if err := json.Unmarshal([]byte(stdout), &kept); err != nil || kept.Limits.Quota != 100e6 {
		t.Errorf("started without --quota the node says %s, want the quota it had", stdout)
	}
}

// TestUpInTheOtherRole: a home stays what it was made as, and nothing is
// created in it by mistake.
func TestUpInTheOtherRole(t *testing.T) {
	roles := []string{"user", "community"}
	for i, role := range roles {
		home := shortDir(t)
		d := up(t, home, "--role", role)
		// While it runs, to stop it would not help.
		code, _, stderr := cli(t, "", "--home", home, "up", "-q", "--role", roles[1-i], "--timeout", "20s")
		runs := map[string]string{"user": "runs on this home already, as a user's", "community": "runs on this home already, as a community node"}[role]
		if code != exitRefused || !strings.Contains(stderr, runs) || !strings.Contains(stderr, "choose another home for a ") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("beside a running %s: exit %d, stderr %q", role, code, stderr)
		}
		if code, _, stderr := cli(t, "", "--home", home, "down"); code != 0 {
			t.Fatal(stderr)
		}
		d.wait(t)
		code, _, stderr = cli(t, "", "--home", home, "up", "-q", "--role", roles[1-i], "--timeout", "20s")
		hint := map[string]string{"user": "kith up --home " + home, "community": "kith up --home " + home + " --role community"}[role]
		if code != exitRefused || !strings.Contains(stderr, "this home is a "+role) || !strings.Contains(stderr, hint) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("a home of a %s: exit %d, stderr %q", role, code, stderr)
		}
		st, err := store.Open(store.Options{Dir: home})
		if err != nil {
			t.Fatal(err)
		}
		if err := st.View(t.Context(), func(tx *store.Tx) error {
			_, account := tx.Account()
			_, key := tx.SecretMeta(keyMeta)
			if errors.Is(account, store.ErrNotFound) != (role == "community") || errors.Is(key, store.ErrNotFound) != (role == "user") {
				t.Errorf("a home of a %s: account %v, key %v", role, account, key)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		st.Close()
	}
}

func TestPassphrase(t *testing.T) {
	if testing.Short() {
		t.Skip("stretches a passphrase four times")
	}
	home, right, wrong := shortDir(t), filepath.Join(shortDir(t), "right"), filepath.Join(shortDir(t), "wrong")
	writeFile(t, right, "correct horse\n")
	writeFile(t, wrong, "battery staple\n")
	d := up(t, home, "--passphrase-file", right)
	_, stdout, _ := cli(t, "", "--home", home, "--json", "status")
	var s statusJSON
	if err := json.Unmarshal([]byte(stdout), &s); err != nil || s.Store != "passphrase" {
		t.Errorf("kith status: %s", stdout)
	}
	if code, _, stderr := cli(t, "", "--home", home, "down"); code != 0 {
		t.Fatal(stderr)
	}
	d.wait(t)
	for _, args := range [][]string{{"up"}, {"up", "--passphrase-file", wrong}} {
		code, _, stderr := cli(t, "", append([]string{"--home", home}, args...)...)
		if code != exitLocked || strings.Count(stderr, "\n") != 1 {
			t.Errorf("kith %v: exit %d, stderr %q, want exit %d", args, code, stderr, exitLocked)
		}
	}
	if again := up(t, home, "--passphrase-file", right); again.ready.Account != d.ready.Account {
		t.Error("the account changed")
	}
}

// TestPassphraseLater gives a store that has none a passphrase.
func TestPassphraseLater(t *testing.T) {
	if testing.Short() {
		t.Skip("stretches a passphrase twice")
	}
	home, file := shortDir(t), filepath.Join(shortDir(t), "passphrase")
	writeFile(t, file, "correct horse\n")
	account := ""
	for _, args := range [][]string{nil, {"--passphrase-file", file}} {
		d := up(t, home, args...)
		_, stdout, _ := cli(t, "", "--home", home, "--json", "status")
		want := "key file"
		if args != nil {
			want = "passphrase"
		}
		var s statusJSON
		if err := json.Unmarshal([]byte(stdout), &s); err != nil || s.Store != want {
			t.Errorf("kith up %v: the store is protected by %q, want %q", args, s.Store, want)
		}
		if account == "" {
			account = d.ready.Account
		} else if d.ready.Account != account {
			t.Error("the account changed")
		}
		if code, _, stderr := cli(t, "", "--home", home, "down"); code != 0 {
			t.Fatal(stderr)
		}
		d.wait(t)
	}
	if code, _, stderr := cli(t, "", "--home", home, "up", "--timeout", "5s"); code != exitLocked {
		t.Errorf("kith up without it: exit %d, stderr %q, want exit %d", code, stderr, exitLocked)
	}
}

// TestUpNowhere has a home that can not be one.
func TestUpNowhere(t *testing.T) {
	file := filepath.Join(shortDir(t), "file")
	writeFile(t, file, "x")
	for home, want := range map[string]string{file: "is not a folder", "/dev/null/x": "is not a folder", "/proc/nope": "can not write into"} {
		code, _, stderr := cli(t, "", "--home", home, "up", "-q")
		if code != exitRefused || !strings.Contains(stderr, want) || !strings.Contains(stderr, "--home DIR") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("--home %s: exit %d, stderr %q, want %q", home, code, stderr, want)
		}
	}
}

// TestUpListensElsewhere has addresses that can not be listened on.
func TestUpListensElsewhere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port)
	for _, test := range []struct {
		addr string
		code int
		want string
	}{
		{taken, exitNetwork, "kith: another program already listens on " + taken + "; stop it, or choose another port with --listen\n"},
		{"/ip4/192.0.2.1/tcp/0", exitNetwork, "kith: this machine has no address for /ip4/192.0.2.1/tcp/0; choose"},
		{"/ip4/127.0.0.1/tcp/0/ws", exitUsage, "kith: /ip4/127.0.0.1/tcp/0/ws is neither QUIC nor TCP on an IP address; for example --listen"},
	} {
		code, _, stderr := cli(t, "", "up", "-q", "--home", shortDir(t), "--listen", test.addr)
		if code != test.code || !strings.HasPrefix(stderr, test.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("listening on %s: exit %d, stderr %q, want exit %d and %q", test.addr, code, stderr, test.code, test.want)
		}
	}
	dir := shortDir(t)
	code, _, stderr := cli(t, "", "up", "-q", "--home", dir, "--role", "community", "--bridge", "--site", choir(t, dir), "--bridge-listen", taken)
	want := "kith: another program already listens on " + taken + "; stop it, or choose another port with --bridge-listen; if it is your web server, add --bridge-behind\n"
	if code != exitNetwork || stderr != want {
		t.Errorf("a bridge on %s: exit %d, stderr %q, want %q", taken, code, stderr, want)
	}
}

// TestExplainEnd holds that a daemon ends with one sentence and a next step.
func TestExplainEnd(t *testing.T) {
	d := &daemon{k: &kith{home: "/h"}, cfg: &config{paths: paths{Data: "/h"}}}
	for _, test := range []struct {
		err           error
		message, hint string
	}{
		{fmt.Errorf("load the outbox: %w", fmt.Errorf("the database is damaged (disk I/O error): %w", store.ErrDamaged)), "load the outbox: the database is damaged (disk I/O error)", "backup"},
		{errors.Join(store.ErrDamaged, io.EOF), "the store is damaged", "backup"},
		{fmt.Errorf("x: %w", store.ErrReadOnly), "the disk failed while saving", "check the disk"},
		{fmt.Errorf("x: %w", store.ErrFull), "the disk is full", "free some space"},
		{&store.InUseError{PID: 7}, "(process 7)", "stop it with: kith down, or"},
		{&os.PathError{Op: "mkdir", Path: "/h", Err: syscall.ENOTDIR}, "not a folder", "--home DIR"},
		{&os.PathError{Op: "mkdir", Path: "/h", Err: syscall.EACCES}, "can not write", "--home DIR"},
		{io.EOF, "ended by itself: EOF", "start it again"},
		{nil, "ended by itself", "start it again"},
	} {
		var e *api.Error
		if !errors.As(d.explainEnd(test.err), &e) || !strings.Contains(e.Message, test.message) || !strings.Contains(e.Hint, test.hint) || strings.Contains(e.Message, "\n") {
			t.Errorf("%v: %+v, want %q and the hint %q", test.err, e, test.message, test.hint)
		}
	}
}

func TestUpStopsWithItsParent(t *testing.T) {
	home := shortDir(t)
	cmd := exec.Command(os.Args[0], "up", "--until-eof", "--json", "--home", home, "--listen", "/ip4/127.0.0.1/tcp/0")
	cmd.Env = append(os.Environ(), "KITH_TEST_MAIN=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := cli(t, "", "--home", home, "wait"); code != 0 {
		t.Error(stderr)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
