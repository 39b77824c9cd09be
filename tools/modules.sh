#!/usr/bin/env bash
# Looks at what the binary really links, which imports of ours do not show: the
# number of modules must be the one docs/dependencies.md gives, and some
# packages must not be there at all.
set -euo pipefail

deps=$(CGO_ENABLED=0 go list -deps -f '{{.ImportPath}} {{with .Module}}{{.Path}}{{end}}' ./cmd/kith)

have=$(awk 'NF == 2 && $2 != "github.com/kith-im/kith" { print $2 }' <<<"$deps" | sort -u | wc -l)
want=$(sed -n 's/^Linked modules: \([0-9]*\)$/\1/p' docs/dependencies.md)
if [ "$have" != "$want" ]; then
	echo "the binary links $have modules, docs/dependencies.md says ${want:-nothing}" >&2
	exit 1
fi

# Debug endpoints, transports we do not use, and containers for wiring.
unwanted='^net/http/pprof |quic-go/http3|p2p/transport/web|pion/|go\.uber\.org/(fx|dig)'
if grep -E "$unwanted" <<<"$deps" >&2; then
	echo "the binary must not link these" >&2
	exit 1
fi
