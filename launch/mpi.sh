#!/bin/bash
# One process per GPU on the hosts of an Open MPI hostfile (lines such as "node1 slots=8"), from the
# root of the repository:
#
#   launch/mpi.sh hosts.txt 16 --config=configs/math500_qwen25_7b.py --workdir=/shared/runs/math500
#
# MPI only starts the processes, with MPIRUN_FLAGS if set; they communicate through JAX's runtime.
set -euo pipefail

hostfile=${1:?the hostfile}
processes=${2:?how many processes}
shift 2

read -ra more <<< "${MPIRUN_FLAGS:-}"
exec mpirun --hostfile "$hostfile" -n "$processes" --bind-to none -x PATH "${more[@]}" \
    "${PYTHON:-.venv/bin/python}" -m launch.evaluate "$@"
