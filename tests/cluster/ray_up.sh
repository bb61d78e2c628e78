#!/usr/bin/env bash
# `ray up` for real, on one machine: three hosts out of network namespaces. A study submitted to the head makes the
# autoscaler bring the workers; one host is killed in the middle, the leaderboard checked.
#
#   sudo tests/cluster/ray_up.sh [python]     # a Python with the project and ray[default]; about 3 minutes
#
# Needs root, and Debian's openssh-server, iproute2, util-linux and rsync. A host is a machine of machines.sh with an SSH
# server of its own.
set -euo pipefail
# shellcheck source=tests/cluster/machines.sh
source "$(dirname "$0")/machines.sh"
cd "$(dirname "$0")/../.."

python=$(command -v "${1:-python}")
ray=$(dirname "$python")/ray
need /usr/sbin/sshd rsync ssh-keygen "$ray"
configs=24
work=$(mktemp -d -p /var/tmp zerosweep.XXXX)
results=$work/results

say() { echo "[$SECONDS s] $*"; }

clean_up() {
    local status=$?
    if [ $status = 0 ]; then rm -rf "$work"; else echo "what is left of it: $work"; fi
    exit $status
}
trap clean_up EXIT

# a token and a home for this script alone: `ray up` keeps keys and known hosts there
export HOME=$work/home
mkdir -p "$HOME" /run/sshd
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_UP_enable_autoscaler_v2=0  # v2 takes the head for a worker here
"$ray" get-auth-token --generate > /dev/null
export RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token

# --- hosts ----------------------------------------------------------------------------------------------------------
ssh-keygen -q -t ed25519 -N "" -f "$work/key"
ssh-keygen -q -t ed25519 -N "" -f "$work/host_key"
make_machines 3
for i in 1 2 3; do
    cat > "$work/sshd$i" <<END
ListenAddress $net.$i
HostKey $work/host_key
AuthorizedKeysFile $work/key.pub
StrictModes no
PermitRootLogin prohibit-password
PidFile none
UsePAM no
Subsystem sftp internal-sftp
END
    on "$i" /usr/sbin/sshd -D -e -f "$work/sshd$i" > "$work/sshd$i.log" 2>&1 &
    disown
done
say "three hosts with SSH: $net.1 to $net.3"

# --- ray up ---------------------------------------------------------------------------------------------------------
start="export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH RAY_USAGE_STATS_ENABLED=0 PYTHONPATH=$PWD
    OMP_NUM_THREADS=1; $ray start --disable-usage-stats"
start=${start//$'\n'/ }
cat > "$work/cluster.yaml" <<END
cluster_name: zerosweep-local
provider: {type: local, head_ip: $net.1, worker_ips: [$net.2, $net.3]}
auth: {ssh_user: root, ssh_private_key: $work/key}
min_workers: 0
max_workers: 2
upscaling_speed: 1.0
idle_timeout_minutes: 60
setup_commands: []
head_setup_commands: []
worker_setup_commands: []
initialization_commands: []
head_start_ray_commands:
  - $start --head --port=6379 --num-cpus=0 --object-store-memory=150000000 --dashboard-host=127.0.0.1
    --autoscaling-config=~/ray_bootstrap_config.yaml
worker_start_ray_commands:
  - $start --address=\$RAY_HEAD_IP:6379 --num-cpus=1 --object-store-memory=150000000
END
# a worker's CPUs, which Ray learns from the first one that runs: from none it would say that no node type fits
"$python" - "$work/cluster.yaml" <<'END'
import sys
from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config

file = Path(sys.argv[1])
config = prepare_config(yaml.safe_load(file.read_text()))
config["available_node_types"]["local.cluster.node"]["resources"] = {"CPU": 1}
file.write_text(yaml.safe_dump(config))
END
"$ray" up --yes --no-config-cache "$work/cluster.yaml" > "$work/up.log" 2>&1 || { tail -20 "$work/up.log"; exit 1; }
say "ray up is done"

# --- a study, and a host less ---------------------------------------------------------------------------------------
on 1 env RAY_ADDRESS=http://127.0.0.1:8265 "$ray" job submit --no-wait --submission-id zerosweep --working-dir . -- \
    "$python" study/run.py --address auto --configs $configs --pack 2 --epochs 20 --seeds 2 --top 2 --baselines none \
    --storage "$results" --cache "$work/cache" --name up > "$work/submit.log" 2>&1 || { cat "$work/submit.log"; exit 1; }
say "study submitted"
job() { on 1 env RAY_ADDRESS=http://127.0.0.1:8265 "$ray" job "$@" 2> /dev/null; }

finished() { grep -o '"trial_id": *[0-9]*, *"state": *[123]\b' "$results/up/study.journal" 2>/dev/null | sort -u | wc -l; }
until [ "$(finished)" -ge 4 ]; do
    sleep 1
    job status zerosweep | grep -q "failed" && { job logs zerosweep; exit 1; }
done
say "$(finished) configurations are finished: host $net.3 is taken away"
stop_machine 3

# no grep -q: it leaves while `ray` still writes, which then fails
until job status zerosweep | grep -i "succeeded\|failed" > "$work/status"; do sleep 2; done
job logs zerosweep | tail -25
grep -qi "succeeded" "$work/status"
say "the study is done"

PYTHONPATH=$PWD "$python" - "$results/up" $configs <<'END'
import sys
from pathlib import Path

import pandas

from study.search.ledger import read_ledger

folder, configs = Path(sys.argv[1]), int(sys.argv[2])
done = read_ledger(folder).finished()
assert [c.index for c in done] == list(range(configs)), [c.index for c in done]
void = [t for t in read_ledger(folder).trials() if "requeued" in t.user_attrs]
assert len(pandas.read_parquet(folder / "leaderboard.parquet")) == 7  # two refits, the defaults, the consensus, three zero-shot
states = {s: sum(c.state == s for c in done) for s in ("complete", "pruned", "failed")}
print(f"{configs} configurations asked, {len(done)} finished once each ({states}), {len(void)} were trained again")
END
# the machines' processes end here: `ray stop` on a host reaches those of the others
"$ray" down --yes "$work/cluster.yaml" > "$work/down.log" 2>&1 || true
say "ray down; all is well"
