# Shared by the batch scripts of this folder, which source it from the top folder of the checkout.

[ -f .venv/bin/activate ] && source .venv/bin/activate

fail() { # MESSAGE: nothing was started
  echo "$0: $1" >&2
  exit 2
}

check_row() { # ROW DATA
  [ -f "notebooks/params/full/$1.yml" ] || fail "there is no file notebooks/params/full/$1.yml"
  [ -d "$2/train" ] && [ -d "$2/val" ] || compgen -G "$2/*.tar" > /dev/null || compgen -G "$2/*.parquet" > /dev/null ||
    compgen -G "$2/data/*.parquet" > /dev/null || fail "there is no train/ and val/ in '$2', and no shards"
}

notebook_of() { # ROW
  case "$1" in
    nagel_*) echo notebooks/nagel2022/imagenet.ipynb ;;
    ofq_*) echo notebooks/ofq2023/imagenet.ipynb ;;
    vvtq_*) echo notebooks/vvtq2023/imagenet.ipynb ;;
    *) fail "no notebook is known for $1" ;;
  esac
}

# A process that was killed leaves its lock. On the same machine it counts for nothing; on another one it would be
# waited for, ten minutes long. A job that was queued again knows that its own processes have ended.
release_locks() { # ROW
  if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    rm -f "runs/full/$1"/seed-*/.lock "runs/full/$1_stage1"/seed-*/.lock
  fi
}

# Run a command; SIGTERM (or SIGUSR1), which SLURM sends before the time is up, lets it write a checkpoint and end, and
# queues the job again. A child of the shell in the background, and not the shell itself: bash runs a trap only when the
# command in front has ended.
requeue_on_term() { # COMMAND...
  local stopped=0 code=0
  "$@" &
  local child=$!
  trap 'stopped=1; kill -TERM $child 2>/dev/null' TERM USR1
  while true; do
    wait "$child" && code=0 || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  trap - TERM USR1
  if [ "$stopped" = 1 ] && [ "$code" != 0 ]; then
    echo "interrupted: job $SLURM_JOB_ID is queued again and goes on from its last checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  return "$code"
}

run_row() { # ROW DATA: the row's notebook, on all GPUs of this node
  local notebook
  check_row "$1" "$2"
  notebook=$(notebook_of "$1") || exit
  release_locks "$1"
  mkdir -p runs/notebooks
  requeue_on_term vitq run "$notebook" -f "notebooks/params/full/$1.yml" -o "runs/notebooks/$1.ipynb" \
    -p data_path "$2" -p out "$PWD/runs/full/$1"
}
