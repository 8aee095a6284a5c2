#!/usr/bin/env bash
# How fast the two stores are, on this machine, one after the other: submissions, workers with no-op jobs, a long history.
#   bench/service/stores.sh curve [SECONDS]     submissions by threads and batches; 1 to 8 workers; waits at fixed rates
#   bench/service/stores.sh fill JOBS           fills each store up to so many jobs that are over, not waiting for the disk
#   bench/service/stores.sh history             asks full stores what a panel asks
# Redis is a server of its own on a free port, with appendfsync always, in a folder that is removed at the end. Filling goes
# on where it stopped and asking finds what was filled where STORES_FOLDER names a folder to keep; STORES chooses one of
# "redis" and "sqlite".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
verb=${1:-curve}
if [ -n "${STORES_FOLDER:-}" ]; then
    folder=$STORES_FOLDER
    mkdir -p "$folder"
else
    folder=$(mktemp -d "${TMPDIR:-/tmp}/stores.XXXXXX")
fi
port=$((20000 + RANDOM % 20000))
cleanup() {
    if [ -n "${redis:-}" ]; then
        kill "$redis" 2>/dev/null || true
        wait "$redis" || true
    fi
    [ -n "${STORES_FOLDER:-}" ] || rm -rf "$folder"
}
trap cleanup EXIT
stores=${CARGO_TARGET_DIR:-target}/debug/examples/stores
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

past() {
    local kind store
    export RELAXED=1
    for kind in ${STORES:-redis sqlite}; do
        store=$folder/jobs.sqlite
        if [ "$kind" = redis ]; then
            start_redis no
            store=redis://127.0.0.1:$port
        fi
        echo "== $kind"
        "$stores" "$1" "$store" "${@:2}"
        if [ "$kind" = redis ]; then
            redis-cli -p "$port" info memory | grep -E "^used_memory_human|^used_memory_rss_human"
        else
            ls -l "$store" | awk '{print $5 / 1048576 " MiB jobs.sqlite"}'
        fi
    done
}

case $verb in
    curve) curve "${2:-3}" ;;
    fill) past fill "${2:?how many jobs}" ;;
    history) past history ;;
    *) sed -n '2,8p' "$0"; exit 2 ;;
esac
