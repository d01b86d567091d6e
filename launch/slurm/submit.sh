#!/usr/bin/env bash
# Checks a training for the size that it will have, and submits it: what cannot run is refused now, not after hours in the queue.
#
#   bash launch/slurm/submit.sh --nodes 4 --gpus-per-node 8 --time 12:00:00 --partition gpu -- \
#       --ds_config ds_configs/xl.json --data shards --run runs/xl
#
# Before `--`: any option of sbatch, and
#   --ranks-per-node N           default: one a GPU (--gpus-per-node or --gres gpu:N), or 1 on nodes without GPUs
#   --container-image IMAGE      for pyxis; with --container-mounts SRC:DST,...
#   --container-prefix COMMAND   for any other runtime: "apptainer exec --nv image.sif", "ch-run image --"
#   --dry-run                    check, show the commands (sbatch's, and the srun that its job would start) and submit nothing
# After it: the options of `mri-ds train`, with paths as seen from the checkout. --run is needed; the log goes there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
fail() { printf 'error: submit.sh: %s\n' "$*" >&2; exit 2; }

nodes=1 gpus="" cpus="" ranks="" dry_run="" has_output="" slurm=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    option=$1 value=""
    shift
    # `--name value` and `--name=value` are one thing
    if [[ $option == --*=* ]]; then
        value=${option#*=} option=${option%%=*}
    elif [ $# -gt 0 ] && [[ $1 != -* ]]; then
        value=$1
        shift
    fi
    case $option in
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        --dry-run) dry_run=yes ;;
        --ranks-per-node | --ntasks-per-node) ranks=$value ;;
        --container-image) export CONTAINER_IMAGE=$value ;;
        --container-mounts) export CONTAINER_MOUNTS=$value ;;
        --container-prefix) export CONTAINER_PREFIX=$value ;;
        -N | --nodes) nodes=$value ;;
        --gpus-per-node) gpus=$value slurm+=("$option=$value") ;;
        --gres)
            [[ ,$value, != *,gpu* ]] || { gpus=,$value gpus=${gpus#*,gpu} gpus=${gpus%%,*}; }
            slurm+=("$option=$value")
            ;;
        -c | --cpus-per-task) cpus=$value slurm+=("--cpus-per-task=$value") ;;
        -o | --output) has_output=yes slurm+=("--output=$value") ;;
        --*) slurm+=("$option${value:+=$value}") ;;
        *) slurm+=("$option" ${value:+"$value"}) ;;
    esac
done
[ $# -gt 0 ] || fail 'no `--`: options of Slurm stand before it, those of training after it (--help shows an example)'
shift
gpus=${gpus##*:} # h200:8
[[ $gpus =~ ^[0-9]+$ ]] || gpus=1
ranks=${ranks:-$gpus}
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "--nodes ${nodes:-''} is no number of nodes"
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "--ranks-per-node $ranks is no number of ranks"

run="" previous=""
for word in "$@"; do
    [ "$previous" != --run ] || run=$word
    case $word in --run=*) run=${word#--run=} ;; esac
    previous=$word
done
[ -n "$run" ] || fail "name the run folder, after the --: --run runs/NAME"

# What depends on the number of ranks: the batch divided over them, the experts.
cd "$root"
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || fail "$python is missing: run bash tools/setup.sh, or set PYTHON"
WORLD_SIZE=$((nodes * ranks)) "$python" launch/train.py "$@" --resolve-only >/dev/null || exit $?

command=(sbatch --parsable --chdir "$root" --job-name "$(basename "$run")" --nodes "$nodes" --ntasks-per-node "$ranks")
[ -n "$has_output" ] || command+=(--output "$run/slurm-%j.log")
command+=(${slurm[@]+"${slurm[@]}"} launch/slurm/train.sbatch "$@")
if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
    env -u SLURM_JOB_ID PYTHON="$python" SLURM_CPUS_PER_TASK="$cpus" bash launch/slurm/train.sbatch "$@"
    exit 0
fi
command -v sbatch >/dev/null || fail "sbatch is not here: run this on a login node of the cluster"
mkdir -p "$run"
job=$("${command[@]}")
printf 'job %s: %s ranks on %s nodes\n' "${job%%;*}" "$((nodes * ranks))" "$nodes"
[ -n "$has_output" ] || printf 'log: tail -F %s/slurm-%s.log\n' "$run" "${job%%;*}"
