"""Doors of the kernel that a sandbox has no key for: the seccomp profile or the missing capability says EPERM."""

import ctypes
import os
import platform

from table import OWN_KERNEL, errno, row

LIBC = ctypes.CDLL(None, use_errno=True)
ARM = platform.machine() == "aarch64"
# By x86-64 and by arm64.
NUMBERS = {
    "pivot_root": (155, 41),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
}
NEWNS, NEWUSER, NEWNET, NEWPID, NEWCGROUP = 0x20000, 0x10000000, 0x40000000, 0x20000000, 0x02000000
REFUSED = "EPERM|ENOSYS|EACCES"
LET_IN = r"let in \(\d+\)"


def seen(result):
    return "let in (%d)" % result if result != -1 else errno.errorcode.get(ctypes.get_errno(), "?")


def refused(own):
    """What is said to an attempt, or what a kernel of the sandbox's own says to it."""
    return REFUSED + "|" + own if own and OWN_KERNEL else REFUSED


def call(name, function, *words, own=None):
    row("kernel/" + name, refused(own))(lambda: seen(getattr(LIBC, function)(*words)))


def system_call(name, *words, own=None):
    at = NUMBERS[name][ARM]
    row("kernel/" + name, refused(own))(lambda: seen(LIBC.syscall(ctypes.c_long(at), *(ctypes.c_long(word) for word in words))))


def address(data):
    buffer = ctypes.create_string_buffer(data, 256)
    KEPT.append(buffer)
    return ctypes.addressof(buffer)


KEPT = []
call("unshare-mounts", "unshare", NEWNS)
call("unshare-user", "unshare", NEWUSER, own=LET_IN)
call("unshare-network", "unshare", NEWNET)
call("unshare-processes", "unshare", NEWPID)
call("unshare-cgroup", "unshare", NEWCGROUP, own="EINVAL")
call("mount-proc", "mount", b"proc", b"/tmp", b"proc", 0, None)
call("mount-tmpfs", "mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None)
call("mount-bind-of-root", "mount", b"/", b"/tmp", None, 4096, None)
call("remount-root", "mount", None, b"/", None, 32, None)
call("unmount-workspace", "umount2", b"/workspace", 0)
call("chroot", "chroot", b"/tmp")
call("swap", "swapon", b"/tmp/none", 0)
call("accounting", "acct", b"/tmp/none")
call("host-name", "sethostname", b"planted", 7)
# The log of a kernel of its own tells of nothing but that one.
call("kernel-log", "klogctl", 3, ctypes.c_void_p(address(b"")), 256, own=LET_IN)
system_call("pivot_root", address(b"/tmp"), address(b"/tmp"))
system_call("init_module", 0, 0, address(b""))
system_call("finit_module", -1, address(b""), 0)
system_call("delete_module", address(b"none"), 0)
system_call("add_key", address(b"user"), address(b"planted"), address(b"x"), 1, -3)
system_call("keyctl", 0, -3, 1, own=LET_IN)
system_call("perf_event_open", 0, -1, 0, -1, 0, own="ENODEV")
system_call("open_by_handle_at", -100, 0, 0, own="ENOTSUP")
system_call("bpf", 0, address(b""), 72)
system_call("userfaultfd", 0)
system_call("kexec_load", 0, 0, 0, 0)
system_call("fsopen", address(b"proc"), 0)
system_call("open_tree", -100, address(b"/"), 1)
system_call("move_mount", -100, address(b"/tmp"), -100, address(b"/tmp"), 0)


@row("kernel/clone-user", refused(LET_IN))
def _():
    # As fork, into a user namespace of its own; 17 is SIGCHLD.
    flags = NEWUSER | 17
    child = LIBC.syscall(ctypes.c_long(220 if ARM else 56), *(ctypes.c_long(word) for word in (flags, 0, 0, 0, 0)))
    if child == 0:
        os._exit(0)
    return seen(child)


def join(kind):
    @row("kernel/join-" + kind, REFUSED)
    def _():
        try:
            space = os.open("/proc/1/ns/" + kind, os.O_RDONLY)
        except OSError as error:
            return errno.errorcode[error.errno]
        return seen(LIBC.setns(space, 0))


for kind in ("mnt", "net", "pid"):
    join(kind)
