#!/usr/bin/env bash
# What a CI job does with t2i: one image, a batch from a file, and decisions by exit code.
# usage: examples/ci.sh [FOLDER]    needs t2i on the PATH; nothing is downloaded
set -euo pipefail
here=$(dirname "$0")
out=${1:-images}
mkdir -p "$out"

# One image. Standard output is the result, a path a line. The same seed makes the same bytes on the
# same machine.
path=$(t2i generate "a red circle on a white background" -m postcard -s 1 --offline \
    -o "$out/circle.png" --overwrite --quiet)
echo "one image: $path"
t2i inspect "$path" --json >"$out/circle.json"

# Many images from a file. The second run of the same command makes only what is missing: nothing.
for run in first second; do
    t2i batch "$here/prompts.txt" -m postcard --steps 4 -o "$out/batch" --offline --quiet --json \
        >"$out/$run.json"
    echo "$run run of the batch: exit 0, summary in $out/$run.json"
done

# What to do next follows from the exit code; docs/exit-codes.md lists them all.
decide() {
    local code=0
    "$@" 2>"$out/error.txt" || code=$?
    case $code in
        0) echo "$code: done" ;;
        2) echo "$code: mend the prompt or the options" ;;
        3) echo "$code: log in first" ;;
        4 | 5 | 6) echo "$code: try again later" ;;
        7) echo "$code: a smaller --size, or --memory low" ;;
        8) echo "$code: a part of the batch failed; run the same command again" ;;
        9) echo "$code: there is no such model here" ;;
        10) echo "$code: the safety checker withheld the image" ;;
        11) echo "$code: make room on the disk" ;;
        *) echo "$code: give up" && return "$code" ;;
    esac
}
decide t2i generate "a star" -m postcard --steps 0
decide t2i generate "a star" -m ./no-such-folder/ --offline
