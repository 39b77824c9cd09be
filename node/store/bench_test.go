package store

import (
	"context"
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
