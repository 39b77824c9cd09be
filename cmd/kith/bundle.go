package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/protocol/bundle"
)

func (k *kith) bundleCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "bundle",
		Short: "Carry messages by hand: on a stick, in any file, on paper",
		Long: `Where there is no network, what waits to leave is put into a file that somebody
takes along. The file looks like noise and says neither whom it is from nor whom it
is for; its size is one of a few. Nothing counts as delivered before its receipt is
here, by whatever way, so files may be lost, copied, read twice or come late.

Two people who never had a network meet so: one runs kith invite and kith bundle
export FILE, and hands over the link and the file; the other runs kith accept LINK,
kith bundle import FILE, writes, and sends a bundle back.`,
	}
	c.AddCommand(k.bundleExportCmd(), k.bundleImportCmd(), k.bundleInspectCmd(), k.bundleSpoolCmd())
	return group(c)
}

type bundleFileJSON struct {
	Path      string `json:"path"`
	Bytes     int64  `json:"bytes"`
	Envelopes int32  `json:"envelopes"`
	Messages  int32  `json:"messages"`
	Contacts  int32  `json:"contacts"`
	Invites   int32  `json:"invites"`
	Carried   int32  `json:"carried"`
	Text      string `json:"text,omitempty"`
}

type bundleExportJSON struct {
	Files   []bundleFileJSON `json:"files"`
	LeftOut int32            `json:"left_out"`
}

func (k *kith) bundleExportCmd() *cobra.Command {
	var req apiv1.ExportBundleRequest
	var size string
	var qrCode bool
	c := &cobra.Command{
		Use:   "export [--for CONTACT]... [--invite ID]... [--size SIZE] [--new] FILE|DIR | --text [--qr] [FILE]",
		Short: "Put what waits to leave into a file",
		Long: `Put what waits to leave, for all contacts or for those named, into a file: a new FILE,
or one with a name of no meaning in the folder DIR. Without --for and --invite the
keys of all open invites go along, and what is carried for others.

What does not fit into one file of --size becomes several, and each can be read
alone. If a stick is full, what is written stays good: go on on the next stick
with --new, which leaves out what was put into a file before.

--text writes short messages as letters for paper instead, and --qr as QR codes.`,
	}
	f := c.Flags()
	f.StringArrayVar(&req.Contacts, "for", nil, "only what is for this `CONTACT` (repeatable)")
	f.StringArrayVar(&req.Invites, "invite", nil, "the keys of this open invite, by its `ID` (repeatable)")
	f.StringVar(&size, "size", "64MiB", "the `SIZE` of the largest file; at least 256KiB")
	f.BoolVar(&req.Fresh, "new", false, "only what was not put into a file before")
	f.BoolVar(&req.Text, "text", false, "letters for paper, one block for each message")
	f.BoolVar(&qrCode, "qr", false, "with --text: a QR code for each message")
	return k.command(c, 0, 1, func(ctx context.Context, args []string) error {
		var err error
		if req.Size, err = parseSize("--size", "64MiB", size); err != nil {
			return err
		}
		switch {
		case qrCode && !req.Text:
			return usagef("add --text", "only the letters of --text fit into QR codes")
		case len(args) == 0 && !req.Text:
			return usagef("name one: kith bundle export FILE", "there is no file or folder to write to")
		case len(args) == 0:
			args = []string{"-"}
		case args[0] == "":
			return usagef("name one: kith bundle export FILE", "the name of the file is empty")
		case args[0] == "-" && !req.Text:
			return usagef("name a file, or write letters with --text", "a file of noise cannot be shown")
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		out := &bundleExport{client: client, text: req.Text}
		if out.to, err = newBundleTarget(args[0]); err != nil {
			return err
		}
		err = client.ExportBundle(ctx, &req, func(p *apiv1.ExportBundleResponse) error { return out.piece(ctx, p) })
		if err = out.close(ctx, err); err != nil {
			return out.explain(err)
		}
		k.print(out.result, func(w io.Writer) { err = k.showExport(w, out, qrCode) })
		return err
	})
}

// showExport says what was written, and writes letters that are for the screen.
func (k *kith) showExport(w io.Writer, out *bundleExport, qrCode bool) error {
	onScreen := out.text && out.to.dir == "" && out.to.file == ""
	for i, f := range out.result.Files {
		switch {
		case onScreen && qrCode:
			picture, err := halfBlocks(f.Text)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "%s\n", picture)
		case onScreen:
			fmt.Fprintf(w, "%s\n", letters(f.Text))
		case out.text:
			if i == len(out.result.Files)-1 {
				fmt.Fprintf(w, "%s: %s for paper\n", clean(f.Path), plural(len(out.result.Files), "message"))
			}
		default:
			fmt.Fprintf(w, "%s: %s, with %s\n", clean(f.Path), size(f.Bytes), contents(f))
		}
	}
	if n := out.result.LeftOut; n > 0 {
		k.notef("%s too long for paper; put %s into a file: kith bundle export%s FILE", were(int(n), "message"), map[bool]string{true: "it", false: "them"}[n == 1], k.at())
	}
	return nil
}

// contents says what a file holds.
func contents(f bundleFileJSON) string {
	var all []string
	add := func(n int32, thing, more string) {
		if n > 0 {
			all = append(all, plural(int(n), thing)+more)
		}
	}
	add(f.Messages, "message", "")
	add(f.Envelopes-f.Messages, "note", " such as receipts")
	add(f.Invites, "invite", "")
	add(f.Carried, "part", " for others")
	return strings.Join(all, ", ")
}

// letters breaks a text for paper into lines.
func letters(text string) string {
	var lines []string
	for line := range slices.Chunk([]byte(text), 60) {
		lines = append(lines, string(line))
	}
	return strings.Join(lines, "\n") + "\n"
}

// bundleTarget is where files go: the screen, if it is zero.
type bundleTarget struct {
	dir  string // a folder: each file gets a name of no meaning
	file string // the first file, after which the others are named
}

func newBundleTarget(arg string) (t bundleTarget, err error) {
	if arg == "-" {
		return t, nil
	}
	switch info, err := os.Stat(arg); {
	case err == nil && info.IsDir():
		return bundleTarget{dir: arg}, nil
	case err == nil:
		return t, &api.Error{Code: api.CodeRefused, Message: fmt.Sprintf("%q is there already", clean(arg)), Hint: "choose another name, or remove it first"}
	case !errors.Is(err, fs.ErrNotExist):
		return t, explainFile(err)
	}
	if info, err := os.Stat(filepath.Dir(arg)); err != nil || !info.IsDir() {
		return t, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no folder %q", clean(filepath.Dir(arg))), Hint: "is the stick there?"}
	}
	return bundleTarget{file: arg}, nil
}

// path is where file number i, from 0, goes.
func (t bundleTarget) path(i int) string {
	switch {
	case t.dir != "":
		return filepath.Join(t.dir, strings.ToLower(rand.Text()[:12]))
	case i == 0:
		return t.file
	}
	return fmt.Sprintf("%s.%d", t.file, i+1)
}

// draft is where a file is written before it is whole. There is one at a time,
// and what a crash left of one is written over.
func (t bundleTarget) draft() string {
	if t.dir != "" {
		return filepath.Join(t.dir, ".tmp")
	}
	return t.file + ".tmp"
}

// bundleExport writes what the daemon sends, one file after the other. A file has
// its name only once all of it is on the disk.
type bundleExport struct {
	client *api.Client
	to     bundleTarget
	text   bool
	result bundleExportJSON

	file    *os.File
	data    []byte // of a text
	entries []int64
}

func (b *bundleExport) piece(ctx context.Context, p *apiv1.ExportBundleResponse) error {
	b.result.LeftOut += p.GetLeftOut()
	b.entries = append(b.entries, p.GetEntries()...)
	if b.text {
		b.data = append(b.data, p.GetData()...)
	} else if len(p.GetData()) > 0 {
		if err := b.write(p.GetData()); err != nil {
			return err
		}
	}
	if p.GetFile() == nil {
		return nil
	}
	f := p.GetFile()
	out := bundleFileJSON{
		Bytes: f.GetBytes(), Envelopes: f.GetEnvelopes(), Messages: f.GetMessages(),
		Contacts: f.GetContacts(), Invites: f.GetInvites(), Carried: f.GetCarried(),
	}
	if b.text {
		out.Text, b.data = string(b.data), nil
		b.result.Files = append(b.result.Files, out)
		return nil // noted once all are written
	}
	out.Path = b.to.path(len(b.result.Files))
	if err := b.finish(out.Path); err != nil {
		return err
	}
	b.result.Files = append(b.result.Files, out)
	return b.note(ctx)
}

func (b *bundleExport) write(data []byte) (err error) {
	if b.file == nil {
		if err := os.Remove(b.to.draft()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if b.file, err = os.OpenFile(b.to.draft(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return err
		}
	}
	_, err = b.file.Write(data)
	return err
}

// finish gives the draft its name, once it is on the disk.
func (b *bundleExport) finish(path string) error {
	err := b.file.Sync()
	err = errors.Join(err, b.file.Close())
	b.file = nil
	if err == nil {
		err = os.Rename(b.to.draft(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(b.to.draft()))
	}
	if folder, err := os.Open(filepath.Dir(path)); err == nil { // not every file system can sync a folder
		_ = folder.Sync()
		folder.Close()
	}
	return nil
}

// note tells the daemon that what it sent is where it is to be.
func (b *bundleExport) note(ctx context.Context) error {
	for ids := range slices.Chunk(b.entries, api.MaxBundleEntries) {
		if _, err := b.client.NoteBundle(ctx, &apiv1.NoteBundleRequest{Entries: ids}); err != nil {
			return err
		}
	}
	b.entries = nil
	return nil
}

// close ends an export: it removes what is not whole, or writes the letters.
func (b *bundleExport) close(ctx context.Context, err error) error {
	if b.file != nil {
		b.file.Close()
		_ = os.Remove(b.to.draft())
	}
	if err != nil || !b.text {
		return err
	}
	if b.to.file != "" || b.to.dir != "" {
		path := b.to.path(0)
		var all []string
		for i := range b.result.Files {
			all = append(all, letters(b.result.Files[i].Text))
			b.result.Files[i].Path = path
		}
		if err := b.write([]byte(strings.Join(all, "\n"))); err != nil {
			return b.close(ctx, err)
		}
		if err := b.finish(path); err != nil {
			return err
		}
	}
	return b.note(ctx)
}

// explain says what a failed export left.
func (b *bundleExport) explain(err error) error {
	e := explainFile(err)
	var shown *api.Error
	if n := len(b.result.Files); n > 0 && !b.text && errors.As(e, &shown) {
		return &api.Error{
			Code: shown.Code, Message: fmt.Sprintf("%s, after %s were written that are whole", shown.Message, plural(n, "file")),
			Hint: "go on elsewhere with: kith bundle export --new FILE",
		}
	}
	return e
}

// explainFile says what is wrong with a file or its disk.
func explainFile(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	var name string
	switch {
	case errors.As(err, &path):
		name = fmt.Sprintf("%q", clean(path.Path))
	case errors.As(err, &link):
		name = fmt.Sprintf("%q", clean(link.New))
	default:
		return err
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return &api.Error{Code: api.CodeQuota, Message: "the disk or stick is full", Hint: "free some space, or choose a smaller --size"}
	case errors.Is(err, syscall.EROFS):
		return &api.Error{Code: api.CodeRefused, Message: "the disk or stick cannot be written to", Hint: "look for its write-protection switch, or choose another"}
	case errors.Is(err, fs.ErrPermission):
		return &api.Error{Code: api.CodeRefused, Message: "you may not open " + name, Hint: "choose another place, or change its permissions"}
	case errors.Is(err, fs.ErrNotExist):
		return &api.Error{Code: api.CodeNotFound, Message: "there is no " + name, Hint: "check the name; is the stick there?"}
	}
	return &api.Error{Code: api.CodeRefused, Message: "the disk or stick failed at " + name, Hint: "try again, or use another"}
}

type bundleImportJSON struct {
	Path      string             `json:"path"`
	Bytes     int64              `json:"bytes"`
	Text      bool               `json:"text"`
	Parts     int32              `json:"parts"`
	Ours      int32              `json:"ours"`
	Own       int32              `json:"own"`
	Damaged   int32              `json:"damaged"`
	Foreign   int32              `json:"foreign"`
	Kept      int32              `json:"kept"`
	Full      bool               `json:"full"`
	Envelopes int32              `json:"envelopes"`
	New       int32              `json:"new"`
	Messages  int32              `json:"messages"`
	Waiting   int32              `json:"waiting"`
	Invites   int32              `json:"invites"`
	From      []bundleSenderJSON `json:"from"`
	LeftOut   string             `json:"left_out,omitempty"` // why, if it was
}

type bundleSenderJSON struct {
	Contact   string `json:"contact"`
	Name      string `json:"name"`
	Envelopes int32  `json:"envelopes"`
}

func toBundleImport(path string, r *apiv1.ImportBundleResponse) bundleImportJSON {
	out := bundleImportJSON{
		Path: path, Bytes: r.GetBytes(), Text: r.GetText(), Parts: r.GetParts(), Ours: r.GetOurs(), Own: r.GetOwn(), Damaged: r.GetDamaged(),
		Foreign: r.GetForeign(), Kept: r.GetKept(), Full: r.GetFull(), Envelopes: r.GetEnvelopes(), New: r.GetFresh(), Messages: r.GetMessages(),
		Waiting: r.GetWaiting(), Invites: r.GetInvites(), From: []bundleSenderJSON{},
	}
	for _, s := range r.GetFrom() {
		out.From = append(out.From, bundleSenderJSON{s.GetContact(), s.GetName(), s.GetEnvelopes()})
	}
	return out
}

func (k *kith) bundleImportCmd() *cobra.Command {
	var carry bool
	c := &cobra.Command{
		Use:   "import [--carry] FILE|DIR|-",
		Short: "Read a bundle, or the letters of one on paper",
		Long: `Read a bundle, or every bundle in the folder DIR, or from the standard input. It may
be damaged, cut short or read before: what is whole and new is received, and nothing
twice. The file stays where it is. Receipts leave by whatever way there is, the next
bundle among them.

--carry keeps what is for others, as far as there is room, for 30 days, and puts it
into the bundles that are made for all. Nobody can see whom it is for.`,
	}
	c.Flags().BoolVar(&carry, "carry", false, "keep what is for others and carry it on")
	return k.command(c, 1, 1, func(ctx context.Context, args []string) error {
		return k.readBundles(ctx, args[0], &apiv1.ImportBundleRequest{Carry: carry}, k.writeImport)
	})
}

func (k *kith) bundleInspectCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "inspect FILE|-",
		Short: "Say what a bundle holds, as far as this account can know, and receive nothing",
	}, 1, 1, func(ctx context.Context, args []string) error {
		return k.readBundles(ctx, args[0], &apiv1.ImportBundleRequest{Inspect: true}, writeInspection)
	})
}

// readBundles reads a file, or all in a folder that may be bundles.
func (k *kith) readBundles(ctx context.Context, arg string, req *apiv1.ImportBundleRequest, human func(io.Writer, bundleImportJSON)) error {
	client, err := k.dial()
	if err != nil {
		return err
	}
	show := func(path string, r *apiv1.ImportBundleResponse) {
		v := toBundleImport(path, r)
		k.print(v, func(w io.Writer) {
			if path != arg {
				fmt.Fprintf(w, "%s: ", clean(path))
			}
			human(w, v)
		})
	}
	if arg == "-" {
		r, err := importBundle(ctx, client, k.stdin, req)
		if err != nil {
			return explainFile(err)
		}
		show(arg, r)
		return nil
	}
	info, err := os.Stat(arg)
	if err != nil {
		return explainFile(err)
	}
	if !info.IsDir() {
		r, err := importFile(ctx, client, arg, req)
		if err != nil {
			return explainFile(err)
		}
		show(arg, r)
		return nil
	}
	return k.readFolder(ctx, client, arg, req, show)
}

// readFolder reads the bundles of a folder, and says what it leaves out: a bundle that
// was cut short looks like any other file.
func (k *kith) readFolder(ctx context.Context, client *api.Client, dir string, req *apiv1.ImportBundleRequest, show func(string, *apiv1.ImportBundleResponse)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return explainFile(err)
	}
	leaveOut := func(path string, size int64, why string) {
		if k.json {
			writeJSON(k.stdout, bundleImportJSON{Path: path, Bytes: size, From: []bundleSenderJSON{}, LeftOut: why})
		}
	}
	found, others, other := 0, 0, ""
	var first error
	var failed []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if !bundle.IsSize(info.Size()) {
			if others++; others == 1 {
				other = path
			}
			leaveOut(path, info.Size(), "it has not the size of a bundle")
			continue
		}
		r, err := importFile(ctx, client, path, req)
		switch {
		case err == nil:
			found++
			show(path, r)
		case ctx.Err() != nil, !passable(err):
			return explainFile(err)
		default:
			why := k.explain(explainFile(err))
			leaveOut(path, info.Size(), why.Message)
			failed = append(failed, path+": "+why.Message+prefixed("; ", why.Hint))
			if first == nil {
				first = err
			}
		}
	}
	if found == 0 && first != nil {
		return explainFile(first)
	}
	for _, f := range failed {
		k.notef("%s", clean(f))
	}
	const byName = "name a file if it was cut short or is on paper: kith bundle import FILE"
	switch {
	case found == 0:
		return &api.Error{Code: api.CodeNotFound, Message: "there is no bundle in this folder", Hint: byName}
	case others == 1:
		k.notef("%s was left out, as it has not the size of a bundle; %s", clean(other), k.here(byName))
	case others > 1:
		k.notef("%s and %s more were left out, as they have not the size of a bundle; %s", clean(other), plural(others-1, "file"), k.here(byName))
	}
	return nil
}

// passable says whether an error belongs to one file of a folder, and the others
// may be read all the same.
func passable(err error) bool {
	var e *api.Error
	var path *fs.PathError
	if errors.As(err, &path) {
		return true
	}
	return errors.As(err, &e) && (e.Code == api.CodeNotFound || e.Code == api.CodeRefused || e.Code == api.CodeUsage || e.Code == api.CodeQuota)
}

func importFile(ctx context.Context, client *api.Client, path string, req *apiv1.ImportBundleRequest) (*apiv1.ImportBundleResponse, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return importBundle(ctx, client, f, req)
}

// importBundle hands r's bytes to the daemon.
func importBundle(ctx context.Context, client *api.Client, r io.Reader, req *apiv1.ImportBundleRequest) (*apiv1.ImportBundleResponse, error) {
	first := true
	buf := make([]byte, api.MaxBundleData)
	return client.ImportBundle(ctx, func() (*apiv1.ImportBundleRequest, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := io.ReadFull(r, buf)
		if n == 0 && !first {
			if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
				err = io.EOF
			}
			return nil, err
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		piece := &apiv1.ImportBundleRequest{Data: buf[:n]}
		if first {
			piece.Carry, piece.Inspect, first = req.GetCarry(), req.GetInspect(), false
		}
		return piece, nil
	})
}

// writeImport says what came of an import.
func (k *kith) writeImport(w io.Writer, r bundleImportJSON) {
	var who []string
	for _, s := range r.From {
		if s.Name == "" {
			s.Name = "somebody who answers an invite"
		}
		who = append(who, clean(s.Name))
	}
	from := strings.Join(who, ", ")
	switch {
	case r.Messages > 0:
		fmt.Fprintf(w, "%s from %s.\n", plural(int(r.Messages), "new message"), from)
	case r.New > 0:
		fmt.Fprintf(w, "No new messages; %s from %s.\n", plural(int(r.New), "note")+" such as receipts", from)
	case r.Envelopes > 0 && r.Waiting == 0:
		fmt.Fprintf(w, "Nothing new: what is in it from %s was here before.\n", from)
	case r.Invites == 0 && r.Kept == 0 && r.Ours == 0:
		fmt.Fprintln(w, "Nothing new.")
	}
	if r.Invites > 0 {
		fmt.Fprintln(w, k.here("The keys that belong to an invite are here: you can write. See: kith contacts"))
	}
	if r.Waiting > 0 {
		fmt.Fprintf(w, "%s could not be taken now; import the file again in a while.\n", plural(int(r.Waiting), "message"))
	}
	if r.Damaged > 0 {
		fmt.Fprintf(w, "%s damaged; ask for another copy.\n", were(int(r.Damaged), "part"))
	}
	if r.Kept > 0 {
		fmt.Fprintf(w, "%s for others kept, to be carried on with: kith bundle export%s FILE\n", were(int(r.Kept), "part"), k.at())
	}
	if r.Full {
		fmt.Fprintln(w, "There was no room to keep all that is for others.")
	}
}

// writeInspection says what a bundle holds.
func writeInspection(w io.Writer, r bundleImportJSON) {
	parts := func(n int32) string {
		switch {
		case !r.Text:
			return plural(int(n), "part")
		case n == 1:
			return "1 block of letters"
		}
		return fmt.Sprintf("%d blocks of letters", n)
	}
	fmt.Fprintf(w, "%s, %s.\n", size(r.Bytes), parts(r.Parts))
	for _, s := range r.From {
		if s.Name == "" {
			s.Name = "somebody who answers an invite of yours"
		}
		fmt.Fprintf(w, "  for you, from %s: %s\n", clean(s.Name), plural(int(s.Envelopes), "envelope"))
	}
	if r.Invites > 0 {
		fmt.Fprintf(w, "  for you: the keys of %s\n", plural(int(r.Invites), "invite"))
	}
	for _, row := range []struct {
		n    int32
		text string
	}{
		{r.Own, "made here, for others"},
		{r.Damaged, "damaged"},
		{r.Foreign, "for others, or nothing: nobody but they can tell"},
	} {
		if row.n > 0 {
			fmt.Fprintf(w, "  %s: %s\n", row.text, parts(row.n))
		}
	}
}
