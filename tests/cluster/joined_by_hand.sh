#!/usr/bin/env bash
# Two machines joined by hand, with the commands of study/cluster/README.md, each with a home of its own. A study on the
# first one must train packs on both, and end with a leaderboard.
#
#   sudo tests/cluster/joined_by_hand.sh [python]     # a Python with the project's dependencies; some 3 minutes
#
# Needs root, and Debian's iproute2 and util-linux.
set -euo pipefail
# shellcheck source=tests/cluster/machines.sh
source "$(dirname "$0")/machines.sh"
cd "$(dirname "$0")/../.."

python=$(command -v "${1:-python}")
need "$(dirname "$python")/ray"
work=$(mktemp -d -p /var/tmp zerosweep.XXXX)
results=$work/results

say() { echo "[$SECONDS s] $*"; }

clean_up() {
    local status=$?
    if [ $status = 0 ]; then rm -rf "$work"; else echo "what is left of it: $work"; fi
    exit $status
}
trap clean_up EXIT

make_machines 2
mkdir "$work/home1" "$work/home2"
user_on() { # MACHINE COMMAND...: as its user types it there; nothing of this shell's environment goes along
    on "$1" env -i HOME="$work/home$1" PATH="$(dirname "$python"):/usr/sbin:/usr/bin:/sbin:/bin" PYTHONPATH="$PWD" \
        OMP_NUM_THREADS=1 "${@:2}"
}
say "two machines: $net.1 and $net.2"

# --- the commands of the README -------------------------------------------------------------------------------------
size=(--num-cpus=1 --object-store-memory=150000000 --disable-usage-stats)
user_on 1 ray get-auth-token --generate > "$work/head.log" 2>&1
user_on 1 env RAY_AUTH_MODE=token ray start --head --port=6379 "${size[@]}" >> "$work/head.log" 2>&1 \
    || { cat "$work/head.log"; exit 1; }
mkdir -m 700 "$work/home2/.ray"
cp -p "$work/home1/.ray/auth_token" "$work/home2/.ray/"  # scp, where machines have disks of their own
user_on 2 env RAY_AUTH_MODE=token ray start --address="$net.1:6379" "${size[@]}" > "$work/second.log" 2>&1 \
    || { cat "$work/second.log"; exit 1; }
say "the second machine has joined"

user_on 1 python study/run.py --space sre --address auto --storage "$results" --cache "$work/cache" --name joined \
    --configs 24 --pack 2 --epochs 10 --seeds 1 --top 2 --baselines none > "$work/study.log" 2>&1 &
study=$!

# --- packs on both --------------------------------------------------------------------------------------------------
seen=()
while kill -0 $study 2> /dev/null; do
    for i in 1 2; do
        if [ -z "${seen[$i]:-}" ] && trains_packs $i; then
            seen[i]=yes
            say "packs are trained on $net.$i"
        fi
    done
    sleep 0.5
done
wait $study || { tail -40 "$work/study.log"; exit 1; }
tail -12 "$work/study.log"
[ "${seen[1]:-}${seen[2]:-}" = yesyes ] || { echo "packs were not trained on both machines"; exit 1; }

"$python" - "$results/joined/leaderboard.parquet" <<'END'
import sys

import pandas

board = pandas.read_parquet(sys.argv[1])
assert board["selected"].any() and len(board) == 5, board
END
say "the leaderboard is there; all is well"
