#!/bin/sh
# The whole loop by hand: `sh run.sh`, against `loopline serve ../app.py`.
set -eu
url="${URL:-http://127.0.0.1:8000}"
model="$url/v1/models/sales"

say() { printf '\n# %s\n' "$1"; }
call() { curl --silent --show-error --fail-with-body "$@"; echo; }

say "One row"
answer=$(call "$model/predict" -d '{"TV": 50}')
echo "$answer"
id=$(echo "$answer" | sed 's/.*"id":"\([^"]*\)".*/\1/')

say "Many rows"
call "$model/predict" -d '[{"TV": 50}, {"TV": 100}]'

say "What became true of the first"
call "$model/outcomes" -d "{\"id\": \"$id\", \"outcome\": 9.4}"

say "A labelled row: TV, Radio, Newspaper, Sales"
call "$model/learn" -H 'content-type: application/json' -d '[3.14, 34.6, 12.2, 8.4]'

say "A training, and why its version answers now"
call "$model/train?wait=60" -X POST
call "$model/decisions"

say "How good the answers were"
call "$model/scores"

say "The Open Inference Protocol"
call "$url/v2/models/sales/infer" \
    -d '{"inputs": [{"name": "TV", "datatype": "FP64", "shape": [2], "data": [50, 100]}]}'

say "A bad row is refused, and its field named"
curl --silent --show-error --write-out '\nHTTP status %{http_code}\n' "$model/predict" -d '{"TV": "abc"}'
