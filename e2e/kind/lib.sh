# shellcheck shell=bash
# Shared by the scripts of this folder: where things lie, messages with times, the lock, atomic cache entries.

shopt -s inherit_errexit

KIND_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$KIND_DIR/../.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/longhand
STATE=$CACHE/state # of the one cluster of this machine, whichever clone started it
OUT=$ROOT/target/cluster
# The names below also tell our things apart when we clean up.
CLUSTER=longhand
NETNS=longhand
CGROUP=longhand-docker
export KIND_DIR ROOT CACHE STATE OUT CLUSTER NETNS CGROUP
mkdir -p "$CACHE" "$STATE"

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

# step TEXT COMMAND...: runs it with its output in a log, says every 20 s that it still runs, and how long it took.
# The log's end is shown when it fails.
step() {
  local text=$1 log pid rc=0 t0=$SECONDS beat=0
  shift
  mkdir -p "$STATE/log"
  log=$STATE/log/$(printf %s "$text" | tr -cs 'a-zA-Z0-9' -).log
  set -m # a process group of its own, so that an interrupt ends all of it
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  set +m
  # shellcheck disable=SC2064 # the pid of now
  trap "kill -- -$pid 2>/dev/null || true" INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    if ((++beat % 100 == 0)); then say "  $text: $((SECONDS - t0)) s so far: $(tail -n 1 "$log" | cut -c1-100)"; fi
  done
  wait "$pid" || rc=$?
  trap - INT TERM
  if ((rc)); then
    say "$text: failed after $((SECONDS - t0)) s (exit code $rc), end of $log:"
    tail -n 25 "$log" >&2
    return "$rc"
  fi
  say "$text: $((SECONDS - t0)) s"
}

# within SECONDS COMMAND...: polls until the command succeeds or the time is over.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || return 1
    sleep 0.2
  done
}

# digest FILE_OR_TEXT...: a short hash of the files' contents (folders: of all files within) and of any other words.
digest() {
  local x
  for x in "$@"; do
    if [[ -d $x ]]; then
      (cd "$x" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
    elif [[ -f $x ]]; then
      sha256sum <"$x"
    else
      printf '%s\n' "$x"
    fi
  done | sha256sum | cut -c1-16
}

# cached NAME KEY COMMAND...: prints the folder $CACHE/NAME-KEY. If it is missing, COMMAND makes it: it is called with a
# fresh folder appended, which gets its name only once the command is through, so that a broken build leaves nothing.
# Like `step`, not to be called from a condition (if, ||), where bash would not stop at the first error of COMMAND.
cached() {
  local dir=$CACHE/$1-$2 name=$1 tmp
  shift 2
  if [[ ! -d $dir ]]; then
    tmp=$CACHE/.tmp-${name//\//-}.$BASHPID
    rm -rf "$tmp"
    mkdir -p "$tmp" "$(dirname "$dir")"
    step "build $name" "$@" "$tmp"
    mv -T "$tmp" "$dir" 2>/dev/null || { [[ -d $dir ]] && rm -rf "$tmp"; }
  fi
  touch "$dir"
  echo "$dir"
}

# prune: what broken builds left, and what was not used for a month.
prune() {
  local tmp
  find "$CACHE"/{go,rootfs} -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} + 2>/dev/null || true
  for tmp in "$CACHE"/.tmp-*; do
    [[ -d $tmp && ! -d /proc/${tmp##*.} ]] && rm -rf "$tmp"
  done
  return 0
}

# One run at a time changes the cluster. Children must not inherit the lock: daemons would keep it (9>&-).
lock() {
  exec 9>"$CACHE/lock"
  flock -n 9 || {
    say "waiting for another run on this machine"
    flock -w "${LOCK_SECONDS:-1800}" 9 || die "another run holds $CACHE/lock"
  }
}

need_root() { [[ $(id -u) == 0 ]] || die "$1 needs root"; }

# apt_install PACKAGE...: what is missing of them.
apt_install() {
  local p missing=()
  for p in "$@"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  ((${#missing[@]})) || return 0
  need_root "apt-get install ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt_lists
  apt-get install -y --no-install-recommends "${missing[@]}"
}
apt_lists() { [[ -n $(find /var/lib/apt/lists -name '*_Packages*' -mtime -1 -print -quit 2>/dev/null) ]] || apt-get update; }

# version_of GROUP [VARIABLE]: what go/GROUP/recipe says.
version_of() (
  # shellcheck disable=SC1090
  source "$KIND_DIR/go/$1/recipe"
  local name=${2:-version}
  echo "${!name}"
)

# use_cluster_env: the environment that `up` or `docker` wrote, wherever this clone lies.
use_cluster_env() {
  # shellcheck disable=SC1091
  if [[ -f $STATE/env ]]; then source "$STATE/env"; fi
}
