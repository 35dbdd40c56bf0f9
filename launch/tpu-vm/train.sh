#!/bin/bash
# {{ launch.name }}: {{ job.slices }} slices of {{ launch.nodes // job.slices }} TPU hosts. Run it and let it run; made by `abi launch tpu-vm`.
# It asks for the TPU, trains on all workers, and starts again where a spot TPU was taken away.
# Stopping this script stops neither training nor the TPU: start it again, or give the TPU back with
#   gcloud compute tpus queued-resources delete {{ launch.name }} --project={{ launch.tpu_vm.project }} --zone={{ launch.tpu_vm.zone }} --force
set -uo pipefail

name={{ launch.name }}
tpus=(gcloud compute tpus queued-resources)
where=({{ ("--project=" ~ launch.tpu_vm.project) | quote }} {{ ("--zone=" ~ launch.tpu_vm.zone) | quote }})
poll_s="${LAUNCH_POLL_S:-30}"
max_restarts={{ launch.max_restarts }}

read -r -d '' on_every_worker <<'ON_EVERY_WORKER' || true
set -eo pipefail
unset "${!ABI_@}"
state="$HOME/.abi-launch/{{ launch.name }}"
mkdir -p "$state"
# A process that an earlier connection left behind saves and stops first.
if [ -s "$state/pid" ] && grep -aqs train.yaml "/proc/$(cat "$state/pid")/cmdline"; then
  kill -TERM "$(cat "$state/pid")" || true
  for _ in $(seq {{ launch.grace_s }}); do kill -0 "$(cat "$state/pid")" 2>/dev/null || break; sleep 1; done
  kill -KILL "$(cat "$state/pid")" 2>/dev/null || true
fi
cat > "$state/train.yaml" <<'TRAIN_YAML'
{{ job.train_yaml }}TRAIN_YAML
{% for name, value in job.environment.items() %}
export {{ name }}={{ value | quote }}
{% endfor %}
{% for line in launch.setup %}
{{ line }}
{% endfor %}
mkdir -p {{ job.workdir | quote }}
cd {{ job.workdir | quote }}
{{ forget_keys }}
# Training goes on where this connection is lost, so it must not write into it.
touch "$state/log"
from=$(($(wc -c < "$state/log") + 1))
(
  exec {{ launch.command }} train "$state/train.yaml"
) >> "$state/log" 2>&1 &
echo $! > "$state/pid"
tail -c "+$from" -f -s 0.2 --pid=$! "$state/log" || true
wait "$(cat "$state/pid")"
ON_EVERY_WORKER

say() { echo "$name: $*" >&2; }

# Two of this script would stop each other's training.
mkdir -p "$HOME/.abi-launch"
exec 9> "$HOME/.abi-launch/$name.lock"
if command -v flock > /dev/null && ! flock -n 9; then
  say "another launch of it runs on this machine"
  exit 1
fi

child=
stop() {
  trap - TERM INT HUP
  [ -z "$child" ] || kill "$child" 2> /dev/null
  exit "$1"
}
trap 'stop 143' TERM
trap 'stop 130' INT
trap 'stop 129' HUP

# Runs what takes long so that a signal need not wait for it.
interruptible() {
  local status=0
  "$@" 9>&- &
  child=$!
  wait "$child" || status=$?
  child=
  return "$status"
}

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; ABSENT; UNKNOWN when gcloud cannot tell.
state() {
  local answer
  if answer=$("${tpus[@]}" describe "$name" "${where[@]}" --format='value(state.state)' 2>&1); then
    echo "$answer" | tail -n 1
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    echo ABSENT
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

create() {
  "${tpus[@]}" create "$name" "${where[@]}" {% for option in machine %}{{ option | quote }}{{ " " if not loop.last }}{% endfor %}

}

# Returns when the TPU is there; fails when it cannot be had.
acquire() {
  local now before="" unknown=0
  while true; do
    now=$(state)
    [ "$now" = "$before" ] || say "TPU is $now"
    before=$now
    [ "$now" = UNKNOWN ] && unknown=$((unknown + 1)) || unknown=0
    case "$now" in
      ACTIVE) return 0 ;;
      ABSENT) create || return 1 ;;
      SUSPENDED) "${tpus[@]}" delete "$name" "${where[@]}" --force --quiet || return 1 ;;
      FAILED) say "the request for it failed; see: ${tpus[*]} describe $name ${where[*]}"; return 1 ;;
      UNKNOWN) [ "$unknown" -lt 20 ] || return 1 ;;
    esac
    interruptible sleep "$poll_s"
  done
}

failures=0
while true; do
  acquire || exit 1
  status=0
  interruptible "${tpus[@]}" ssh "$name" "${where[@]}" --node=all --worker=all --batch-size=all {{ "--internal-ip " if launch.tpu_vm.internal_ips }}--command="$on_every_worker" || status=$?
  [ "$status" -ne 0 ] || break
  # 143: pre-empted, everything is saved. A TPU that is gone could not even say so.
  if [ "$status" -ne 143 ] && [ "$(state)" = ACTIVE ]; then
    failures=$((failures + 1))
    if [ "$failures" -gt "$max_restarts" ]; then
      say "failed with exit status $status; $max_restarts restarts are used up; the TPU is still there"
      exit "$status"
    fi
  fi
  say "exit status $status; starting again from the last checkpoint"
  interruptible sleep "$poll_s"
done
say "training is done"
{% if launch.tpu_vm.delete_when_done %}
"${tpus[@]}" delete "$name" "${where[@]}" --force --quiet
{% endif %}
