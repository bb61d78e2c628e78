#!/usr/bin/env bash
# What a new user does, from an installed wheel, outside of the checkout: own images, own ranges, an own method, more
# configurations, the adapter in Python; then the same on a cluster of two nodes (processes of this machine).
#
#   tests/new_user.sh [python]      # a Python that can make virtual environments; about 6 minutes, needs pip's packages
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3}
work=$(mktemp -d -p /var/tmp zerosweep.XXXX)
say() { echo "[$SECONDS s] $*"; }
clean_up() {
    local status=$?
    "$work/venv/bin/ray" stop --force > /dev/null 2>&1 || true
    if [ $status = 0 ]; then rm -rf "$work"; else echo "what is left of it: $work"; fi
    exit $status
}
trap clean_up EXIT
unset PYTHONPATH RAY_ADDRESS
export RAY_USAGE_STATS_ENABLED=0

# --- an installed wheel -------------------------------------------------------------------------------------------------
"$python" -m venv "$work/venv"
. "$work/venv/bin/activate"
git clone -q "$root" "$work/source"
pip wheel -q --no-deps -w "$work" "$work/source"
pip install -q -c "$root/constraints.txt" "$work"/zerosweep-*.whl
rm -rf "$work/source"
mkdir "$work/mine" && cd "$work/mine"
zerosweep --help | grep -q "zerosweep COMMAND"
say "the wheel is installed"

# --- own images: some embedded pictures as PNG files in two folders -----------------------------------------------------
python - <<'END'
from pathlib import Path

from data_prep.benchmarks import get_benchmark
from data_prep.decode import decode

bench = get_benchmark("icons2emoji")
count = {}
for row in bench.images.to_pylist():
    name, place = bench.classes.names[row["label"]], (row["domain"], row["label"])
    if row["label"] % 12 or count.get(place, 0) == 5:
        continue
    count[place] = count.get(place, 0) + 1
    folder = Path("pets") / row["domain"] / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    decode(row["path"], row["data"]).save(folder / f"{count[place]}.png")
END
zerosweep prep classes pets > classes.log
sed -i "s/\r//" pets/classes.csv
say "$(($(wc -l < pets/classes.csv) - 1)) classes of own images"

# --- own ranges and an own method, written outside of the package ------------------------------------------------------
zerosweep run --space sre --print-space > mine.yaml
clip=$(python -c "from data_prep.benchmarks.icons2emoji import ASSETS; print(ASSETS / 'clip')")
cp "$(python -c "import study, pathlib; print(pathlib.Path(study.__file__).parent / 'training/method_template.py')")" my_method.py
sed -i 's/task-residual/my-residual/; s/"icons2emoji-gzsl"/"folder:pets"/' my_method.py
zerosweep run --plugin my_method.py --space my-residual --check-method
small="--benchmark folder:pets --clip $clip --epochs 3 --folds 2 --seeds 1 --top 2 --refit-workers 0 --quiet"
# shellcheck disable=SC2086  # words
{
    zerosweep run --space mine.yaml --set lr=1e-4..1e-3:log --configs 4 --baselines none --name ranges $small
    zerosweep run --space mine.yaml --set lr=1e-4..1e-3:log --configs 8 --baselines none --name ranges --resume $small
    zerosweep run --plugin my_method.py --space my-residual --configs 4 --baselines linear-probe --name method $small
    zerosweep run --space mine.yaml --set lr=1e-4..1e-3:log --configs 4 --baselines none --name next \
        --enqueue results/ranges $small
}
say "three studies"

# --- the model to take home ---------------------------------------------------------------------------------------------
python - <<'END'
import json

import my_method
from study import Adapter, read_leaderboard

for name in ("ranges", "method"):
    adapter = Adapter.load(f"results/{name}/adapters/selected")
    (found,) = adapter.predict("pets/target/" + sorted(__import__("os").listdir("pets/target"))[0] + "/1.png")
    print(name, found.classes[0])
    assert not found.error and read_leaderboard(f"results/{name}").selected.any()
assert json.load(open("results/ranges/run.json"))["scorings"] == 2
END
zerosweep compare results/ranges results/next --out comparison > compare.log
grep "UNEQUAL configs: 8 (ranges), 4 (next)" compare.log
zerosweep report results/method > /dev/null
say "adapters predict, studies compare"

# --- two nodes ---------------------------------------------------------------------------------------------------------
python - "$small" <<'END'
import subprocess
import sys

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
command = ["zerosweep", "run", "--plugin", "my_method.py", "--space", "my-residual", "--address", cluster.address]
command += ["--configs", "4", "--baselines", "none", "--name", "cluster", *sys.argv[1].split()]
subprocess.run(command, check=True)
cluster.shutdown()
END
say "the same on two nodes: all is well"
