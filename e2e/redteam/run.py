"""Runs the attempts of this folder inside a sandbox, each in a process of its own, many at once.

run.py [GROUP...]   one line an attempt: `ok NAME`, or `BREACH NAME: what was seen`; then `ran N`.
run.py --one NAME   what one attempt sees.

facts.json beside it says where everything is (see e2e/tests/suite/redteam.rs).

The attempts are meant, and who has the rights changes the machine by them: for pods of a test cluster only. Nothing is run
as root, with a capability, or outside of a pod.
"""

import concurrent.futures
import importlib
import os
import re
import subprocess
import sys

import table

GROUPS = ["network", "files", "kernel", "sandboxd", "egress"]
AT_ONCE = 12


def judge(row):
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", row.name],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=row.limit,
        )
        seen = done.stdout.decode(errors="replace").strip()
    except subprocess.TimeoutExpired:
        # Only what waits by itself may be silent: an attempt that hangs proves nothing.
        seen = "no end within %s s" % row.limit
    if re.fullmatch(row.refusal, seen, re.S):
        return "ok %s" % row.name
    return "BREACH %s: %s" % (row.name, " ".join(seen.split())[:300])


def refuse_to_harm():
    with open("/proc/self/status") as file:
        effective = int(re.search(r"CapEff:\s*(\w+)", file.read()).group(1), 16)
    if os.geteuid() == 0 or effective or "KUBERNETES_SERVICE_HOST" not in os.environ:
        sys.exit("not run: these attempts are for an unprivileged container of a pod (root, a capability, or no pod here)")


def main(words):
    refuse_to_harm()
    one = words[1] if words[:1] == ["--one"] else None
    for group in GROUPS if one or not words else words:
        importlib.import_module(group)
    if one:
        print(next(row for row in table.ROWS if row.name == one).attempt())
        return
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for line in pool.map(judge, table.ROWS):
            print(line, flush=True)
    print("ran %d" % len(table.ROWS))


if __name__ == "__main__":
    main(sys.argv[1:])
