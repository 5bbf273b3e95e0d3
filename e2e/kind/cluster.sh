# shellcheck shell=bash
# Which road to take, what `up` leaves for others to use, and taking the cluster away. Needs lib.sh, engine.sh.

# choose_engine: sets DOCKER_HOST to a container engine that works (starting ours if the machine has none), MODE to
# registry or offline, and ENGINE to machine or own.
choose_engine() {
  if [[ -f $STATE/engine.pid || ${DOCKER_HOST:-} == "unix://$SOCKET" ]]; then unset DOCKER_HOST; fi
  if command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1; then
    ENGINE=machine
  else
    ENGINE=own
    if ! engine_up; then
      engine_stop
      step_here "start a container engine" engine_start
    fi
    export DOCKER_HOST=unix://$SOCKET
    PATH=$(engine_dir)/bin:$PATH
  fi
  MODE=offline
  if [[ $ENGINE == machine && -z ${LONGHAND_OFFLINE:-} ]]; then
    # The image of the probe's pods, small enough to tell quickly whether a registry answers.
    if timeout 30 docker pull "$PROBE_IMAGE" >/dev/null 2>&1; then MODE=registry; fi
  fi
  export LONGHAND_CLUSTER_MODE=$MODE
  say "engine: $ENGINE, mode: $MODE"
}

# step_here: like step, for what must run in this shell.
step_here() {
  local text=$1 t0=$SECONDS
  shift
  "$@"
  say "$text: $((SECONDS - t0)) s"
}

# write_env: for others to source. The cluster's own copy serves the other clones.
write_env() { # SANDBOX_BASE
  local bin
  bin=$CACHE/bin/$(digest "$KIND_DIR/go")
  mkdir -p "$OUT" "$bin"
  {
    echo "export LONGHAND_CLUSTER_MODE=$MODE"
    echo "export LONGHAND_SANDBOX_BASE=$1"
    if [[ $ENGINE == own ]]; then
      ln -sfn "$(engine_dir)/bin/docker" "$bin/docker"
      echo "export DOCKER_HOST=unix://$SOCKET"
    fi
    echo "case :\$PATH: in *:$bin:*) ;; *) export PATH=$bin:\$PATH ;; esac"
  } >"$STATE/env.new"
  mv "$STATE/env.new" "$STATE/env"
  publish
}

# publish: gives this clone what the running engine and cluster are used with.
publish() {
  mkdir -p "$OUT"
  { cat "$STATE/env" && echo "export KUBECONFIG=$OUT/kubeconfig"; } >"$OUT/env.new"
  mv "$OUT/env.new" "$OUT/env"
  if [[ -f $STATE/kubeconfig ]]; then
    install -m 600 "$STATE/kubeconfig" "$OUT/kubeconfig"
  else
    rm -f "$OUT/kubeconfig"
  fi
}

kubectl_() { timeout "${KUBECTL_SECONDS:-60}" kubectl --kubeconfig "$STATE/kubeconfig" "$@"; }

nodes_ready() { # COUNT
  local ready
  ready=$(kubectl_ get nodes -o jsonpath='{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}') || return 1
  [[ $(grep -cx True <<<"$ready") == "$1" && $(wc -l <<<"$ready") == "$1" ]]
}

# healthy: whether a complete cluster of ours runs, as NODES and RUNTIMES ask for it where they are set.
healthy() {
  local nodes runtimes
  [[ -f $STATE/cluster && -f $STATE/env && -f $STATE/kubeconfig ]] || return 1
  read -r nodes runtimes <"$STATE/cluster" || return 1
  if [[ ${NODES:-$nodes} != "$nodes" ]]; then
    say "the cluster that runs has $nodes node(s), $NODES wanted"
    return 1
  fi
  if [[ ${RUNTIMES:-$runtimes} != "$runtimes" ]]; then
    say "the cluster that runs has no runtime $RUNTIMES"
    return 1
  fi
  use_cluster_env
  KUBECTL_SECONDS=5 kubectl_ get --raw /readyz >/dev/null 2>&1 && KUBECTL_SECONDS=5 nodes_ready "$nodes" 2>/dev/null
}

our_nodes() { docker ps -aq --filter "label=io.x-k8s.kind.cluster=$CLUSTER"; }

# cluster_delete: the nodes and their volumes, in the engine of DOCKER_HOST.
cluster_delete() {
  local ids
  rm -f "$STATE/cluster" "$STATE/kubeconfig"
  ids=$(our_nodes)
  # shellcheck disable=SC2086 # a list
  if [[ $ids ]]; then docker rm -fv $ids; fi
  if [[ -z $(docker ps -aq --filter network=kind) ]]; then docker network rm kind 2>/dev/null || true; fi
}
