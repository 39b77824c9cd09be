package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
)

// paths is where a home keeps what.
type paths struct {
	Config string `json:"config"` // the config file; it need not exist
	Data   string `json:"data"`   // the store and its lock
	API    string `json:"api"`    // the local API's socket, unless --api says otherwise
}

// findPaths lays out one folder, or the XDG directories if home is empty.
func findPaths(home string) (paths, error) {
	if home != "" {
		home, err := filepath.Abs(home)
		if err != nil {
			return paths{}, fmt.Errorf("find the home folder: %w", err)
		}
		return paths{
			Config: filepath.Join(home, "config.toml"),
			Data:   home,
			API:    shortSocket(filepath.Join(home, "run", "api.sock")),
		}, nil
	}
	config, err := os.UserConfigDir()
	if err != nil {
		return paths{}, &api.Error{Code: api.CodeUsage, Message: "there is no home folder to keep kith's files in", Hint: "name one with --home DIR"}
	}
	data := filepath.Join(config, "kith", "data") // beside the rest where XDG is not known
	if runtime.GOOS != "windows" && runtime.GOOS != "darwin" {
		if data = os.Getenv("XDG_DATA_HOME"); !filepath.IsAbs(data) {
			data = filepath.Join(os.Getenv("HOME"), ".local", "share")
		}
		data = filepath.Join(data, "kith")
	}
	socket := filepath.Join(data, "run", "api.sock")
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		socket = filepath.Join(dir, "kith", "api.sock")
	}
	return paths{Config: filepath.Join(config, "kith", "config.toml"), Data: data, API: shortSocket(socket)}, nil
}

// shortSocket returns path, or where the system does not allow one so long, a
// short one of this user that follows from it. Both sides check who owns the
// socket, so a folder that somebody else put there first can only be refused.
func shortSocket(path string) string {
	if len(path) <= api.MaxSocketPath {
		return path
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) || len(dir) > api.MaxSocketPath/2 {
		if dir = os.TempDir(); len(dir) > api.MaxSocketPath/2 {
			dir = "/tmp"
		}
	}
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(dir, fmt.Sprintf("kith-%s-%x", strconv.Itoa(os.Getuid()), sum[:8]), "api.sock")
}

func (k *kith) paths() (paths, error) {
	home := k.home
	if home == "" {
		home = os.Getenv("KITH_HOME")
	}
	return findPaths(home)
}

func (k *kith) pathsCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "paths",
		Short: "Show where kith keeps its files",
	}, 0, 0, func(context.Context, []string) error {
		p, err := k.paths()
		if err != nil {
			return err
		}
		cfg, err := k.config()
		if err != nil {
			return err
		}
		p.API = cfg.api.value
		k.print(p, func(w io.Writer) {
			table(w, []string{"config", p.Config}, []string{"data", p.Data}, []string{"api", p.API})
		})
		return nil
	})
}
