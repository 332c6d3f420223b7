#!/usr/bin/env bash
# Makes .environments/NAME, a virtual environment for each tests/environments/NAME.txt named, by default for all of them
# but those in extra/, which only `make verify` needs. Does nothing for one that holds what its file says, so that after
# the first time no network is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

names=("$@")
[ $# -gt 0 ] || for file in tests/environments/*.txt; do names+=("$(basename "$file" .txt)"); done

# One without pip: that of .venv installs, and making pip anew takes 6 s.
make_environment() {
    local name=$1 pins=tests/environments/$1.txt folder=.environments/$1 wanted
    [ -e "$pins" ] || pins=tests/environments/extra/$name.txt
    wanted=$(sha256sum <"$pins")
    [ "$(cat "$folder/installed" 2>/dev/null)" != "$wanted" ] || return 0
    echo "$folder: $(grep -c == "$pins") packages"
    .venv/bin/python -m venv --clear --without-pip "$folder"
    .venv/bin/python -m pip --python "$folder/bin/python" -qq --disable-pip-version-check \
        install --no-deps -r "$pins"
    echo "$wanted" >"$folder/installed"
}

for name in "${names[@]}"; do make_environment "$name"; done
