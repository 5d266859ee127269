#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# sbatch scripts/slurm_train.sh --recipe imagenet_small_224 --output-dir SHARED_FOLDER/small_224 [--data.path ...]
#
# Five minutes before its time is up the job gets SIGTERM: all ranks save and leave, and the job is put back into the
# queue. When it is pre-empted, Slurm does the same by itself. It goes on exactly where it was, because the command and
# the folder are the same. Not tried on a cluster.
#SBATCH --job-name=svit
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
stopped=no
# this shell alone gets the signal; srun passes it on to torchrun, and that to the ranks
trap 'stopped=yes; kill -TERM "$step"' TERM

# --shutdown_timeout: torchrun would kill its ranks 30 s after the signal, which a large checkpoint may not allow
srun torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc_per_node "${SLURM_GPUS_PER_NODE:-8}" \
  --rdzv_backend c10d \
  --rdzv_endpoint "$first_node:29500" \
  --rdzv_id "$SLURM_JOB_ID" \
  --shutdown_timeout 240 \
  -m svit_hf train "$@" &
step=$!
wait "$step"
status=$?
if [ "$stopped" = yes ]; then
  # the signal ended the first `wait`; the ranks are still saving
  wait "$step"
  scontrol requeue "$SLURM_JOB_ID"
  exit 143
fi
exit "$status"
