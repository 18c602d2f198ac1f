#!/usr/bin/env bash
# A batch on several nodes of a Slurm cluster: Ray's head on the first node, a Ray node on each of the others, t2i on the
# first. Nodes, GPUs and time are the lines below, or options of sbatch before the script's name.
# usage: sbatch examples/slurm.sh PROMPTS_FILE [OPTION OF `t2i batch`]...     for example: prompts.txt -m sdxl -o images
# The same t2i, Ray and Python must be on every node's PATH, as of a shared folder; the folder for images is shared, too.
#SBATCH --job-name=t2i
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -euo pipefail
[ "$#" -gt 0 ] || { echo "usage: sbatch $0 PROMPTS_FILE [OPTION]..." >&2 && exit 2; }
start_seconds=${T2I_START_SECONDS:-300}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
others=$((${#nodes[@]} - 1))
# Ports of the job's own: another job may have a node of its Ray on the same machine.
port=$((20000 + 3 * (SLURM_JOB_ID % 4000)))
ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" \
    python -c 'import ray; print(ray.util.get_node_ip_address())')

# Who has no token is not let in. srun hands the environment to all nodes.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN
# Images come in a worker's answer itself, not through the object stores of two nodes.
export RAY_max_direct_call_object_size=8000000

steps=()
# shellcheck disable=SC2329 # the trap calls it
stop_steps() {
    trap '' TERM
    # Ray ends its processes on a node when its step ends, those on the head last.
    for ((n = ${#steps[@]} - 1; n >= 0; n--)); do
        kill "${steps[n]}" 2>/dev/null || true
        wait "${steps[n]}" || true
    done
}
trap stop_steps EXIT
trap 'exit 143' TERM

log=ray-$SLURM_JOB_ID.log
fail() {
    echo "$1 See $log." >&2
    exit 1
}
# Wait a second for the cluster, unless that is in vain.
wait_more() {
    sleep 1
    for step in "${steps[@]}"; do
        kill -0 "$step" 2>/dev/null || fail "A node of Ray ended."
    done
    [ "$SECONDS" -lt "$start_seconds" ] || fail "Not all nodes joined within $start_seconds seconds."
}

count_nodes() {
    timeout 60 python -c 'import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))' "$ip:$port" 2>/dev/null || echo 0
}

srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --block --node-ip-address="$ip" --port="$port" \
    --ray-client-server-port="$((port + 1))" --dashboard-port="$((port + 2))" --include-dashboard=false \
    >"$log" 2>&1 &
steps+=($!)
until
    wait_more
    ray health-check --address "$ip:$port" >/dev/null 2>&1
do :; done
until [ "$(count_nodes)" -ge 1 ]; do wait_more; done
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --exclude="$head" \
        ray start --block --address="$ip:$port" >>"$log" 2>&1 &
    steps+=($!)
fi
until [ "$(count_nodes)" -ge "${#nodes[@]}" ]; do wait_more; done

t2i batch "$@" --backend ray --address "$ip:$port" &
t2i=$!
stopped=no code=0
# Slurm sends this before the time is up: images in progress are finished, and the job goes on when it is queued again.
trap 'stopped=yes; kill -TERM "$t2i" 2>/dev/null || true' TERM
wait "$t2i" || code=$?
if [ "$stopped" = yes ]; then
    code=0
    wait "$t2i" || code=$?
    [ "$code" -eq 0 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
