#!/usr/bin/env bash
# What `make demo` shows: one spec checked, compiled, trained on text that every machine has, and asked to go on with a prompt.
set -euo pipefail
: "${WEFT:=weft}" "${PYTHON:=python3}" "${OUT:=build/demo}" "${STEPS:=600}"
SPEC=specs/olmo2.weft

say() { printf '\n== %s\n' "$1"; }
# Prints a command as it would be typed, then runs it.
show() {
    printf '$ weft'
    printf ' %q' "$@"
    printf '\n'
    "$WEFT" "$@"
}

say "1. The spec: a whole OLMo 2, in $(grep -cv '^ *\(#.*\)\?$' "$SPEC") lines"
show check "$SPEC"

say "2. Compiled at size tiny"
rm -rf "$OUT/compiled"
show compile "$SPEC" --size tiny -o "$OUT/compiled"

say "3. Trained on the source of Python's standard library, as bytes"
text=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
rm -rf "$OUT/run"
show train "$SPEC" --size tiny --data "$text/*.py" --steps "$STEPS" --out "$OUT/run" \
    --max-length 256 --tokens-per-step 1024 --lr 4e-3 --eval-every 100 --eval-tokens 16384 --log-every 25

say "4. Its continuation of a prompt"
show generate "$OUT/run" --prompt "def main(argv):
    " --tokens 200 --temperature 0.7 --seed 1

say "5. What the spec means"
show inspect "$SPEC" graph --size tiny
show inspect "$SPEC" decode --size tiny

say "Where to look next"
cat <<TEXT
Change the spec (move a norm, add a layer) and run make demo again:
    $SPEC
See why no logit sees its own target:
    $WEFT inspect $SPEC causality
The loss of every step, and the language, construct by construct:
    $OUT/run/metrics.jsonl
    docs/manual.md
Everything else:
    $WEFT --help
TEXT
