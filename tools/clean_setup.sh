#!/usr/bin/env bash
# Run the README's first command as on a fresh machine: an empty home, a PATH without uv and Go, a clone of HEAD.
set -euo pipefail

source=$(git rev-parse --show-toplevel)
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
mkdir "$room/home" "$room/bin"

# Python stays reachable when its folder also holds uv.
ln -s "$(python3 -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')" "$room/bin/python3"
path="$room/bin"
IFS=: read -ra folders <<<"$PATH"
for folder in "${folders[@]}"; do
    [[ -x $folder/uv || -x $folder/go ]] || path+=":$folder"
done

git clone --quiet "$source" "$room/clone"
cd "$room/clone"
env -u UV_CACHE_DIR -u XDG_CACHE_HOME -u XDG_DATA_HOME -u VIRTUAL_ENV HOME="$room/home" PATH="$path" \
    make demo DEMO="--steps 1"
