#!/bin/sh
# A Ray driver must run on a node of its cluster: make this container one, then become the runner.
set -eu

: "${EINSEARCH_RAY_ADDRESS:?set it to the Ray head, for example ray-head:6379}"

# Zero CPUs: no trial is placed here. Ray's own processes do not get to see the database's password.
# A small object store is enough, and without its size Ray would ask for 30% of the machine's memory.
env -u EINSEARCH_DATABASE_URL \
    ray start --address="$EINSEARCH_RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --object-store-memory=500000000 --disable-usage-stats

exec python -m service.runner "$@"
