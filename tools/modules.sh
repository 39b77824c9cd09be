#!/usr/bin/env bash
# Compares the modules that the binary links with the number that
# docs/dependencies.md gives. A change is a decision: write it there.
set -euo pipefail

linked=$(CGO_ENABLED=0 go list -deps -f '{{with .Module}}{{.Path}}{{end}}' ./cmd/kith | sort -u | grep -v '^github.com/kith-im/kith$')
have=$(wc -l <<<"$linked")
want=$(sed -n 's/^Linked modules: \([0-9]*\)$/\1/p' docs/dependencies.md)
if [ "$have" != "$want" ]; then
	echo "$linked"
	echo "the binary links $have modules, docs/dependencies.md says ${want:-nothing}"
	exit 1
fi
