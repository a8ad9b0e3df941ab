#!/bin/sh
# Print the folder of prometheus and promtool. Where PATH has none, Debian's package is unpacked into the user's cache
# directory first: nothing is installed, and no service is started.
set -eu

if found=$(command -v promtool 2>/dev/null) && command -v prometheus >/dev/null 2>&1; then
    dirname "$found"
    exit 0
fi

home="${XDG_CACHE_HOME:-$HOME/.cache}/gemmatune/prometheus"
if [ ! -x "$home/usr/bin/promtool" ]; then
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
        echo "gemmatune: put prometheus and promtool on PATH: they are only fetched by themselves on Debian" >&2
        exit 1
    }
    echo "gemmatune: fetching Debian's prometheus into $home" >&2
    partial="$home.$$"
    trap 'rm -rf "$partial"' EXIT
    mkdir -p "$partial"
    cd "$partial"
    # Without lists of packages there is nothing to download; only root may fetch the lists.
    apt-get download -qq prometheus >&2 2>/dev/null || { apt-get update -qq >&2 && apt-get download -qq prometheus >&2; }
    dpkg-deb --extract prometheus_*.deb . >&2
    rm -f prometheus_*.deb
    # A second caller may have finished first; its folder is as good.
    mv -T "$partial" "$home" 2>/dev/null || true
fi
printf '%s\n' "$home/usr/bin"
