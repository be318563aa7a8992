#!/usr/bin/env bash
# A folder of clips on several nodes of a Slurm cluster: Ray's head on the first node, a worker on
# each of the others, and `mpsnet batch` beside the head.
#
#   sbatch examples/slurm.sh /shared/clips /shared/out [more options of mpsnet batch]
#
# Both folders must be seen by all nodes, or be URLs such as s3://bucket/clips. If the job runs out
# of time, the same command goes on where it was. A node that is lost takes only its work along.
#SBATCH --job-name=mpsnet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --no-kill
set -euo pipefail

if (($# < 2)) || [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "usage: sbatch slurm.sh CLIPS OUT [options of mpsnet batch]" >&2
    exit 2
fi
clips=$1 out=$2
shift 2

# Where mpsnet-cli[ray] is installed, the same on all nodes.
# shellcheck disable=SC1091
source "${MPSNET_VENV:-$HOME/mpsnet}/bin/activate"

# Else Ray runs the code of whoever reaches its ports.
RAY_AUTH_TOKEN=$(< /proc/sys/kernel/random/uuid)
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# As the others see it: a node's own name may stand for 127.0.1.1.
host=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[-1]}" printenv SLURM_LAUNCH_NODE_IPADDR)
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node keep apart

gpus=${SLURM_GPUS_PER_NODE:-0} # a number, perhaps after "type:"
resources=(
    --num-cpus="$SLURM_CPUS_PER_TASK"
    --num-gpus="${gpus##*:}"
    --object-store-memory=200000000 # only small messages: videos and results are files
)
# Bytes that tasks may ask for; with --mem=0, Ray looks itself.
[[ -z ${SLURM_MEM_PER_NODE:-} ]] || resources+=(--memory=$((SLURM_MEM_PER_NODE * 2**20 * 7 / 10)))

ray_on() { # NODE ARGUMENTS…
    srun --nodes=1 --ntasks=1 --nodelist="$1" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        ray start "${@:2}" "${resources[@]}" --log-style=pretty --block > /dev/null &
}

ray_on "${nodes[0]}" --head --node-ip-address="$host" --port="$port" --include-dashboard=false
until ray health-check --address="$host:$port" > /dev/null 2>&1; do
    kill -0 $! 2> /dev/null || wait $! # where its srun has failed, so has this
    sleep 2
done
for node in "${nodes[@]:1}"; do
    ray_on "$node" --address="$host:$port" # may come up later, and is taken in then
done

mpsnet batch "$clips" --out "$out" --recursive --engine ray --address "$host:$port" "$@" &
batch=$!
# Shortly before the end of time. Slurm itself ends Ray after the script.
trap 'kill "$batch"; wait "$batch"; exit $?' TERM
wait "$batch"
