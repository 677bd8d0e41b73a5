#!/usr/bin/env bash
# Serves a corpus:   bash retrieval_launch.sh [corpus=FILE] [port=N] [key=value ...]
#   bash retrieval_launch.sh [corpus=FILE] replicas=N shards=M     several servers (see search_agent/retrieval/server/fleet.py)
# Without corpus= (or backend.plugin=) it serves the embedded world, which is built the first time. 127.0.0.1:8000 by default.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

[ -x .venv/bin/python ] || bash cmd/setup.sh
python=.venv/bin/python

has_corpus=false module=server
for argument in "$@"; do
  case "$argument" in
    corpus=* | backend.plugin=* | -h | --help) has_corpus=true ;;
    replicas=* | shards=*) module=server.fleet ;;
    shard=*) module=server; break ;;
  esac
done
if ! $has_corpus; then
  world=data/embedded
  [ -f "$world/corpus.jsonl" ] || "$python" -m preprocess.embedded out="$world"
  set -- "corpus=$world/corpus.jsonl" "$@"
fi
exec "$python" -m "search_agent.retrieval.$module" "$@"
