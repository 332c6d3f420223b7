#!/usr/bin/env bash
# Makes .environments/NAME, a virtual environment for each tests/environments/NAME.txt named, by default for all of them
# but those in extra/, which only `make verify` needs. Does nothing for one that holds what its file says, so that after
# the first time no network is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

names=("$@")
[ $# -gt 0 ] || for file in tests/environments/*.txt; do names+=("$(basename "$file" .txt)"); done
for name in "${names[@]}"; do
    pins=tests/environments/$name.txt folder=.environments/$name
    [ -e "$pins" ] || pins=tests/environments/extra/$name.txt
    wanted=$(sha256sum <"$pins")
    [ "$(cat "$folder/installed" 2>/dev/null)" != "$wanted" ] || continue
    echo "$folder: $(grep -c == "$pins") packages"
    .venv/bin/python -m venv --clear "$folder"
    "$folder/bin/python" -m pip -qq --disable-pip-version-check install --no-deps -r "$pins"
    echo "$wanted" >"$folder/installed"
done
