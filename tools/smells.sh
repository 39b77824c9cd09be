#!/usr/bin/env bash
# Reports what docs/style.md watches: long functions and files, wide packages,
# and the size of node.Node. It never fails.
set -euo pipefail

sources() { git ls-files '*.go' | grep -v -e '_test\.go$' -e '^node/api/v1/'; }

echo "files over 800 lines:"
sources | xargs wc -l | awk '$2 != "total" && $1 > 800 { print "  " $2, $1 }'

echo "functions over 70 lines:"
sources | xargs awk '
	FNR == 1 { name = "" }
	/^func / { name = $0; sub(/^func (\([^)]*\) )?/, "", name); sub(/[\[(].*/, "", name); start = FNR }
	/^}/ && name != "" { if (FNR - start + 1 > 70) print "  " FILENAME ": " name, FNR - start + 1; name = "" }'

echo "node.Node:"
git grep -hc '^func (n \*Node) ' -- 'node/*.go' | awk '{ n += $1 } END { print "  methods", n + 0 }'
