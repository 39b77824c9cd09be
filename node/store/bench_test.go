package store

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"testing"
)

// The engine beside its floor, SQLite's own files in the clear, in one run:
// go test -run - -bench . ./node/store/
func BenchmarkUpdate(b *testing.B) {
	for _, files := range []string{"encrypted", "plain"} {
		e := testEngine()
		e.plain = files == "plain"
		b.Run(files+"/single", func(b *testing.B) {
			s := openTest(b, b.TempDir(), e)
			id := int64(0)
			for b.Loop() {
				id++
				if err := s.Update(context.Background(), func(tx *Tx) error { return put(tx, id, body600) }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
		})
		b.Run(files+"/group", func(b *testing.B) {
			s := openTest(b, b.TempDir(), e)
			var id atomic.Int64
			var wg sync.WaitGroup
			for range maxGroup {
				wg.Go(func() {
					for n := id.Add(1); n <= int64(b.N); n = id.Add(1) {
						if err := s.Update(context.Background(), func(tx *Tx) error { return put(tx, n, body600) }); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
		})
	}
}

// body600 is about what a message row holds.
var body600 = bodyOf(1)[:min(600, len(bodyOf(1)))]

// A page of 50 from a history of 20,000, alone and beside a busy writer.
func BenchmarkView(b *testing.B) {
	s := openTest(b, b.TempDir(), testEngine())
	for id := int64(0); id < 20_000; {
		err := s.Update(context.Background(), func(tx *Tx) error {
			for range 1000 {
				id++
				if err := put(tx, id, body600); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	page := func(b *testing.B) {
		for b.Loop() {
			err := s.View(context.Background(), func(tx *Tx) error {
				for r, err := range tx.query(`SELECT id, body FROM items ORDER BY id DESC LIMIT 50`) {
					if err != nil {
						return err
					}
					var id int64
					var body []byte
					if err := r.scan(&id, &body); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("idle", page)
	b.Run("writing", func(b *testing.B) {
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		id := int64(1 << 40)
		wg.Go(func() {
			for s.Update(ctx, func(tx *Tx) error { id++; return put(tx, id, body600) }) == nil {
			}
		})
		page(b)
		stop()
		wg.Wait()
	})
}

// What a daemon commits while a sender streams: 256 texts in one update, each a
// message under a random id with its delivery and its envelope of 1 KiB.
func BenchmarkTexts(b *testing.B) {
	const texts = 256
	e := testEngine()
	e.schema = migrations
	s := openTest(b, b.TempDir(), e)
	err := s.Update(context.Background(), func(tx *Tx) error {
		_, err := tx.exec(`INSERT INTO contacts (id, handle, name, profile, state, blocked, verified, added) VALUES (1, 'h', 'n', '', 1, 0, 0, 0)`)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	author, seq := bodyOf(1)[:32], uint64(0)
	for b.Loop() {
		err := s.Update(context.Background(), func(tx *Tx) error {
			for range texts {
				seq++
				id := make([]byte, 32)
				rand.Read(id)
				m := MessageRow{ID: id, Contact: 1, Author: author, Mine: true, Seq: seq, Depth: seq, Wire: body600[:250]}
				if _, err := tx.AddMessage(&m); err != nil {
					return err
				}
				d := DeliveryRow{Device: author, Contact: 1, Envelope: make([]byte, 1024)}
				if err := tx.AddDelivery(d, m.N); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(texts*b.N)/b.Elapsed().Seconds(), "texts/s")
}
