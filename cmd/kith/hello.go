package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
	"github.com/kith-im/kith/node/transport"
)

const (
	// helloFile is where a browser's hello is kept, in the data folder.
	helloFile = "browser.hello"
	// helloWait is how long a browser that connected has to send its hello.
	helloWait = 10 * time.Second
	// recordHeader is the length of a TLS record's header (RFC 8446, section 5.1).
	recordHeader    = 5
	recordHandshake = 22
)

func (k *kith) learnHelloCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "learn-hello",
		Short: "Learn from my own browser how a browser begins a connection",
		Long: `Learn from your own browser how a browser begins a connection, so that bridges are
reached with exactly that. It opens a port on this machine once and prints an
address to open in the browser, in a new private window. The browser then says
that the connection failed, which is as it should be. Nothing leaves this machine.

Do it again when the browser was updated. The daemon uses it from its next start.`,
	}
	return k.command(c, 0, 0, func(ctx context.Context, _ []string) error {
		p, err := k.paths()
		if err != nil {
			return err
		}
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return &api.Error{Code: api.CodeNetwork, Message: "no port could be opened on this machine", Hint: "try again"}
		}
		defer ln.Close()
		defer context.AfterFunc(ctx, func() { ln.Close() })()
		// By name: for an IP address a browser leaves the name out of its hello.
		url := fmt.Sprintf("https://localhost:%d/", ln.Addr().(*net.TCPAddr).Port)
		if k.json {
			writeJSON(k.stdout, struct {
				Event string `json:"event"`
				URL   string `json:"url"`
			}{"open", url})
		} else {
			fmt.Fprintf(k.stdout, "Open this in your browser, in a new private window:\n\n  %s\n\n", url)
		}
		record, err := recordHello(ctx, ln)
		if err != nil {
			return err
		}
		path := filepath.Join(p.Data, helloFile)
		if err := os.MkdirAll(p.Data, 0o700); err != nil {
			return fmt.Errorf("keep the hello: %w", err)
		}
		if err := os.WriteFile(path+".new", record, 0o600); err != nil {
			return fmt.Errorf("keep the hello: %w", err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			return fmt.Errorf("keep the hello: %w", err)
		}
		k.print(struct {
			Event string `json:"event"`
			File  string `json:"file"`
			Bytes int    `json:"bytes"`
		}{"learnt", path, len(record)}, func(w io.Writer) {
			if !k.quiet {
				fmt.Fprintln(w, k.here("Learnt. kith uses it from its next start: kith down, kith up"))
			}
		})
		return nil
	})
}

// recordHello returns the hello of the first browser that connects. What speaks
// no TLS at all is passed over.
func recordHello(ctx context.Context, ln net.Listener) ([]byte, error) {
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil, &api.Error{Code: api.CodeTimeout, Message: "no browser came", Hint: "run it again and open the address it prints"}
		}
		if err != nil {
			return nil, fmt.Errorf("wait for a browser: %w", err)
		}
		record, err := readHello(conn)
		conn.Close()
		if err != nil {
			continue
		}
		if _, err := transport.RecordedHello("browser", record); err != nil {
			return nil, &api.Error{
				Code: api.CodeRefused, Message: "this can not be used: " + err.Error(),
				Hint: "run it again and open the address as it is printed, in a new private window of an up-to-date browser",
			}
		}
		return record, nil
	}
}

// readHello reads one TLS record with a handshake message in it.
func readHello(conn net.Conn) ([]byte, error) {
	if err := conn.SetReadDeadline(time.Now().Add(helloWait)); err != nil {
		return nil, err
	}
	record := make([]byte, recordHeader, transport.MaxHello)
	if _, err := io.ReadFull(conn, record); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(record[3:]))
	if record[0] != recordHandshake || n == 0 || recordHeader+n > transport.MaxHello {
		return nil, errors.New("no hello")
	}
	record = record[:recordHeader+n]
	_, err := io.ReadFull(conn, record[recordHeader:])
	return record, err
}

// hellos are what bridges are greeted with: what was learnt from the user's own
// browser, and then what needs no learning.
func (d *daemon) hellos() []transport.Hello {
	record, err := os.ReadFile(filepath.Join(d.cfg.paths.Data, helloFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var learnt transport.Hello
	if err == nil {
		learnt, err = transport.RecordedHello("browser", record)
	}
	if err != nil {
		d.log.Warn("the browser's hello can not be used; learn it again with: kith bridge learn-hello")
		return nil
	}
	return append([]transport.Hello{learnt}, transport.BuiltInHellos()...)
}
