#!/usr/bin/env bash
# A folder of clips on several nodes of a Slurm cluster: Ray's head on the first node, a worker on
# each of the others, and `mpsnet batch` beside the head.
#
#   sbatch examples/slurm.sh /shared/clips /shared/out [more options of mpsnet batch]
#
# Both folders must be seen by all nodes, or be URLs such as s3://bucket/clips. If the job runs out
# of time, the same command goes on where it was.
#SBATCH --job-name=mpsnet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

if (($# < 2)); then
    echo "usage: sbatch $0 CLIPS OUT [options of mpsnet batch]" >&2
    exit 2
fi
clips=$1 out=$2
shift 2

# Where mpsnet-cli[ray] is installed, the same on all nodes.
# shellcheck disable=SC1091
source "${MPSNET_VENV:-$HOME/mpsnet}/bin/activate"

gpus=${SLURM_GPUS_PER_NODE:-0}                                  # a number, perhaps after "type:"
memory=$((${SLURM_MEM_PER_NODE:-64000} * 1000 * 1000 * 7 / 10)) # bytes that tasks may ask for
port=$((20000 + SLURM_JOB_ID % 20000))                          # jobs that share a node keep apart
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

ray_on() { # NODE ARGUMENTS…
    local node=$1
    shift
    # The object store holds only small messages: videos and results go through files.
    srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        ray start "$@" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${gpus##*:}" \
        --memory="$memory" --object-store-memory=200000000 --block &
}

# The batch stops its tasks first, then Ray goes.
batch=
# shellcheck disable=SC2046
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
trap '[[ -z $batch ]] || kill -TERM "$batch" 2> /dev/null || true' TERM

ray_on "$head" --head --node-ip-address="$address" --port="$port" --include-dashboard=false
until ray health-check --address "$address:$port" > /dev/null 2>&1; do sleep 2; done
for node in "${nodes[@]:1}"; do
    ray_on "$node" --address="$address:$port"
done

# Nodes that are up later are taken in as they come.
mpsnet batch "$clips" --out "$out" --recursive --engine ray --address "$address:$port" "$@" &
batch=$!
status=0
wait "$batch" || status=$?
if kill -0 "$batch" 2> /dev/null; then # TERM cut the waiting short
    status=0
    wait "$batch" || status=$?
fi
exit "$status"
