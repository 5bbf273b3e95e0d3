"""What lies about in the container, and what of it can be changed."""

import ctypes
import fcntl
import glob
import os
import re
import struct
import subprocess

from table import errno_of, memory_of_sandboxd, outcome, row

# Put together here, so that a search does not find itself.
VALUE = "sk-" + "e2e-[0-9a-f]{8,}"
PRIVATE_KEY = "PRIVATE " + "KEY-----"
NO_WRITE = "EROFS|EACCES|EPERM|ENOENT|ETXTBSY"


def is_there(*patterns):
    found = [path for pattern in patterns for path in glob.glob(pattern)]
    return " ".join(found) or "nothing"


def opens(path, mode):
    def act():
        with open(path, mode):
            return "opened"

    return outcome(act)


def absent(name, *patterns):
    row("files/" + name, "nothing")(lambda: is_there(*patterns))


def read_only(name, path):
    row("files/" + name, NO_WRITE)(lambda: opens(path, "ab"))


absent("service-account-token", "/var/run/secrets/*", "/run/secrets/*")
absent("kubelet-and-etcd", "/var/lib/kubelet/*", "/var/lib/etcd/*", "/etc/kubernetes/*")
absent("runtime-sockets", "/run/containerd/*", "/run/docker.sock", "/var/run/docker.sock", "/run/crio/*", "/run/k3s/*")
absent("host-folders", "/host*", "/rootfs/*", "/mnt/*", "/proc/1/root/var/lib/kubelet/*")
absent("block-devices", "/dev/sd*", "/dev/vd*", "/dev/nvme*", "/dev/xvd*", "/dev/dm-*", "/dev/loop*")
absent("memory-devices", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kvm", "/dev/vhost*")
absent("keys-of-users", "/root/.ssh/*", "/home/*/.ssh/*", "/root/.kube/*", "/home/*/.kube/*", "/tmp/.kube/*")


# gVisor has the file, of its own network.
@row("files/tunnel-device", "ENOENT|EPERM|EACCES")
def _():
    def act():
        device = os.open("/dev/net/tun", os.O_RDWR)
        # TUNSETIFF, a TUN interface.
        fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"planted", 1))
        return "an interface"

    return outcome(act)


read_only("program-of-sandboxd", "/usr/local/bin/sandboxd")
read_only("root-file-system", "/usr/local/bin/planted")
read_only("accounts", "/etc/passwd")
read_only("loader-preload", "/etc/ld.so.preload")
read_only("shadow", "/etc/shadow")
read_only("core-pattern", "/proc/sys/kernel/core_pattern")
read_only("modprobe-path", "/proc/sys/kernel/modprobe")
read_only("sysrq", "/proc/sysrq-trigger")
read_only("uevent-helper", "/sys/kernel/uevent_helper")
read_only("forwarding", "/proc/sys/net/ipv4/ip_forward")
read_only("cgroup-memory-limit-v2", "/sys/fs/cgroup/memory.max")
read_only("cgroup-memory-limit-v1", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
read_only("cgroup-release-agent", "/sys/fs/cgroup/rdma/release_agent")


@row("files/cgroup-of-its-own", NO_WRITE)
def _():
    return outcome(os.mkdir, "/sys/fs/cgroup/planted")


@row("files/bundle-of-authorities", "EPERM|EACCES|EROFS")
def _():
    def act():
        with open(os.environ["SSL_CERT_FILE"], "ab", 0) as file:
            file.write(b"x")
            return "written"

    return outcome(act)


@row("files/mounts", "nothing")
def _():
    usual = "/|/(proc|dev|sys)(/.*)?|/etc/(hosts|hostname|resolv.conf)|/workspace|/tmp|/run/\\.containerenv"
    with open("/proc/self/mounts") as file:
        places = [line.split()[1] for line in file]
    return " ".join(place for place in places if not re.fullmatch(usual, place)) or "nothing"


@row("files/own-environment", "nothing")
def _():
    return " ".join(re.findall(VALUE, " ".join(os.environ.values()))) or "nothing"


@row("files/environment-of-sandboxd", "nothing|EACCES|EPERM")
def _():
    def act():
        with open("/proc/1/environ") as file:
            text = file.read()
        secret = [name for name in re.findall(r"(?:^|\0)(\w*(?:TOKEN|SECRET|PASSWORD|CREDENTIAL)\w*)=", text)]
        return " ".join(re.findall(VALUE, text) + secret) or "nothing"

    return outcome(act)


# Tools run as the user of sandboxd and may be able to read its memory: what must not be there is a value, a key, or a
# token of the API server. The egress token is there, and gives what the relay gives.
@row("files/values-in-memory-of-sandboxd", r"\[\]|EACCES|EPERM")
def _():
    return str(memory_of_sandboxd((VALUE + "|" + PRIVATE_KEY).encode()))


@row("files/api-tokens-in-memory-of-sandboxd", "nothing|EACCES|EPERM")
def _():
    # An RS256 token of a service account begins with this.
    found = memory_of_sandboxd(b"eyJhbGciOiJSUzI1" + b"Ni[A-Za-z0-9._-]{40,}")
    return found if isinstance(found, str) else "nothing" if not found else "%d tokens" % len(found)


@row("files/keys-on-disk", "nothing")
def _():
    places = [place for place in ("/etc", "/var", "/run", "/home", "/opt", "/srv", "/tmp", "/workspace") if os.path.isdir(place)]
    found = subprocess.run(
        ["grep", "-rlEs", "--exclude-dir=redteam", "(%s)|(%s)" % (PRIVATE_KEY, VALUE), *places], stdout=subprocess.PIPE
    )
    return found.stdout.decode().strip() or "nothing"


@row("files/processes-of-others", "nothing")
def _():
    names = []
    for path in glob.glob("/proc/[0-9]*/comm"):
        try:
            with open(path) as file:
                names.append(file.read().strip())
        except OSError:
            continue
    others = {"kubelet", "containerd", "containerd-shim", "systemd", "harness", "credential-proxy", "pause", "etcd"}
    return " ".join(sorted(others & set(names))) or "nothing"


@row("files/no-new-privileges", "1")
def _():
    return str(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))


@row("files/setuid-programs", "nothing")
def _():
    """Each of them is run, as whoever it says, to print its user."""
    root = []
    for program, words in {"/bin/su": ["-c", "id -u"], "/usr/bin/sudo": ["-n", "id", "-u"], "/usr/bin/newgrp": []}.items():
        if os.path.exists(program):
            done = subprocess.run([program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            root += [program] if done.stdout.strip() == b"0" else []
    return " ".join(root) or "nothing"


@row("files/capabilities", "0+ 0+ 0+")
def _():
    with open("/proc/self/status") as file:
        text = file.read()
    return " ".join(re.search(r"%s:\s*(\w+)" % name, text).group(1) for name in ("CapPrm", "CapEff", "CapBnd"))


@row("files/user-of-root", "EPERM")
def _():
    return outcome(os.setuid, 0)


@row("files/groups-of-root", "EPERM")
def _():
    return outcome(os.setgroups, [0])


@row("files/device-node", "EPERM|EROFS")
def _():
    return outcome(lambda: os.mknod("/tmp/planted", 0o060600, os.makedev(8, 0)) or "made")


def reads(name, path):
    def attempt():
        try:
            with open(path, "rb") as file:
                file.read(1)
                return "read"
        except OSError as error:
            return errno_of(error)

    row("files/" + name, "EPERM|EACCES|ENOENT")(attempt)


reads("kernel-messages", "/dev/kmsg")
reads("shadow-read", "/etc/shadow")
