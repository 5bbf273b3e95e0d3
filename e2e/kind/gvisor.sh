# shellcheck shell=bash
# gVisor as a second runtime of the nodes (RUNTIMES=gvisor). Needs lib.sh, cluster.sh.

cgroup_v1() { [[ $(stat -fc %T /sys/fs/cgroup) != cgroup2fs ]]; }

# with_gvisor COMMAND: only where it is asked for.
with_gvisor() { if [[ $RUNTIMES == gvisor ]]; then "$@"; fi; }

# gvisor_kubelet: lines of the KubeletConfiguration. runsc of a node with cgroup v1 knows no systemd slices.
gvisor_kubelet() { if cgroup_v1; then echo "  cgroupDriver: cgroupfs"; fi; }

# gvisor_containerd: a patch of containerd's configuration.
gvisor_containerd() {
  cat <<'EOF'
- |-
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runsc]
    runtime_type = "io.containerd.runsc.v1"
EOF
  if ! cgroup_v1; then return; fi
  cat <<'EOF'
- |-
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = false
EOF
}

# gvisor_install FOLDER: its programs into every node. containerd looks for them when a pod begins.
gvisor_install() {
  local node
  for node in $(our_nodes); do
    docker cp "$1/runsc" "$node:/usr/local/bin/runsc"
    docker cp "$1/containerd-shim-runsc-v1" "$node:/usr/local/bin/containerd-shim-runsc-v1"
    if cgroup_v1; then
      # kind binds them to themselves for a kubelet with systemd slices; runsc finds no cgroup below such a mount. Lazily, since
      # the kubelet may be reading there.
      docker exec "$node" bash -c 'findmnt -rno TARGET | grep -E "^/sys/fs/cgroup/[^/]+/kubelet(\.slice)?$" | sort -r | xargs -r -n 1 umount --lazy'
    fi
  done
}

gvisor_class() {
  kubectl_ apply -f - <<'EOF'
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: gvisor}
handler: runsc
EOF
}
