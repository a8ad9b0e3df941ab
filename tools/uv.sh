#!/bin/sh
# Print the path of uv. Where PATH has none, install it from the Python registry into the user's cache directory first.
set -eu

VERSION=0.13.9

if found=$(command -v uv 2>/dev/null) && "$found" --version >/dev/null 2>&1; then
    printf '%s\n' "$found"
    exit 0
fi

home="${XDG_CACHE_HOME:-$HOME/.cache}/gemmatune/uv-$VERSION"
if [ ! -x "$home/bin/uv" ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
        echo "gemmatune: python3 on PATH must be 3.11 or newer" >&2
        exit 1
    }
    echo "gemmatune: installing uv $VERSION into $home" >&2
    partial="$home.$$"
    mkdir -p "$(dirname "$home")"
    python3 -m venv "$partial" >&2 || {
        echo "gemmatune: python3 lacks the venv module; install it (Debian: apt install python3-venv) or uv itself" >&2
        exit 1
    }
    "$partial/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$VERSION" >&2
    # A second caller may have finished first; its directory is as good.
    mv -T "$partial" "$home" 2>/dev/null || rm -rf "$partial"
fi
printf '%s\n' "$home/bin/uv"
