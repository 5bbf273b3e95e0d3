"""Runs the SDK's own suite against a control plane on loopback. See `run`, which calls it with what it needs.

    run.py SUITE PROGRAMS CHART_JSON CRDS [PYTEST ARGUMENTS...]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from local import Stack, manifests

TESTS = "tests/api_resources/beta/"
FILES = [
    "test_agents.py", "agents", "test_environments.py", "environments", "test_files.py", "test_sessions.py", "sessions", "test_vaults.py",
    "vaults",
]  # fmt: skip
WORKERS = 2
DEADLINE_SECONDS = 600


def main() -> int:
    # So that what was started ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    suite, programs, objects, crds, *arguments = sys.argv[1:]
    with Stack(json.loads(programs), manifests(Path(objects).read_text()), Path(crds)) as stack:
        described = stack.folder / "stack.json"
        described.write_text(
            json.dumps({
                "kube_url": stack.kube_url, "ca": stack.ca, "admin_token": stack.admin_token, "url": stack.url,
                "operator_token": stack.operator.token, "etcd": stack.log_etcd_url,
            })
        )  # fmt: skip
        here = str(Path(__file__).parent)
        environment = {
            **os.environ,
            "TEST_API_BASE_URL": stack.url,
            "LONGHAND_STACK": str(described),
            "PYTHONPATH": here,
        }
        command = [
            sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "tests._alias_httpx", "-p", "longhand_suite", "-p", "no:cacheprovider",
            "--tb=short", "-q", "-n", str(WORKERS), "--dist", "loadgroup", *arguments, *(TESTS + file for file in FILES),
        ]  # fmt: skip
        code = subprocess.run(command, cwd=suite, env=environment, timeout=DEADLINE_SECONDS, check=False).returncode
        if code:
            print(f"the end of the service's log:\n{stack.log_of('session').read_text(errors='replace')[-3000:]}")
        return code


if __name__ == "__main__":
    sys.exit(main())
