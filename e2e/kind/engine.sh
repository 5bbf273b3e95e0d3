# shellcheck shell=bash
# A container engine where the machine has none: Debian's dockerd, unpacked into the cache (nothing is installed), in
# network, mount and process namespaces of its own. Its bridge, rules and mounts are thus never seen by the machine, and when
# its first process ends, by whatever cause, the kernel ends all the others and drops the mounts.
# Needs lib.sh.

SOCKET=$STATE/docker.sock
DATA=$CACHE/docker-data # images survive `down`, containers and volumes do not
HOST_IF=lh-host HOST_IP=192.168.79.1
NODE_IF=lh-node NODE_IP=192.168.79.2 # the API server's address for the machine

our_docker() { DOCKER_HOST=unix://$SOCKET "$(engine_dir)/bin/docker" "$@"; }
engine_up() { [[ -S $SOCKET ]] && our_docker version >/dev/null 2>&1; }
engine_up_or_dead() { engine_up || ! kill -0 "$1" 2>/dev/null; }

engine_unpack() { # FOLDER
  cd "$1" || return
  apt_lists
  local name packages=(docker.io containerd runc tini)
  for name in docker-cli libdevmapper1.02.1; do # only some releases have them
    if apt-cache show "$name" >/dev/null 2>&1; then packages+=("$name"); fi
  done
  apt-get download "${packages[@]}"
  for name in *.deb; do dpkg -x "$name" unpacked; done
  mkdir bin lib
  find unpacked/usr/bin unpacked/usr/sbin -type f -exec cp -a {} bin/ \;
  [[ -e bin/docker-init ]] || ln -s tini-static bin/docker-init
  find unpacked -name 'libdevmapper.so*' -exec cp -a {} lib/ \;
  rm -rf ./*.deb unpacked
  install -m 755 "$KIND_DIR/oci-runtime" bin/longhand-runc
}

engine_dir() {
  local os
  # shellcheck disable=SC1091
  os=$(. /etc/os-release && echo "$ID-$VERSION_ID-$(uname -m)")
  cached docker-engine "$(digest "$os" "$(declare -f engine_unpack)" "$KIND_DIR/oci-runtime")" engine_unpack
}

engine_network() {
  ip netns list | grep -qw "$NETNS" || ip netns add "$NETNS"
  ip -n "$NETNS" link set lo up
  if ! ip link show "$HOST_IF" >/dev/null 2>&1; then
    ip link add "$HOST_IF" type veth peer name "$NODE_IF" netns "$NETNS"
  fi
  ip addr replace "$HOST_IP/30" dev "$HOST_IF"
  ip -n "$NETNS" addr replace "$NODE_IP/30" dev "$NODE_IF"
  ip link set "$HOST_IF" up
  ip -n "$NETNS" link set "$NODE_IF" up
}

engine_start() {
  local dir pid log=$STATE/dockerd.log
  need_root "a container engine of our own (there is no usable Docker)"
  apt_install iptables iproute2 jq util-linux libseccomp2 >&2
  dir=$(engine_dir)
  engine_network
  mkdir -p "$DATA" "$STATE/exec"
  # kind mounts this folder into its nodes, and dockerd makes it where it is missing.
  [[ -d /lib/modules ]] || touch "$STATE/no-lib-modules"
  rm -f "$SOCKET" "$STATE/dockerd.pid"
  # `nsenter --net`, not `ip netns exec`, which hides /sys/fs/cgroup. A first process that reaps (tini), since shims lose their
  # parents. 9>&-: the lock is ours, not the daemon's.
  PATH=$dir/bin:$PATH LD_LIBRARY_PATH=$dir/lib \
    setsid nsenter --net="/run/netns/$NETNS" unshare --mount --pid --fork --kill-child --mount-proc \
    bash -c "mount -t tmpfs -o mode=755 tmpfs '$STATE/exec' && exec \"\$@\"" dockerd \
    "$dir/bin/tini-static" -g -- "$dir/bin/dockerd" -H "unix://$SOCKET" \
    --data-root "$DATA" --exec-root "$STATE/exec" --pidfile "$STATE/exec/dockerd.pid" --oom-score-adjust=0 \
    --storage-driver overlay2 --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$CGROUP" \
    --userland-proxy-path "$dir/bin/docker-proxy" --add-runtime "longhand=$dir/bin/longhand-runc" --default-runtime longhand \
    --bip 172.31.250.1/24 --default-address-pool base=172.31.251.0/24,size=25 >"$log" 2>&1 </dev/null 9>&- &
  pid=$!
  disown "$pid"
  echo "$pid $(process_start "$pid")" >"$STATE/engine.pid"
  within 60 engine_up_or_dead "$pid" || true
  engine_up || {
    tail -n 20 "$log" >&2
    die "dockerd did not start, see $log"
  }
}

# process_start PID: its start time, so that a recorded pid is never taken for another process.
process_start() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# engine_stop: ends the engine and all that runs in it, also when it is only half there, and takes the network away.
engine_stop() {
  local pid start
  if read -r pid start 2>/dev/null <"$STATE/engine.pid" && [[ $(process_start "$pid") == "$start" ]]; then
    # The recorded process is `unshare`; killing it kills the namespace's first process, and so all of them.
    kill -9 "$pid" 2>/dev/null || true
  fi
  within 10 no_processes || our_processes | xargs -r kill -9
  within 20 no_processes || die "these processes do not end: $(our_processes | tr '\n' ' ')"
  rm -rf "$STATE/engine.pid" "$SOCKET"
  engine_unmount
  if ip link show "$HOST_IF" >/dev/null 2>&1; then ip link delete "$HOST_IF"; fi
  if ip netns list | grep -qw "$NETNS"; then ip netns delete "$NETNS"; fi
  remove_cgroups || true
  within 10 no_cgroups || die "cgroups are left: $(our_cgroups | head -n 3)"
  rm -rf "$STATE/exec"
  if [[ -f $STATE/no-lib-modules ]]; then
    rmdir /lib/modules 2>/dev/null || true
    rm "$STATE/no-lib-modules"
  fi
}

# our_processes: whatever runs in our network namespace or our cgroups.
our_processes() {
  local ns pid
  {
    if ns=$(stat -L -c %i "/run/netns/$NETNS" 2>/dev/null); then
      { stat -L -c '%i %n' /proc/[0-9]*/ns/net 2>/dev/null || true; } | awk -v ns="$ns" '$1 == ns { split($2, p, "/"); print p[3] }'
    fi
    our_cgroups | while read -r pid; do cat "$pid/cgroup.procs" 2>/dev/null || true; done
  } | sort -un
}
no_processes() { [[ -z $(our_processes) ]]; }

our_mounts() { { findmnt -rno TARGET || true; } | { grep -F -e "$STATE/exec" -e "$DATA/" || true; } | sort -r; }
engine_unmount() {
  local target
  our_mounts | while read -r target; do umount -l "$target" || true; done
}

our_cgroups() { find /sys/fs/cgroup -depth -type d -path "/sys/fs/cgroup/*$CGROUP*" 2>/dev/null || true; }
no_cgroups() { [[ -z $(our_cgroups) ]] || { remove_cgroups; [[ -z $(our_cgroups) ]]; }; }
remove_cgroups() {
  local dir
  our_cgroups | while read -r dir; do rmdir "$dir" 2>/dev/null || true; done
}

# engine_left: what is still there of it; nothing after engine_stop.
engine_left() {
  local x
  for x in $(our_processes); do echo "process $x: $(ps -o args= -p "$x" | cut -c1-80)"; done
  our_mounts | sed 's/^/mount /'
  for x in /sys/fs/cgroup/"$CGROUP" /sys/fs/cgroup/*/"$CGROUP"; do
    if [[ -d $x ]]; then echo "cgroup $x, with $(find "$x" -mindepth 1 -type d | wc -l) in it"; fi
  done
  if ip netns list | grep -qw "$NETNS"; then echo "network namespace $NETNS"; fi
  if ip link show "$HOST_IF" >/dev/null 2>&1; then echo "link $HOST_IF"; fi
  if [[ -e $SOCKET ]]; then echo "socket $SOCKET"; fi
}
