#!/usr/bin/env bash
# Installs the commands named as arguments if they are missing and we may; says
# nothing if they are there. A command whose Debian package has another name is
# given as COMMAND=PACKAGE.
set -euo pipefail

missing=()
for package in "$@"; do
	command -v "${package%%=*}" >/dev/null || missing+=("${package#*=}")
done
if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
	echo "missing: ${missing[*]} (not root on Debian, so not installed)" >&2
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if [[ " ${missing[*]} " == *" gcc "* ]]; then
	missing+=(libc6-dev)
fi
apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
	echo "missing: ${missing[*]} (apt-get could not install them)" >&2
