#!/usr/bin/env bash
# What `make digits` shows: a model of text learns to draw. A small Llama learns captions of handwritten digits; its weights
# become LMFusion, whose tower for pictures then learns the digits, while the words stay as they are to the last bit.
set -euo pipefail
: "${WEFT:=weft}" "${PYTHON:=python3}" "${OUT:=build/digits}" "${TEXT_STEPS:=100}" "${STEPS:=800}" "${TURNS:=50}" "${GUIDE:=1.55}" "${MOST:=1}" "${LEAST:=0.2}"

say() { printf '\n== %s\n' "$1"; }
# Prints a command as it would be typed, then runs it.
show() {
    printf '$ weft'
    printf ' %q' "$@"
    printf '\n'
    "$WEFT" "$@"
}

say "1. The data: digits of 8 x 8 pixels with captions in words"
rm -rf "$OUT"
"$PYTHON" bench/digits.py data "$OUT/data"
head -n 2 "$OUT/data/digits.jsonl"

say "2. A Llama of four layers learns the captions"
show train specs/llama.weft --size tiny --data "$OUT/data/captions.jsonl" --begin-mark --steps "$TEXT_STEPS" \
    --max-length 64 --tokens-per-step 1024 --lr 3e-3 --eval-every "$TEXT_STEPS" --log-every 50 --out "$OUT/text"

say "3. Its weights, as Hugging Face has them, become the tower for text; the tower for pictures begins as its copy"
show export "$OUT/text" --to "$OUT/llama"
show import specs/lmfusion.weft --size digits --from "$OUT/llama" -o "$OUT/start"

say "4. LMFusion learns pictures of words, and words of pictures (four in five of the examples have the caption first)"
show train "$OUT/start" --data "$OUT/data/digits.jsonl" --steps "$STEPS" --max-length 64 --tokens-per-step 2048 \
    --lr 2e-3 --eval-every 100 --log-every 50 --out "$OUT/run"

say "5. What it has learned, and what it has not forgotten"
"$PYTHON" bench/digits.py losses "$OUT/run" "$MOST"
"$PYTHON" bench/digits.py unchanged "$OUT/start" "$OUT/run"

say "6. Who will judge its drawings: a classifier of pixels"
"$PYTHON" bench/digits.py judge "$OUT/data"

say "7. Eight drawings of each digit, from its caption alone"
prompts=()
for name in zero one two three four five six seven eight nine; do
    case $name in e*) prompts+=(--prompt "an $name") ;; *) prompts+=(--prompt "a $name") ;; esac
done
printf '$ weft sample %q --prompt "a zero" .. --prompt "a nine" --picture --count 8 -o %q\n' "$OUT/run" "$OUT/drawn"
"$WEFT" sample "$OUT/run" "${prompts[@]}" --picture --count 8 --tokens 0 --latents --set taken="$TURNS" \
    --set guide="$GUIDE" -o "$OUT/drawn" --json >"$OUT/drawn.json"
"$PYTHON" bench/digits.py drawn "$OUT/data" "$OUT/drawn.json" "$LEAST"
echo "all of them on one sheet: $OUT/drawn/all.png"
