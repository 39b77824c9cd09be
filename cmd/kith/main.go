// Command kith is a peer-to-peer encrypted messenger: a daemon (kith up) and,
// for everything else, a client of that daemon's local API.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kith-im/kith/node/api"
)

// version of the program, which `make build` sets; kith status shows the
// daemon's.
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line and returns its exit code. It writes to stdout
// what was asked for, and to stderr one sentence if that failed.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	k := &kith{stdin: stdin, stdout: stdout, stderr: stderr}
	root := k.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	completion(root)
	help(root)
	err := root.ExecuteContext(ctx)
	k.close()
	if err == nil {
		return exitOK
	}
	// A command line that could not be parsed may have asked for JSON all the same.
	k.json = k.json || slices.Contains(args, "--json")
	return k.fail(err)
}

// kith is what the commands of one invocation share.
type kith struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	// Flags that every command has.
	home    string
	socket  string
	json    bool
	quiet   bool
	verbose bool
	timeout time.Duration

	commands *cobra.Command // all of them, under their root
	client   *api.Client    // dialled at first use
}

func (k *kith) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "kith",
		Short: "Peer-to-peer encrypted messages, without a server",
		Long: `kith carries messages between people who exchanged one invite. There is no
server, no phone number and no company.

Start with:  kith up            run the daemon (leave it running)
             kith invite        make a link for a friend
             kith accept LINK   become contacts from a friend's link
             kith send bob hi   write to bob
Or try it:   kith demo          a whole network on this machine

Programs add --json (docs/json.md says what each command prints) and read the exit
code: 0 done, 1 refused, 2 wrong command line, 3 not running, 4 no road, 5 full,
6 key not trusted, 7 out of time, 8 passphrase needed, 9 not found.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			hint := "see all commands with: kith help"
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				hint = "did you mean: kith " + s[0]
			}
			return &api.Error{Code: api.CodeUsage, Message: fmt.Sprintf("there is no command %q", clean(args[0])), Hint: hint}
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("see: "+cmd.CommandPath()+" --help", "%s", explainFlag(err))
	})
	f := root.PersistentFlags()
	f.StringVar(&k.home, "home", "", "keep everything in one `DIR` (default: the XDG directories)")
	f.StringVar(&k.socket, "api", "", "the unix `SOCKET` of the local API")
	f.BoolVar(&k.json, "json", false, "print JSON: an object, one per line where there may be many; lists are one array")
	f.DurationVar(&k.timeout, "timeout", 0, "give up after this `TIME`, for example 30s")
	f.BoolVarP(&k.quiet, "quiet", "q", false, "print nothing that was not asked for")
	f.BoolVarP(&k.verbose, "verbose", "v", false, "print more")
	root.AddCommand(
		k.upCmd(), k.downCmd(), k.statusCmd(), k.waitCmd(), k.doctorCmd(),
		k.idCmd(), k.inviteCmd(), k.invitesCmd(), k.acceptCmd(), k.requestsCmd(), k.approveCmd(), k.rejectCmd(),
		k.contactsCmd(), k.renameCmd(), k.blockCmd(), k.unblockCmd(), k.hideAddressCmd(), k.verifyCmd(), k.pingCmd(),
		k.sendCmd(), k.readCmd(), k.chatsCmd(), k.traceCmd(), k.cancelCmd(), k.watchCmd(),
		k.mailboxCmd(), k.bundleCmd(), k.nodeCmd(), k.bridgeCmd(), k.modeCmd(), k.lanCmd(), k.netcheckCmd(), k.budgetCmd(),
		k.demoCmd(), k.configCmd(), k.pathsCmd(), k.versionCmd(),
	)
	k.commands = root
	return root
}

// help has cobra's command refuse topics that it does not know.
func help(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		if c.Name() != "help" {
			continue
		}
		c.Run = nil
		c.RunE = func(_ *cobra.Command, args []string) error {
			topic, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("see all commands with: kith help", "there is no command %q", clean(strings.Join(args, " ")))
			}
			topic.InitDefaultHelpFlag()
			return topic.Help()
		}
	}
}

// completion has cobra's command refuse shells that it does not know.
func completion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() != "completion" {
			continue
		}
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usagef("use bash, zsh, fish or powershell", "there is no completion for %q", clean(args[0]))
		}
	}
}

// explainFlag says what is wrong with a flag, in words of its own.
func explainFlag(err error) string {
	var unknown *pflag.NotExistError
	var syntax *pflag.InvalidSyntaxError
	var missing *pflag.ValueRequiredError
	var value *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			return fmt.Sprintf("there is no flag %q", "-"+clean(short))
		}
		return fmt.Sprintf("there is no flag %q", "--"+clean(unknown.GetSpecifiedName()))
	case errors.As(err, &syntax):
		return fmt.Sprintf("there is no flag %q", clean(syntax.GetSpecifiedFlag()))
	case errors.As(err, &missing):
		return fmt.Sprintf("--%s needs %s", missing.GetFlag().Name, flagTakes(missing.GetFlag()))
	case errors.As(err, &value):
		return fmt.Sprintf("--%s takes %s, not %q", value.GetFlag().Name, flagTakes(value.GetFlag()), clean(value.GetValue()))
	}
	return clean(err.Error())
}

// flagTakes says what a flag takes.
func flagTakes(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "duration":
		return "a time such as 30s or 5m"
	case "int", "int64":
		return "a number"
	case "bool":
		return "no value"
	}
	return "a value"
}

// Exit codes, the same for every command.
const (
	exitOK           = 0
	exitRefused      = 1
	exitUsage        = 2
	exitNotRunning   = 3
	exitNetwork      = 4
	exitQuota        = 5
	exitKeyUntrusted = 6
	exitTimeout      = 7
	exitLocked       = 8
	exitNotFound     = 9
)

func exitCode(code api.Code) int {
	switch code {
	case api.CodeUsage:
		return exitUsage
	case api.CodeNotRunning:
		return exitNotRunning
	case api.CodeNetwork:
		return exitNetwork
	case api.CodeQuota:
		return exitQuota
	case api.CodeKeyUntrusted:
		return exitKeyUntrusted
	case api.CodeTimeout:
		return exitTimeout
	case api.CodeLocked:
		return exitLocked
	case api.CodeNotFound:
		return exitNotFound
	case api.CodeRefused, api.CodeInternal:
	}
	return exitRefused
}

// fail prints err as one sentence, or as an object, and returns the exit code.
func (k *kith) fail(err error) int {
	e := k.explain(err)
	if k.json {
		type body struct {
			Code    string `json:"code"`
			Message string `json:"message"`
			Hint    string `json:"hint"`
		}
		writeJSON(k.stderr, struct {
			Error body `json:"error"`
		}{body{string(e.Code), e.Message, e.Hint}})
		return exitCode(e.Code)
	}
	text := clean(e.Message)
	if e.Hint != "" {
		text += "; " + clean(e.Hint)
	}
	fmt.Fprintf(k.stderr, "kith: %s\n", text)
	return exitCode(e.Code)
}

// explain gives any error a code and, where one is known, the next step, which is
// about the home of this command.
func (k *kith) explain(err error) *api.Error {
	e := *k.explained(err)
	e.Hint = k.here(e.Hint)
	return &e
}

func (k *kith) explained(err error) *api.Error {
	var e *api.Error
	switch {
	case errors.As(err, &e):
		if e.Code == api.CodeNotRunning {
			return &api.Error{Code: e.Code, Message: e.Message, Hint: "start it with: " + k.start()}
		}
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return &api.Error{Code: api.CodeTimeout, Message: "this did not happen in time", Hint: "try again with a longer --timeout"}
	case errors.Is(err, context.Canceled):
		return &api.Error{Code: api.CodeRefused, Message: "interrupted"}
	}
	return &api.Error{Code: api.CodeRefused, Message: err.Error()}
}

// start is the command line that starts the daemon of this home again, as what
// it was: only a community node has a file of mailboxes.
func (k *kith) start() string {
	c, err := k.config()
	if err != nil || c.role.from != "default" {
		return "kith up"
	}
	if _, err := os.Lstat(filepath.Join(c.paths.Data, mailFile)); err == nil {
		return upCommunity
	}
	return "kith up"
}

// at is what a command line says to reach the daemon of this one and no other.
func (k *kith) at() (flags string) {
	if k.home != "" {
		flags += " --home " + word(k.home)
	}
	if k.socket != "" {
		flags += " --api " + word(k.socket)
	}
	return flags
}

// usagef reports a command line that can not be meant.
func usagef(hint, format string, args ...any) error {
	return &api.Error{Code: api.CodeUsage, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// command completes a command whose arguments are counted; run gets a context
// that --timeout bounds.
func (k *kith) command(c *cobra.Command, minArgs, maxArgs int, run func(ctx context.Context, args []string) error) *cobra.Command {
	c.DisableFlagsInUseLine = true
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) < minArgs || len(args) > maxArgs {
			return usagef("see: "+cmd.CommandPath()+" --help", "the command is: %s", strings.TrimSuffix(cmd.CommandPath(), cmd.Name())+cmd.Use)
		}
		return nil
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if k.timeout < 0 {
			return usagef("for example --timeout 30s", "the timeout is negative")
		}
		if k.timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, k.timeout)
			defer cancel()
		}
		return run(ctx, args)
	}
	return c
}

// dial returns the client of this home's daemon.
func (k *kith) dial() (*api.Client, error) {
	if k.client == nil {
		cfg, err := k.config()
		if err != nil {
			return nil, err
		}
		k.client = api.NewClient(cfg.api.value)
	}
	return k.client, nil
}

func (k *kith) close() {
	if k.client != nil {
		k.client.Close()
	}
}

// print writes a result: v as JSON, or what human writes.
func (k *kith) print(v any, human func(w io.Writer)) {
	if k.json {
		writeJSON(k.stdout, v)
		return
	}
	human(k.stdout)
}

// notef tells a person something beside the result.
func (k *kith) notef(format string, args ...any) {
	if !k.quiet && !k.json {
		fmt.Fprintf(k.stderr, format+"\n", args...)
	}
}

// writeJSON writes v on one line, in which no character can act on a terminal.
func writeJSON(w io.Writer, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("kith: " + err.Error()) // our own types always encode
	}
	_, _ = w.Write(append(cleanJSON(b), '\n'))
}
