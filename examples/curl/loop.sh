#!/bin/sh
# The whole loop by hand, against a server that has the model of ../sales.
set -eu
model="${URL:-http://127.0.0.1:8000}/v1/models/sales"
call() { curl --silent --show-error --fail-with-body "$@"; echo; }

answer=$(call "$model/predict" -d '{"temperature": 30, "price": 2.5}')
echo "$answer"
id=$(echo "$answer" | sed 's/.*"id":"\([^"]*\)".*/\1/')

call "$model/outcomes" -d "{\"id\": \"$id\", \"outcome\": 124}"
call "$model/learn" -d '{"temperature": 31.5, "price": 2.5, "sold": 131}'
call "$model/train?wait=60" -X POST
call "$model/decisions"
call "$model/scores"
