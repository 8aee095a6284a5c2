#!/usr/bin/env bash
# How fast the two stores are, on this machine, one after the other: submissions, workers with no-op jobs, a long history.
#   bench/service/stores.sh curve [SECONDS]     submissions by threads and batches; 1 to 8 workers; waits at fixed rates
#   bench/service/stores.sh history JOBS        fills each store with jobs that are over (not waiting for the disk), asks
# Redis is a server of its own on a free port, with appendfsync always, in a folder that is removed at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
verb=${1:-curve}
folder=$(mktemp -d "${TMPDIR:-/tmp}/stores.XXXXXX")
port=$((20000 + RANDOM % 20000))
cleanup() { [ -z "${redis:-}" ] || kill "$redis" 2>/dev/null || true; rm -rf "$folder"; }
trap cleanup EXIT
stores=target/debug/examples/stores
[ -x "$stores" ] || cargo build -q --locked -p lowtide-jobs --example stores

start_redis() {
    redis-server --port "$port" --bind 127.0.0.1 --save "" --dir "$folder" --appendonly yes --appendfsync "$1" \
        --logfile "$folder/redis.log" --daemonize no &
    redis=$!
    until redis-cli -p "$port" ping 2>/dev/null | grep -q PONG; do sleep 0.1; done
}

curve() {
    local seconds=$1 store threads workers rate
    start_redis always
    for store in "redis://127.0.0.1:$port" "$folder/jobs.sqlite"; do
        echo "== $store"
        for threads in 1 8 64; do "$stores" submit "$store" "$threads" "$seconds"; done
        "$stores" submit "$store" 4 "$seconds" 64
        redis-cli -p "$port" flushall >/dev/null; rm -f "$folder"/jobs.sqlite*
        for workers in 1 2 4 8; do
            "$stores" work "$store" "$workers" "$seconds" 0
            redis-cli -p "$port" flushall >/dev/null; rm -f "$folder"/jobs.sqlite*
        done
        for rate in 100 300 1000; do
            "$stores" work "$store" 4 "$seconds" "$rate"
            redis-cli -p "$port" flushall >/dev/null; rm -f "$folder"/jobs.sqlite*
        done
    done
}

history() {
    local jobs=$1 store
    export RELAXED=1
    start_redis no
    for store in "redis://127.0.0.1:$port" "$folder/jobs.sqlite"; do
        echo "== $store"
        "$stores" history "$store" "$jobs"
    done
    redis-cli -p "$port" info memory | grep -E "^used_memory_human|^used_memory_rss_human"
    ls -l "$folder"/jobs.sqlite | awk '{print $5 / 1048576 " MiB jobs.sqlite"}'
}

case $verb in
    curve) curve "${2:-3}" ;;
    history) history "${2:?how many jobs}" ;;
    *) sed -n '2,5p' "$0"; exit 2 ;;
esac
