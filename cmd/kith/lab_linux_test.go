package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// The censorship lab is a program beside this tree: network namespaces, NATs and
// a censor with an active prober on one machine. KITH_LAB_DIR says where, if it is
// not ../shared/lab. `make lab` runs everything here; with root and the lab at
// hand, `make test` runs TestLab under one combination of censors.
//
// They are read at once, because TestMain takes kith's own variables away.
var (
	labAll   = os.Getenv("KITH_LAB") != ""
	labDir   = os.Getenv("KITH_LAB_DIR")
	labOnly  = os.Getenv("KITH_LAB_ONLY")  // policies, between commas
	labTry   = os.Getenv("KITH_LAB_TRY")   // instead of those: with parameters of their own, between semicolons
	labPause = os.Getenv("KITH_LAB_PAUSE") // between the twenty texts
)

const (
	labBridge1 = "192.0.0.132" // w2
	labBridge2 = "192.0.0.134" // w4: what the policy cidr still allows
	labDomain  = "allowed.example"

	// What a newcomer may need from cold to the first text that has arrived.
	labFirst       = 10 * time.Second
	labFirstFrozen = 20 * time.Second
	// What a stock transport gets until it counts as blocked.
	labStock = 12 * time.Second
)

// A goroutine that enters a namespace must not be on the main thread, which does
// not end with it: the lab kills whatever process it finds in a namespace.
func init() { runtime.LockOSThread() }

// lab is a censorship lab that runs.
type lab struct {
	t      testing.TB
	script string
	name   string
}

// newLab starts a lab, or skips the test where none can run.
func newLab(t testing.TB) *lab {
	t.Helper()
	dir := labDir
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "lab")
	}
	l := &lab{t: t, script: filepath.Join(dir, "lab.sh"), name: "k" + strconv.Itoa(os.Getpid()%10000)}
	if _, err := os.Stat(l.script); err != nil {
		t.Skip("there is no censorship lab beside this tree")
	}
	if os.Geteuid() != 0 {
		t.Skip("the censorship lab needs root")
	}
	for _, tool := range []string{"ip", "nft", "ethtool", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the censorship lab needs %s", tool)
		}
	}
	t.Cleanup(func() { l.run("down") })
	l.run("up")
	return l
}

// run runs one command of the lab.
func (l *lab) run(args ...string) string {
	l.t.Helper()
	cmd := exec.Command(l.script, args...)
	cmd.Env = append(os.Environ(), "LAB="+l.name)
	out, err := cmd.CombinedOutput()
	if err != nil {
		l.t.Fatalf("lab.sh %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// in runs a function in one of the lab's namespaces.
func (l *lab) in(ns string) func(func()) {
	return func(f func()) {
		l.t.Helper()
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked, so that the thread ends with the goroutine
			fd, err := unix.Open("/run/netns/"+l.name+"-"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Setns(fd, unix.CLONE_NEWNET)
				unix.Close(fd)
			}
			if err == nil {
				f()
			}
			done <- err
		}()
		if err := <-done; err != nil {
			l.t.Fatalf("enter %s: %v", ns, err)
		}
	}
}

// prober says what the censor's prober concluded in what the lab's log has held
// since it was so long.
func (l *lab) prober(since int) (acquitted int, convictions []string) {
	l.t.Helper()
	for line := range strings.Lines(l.run("log")[since:]) {
		var e struct{ Act, Why, Server string }
		if json.Unmarshal([]byte(line), &e) != nil {
			continue
		}
		switch e.Act {
		case "acquit":
			acquitted++
		case "convict":
			convictions = append(convictions, e.Server+": "+e.Why)
		}
	}
	return acquitted, convictions
}

// world is what stands outside the censored country.
type world struct {
	*network
	lab     *lab
	node    *home   // a community node with stock transports only
	nodes   []*home // those of natWorld
	bridges []*home
	inviter *home // knows the bridges and invites by them
	stock   *home // knows the community node and nothing else
	people  int
}

func newWorld(l *lab) *world {
	t := l.t
	t.Helper()
	w := &world{network: &network{t: t, dir: shortDir(t)}, lab: l}
	site := filepath.Join(w.dir, "site")
	if err := os.MkdirAll(site, 0o700); err != nil {
		t.Fatal(err)
	}
	page := "<!doctype html><title>Choir</title><h1>The choir</h1><p>We meet on Thursdays at eight." + strings.Repeat("<p>la la la", 50)
	if err := os.WriteFile(filepath.Join(site, "index.html"), []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(ns string, h *home) *home {
		t.Helper()
		w.enter = l.in(ns)
		h.up()
		w.enter = nil
		return h
	}
	w.node = start("w1", w.home("n", "--role", "community", "--listen", "/ip4/192.0.0.131/tcp/4040", "--listen", "/ip4/192.0.0.131/udp/4040/quic-v1"))
	bootstrap := w.node.ready.Listen[slices.IndexFunc(w.node.ready.Listen, func(a string) bool { return strings.Contains(a, "/tcp/") })]
	var addresses []string
	for i, at := range []struct{ ns, ip string }{{"w2", labBridge1}, {"w4", labBridge2}} {
		b := start(at.ns, w.home("b"+strconv.Itoa(i+1), "--role", "community", "--bridge", "--site", site, "--domain", labDomain,
			"--bridge-address", "/ip4/"+at.ip+"/tcp/443", "--bootstrap", bootstrap))
		w.bridges = append(w.bridges, b)
		var invite bridgeInviteJSON
		b.decode(&invite, "bridge", "invite", "--name", "ann")
		addresses = append(addresses, invite.Address)
	}
	listen := []string{"--listen", "/ip4/0.0.0.0/tcp/0", "--listen", "/ip4/0.0.0.0/udp/0/quic-v1", "--bootstrap", bootstrap}
	w.inviter = start("w3", w.home("i", append([]string{"--name", "ann"}, listen...)...))
	for _, a := range addresses {
		w.inviter.must("bridge", "add", a)
	}
	w.inviter.must("mode", "open") // it is not in the country
	w.stock = start("w3", w.home("s", append([]string{"--name", "sam"}, listen...)...))
	return w
}

// labResult is how one newcomer fared under one policy.
type labResult struct {
	first, texts, burst time.Duration // 0: it did not happen
	wrong               string        // "": nothing lost, doubled or out of order
}

func (r labResult) String() string {
	show := func(d time.Duration) string {
		if d == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	s := show(r.first) + "\t" + show(r.texts) + "\t" + show(r.burst)
	if r.wrong != "" {
		s += "\t" + r.wrong
	} else {
		s += "\tok"
	}
	return s
}

// labLimits are how long the parts of a newcomer's run may take.
type labLimits struct {
	first, texts, burst time.Duration
	pause               time.Duration // between the twenty texts
}

// newcomer starts a fresh home in the country, accepts an invite of from, and
// talks: a first text, twenty to and fro, and a megabyte at once.
func (w *world) newcomer(ns string, from *home, limits labLimits, args ...string) (r labResult) {
	t := w.t
	t.Helper()
	w.people++
	name := fmt.Sprintf("new%d", w.people)
	link := from.invite("--name", name)
	h := w.home(name, append([]string{"--name", name}, args...)...)
	defer h.kill()

	began := time.Now()
	w.enter = w.lab.in(ns)
	err := h.start()
	w.enter = nil
	if err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := h.cli("accept", link, "--name", "friend", "--timeout", limits.first.String()); code != exitOK && code != exitTimeout {
		r.wrong = strings.TrimSpace(stderr)
		return r
	}
	// On a slow line the keys may not have been found yet; a person tries again.
	if !w.within(limits.first-time.Since(began), func() bool {
		code, _, stderr := h.cli("send", "friend", "the first text")
		r.wrong = strings.TrimSpace(stderr)
		return code == exitOK
	}) {
		return r
	}
	r.wrong = ""
	// When it is there, not when its receipt is back: one that goes by mailboxes
	// is held back for up to half a minute, so that it tells nobody who fetched what.
	var contact string
	if !w.within(limits.first-time.Since(began), func() bool {
		if contact = newest(from, name); contact == "" {
			return false
		}
		got := from.read(contact)
		return len(got) > 0 && got[0].Text == "the first text"
	}) {
		return r
	}
	r.first = time.Since(began)
	want := []string{"the first text"}

	began = time.Now()
	for i := range 20 {
		text := fmt.Sprintf("text %d of twenty", i)
		want = append(want, text)
		if i%2 == 0 {
			h.must("send", "friend", text)
		} else {
			from.must("send", contact, text)
		}
		if limits.pause > 0 {
			time.Sleep(limits.pause)
		}
	}
	if !w.within(limits.texts, func() bool { return len(h.read("friend")) >= len(want) && len(from.read(contact)) >= len(want) }) {
		r.wrong = fmt.Sprintf("%d and %d of %d texts", len(h.read("friend")), len(from.read(contact)), len(want))
		return r
	}
	r.texts = time.Since(began)

	if limits.burst > 0 {
		began = time.Now()
		var burst bytes.Buffer
		for i := range 256 {
			text := fmt.Sprintf("burst %03d %s", i, strings.Repeat("x", 4086))
			want = append(want, text)
			fmt.Fprintln(&burst, text)
		}
		if code, _, stderr := cli(t, burst.String(), "--home", h.dir, "-q", "send", "friend", "--stdin"); code != exitOK {
			r.wrong = strings.TrimSpace(stderr)
			return r
		}
		if !w.within(limits.burst, func() bool { return len(from.read(contact)) >= len(want) }) {
			r.wrong = fmt.Sprintf("burst: %d of 256 texts", len(from.read(contact))-21)
			return r
		}
		r.burst = time.Since(began)
	}
	r.wrong = same("the newcomer", h.read("friend"), want)
	if r.wrong == "" {
		r.wrong = same("the inviter", from.read(contact), want)
	}
	return r
}

// newest returns the contact whose invite was for name, or "" if there is none yet.
func newest(from *home, name string) string {
	from.t.Helper()
	var list []contactJSON
	from.decode(&list, "contacts")
	if i := slices.IndexFunc(list, func(c contactJSON) bool { return c.Name == name }); i >= 0 {
		return list[i].ID
	}
	return ""
}

// within waits for something, and says whether it came in time.
func (w *world) within(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// same says what is wrong with a conversation: every text is there once, and
// those of a burst in their order.
func same(who string, got []messageJSON, want []string) string {
	count := map[string]int{}
	var burst []string
	for _, m := range got {
		count[m.Text]++
		if strings.HasPrefix(m.Text, "burst") {
			burst = append(burst, m.Text)
		}
	}
	for _, text := range want {
		if n := count[text]; n != 1 {
			return fmt.Sprintf("%s has %.20q %d times", who, text, n)
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("%s has %d messages, want %d", who, len(got), len(want))
	}
	if !slices.IsSorted(burst) {
		return who + " has the burst out of order"
	}
	return ""
}

// report runs one newcomer through a bridge and one over the stock transports
// under a policy, and writes a line of the table.
func (w *world) report(table *tabwriter.Writer, policy string, limits labLimits, passes bool) {
	w.t.Helper()
	before := len(w.lab.run("log"))
	w.lab.run(append([]string{"policy"}, strings.Fields(policy)...)...)
	r := w.newcomer("a", w.inviter, limits)
	acquitted, convictions := w.lab.prober(before)

	// Another censor, so that what it holds against the bridge's newcomer, or
	// the other way round, changes nothing.
	w.lab.run(append([]string{"policy"}, strings.Fields(policy)...)...)
	stock := w.newcomer("b", w.stock, labLimits{first: labStock, texts: labStock})
	fmt.Fprintf(table, "%s\t%v\t%d acquitted, %d convicted\t%v\n", policy, r, acquitted, len(convictions), stock)
	if passes && (r.first == 0 || r.texts == 0 || limits.burst > 0 && r.burst == 0 || r.wrong != "") {
		w.t.Errorf("%s: first %v, texts %v, burst %v: %s", policy, r.first, r.texts, r.burst, r.wrong)
	}
	if len(convictions) > 0 {
		w.t.Errorf("%s: the prober convicts: %q", policy, convictions)
	}
}

// newTable begins the table that the lab's tests print.
func newTable(out *bytes.Buffer) *tabwriter.Writer {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "policy\tfirst text\t20 texts\t1 MB\tresult\tprober\tstock: first\t20 texts\t\tresult")
	return table
}

// TestLab is the short form: a newcomer with one invite, under every filter at
// once. Among other tests a machine is busy, and the first text may take longer.
func TestLab(t *testing.T) {
	w := newWorld(newLab(t))
	var out bytes.Buffer
	table := newTable(&out)
	first := 3 * labFirst
	if labAll {
		first = labFirst
	}
	w.report(table, "fet+alpn+regex+probe-all+lat", labLimits{first: first, texts: 20 * time.Second, burst: 30 * time.Second}, true)
	table.Flush()
	t.Logf("\n%s", out.String())
}

// TestLab_Policies is the whole of it: every policy of the lab.
func TestLab_Policies(t *testing.T) {
	if !labAll {
		t.Skip("this takes an hour; make lab")
	}
	w := newWorld(newLab(t))
	var out bytes.Buffer
	table := newTable(&out)
	defer func() {
		table.Flush()
		t.Logf("\n%s", out.String())
	}()
	usual := labLimits{first: labFirst, texts: 3 * time.Minute, burst: 2 * time.Minute, pause: time.Second}
	if labPause != "" {
		pause, err := time.ParseDuration(labPause)
		if err != nil {
			t.Fatal(err)
		}
		usual.pause = pause
	}
	frozen := usual
	frozen.first, frozen.texts, frozen.pause, frozen.burst = labFirstFrozen, 4*time.Minute, max(usual.pause, 0)*6, 10*time.Minute
	slow := usual
	slow.burst = 5 * time.Minute
	all := slow // at once
	all.first = labFirstFrozen
	type row struct {
		name   string
		limits labLimits
		passes bool
	}
	policies := []row{
		{"none", usual, true},
		{"cut", usual, false},
		{"udp", usual, true},
		{"quic", usual, true},
		{"ip", usual, true},
		{"cidr", usual, true},
		{"regex", usual, true},
		{"sni", usual, true},
		{"sni-allow", usual, true},
		{"alpn", usual, true},
		{"fet", usual, true},
		{"go-tls", usual, true},
		{"pion", usual, true},
		{"old-chrome", usual, true},
		{"allowlist", usual, true},
		{"allowlist-any", usual, true},
		{"unknown", usual, true},
		{"freeze", frozen, true},
		{"probe-all", usual, true},
		{"slow", slow, true},
		{"lat", usual, true},
		{"loss", usual, true},
		{"fet+alpn+regex+probe-all+lat", usual, true},
		{"fet+alpn+regex+go-tls+old-chrome+sni-allow+allowlist+unknown+udp+probe-all+lat+loss", all, true},
		{"freeze+fet+alpn+regex+probe-all+lat", frozen, true},
		{"freeze freeze_pkts=14", frozen, true},
		{"freeze freeze_pkts=0 freeze_bytes=16000", frozen, true},
		{"none siberian=4 sib_window=5", usual, true},
	}
	if labTry != "" {
		policies = nil
		patient := all // a slower line than ours may take longer: the table says how long
		patient.first, patient.burst = time.Minute, 10*time.Minute
		for p := range strings.SplitSeq(labTry, ";") {
			policies = append(policies, row{strings.TrimSpace(p), patient, true})
		}
	}
	for _, p := range policies {
		if labOnly != "" && !slices.Contains(strings.Split(labOnly, ","), p.name) {
			continue
		}
		w.report(table, p.name, p.limits, p.passes)
	}
}

// TestLab_Blocked blocks one bridge and then the other in the middle of a
// conversation: with the one that is left it goes on within half a minute.
func TestLab_Blocked(t *testing.T) {
	if !labAll {
		t.Skip("make lab")
	}
	l := newLab(t)
	w := newWorld(l)
	const censor = "fet+alpn+regex+lat"
	l.run("policy", censor)
	link := w.inviter.invite("--name", "new")
	h := w.home("new", "--name", "new")
	defer h.kill()
	w.enter = l.in("a")
	err := h.start()
	w.enter = nil
	if err != nil {
		t.Fatal(err)
	}
	h.must("accept", link, "--name", "friend", "--timeout", "20s")
	h.must("send", "friend", "first", "--wait", "delivered", "--timeout", "60s")
	contact := newest(w.inviter, "new")
	want := []string{"first"}
	for _, ip := range []string{labBridge1, labBridge2} {
		l.run("policy", censor, fmt.Sprintf("block_ip=[%q]", ip))
		began := time.Now()
		h.must("send", "friend", "out past "+ip)
		w.inviter.must("send", contact, "in past "+ip)
		want = append(want, "out past "+ip, "in past "+ip)
		if !w.within(30*time.Second, func() bool { return len(w.inviter.read(contact)) == len(want) && len(h.read("friend")) == len(want) }) {
			t.Errorf("without %s: %d and %d of %d texts after half a minute", ip, len(w.inviter.read(contact)), len(h.read("friend")), len(want))
		}
		t.Logf("without %s: both ways after %.1f s", ip, time.Since(began).Seconds())
	}
	for _, wrong := range []string{same("the newcomer", h.read("friend"), want), same("the inviter", w.inviter.read(contact), want)} {
		if wrong != "" {
			t.Error(wrong)
		}
	}
}

// TestLab_Capture looks at everything that crossed the border while a newcomer in
// censored mode came and talked: only web traffic, only to what the invite named,
// with a browser's hello; and what must stay secret is in no log and in the
// memory of no node that has no business with it.
func TestLab_Capture(t *testing.T) {
	if !labAll {
		t.Skip("make lab")
	}
	l := newLab(t)
	w := newWorld(l)
	l.run("policy", "fet+alpn+regex+lat") // without the prober, whose packets are not ours
	file := filepath.Join(w.dir, "border.pcap")
	stop := l.capture(file)
	r := w.newcomer("a", w.inviter, labLimits{first: labFirst, texts: 20 * time.Second})
	stop()
	if r.wrong != "" || r.first == 0 {
		t.Fatalf("the newcomer: %v", r)
	}

	packets := readPcap(t, file)
	flows := map[string]int{}
	for _, p := range packets {
		if country.Contains(p.from) && !country.Contains(p.to) {
			flows[fmt.Sprintf("%s %s:%d", p.proto, p.to, p.port)]++
		}
	}
	for flow := range flows {
		if flow != "tcp "+labBridge1+":443" && flow != "tcp "+labBridge2+":443" {
			t.Errorf("the newcomer sent %d packets to %s, which the invite does not name so", flows[flow], flow)
		}
	}
	t.Logf("%d packets; from the country: %v", len(packets), flows)
	classify(t, file)

	var secrets []string
	for _, b := range w.bridges {
		var list []bridgeInviteJSON
		b.decode(&list, "bridge", "list")
		for _, i := range list {
			_, path, _ := strings.Cut(i.Address, "/http-path/")
			path, _, _ = strings.Cut(path, "/")
			secrets = append(secrets, path)
		}
	}
	if len(secrets) < 2 {
		t.Fatalf("%d secret paths", len(secrets))
	}
	for _, path := range remembers(t, w.node.cmd.Process.Pid, secrets) {
		t.Errorf("the community node's memory holds the secret path %s", path)
	}
	if found := remembers(t, w.bridges[0].cmd.Process.Pid, secrets); len(found) != 1 {
		t.Errorf("the bridge's own memory holds %d of its one path: this test sees nothing", len(found))
	}
	w.quiet(append(secrets, labBridge1, labBridge2, labDomain)...)
}

// capture records what crosses the border until stop is called.
func (l *lab) capture(file string) (stop func()) {
	l.t.Helper()
	if _, err := exec.LookPath("tcpdump"); err != nil {
		l.t.Skip("there is no tcpdump")
	}
	cmd := exec.Command("tcpdump", "-i", "in0", "-n", "-s0", "-U", "-w", file)
	var err error
	l.in("gfw")(func() { err = cmd.Start() })
	if err != nil {
		l.t.Fatal(err)
	}
	for deadline := time.Now().Add(e2eTime); ; time.Sleep(10 * time.Millisecond) {
		if info, err := os.Stat(file); err == nil && info.Size() > 0 {
			break // its header is written when it listens
		}
		if time.Now().After(deadline) {
			l.t.Fatal("tcpdump does not begin")
		}
	}
	return func() {
		l.t.Helper()
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			l.t.Fatal(err)
		}
		_ = cmd.Wait() // its exit code says how it was ended
	}
}

// country is the inside of the border.
var country = netip.MustParsePrefix("192.0.0.64/26")

// packet is one IPv4 packet of a capture.
type packet struct {
	from, to netip.Addr
	proto    string
	port     uint16 // of to
}

// readPcap reads the IPv4 packets of a capture of an Ethernet in libpcap's format.
func readPcap(t *testing.T, file string) (list []packet) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const header, record, ethernet = 24, 16, 14
	for b = b[header:]; len(b) > record; {
		n := int(binary.LittleEndian.Uint32(b[8:]))
		p := b[record:][:min(n, len(b)-record)]
		b = b[record+len(p):]
		if len(p) < ethernet+40 || p[12] != 8 || p[13] != 0 {
			continue
		}
		p = p[ethernet:]
		from, _ := netip.AddrFromSlice(p[12:16])
		to, _ := netip.AddrFromSlice(p[16:20])
		x := packet{from: from, to: to, proto: strconv.Itoa(int(p[9]))}
		switch p[9] {
		case unix.IPPROTO_TCP:
			x.proto = "tcp"
		case unix.IPPROTO_UDP:
			x.proto = "udp"
		}
		if head := int(p[0]&15) * 4; len(p) >= head+4 {
			x.port = binary.BigEndian.Uint16(p[head+2:])
		}
		list = append(list, x)
	}
	return list
}

// classify has the lab's own classifier and nDPI name every flow of a capture.
func classify(t *testing.T, file string) {
	t.Helper()
	bin := os.Getenv("LAB_BIN")
	if bin == "" {
		bin = filepath.Join(os.TempDir(), "kith-lab-bin")
	}
	out, err := exec.Command(filepath.Join(bin, "pclass"), file).Output()
	if err != nil {
		t.Fatalf("pclass: %v", err)
	}
	flows := 0
	hellos := map[string]int{}
	for line := range strings.Lines(string(out)) {
		if _, kind, ok := strings.Cut(line, " kind="); ok {
			flows++
			if !strings.HasPrefix(kind, "tls ") || !strings.Contains(kind, "plaintext-libp2p-packets=0 ") || strings.Contains(kind, "FET=BLOCKED") {
				t.Errorf("the lab's classifier: %s", line)
			}
		}
		if _, hello, ok := strings.Cut(line, "hello: "); ok {
			hellos[strings.TrimSpace(hello)]++
			if strings.Contains(hello, "_f57a46bbacb6_") {
				t.Errorf("a hello of Go: %s", hello)
			}
		}
	}
	t.Logf("%d flows; %v", flows, hellos)
	if flows == 0 {
		t.Error("the lab's classifier sees no flow")
	}
	if _, err := exec.LookPath("ndpiReader"); err != nil {
		t.Log("there is no ndpiReader")
		return
	}
	report := file + ".csv"
	if out, err := exec.Command("ndpiReader", "-q", "-C", report, "-i", file).CombinedOutput(); err != nil {
		t.Fatalf("ndpiReader: %v\n%s", err, out)
	}
	b, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	head, rows, _ := strings.Cut(string(b), "\n")
	column := slices.Index(strings.Split(head, ","), "ndpi_proto")
	if column < 0 {
		t.Fatalf("nDPI's table has other columns: %s", head)
	}
	named := map[string]int{}
	for row := range strings.Lines(rows) {
		if f := strings.Split(row, ","); len(f) > column {
			named[f[column]]++
		}
	}
	t.Logf("nDPI: %v", named)
	if named["TLS"] == 0 || len(named) > 1 {
		t.Errorf("nDPI names the flows %v, want TLS alone", named)
	}
}

// remembers returns which needles are in the writable memory of a process.
func remembers(t *testing.T, pid int, needles []string) (found []string) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	read := 0
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		b := make([]byte, to-from)
		n, err := mem.ReadAt(b, from)
		if err != nil {
			continue // a page that is only reserved
		}
		read += n
		for _, needle := range needles {
			if bytes.Contains(b, []byte(needle)) && !slices.Contains(found, needle) {
				found = append(found, needle)
			}
		}
	}
	if read < 1<<20 {
		t.Errorf("only %d bytes of the process could be read", read)
	}
	return found
}
