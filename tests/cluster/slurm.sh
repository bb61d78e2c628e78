#!/usr/bin/env bash
# study/cluster/slurm.sbatch on two machines, without Slurm: `srun` and `scontrol` are small scripts that start commands
# on the machines that their options name. The job is stopped as by its time limit, queued again, and must end with a
# leaderboard that counts each configuration once.
#
#   sudo tests/cluster/slurm.sh [python]     # a Python with the project's dependencies; some 5 minutes
#
# Needs root, and Debian's iproute2 and util-linux. What Slurm itself does (limits, GPUs, queues) is not tried.
set -euo pipefail
# shellcheck source=tests/cluster/machines.sh
source "$(dirname "$0")/machines.sh"
cd "$(dirname "$0")/../.."

python=$(command -v "${1:-python}")
need "$(dirname "$python")/ray"
work=$(mktemp -d -p /var/tmp zerosweep.XXXX)
configs=24
job=$(date +%s)

say() { echo "[$SECONDS s] $*"; }

clean_up() {
    local status=$?
    rmdir "/tmp/zs-$job" || true
    if [ $status = 0 ]; then rm -rf "$work"; else echo "what is left of it: $work"; fi
    exit $status
}
trap clean_up EXIT

make_machines 2 "/tmp/zs-$job"

# --- Slurm's commands -----------------------------------------------------------------------------------------------
mkdir "$work/bin"
cat > "$work/bin/scontrol" <<END
#!/usr/bin/env bash
case "\$1 \$2" in
    "show hostnames") [ "\$3" = "zs[1-2]" ] && printf 'zs1\nzs2\n' ;;
    "requeue $job") touch "$work/requeued" ;;
    *) echo "scontrol: \$*" >&2; exit 1 ;;
esac
END
cat > "$work/bin/srun" <<END
#!/usr/bin/env bash
# each named machine runs the command; SIGTERM goes to all of them, as from Slurm's srun
hosts="zs1 zs2"
nodes=
while [[ \$1 == --* ]]; do
    case \$1 in
        --nodes=*) nodes=\${1#*=} ;;
        --ntasks=*) [ "\${1#*=}" = "\$nodes" ] || exit 1 ;;
        --nodelist=*) hosts=\${1#*=} ;;
        --exclude=*) hosts=\${hosts/\${1#*=}/} ;;
        *) echo "srun: \$1" >&2; exit 1 ;;
    esac
    shift
done
read -ra hosts <<< "\$hosts"
[ \${#hosts[@]} = "\$nodes" ] || { echo "srun: \$nodes nodes of \${hosts[*]}" >&2; exit 1; }
tasks=()
trap 'kill -TERM "\${tasks[@]}" 2> /dev/null' TERM
for host in "\${hosts[@]}"; do
    nsenter --target "\$(cat "$work/machine\${host#zs}")" --net --mount --uts --wd="\$PWD" "\$@" &
    tasks+=(\$!)
done
status=0
for task in "\${tasks[@]}"; do
    until wait "\$task" || ! kill -0 "\$task" 2> /dev/null; do :; done
done
exit \$status
END
chmod +x "$work"/bin/*

# --- the job --------------------------------------------------------------------------------------------------------
cp study/cluster/slurm.sbatch "$work/slurm_script"  # sbatch runs a copy, somewhere else
start() { # what slurmd does on the first node
    on 1 env -i -C / HOME="$work" PATH="$work/bin:$(dirname "$python"):/usr/sbin:/usr/bin:/sbin:/bin" OMP_NUM_THREADS=1 \
        ZEROSWEEP_STORAGE="$work/results" RAY_object_store_memory=150000000 \
        SLURM_JOB_ID="$job" SLURM_JOB_NODELIST="zs[1-2]" SLURM_JOB_NUM_NODES=2 SLURM_CPUS_PER_TASK=1 \
        SLURM_SUBMIT_DIR="$PWD" bash "$work/slurm_script" up --space sre --configs $configs --pack 2 --epochs 10 \
        --seeds 1 --top 2 --baselines none --cache "$work/cache" >> "$work/job.log" 2>&1 &
    batch=$!
}
finished() { grep -o '"trial_id": *[0-9]*, *"state": *[123]\b' "$work/results/up/study.journal" 2> /dev/null | sort -u | wc -l; }
seen=()
watch_packs() {
    for i in 1 2; do
        if [ -z "${seen[$i]:-}" ] && trains_packs $i; then
            seen[i]=yes
            say "packs are trained on zs$i"
        fi
    done
}

start
until [ "$(finished)" -ge 4 ]; do
    watch_packs
    sleep 0.5
    kill -0 $batch 2> /dev/null || { tail -40 "$work/job.log"; exit 1; }
done
say "$(finished) configurations are finished: the time limit is near"
kill -TERM "$(pgrep --oldest --full "^bash $work/slurm_script")"  # --signal=B:TERM@60, to the batch shell alone
wait $batch && { tail -40 "$work/job.log"; echo "the stopped job ended with 0"; exit 1; }
[ -e "$work/requeued" ] || { tail -40 "$work/job.log"; echo "the stopped job was not queued again"; exit 1; }
[ -z "$(on 2 ls -A "/tmp/zs-$job")$(ls "$PWD"/.zerosweep-"$job".token 2> /dev/null)" ] || { echo "token or scratch was left behind"; exit 1; }
say "stopped and queued again, $(finished) configurations finished"

start
while kill -0 $batch 2> /dev/null; do
    watch_packs
    sleep 0.5
done
wait $batch || { tail -40 "$work/job.log"; exit 1; }
tail -12 "$work/job.log"
[ "${seen[1]:-}${seen[2]:-}" = yesyes ] || { echo "packs were not trained on both machines"; exit 1; }

PYTHONPATH=$PWD "$python" - "$work/results/up" $configs <<'END'
import sys
from pathlib import Path

import pandas

from study.search.ledger import read_ledger

folder, configs = Path(sys.argv[1]), int(sys.argv[2])
done = read_ledger(folder).finished()
assert [c.index for c in done] == list(range(configs)), [c.index for c in done]
assert len(pandas.read_parquet(folder / "leaderboard.parquet")) == 5
END
say "the leaderboard is there, each configuration counted once; all is well"
