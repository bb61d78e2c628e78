#!/usr/bin/env bash
# The Dockerfile's instructions one after the other, without an image builder, in a folder that holds Debian 12 and
# Python 3.11: what python:3.11-slim-bookworm is. Then what the image is for: Ray starts and stops in it, a plan of a study.
#
#   sudo tests/cluster/dockerfile.sh [folder]     # some 10 minutes, 3 GB without CUDA; a folder is kept
#
#   PIP_EXTRA_INDEX_URL=URL   is the build argument of that name (torch without CUDA)
#   BIND="PATH PATH"          paths of this machine that the commands see: pip's configuration, folders of wheels
#
# Needs root, and Debian's debootstrap. It cannot show what only a builder does: layers, their sizes, a registry.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "must run as root"; exit 1; }
# processes and mounts of its own: both end with it, and a `ray stop` in the folder reaches no other Ray
[ -n "${IN_NAMESPACES:-}" ] \
    || exec unshare --mount --pid --fork --mount-proc --kill-child env IN_NAMESPACES=yes bash "$0" "$@"
trap 'exit 143' INT TERM
cd "$(dirname "$0")/../.."
command -v debootstrap > /dev/null || { echo "debootstrap is missing: see the head of this script"; exit 1; }

work=${1:-$(mktemp -d -p /var/tmp zerosweep.XXXX)}
root=$work/root
[ -n "${1:-}" ] || trap 'umount --recursive "$root/proc" "$root/dev"; rm -rf --one-file-system "$work"' EXIT

mount_in() { # SOURCE OPTIONS...: the same path inside
    mkdir -p "$root/$(dirname "$1")"
    if [ -d "$1" ]; then mkdir -p "$root/$1"; else touch "$root/$1"; fi
    mount "${@:2}" "$1" "$root/$1"
}

# --- FROM -----------------------------------------------------------------------------------------------------------
grep -qx "FROM python:3.11-slim-bookworm" Dockerfile || { echo "the Dockerfile's base is not what this script makes"; exit 1; }
if [ ! -x "$root/usr/local/bin/pip" ]; then
    debootstrap --variant=minbase --include=ca-certificates,python3.11-venv,python3-distutils,python3-lib2to3 \
        bookworm "$root" \
        > "$work/debootstrap.log" || { tail "$work/debootstrap.log"; exit 1; }
    # python and pip under /usr/local as in the image, without Debian's refusal to install beside its own packages
    chroot "$root" python3.11 -m venv /usr/local
fi
mount_in /proc --types proc
mount_in /dev --rbind
mount -t tmpfs tmpfs "$root/dev/shm"
for path in /etc/resolv.conf ${BIND:-}; do mount_in "$path" --bind --options ro; done

# --- the instructions -----------------------------------------------------------------------------------------------
directory=/
user=root
environment=(PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root)
while IFS='=' read -r name value; do environment+=("$name=$value"); done < <(env | grep '^PIP_' || true)

inside() { # COMMAND: by /bin/sh as RUN does it
    chroot --userspec="$user" "$root" /usr/bin/env -i "${environment[@]}" /bin/sh -ec "cd '$directory'; $1"
}

# one instruction a line: comments out, continued lines joined
instructions=$(python3 -c '
import re, sys
text = "\n".join(line for line in sys.stdin.read().splitlines() if not line.lstrip().startswith("#"))
print("\n".join(line.strip() for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()))' < Dockerfile)
while read -r instruction rest <&3; do
    echo "[$SECONDS s] $instruction $rest"
    case $instruction in
        FROM | ARG) ;;  # the base is there, and arguments come from this script's environment
        RUN) inside "$rest" ;;
        WORKDIR) directory=$rest && mkdir -p "$root/$rest" ;;
        USER) user=$rest:$rest && environment+=("HOME=/home/$rest") ;;
        ENV) for pair in $rest; do environment+=("$pair"); done ;;
        COPY)
            read -ra paths <<< "$rest"
            for path in "${paths[@]::${#paths[@]}-1}"; do  # committed files alone, as from a fresh clone
                target=$root/$directory/${paths[-1]}
                if [ -d "$path" ]; then
                    mkdir -p "$target" && git archive HEAD "$path" | tar -x -C "$target" --strip-components=1
                else
                    cp "$path" "$target"
                fi
            done ;;
        *) echo "this script does not know $instruction"; exit 1 ;;
    esac
done 3<<< "$instructions"

# --- what the image is for ------------------------------------------------------------------------------------------
inside 'command -v ssh rsync wget bash'
inside "id | grep '^uid=1000(ray)'"
inside 'pip check'
inside 'cd /tmp && python -c "import data_prep, study; print(study.__file__)"' | grep /home/ray/zerosweep/study
inside 'python -c "import pyarrow.fs, boto3, psycopg, torch; print(torch.__version__, pyarrow.fs.S3FileSystem)"'
inside 'ray get-auth-token --generate > /dev/null
        ray start --head --port=0 --num-cpus=1 --dashboard-host=127.0.0.1 --disable-usage-stats > /tmp/ray.log || { cat /tmp/ray.log; exit 1; }
        python -c "import ray; ray.init(\"auto\"); print(ray.get(ray.remote(lambda: ray.cluster_resources()).remote()))"
        ray stop --force > /dev/null'
inside 'python study/run.py --space sre --dry-run --cache /tmp/cache --storage /tmp/results'
echo "[$SECONDS s] all is well: $(du -sh "$root/usr" | cut -f1) in /usr"
