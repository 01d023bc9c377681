#!/bin/bash
# One process for each GPU; JAX reads from SLURM's environment who is who: sbatch docs/slurm/jax.sh --task mnist-mnistm
#SBATCH --job-name=grl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
set -euo pipefail

# All GPUs of a node are visible to each of its tasks (not --gpus-per-task=1): JAX takes the one of the task's number.
srun python -m grl train --backend jax --device gpu "$@"
