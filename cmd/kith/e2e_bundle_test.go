package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/protocol/bundle"
)

// apart starts two people whose daemons know of no network, nor of each other.
func apart(t *testing.T) (ann, ben *home) {
	t.Helper()
	n := &network{t: t, dir: shortDir(t)}
	for _, p := range []struct {
		h    **home
		name string
	}{{&ann, "ann"}, {&ben, "ben"}} {
		*p.h = n.home(p.name, "--name", p.name, "--listen", "/ip4/127.0.0.1/tcp/0")
		(*p.h).up()
	}
	return ann, ben
}

// metByHand is apart, after the two have met by bundles alone.
func metByHand(t *testing.T) (ann, ben *home, stick string) {
	t.Helper()
	ann, ben = apart(t)
	stick = t.TempDir()
	file := func(name string) string { return filepath.Join(stick, name) }
	link := ann.invite("--name", "ben")
	ann.must("bundle", "export", file("keys"))
	ben.must("accept", link, "--name", "ann")
	ben.must("bundle", "import", file("keys"))
	ben.must("bundle", "export", file("answer"))
	ann.must("bundle", "import", file("answer"))
	ann.must("bundle", "export", file("welcome"))
	ben.must("bundle", "import", file("welcome"))
	if ann.onlyContact() == "" || ben.onlyContact() == "" {
		t.Fatal("the two did not meet")
	}
	return ann, ben, stick
}

// TestBundles has two people meet and talk by files and paper alone, and mistake
// everything that can be mistaken.
func TestBundles(t *testing.T) {
	t.Parallel()
	ann, ben, stick := metByHand(t)
	file := func(name string) string { return filepath.Join(stick, name) }
	for _, text := range []string{"one", "two", "three"} {
		ann.must("send", "ben", text)
	}
	var out bundleExportJSON
	ann.decode(&out, "bundle", "export", "--for", "ben", file("there"))
	if len(out.Files) != 1 || out.Files[0].Messages != 3 || out.Files[0].Contacts != 1 || out.Files[0].Path != file("there") {
		t.Errorf("the export says %+v", out)
	}
	if info, err := os.Stat(file("there")); err != nil || info.Size() != out.Files[0].Bytes || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
	var trace struct {
		Devices []struct {
			Attempts []struct{ Road, Result string }
		}
	}
	last := ann.read("ben")[2]
	ann.decode(&trace, "trace", last.ID)
	if !slices.ContainsFunc(trace.Devices[0].Attempts, func(a struct{ Road, Result string }) bool { return a.Road == "bundle" && a.Result == "carried" }) {
		t.Errorf("kith trace shows %+v", trace)
	}

	var in bundleImportJSON
	ben.decode(&in, "bundle", "inspect", file("there"))
	writeFile(t, file("note"), "not one")
	ben.refused(exitUsage, "this is no text that kith bundle export made", "bundle", "inspect", file("note"))
	if in.Ours != 1 || in.Envelopes < 3 || in.New != 0 || len(in.From) != 1 || in.From[0].Name != "ann" {
		t.Errorf("the inspection says %+v", in)
	}
	ben.decode(&in, "bundle", "import", file("there"))
	if in.Messages != 3 || in.Ours != 1 {
		t.Errorf("the import says %+v", in)
	}
	ben.stop()
	ben.up()
	if text := ben.must("bundle", "import", file("there")); !strings.Contains(text, "Nothing new") {
		t.Errorf("the same file twice says %q", text)
	}
	ben.must("bundle", "export", file("back"))
	if text := ann.must("bundle", "import", file("back")); !strings.Contains(text, "No new messages") {
		t.Errorf("receipts say %q", text)
	}
	for _, m := range ann.read("ben") {
		if m.State != "delivered" {
			t.Errorf("%q is %s", m.Text, m.State)
		}
	}

	// Mistakes.
	whole, err := os.ReadFile(file("there"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(whole)
	for i := range damaged {
		if i%1000 == 100 {
			damaged[i]++
		}
	}
	for name, b := range map[string][]byte{
		"damaged": damaged, "short": whole[:1000], "empty": nil, "photo": bytes.Repeat([]byte("\xff\xd8 photo"), 9999), "letter": []byte("Dear Ben,\n"),
	} {
		if err := os.WriteFile(file(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ben.refused(exitRefused, "damaged", "bundle", "import", file("damaged"))
	ben.refused(exitUsage, "too small", "bundle", "import", file("short"))
	ben.refused(exitUsage, "too small", "bundle", "import", file("empty"))
	ben.refused(exitNotFound, "nothing in this file is for you", "bundle", "import", file("photo"))
	ben.refused(exitUsage, "no text", "bundle", "import", file("letter"))
	ben.refused(exitNotFound, "there is no", "bundle", "import", file("missing"))
	ben.refused(exitNotFound, "no bundle in this folder", "bundle", "import", t.TempDir())

	// Of a folder every bundle is read, and what is not is said.
	folder := t.TempDir()
	for name, b := range map[string][]byte{"1 whole": whole, "2 damaged": damaged, "3 short": whole[:1000], ".hidden": nil} {
		if err := os.WriteFile(filepath.Join(folder, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, text, notes := ben.cli("bundle", "import", folder)
	if code != exitOK || !strings.Contains(text, "1 whole: Nothing new") || strings.Count(notes, "\n") != 2 ||
		!strings.Contains(notes, "2 damaged: ") || !strings.Contains(notes, "3 short was left out, as it has not the size of a bundle; name a file if") {
		t.Errorf("a folder: exit %d, %q, %q", code, text, notes)
	}
	lines := decodeLines[bundleImportJSON](t, ben.must("bundle", "import", folder, "--json"))
	if len(lines) != 3 || lines[0].LeftOut != "" || lines[1].LeftOut == "" || lines[2].LeftOut == "" {
		t.Errorf("of a folder programs are told %+v", lines)
	}
	if err := os.WriteFile(filepath.Join(folder, "4 short"), whole[:1000], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, notes := ben.cli("bundle", "import", folder); !strings.Contains(notes, "3 short and 1 file more were left out") {
		t.Errorf("of two cut files it says %q", notes)
	}
	ann.refused(exitRefused, "made here", "bundle", "import", file("there"))
	ann.refused(exitRefused, "is there already", "bundle", "export", file("photo"))
	ann.refused(exitNotFound, "no folder", "bundle", "export", filepath.Join(stick, "none", "x"))
	ann.refused(exitNotFound, "no contact", "bundle", "export", "--for", "nobody", file("x"))
	ann.refused(exitUsage, "that small", "bundle", "export", "--size", "1kB", file("x"))
	ann.refused(exitUsage, "no size", "bundle", "export", "--size", "much", file("x"))
	ann.refused(exitUsage, "no file or folder", "bundle", "export")
	ann.refused(exitUsage, "cannot be shown", "bundle", "export", "-")
	ann.refused(exitUsage, "QR", "bundle", "export", "--qr", file("x"))
	if left, err := filepath.Glob(file("x*")); err != nil || len(left) > 0 {
		t.Errorf("refused exports left %v", left)
	}

	// Paper.
	ben.must("send", "ann", "on paper")
	paper := ben.must("bundle", "export", "--text")
	if code, _, stderr := cli(t, "", "--home", ann.dir, "bundle", "import", "-"); code != exitUsage {
		t.Errorf("nothing at all: exit %d, %s", code, stderr)
	}
	if code, stdout, stderr := cli(t, strings.ToLower(paper), "--home", ann.dir, "bundle", "import", "-"); code != exitOK || !strings.Contains(stdout, "1 new message from ben") {
		t.Errorf("paper: exit %d, %q, %q", code, stdout, stderr)
	}
	if picture := ben.must("bundle", "export", "--text", "--qr"); !strings.Contains(picture, "█") {
		t.Errorf("a QR code is %q", picture)
	}
	if x, y := conversation(ann.read("ben")), conversation(ben.read("ann")); x != y {
		t.Error("the two show the conversation in different orders")
	}
	ann.n.quiet("on paper", last.ID[:8], stick)
}

// TestBundleKill kills a daemon by kill -9 while it makes or reads bundles. The
// stick never shows a file that is not whole, and all arrives once.
func TestBundleKill(t *testing.T) {
	t.Parallel()
	ann, ben, _ := metByHand(t)
	count, rounds := 1000, 12
	if testing.Short() {
		count, rounds = 200, 4
	}
	var lines strings.Builder
	for i := range count {
		lines.WriteString("text " + strings.Repeat("x", i%500) + "\n")
	}
	if code, _, stderr := cli(t, lines.String(), "--home", ann.dir, "send", "ben", "--stdin"); code != exitOK {
		t.Fatalf("send: %s", stderr)
	}
	stick := t.TempDir()
	for range rounds {
		kill(ann, func() { ann.cli("bundle", "export", "--size", "256KiB", stick) })
		entries, err := os.ReadDir(stick)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || e.Name() != ".tmp" && !bundle.IsSize(info.Size()) {
				t.Fatalf("the stick shows %s, %v", e.Name(), err)
			}
		}
		kill(ben, func() { ben.cli("bundle", "import", stick) })
	}
	ann.must("bundle", "export", stick)
	ben.must("bundle", "import", stick)
	got := ben.read("ann")
	if len(got) != count {
		t.Fatalf("%d messages arrived, want %d", len(got), count)
	}
	for i, m := range got {
		if want := "text " + strings.Repeat("x", i%500); m.Text != want {
			t.Fatalf("message %d is %q", i, m.Text)
		}
	}
	back := t.TempDir()
	ben.must("bundle", "export", back)
	ann.must("bundle", "import", back)
	for _, m := range ann.read("ben") {
		if m.State != "delivered" {
			t.Fatalf("a message is %s", m.State)
		}
	}
}

// kill runs something that a daemon is about, and kills the daemon at some moment
// of it.
func kill(h *home, run func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		run()
	}()
	pass := time.NewTimer(time.Duration(rand.Int64N(int64(50 * time.Millisecond))))
	<-pass.C
	h.kill()
	<-done
	h.up()
}

// TestBundleSpool has two people and a courier, who is neither's contact, exchange
// bundles through folders, of which one goes away in between.
func TestBundleSpool(t *testing.T) {
	t.Parallel()
	ann, ben, _ := metByHand(t)
	cat := ann.n.home("cat", "--name", "cat", "--listen", "/ip4/127.0.0.1/tcp/0")
	cat.up()
	here, there := t.TempDir(), t.TempDir()
	photo := filepath.Join(here, "photo.jpg")
	if err := os.WriteFile(photo, bytes.Repeat([]byte("photo"), 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	look := func(h *home, dir string, args ...string) {
		t.Helper()
		h.must(append([]string{"bundle", "spool", "--once", dir}, args...)...)
	}
	count := func(dir string) int {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	for i, text := range []string{"first", "second"} {
		ann.must("send", "ben", text)
		look(ann, here)
		look(ann, here)
		if n := count(here); n != 2+min(i, 1) {
			t.Errorf("round %d: the folder holds %d files", i, n)
		}
		look(cat, here, "--carry")
		look(cat, there, "--carry")
		look(ben, there)
		look(cat, there, "--carry")
		look(cat, here, "--carry")
		look(ann, here)
	}
	for i, m := range ann.read("ben") {
		if m.State != "delivered" {
			t.Errorf("message %d is %s", i, m.State)
		}
	}
	if got := len(ben.read("ann")); got != 2 {
		t.Errorf("%d messages arrived, want 2", got)
	}
	if b, err := os.ReadFile(photo); err != nil || len(b) != 50_000 {
		t.Error("a file of somebody else was touched")
	}
	ann.refused(exitNotFound, "there is no", "bundle", "spool", filepath.Join(here, "none"))
	ann.refused(exitUsage, "no folder", "bundle", "spool", photo)

	// As a daemon's companion: the folder goes and comes back.
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int)
	said, says := io.Pipe()
	go func() {
		code := run(ctx, []string{"--home", ann.dir, "bundle", "spool", here}, strings.NewReader(""), says, says)
		says.Close()
		ended <- code
	}()
	last, lines := "", bufio.NewScanner(said)
	await := func(words string) {
		t.Helper()
		for lines.Scan() {
			if last = lines.Text(); strings.Contains(last, words) {
				return
			}
		}
		t.Fatalf("the spool ended with %q", last)
	}
	ann.must("send", "ben", "third")
	await("1 message")
	away := here + ".away"
	if err := os.Rename(here, away); err != nil {
		t.Fatal(err)
	}
	await("trying again")
	ann.must("send", "ben", "fourth")
	if err := os.Rename(away, here); err != nil {
		t.Fatal(err)
	}
	await("2 messages")
	look(ben, here)
	if got := len(ben.read("ann")); got != 4 {
		t.Errorf("%d messages arrived, want 4", got)
	}
	go func() { _, _ = io.Copy(io.Discard, said) }()
	stop()
	if code := <-ended; code != exitOK {
		t.Errorf("an interrupted spool exits %d", code)
	}
}
