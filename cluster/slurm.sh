#!/usr/bin/env bash
# udc-ray evaluate on a Slurm allocation: one Ray head, one Ray worker on every other node.
#
#   sbatch --nodes=4 --gpus-per-node=4 --time=12:00:00 cluster/slurm.sh --preset full --out /shared/runs/full
#
# Everything after the script's name goes to `udc-ray evaluate`. Submit from a folder that all nodes share,
# with the environment active in which udc-ray is installed: the job inherits both. Give the same command
# again to go on after the time limit; what is done is kept.
#
#SBATCH --job-name=udc-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
# A minute before the limit the run is told to drain; it needs at most half of it.
#SBATCH --signal=B:TERM@60
set -euo pipefail

: "${SLURM_JOB_ID:?is not set: run this script with sbatch}"
shared=${SLURM_SUBMIT_DIR:-$PWD}
export UDC_RAY_STORAGE=${UDC_RAY_STORAGE:-$shared/runs} RAY_USAGE_STATS_ENABLED=0
# Other users of a node reach its ports too, so the cluster asks for a token; it lives as long as the job.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$shared/.udc-ray-$SLURM_JOB_ID.token
unset RAY_AUTH_TOKEN RAY_ADDRESS # of another cluster, which would win over the file

steps=() running='' stopped='' interrupted=''

clean_up() {
    local code=$?
    trap - EXIT
    trap '' TERM USR1 INT
    for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
    for step in "${steps[@]}"; do wait "$step" 2>/dev/null || true; done
    rm -f "$RAY_AUTH_TOKEN_PATH"
    exit "$code"
}

# udc-ray finishes what is in flight, keeps it, and prints the command that resumes.
drain() {
    stopped=yes interrupted=yes
    [[ -z $running ]] || kill -TERM "$running" 2>/dev/null || true
}

trap clean_up EXIT
trap drain TERM USR1 INT

say() { echo "slurm.sh: $*" >&2; }

on() { srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" "${@:2}"; }

# In the background, so that $! is srun itself and a signal to it ends the step.
step() { exec srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" "${@:2}"; }

# The first address that is not loopback; a node with several networks may want another one here.
address_of() { on "$1" hostname --all-ip-addresses | { read -r first _ && echo "$first"; }; }

# Jobs that share a node begin at different ports, and pass over those that are taken.
free_port() {
    local port=$2
    while (exec 3<>"/dev/tcp/$1/$port") 2>/dev/null; do port=$((port + 1)); done
    echo "$port"
}

# Runs a command to its end whatever signals come, and returns its own exit code. A signal ends `wait`
# early, and bash would only see it after a command in the foreground.
follow() {
    local code
    "$@" &
    running=$!
    while :; do
        code=0 interrupted=''
        wait "$running" || code=$?
        [[ -n $interrupted ]] || break
    done
    running=''
    return "$code"
}

# In the background only: `exec` makes $! the waiting process itself.
wait_for_nodes() {
    exec python - "$1" "$2" <<'PYTHON'
import sys, time, ray

address, wanted = sys.argv[1], int(sys.argv[2])
end = time.monotonic() + 300
while True:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        break
    except ConnectionError:
        if time.monotonic() > end:
            sys.exit(f"slurm.sh: the head at {address} did not start; its output is above")
        time.sleep(2)
while (alive := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > end:
        sys.exit(f"slurm.sh: {alive} of {wanted} nodes joined within 5 minutes")
    time.sleep(1)
PYTHON
}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
ip=$(address_of "$head")
port=$(free_port "$ip" $((20000 + (SLURM_JOB_ID % 400) * 25)))
client_port=$(free_port "$ip" $((port + 1)))

(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

# Bound to the nodes' own addresses, without dashboard: the driver attaches, nothing else has to listen.
# Ray's own logs stay in /tmp/udc-ray-JOBID of every node.
cores=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
common=(--num-cpus="$cores" --temp-dir="/tmp/udc-ray-$SLURM_JOB_ID" --block)
say "head on $head ($ip:$port), nodes: ${#nodes[@]}"
step "$head" ray start --head --node-ip-address="$ip" --port="$port" --ray-client-server-port="$client_port" \
    --include-dashboard=false "${common[@]}" &
steps+=($!)
for node in "${nodes[@]:1}"; do
    own=$(address_of "$node")
    step "$node" ray start --address="$ip:$port" --node-ip-address="$own" "${common[@]}" &
    steps+=($!)
done

follow wait_for_nodes "$ip:$port" "${#nodes[@]}"
[[ -z $stopped ]] || exit 143
follow udc-ray evaluate --cluster --address "$ip:$port" "$@"
