package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/protocol/bundle"
)

const (
	// spoolEvery is how often a spool folder is looked at. A file is read when
	// it has looked the same twice: whoever copies it there has finished.
	spoolEvery = 5 * time.Second

	// spoolFile keeps, in the data directory, which files in which folders are
	// ours: only those are ever removed.
	spoolFile = "spool.json"
)

func (k *kith) bundleSpoolCmd() *cobra.Command {
	var req apiv1.ExportBundleRequest
	var maxFile string
	var carry, once bool
	c := &cobra.Command{
		Use:   "spool [--size SIZE] [--carry] [--once] DIR",
		Short: "Exchange bundles through a folder, until interrupted",
		Long: `Watch a folder that others put bundles into as well: a stick that goes round, or a
folder that something copies. New bundles in it are read, and what waits here stands
in it as files that are replaced when there is more. Files of others are never
touched. If the folder goes away, with the stick, kith waits until it is back.

--once looks once and ends, for a timer or a script. --carry keeps what is for others
and puts it into the next folder.`,
	}
	f := c.Flags()
	f.StringVar(&maxFile, "size", "64MiB", "the `SIZE` of the largest file; at least 256KiB")
	f.BoolVar(&carry, "carry", false, "keep what is for others and carry it on")
	f.BoolVar(&once, "once", false, "look once and end")
	return k.command(c, 1, 1, func(ctx context.Context, args []string) error {
		var err error
		if req.Size, err = parseSize("--size", "64MiB", maxFile); err != nil {
			return err
		}
		dir, err := filepath.Abs(args[0])
		if err != nil {
			return explainFile(err)
		}
		if info, err := os.Stat(dir); err != nil {
			return explainFile(err)
		} else if !info.IsDir() {
			return usagef("name a folder", "%q is no folder", clean(args[0]))
		}
		p, err := k.paths()
		if err != nil {
			return err
		}
		s := &spool{k: k, dir: dir, req: &req, carry: carry, once: once, book: filepath.Join(p.Data, spoolFile), seen: make(map[string]stamp), idle: -1}
		if s.client, err = k.dial(); err != nil {
			return err
		}
		if once {
			return s.look(ctx)
		}
		tick := time.NewTicker(spoolEvery)
		defer tick.Stop()
		for {
			if err := s.look(ctx); err != nil && ctx.Err() == nil && !s.passing(err) {
				return err
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// spool is a folder being watched.
type spool struct {
	k      *kith
	client *api.Client
	dir    string
	req    *apiv1.ExportBundleRequest
	carry  bool
	once   bool
	book   string

	seen   map[string]stamp // files by name, as they were last time
	idle   int              // how many files of ours were there when nothing waited; -1: something did
	reason string           // why it could not be, the last time
}

// stamp is how a file looks from outside.
type stamp struct {
	size int64
	time time.Time
	read bool
}

// passing says whether an error is one that time mends: a stick that is not
// there, or full, or a daemon that is being restarted.
func (s *spool) passing(err error) bool {
	var e *api.Error
	if !errors.As(err, &e) || e.Code == api.CodeUsage {
		return false
	}
	if s.reason != e.Message {
		s.reason = e.Message
		s.k.notef("%s; trying again", clean(e.Message))
	}
	return true
}

// look reads what is new and writes what is to leave.
func (s *spool) look(ctx context.Context) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return explainFile(err)
	}
	last, err := s.last()
	if err != nil {
		return err
	}
	there := 0
	now := make(map[string]stamp)
	for _, e := range entries {
		if slices.Contains(last.Files, e.Name()) {
			there++
			continue
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || !bundle.IsSize(info.Size()) {
			continue
		}
		at := stamp{size: info.Size(), time: info.ModTime()}
		before, known := s.seen[e.Name()]
		same := known && before.size == at.size && before.time.Equal(at.time)
		if at.read = same && before.read; !at.read && (same || s.once) {
			if err := s.read(ctx, filepath.Join(s.dir, e.Name())); err != nil {
				return err
			}
			at.read = true
		}
		now[e.Name()] = at
	}
	s.seen = now
	mark, err := s.client.MarkBundle(ctx, &apiv1.MarkBundleRequest{})
	// Files of ours that somebody took away are written again, if anything waits.
	if err != nil || mark.GetMark() == last.Mark && (there == len(last.Files) || there == s.idle) {
		return err
	}
	s.idle = -1
	return s.write(ctx, last.Files, mark.GetMark(), there)
}

// read imports one file. Most are for others, and some are no bundles.
func (s *spool) read(ctx context.Context, path string) error {
	r, err := importFile(ctx, s.client, path, &apiv1.ImportBundleRequest{Carry: s.carry})
	switch {
	case err != nil && ctx.Err() == nil && passable(err):
		return nil
	case err != nil:
		return explainFile(err)
	}
	if r.GetFresh() == 0 && r.GetInvites() == 0 && r.GetKept() == 0 {
		return nil
	}
	v := toBundleImport(path, r)
	s.k.print(v, func(w io.Writer) {
		fmt.Fprintf(w, "%s: ", clean(path))
		s.k.writeImport(w, v)
	})
	return nil
}

// write puts everything that waits into new files, and removes those before.
func (s *spool) write(ctx context.Context, before []string, mark string, there int) error {
	out := &bundleExport{client: s.client, to: bundleTarget{dir: s.dir}}
	err := s.client.ExportBundle(ctx, s.req, func(p *apiv1.ExportBundleResponse) error { return out.piece(ctx, p) })
	err = out.close(ctx, err)
	var refused *api.Error
	if errors.As(err, &refused) && refused.Code == api.CodeRefused && len(out.result.Files) == 0 {
		s.idle = there
		return s.note(spooled{before, mark}) // nothing waits; what is there of ours stays until something does
	}
	var now []string
	for _, f := range out.result.Files {
		now = append(now, filepath.Base(f.Path))
	}
	if bookErr := s.note(spooled{slices.Concat(before, now), ""}); bookErr != nil {
		return bookErr
	}
	if err != nil {
		return explainFile(err)
	}
	for _, name := range before {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return explainFile(err)
		}
	}
	s.reason = ""
	if len(now) > 0 {
		s.k.print(out.result, func(w io.Writer) { _ = s.k.showExport(w, out, false) })
	}
	return s.note(spooled{now, mark})
}

// spooled is what we wrote into a folder.
type spooled struct {
	Files []string // names
	Mark  string   // of the daemon, when they were written
}

// last is what we wrote into the folder the last time.
func (s *spool) last() (spooled, error) {
	all, err := s.load()
	return all[s.dir], err
}

func (s *spool) load() (all map[string]spooled, err error) {
	b, err := os.ReadFile(s.book)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]spooled{}, nil
	}
	if err != nil {
		return nil, explainFile(err)
	}
	if json.Unmarshal(b, &all) != nil || all == nil {
		all = map[string]spooled{} // whatever it was: it names no files of ours
	}
	return all, nil
}

// note keeps what of the folder is ours.
func (s *spool) note(now spooled) error {
	all, err := s.load()
	if err != nil {
		return err
	}
	all[s.dir] = now
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	tmp := s.book + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return explainFile(err)
	}
	if err := os.Rename(tmp, s.book); err != nil {
		return explainFile(err)
	}
	return nil
}
