"""A pytest plugin under which the SDK's own suite runs against the service.

It gives the suite's clients a Kubernetes token as their key, makes what the suite expects to exist, and puts back before a case what
a case before it may have changed. Cases of skips.toml must fail: one that passes has to leave the list, which is an error like any.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import sys
import tomllib
from collections.abc import Generator
from pathlib import Path

import pytest
from local import Client
from seeds import Seeds

CASES = 1375
LEAST_PASSED = 0.95
FOLDER = "tests/api_resources/beta/"
# Which families of objects the cases of a file need, the last of which they may change; the longest match counts.
FILES = {
    "test_agents.py": ("agent",),
    "agents/": ("agent",),
    "test_environments.py": ("environment",),
    "environments/": ("environment",),
    "environments/test_work.py": ("agent", "environment"),
    "test_files.py": ("file",),
    "test_vaults.py": ("vault",),
    "vaults/": ("vault",),
    "test_sessions.py": ("agent", "environment", "vault", "session"),
    "sessions/": ("agent", "environment", "vault", "session"),
}
# How a case calls a method: `test_raw_response_archive` is the method `archive`.
CASE = re.compile(r"test_(?:method|raw_response|streaming_response|path_params)_(\w+)")
# Methods that change nothing.
READING = ("retrieve", "list", "stream", "stats", "download")

world: World | None = None


class World:
    """The namespace of this process, and what is known of its objects."""

    def __init__(self, worker: str) -> None:
        stack = json.loads(Path(os.environ["LONGHAND_STACK"]).read_text())
        namespace = f"sdk-{worker}"
        api = Client(stack["kube_url"], stack["admin_token"], stack["ca"])
        api.do("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}}, ok=(409,))
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        api.do("POST", accounts, {"metadata": {"name": "client"}}, ok=(409,))
        binding = {
            "metadata": {"name": "client"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "client", "namespace": namespace}],
        }
        api.do("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings", binding, ok=(409,))
        spec = {"audiences": ["longhand"], "expirationSeconds": 7200}
        answer = api.do("POST", f"{accounts}/client/token", {"spec": spec})
        self.token: str = answer["status"]["token"]  # type: ignore[index]
        operator = Client(stack["url"], stack["operator_token"])
        self.seeds = Seeds(namespace, api, operator, Client(stack["url"], self.token), stack["etcd"])
        self.pristine: dict[str, dict[str, object]] = {}

    def prepare(self, item: pytest.Item) -> None:
        needed = families(item)
        # A session keeps its environment from being deleted.
        if "session" not in needed and self.pristine.pop("session", None) is not None:
            self.seeds.clear("session")
        for family in needed:
            how = special(family, item)
            if self.pristine.get(family) != how:
                self.pristine.pop(family, None)
                self.seeds.fresh(family, **how)
                self.pristine[family] = how

    def leave(self, item: pytest.Item) -> None:
        if not method(item).startswith(READING):
            self.pristine.pop(families(item)[-1], None)


def families(item: pytest.Item) -> tuple[str, ...]:
    path = item.nodeid.removeprefix(FOLDER)
    return next(FILES[start] for start in sorted(FILES, key=len, reverse=True) if path.startswith(start))


def method(item: pytest.Item) -> str:
    named = CASE.match(item.name)
    return named[1] if named else item.name


def special(family: str, item: pytest.Item) -> dict[str, object]:
    """The one state of an object that its cases are about."""
    if family == "environment" and "environments/test_work.py" in item.nodeid:
        if not method(item).startswith("heartbeat"):
            return {"work": "queued"}
        # What a heartbeat expects is compared unless the work is about to stop, and the suite expects what nobody said.
        return {"work": "stopping" if "with_all_params" in item.name else "starting"}
    # The only thread of a session is archived with it, and to archive it again changes nothing.
    if family == "session" and "sessions/test_threads.py" in item.nodeid and method(item).startswith("archive"):
        return {"archived": True}
    return {}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from anthropic import APIStatusError

    listed = tomllib.loads((Path(__file__).parent / "skips.toml").read_text())
    skips, left_out = listed["skip"], [pattern for entry in listed["left_out"] for pattern in entry["cases"]]
    unused = {pattern for skip in skips for pattern in skip["cases"]} | set(left_out)
    collected = len(items)
    for pattern in left_out:
        away = [item for item in items if fnmatch.fnmatchcase(item.nodeid.removeprefix(FOLDER), pattern)]
        if away:
            unused.discard(pattern)
            config.hook.pytest_deselected(items=away)
            items[:] = [item for item in items if item not in away]
    for item in items:
        # Sessions are known by their identifiers across namespaces, so that one process has all of their cases.
        group = "sessions" if "session" in families(item) else "others"
        item.add_marker(pytest.mark.xdist_group(group))
        for skip in skips:
            for pattern in skip["cases"]:
                if fnmatch.fnmatchcase(item.nodeid.removeprefix(FOLDER), pattern):
                    # It has to be the service's refusal: a fixture that fails is a failure, and so is a case that passes.
                    item.add_marker(pytest.mark.xfail(reason=skip["reason"], raises=APIStatusError, strict=True))
                    item.user_properties.append(("refused", skip["refused"]))
                    unused.discard(pattern)
    if whole(config):
        if unused:
            raise pytest.UsageError(f"skips.toml names cases that there are not: {', '.join(sorted(unused))}")
        if collected != CASES:
            raise pytest.UsageError(f"the suite has {collected} cases, not {CASES}")


def whole(config: pytest.Config) -> bool:
    """Whether no part of the suite was chosen."""
    return not config.getoption("keyword") and not config.getoption("deselect")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A case of skips.toml is refused as its entry says, and not otherwise."""
    from anthropic import APIStatusError

    expected = dict(pyfuncitem.user_properties).get("refused")
    try:
        return (yield)
    except APIStatusError as error:
        if expected is not None and error.status_code != expected:
            raise AssertionError(f"refused with {error.status_code} and not with {expected}: {error}") from error
        raise


def pytest_collection_finish(session: pytest.Session) -> None:
    """The suite's own settings of a client name a key that is good for a mock only."""
    if session.items and (os.environ.get("PYTEST_XDIST_WORKER") or not session.config.getoption("numprocesses", None)):
        global world
        world = World(os.environ.get("PYTEST_XDIST_WORKER", "one"))
        sys.modules["tests.conftest"].api_key = world.token  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Cases of parameters of the path never leave the client.
    if world and "_path_params" not in item.name:
        world.prepare(item)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    if world:
        world.leave(item)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: object) -> None:
    stats = terminalreporter.stats  # type: ignore[attr-defined]
    passed = len(stats.get("passed", []))
    total = sum(len(stats.get(outcome, [])) for outcome in ("passed", "failed", "error", "xfailed", "skipped"))
    terminalreporter.write_line(f"{passed} of {total} cases passed, {len(stats.get('xfailed', []))} stand in skips.toml")  # type: ignore[attr-defined]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if world:
        world.seeds.close()
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or os.environ.get("PYTEST_XDIST_WORKER") or exitstatus != 0 or not whole(session.config):
        return
    passed = len(reporter.stats.get("passed", []))
    total = passed + len(reporter.stats.get("xfailed", [])) + len(reporter.stats.get("skipped", []))
    if passed < LEAST_PASSED * total:
        reporter.write_line(f"only {passed} of {total} cases passed: {LEAST_PASSED:.0%} must")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
