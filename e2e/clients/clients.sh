#!/usr/bin/env bash
# Runs inside a sandbox: real clients against the forge (see forge.py), each with a placeholder for the forge's credential.
#
# clients.sh [CLIENT...]   prints for each `ok NAME`, or `FAILED NAME: the end of what it said`; fails if one did. Those of git
#                          work on what git-clone has made.
#
# FORGE         https://HOST
# FORGE_TOKEN   the placeholder
# BEHIND_PROXY  1 where a credential proxy is in between. Without it FORGE_TOKEN is the value itself, and nobody takes it out
#               of answers or refuses another one.
#
# The proxy and the authorities to trust are in the environment, as Longhand sets them.

# Clients are called by the names of their functions.
# shellcheck disable=SC2317
set -uo pipefail

: "${FORGE:?https://HOST}" "${FORGE_TOKEN:?a placeholder}"
BEHIND_PROXY=${BEHIND_PROXY:-}
CLIENTS=(curl git-clone git-lfs git-fetch git-push pip npm cargo)
# Only a proxy tells a foreign credential from a wrong one.
[[ $BEHIND_PROXY == 1 ]] && CLIENTS+=(foreign)
LIMIT=60
LARGE_SIZE=320000
LARGE_HASH=6b96554cadd2b9def6c418c837b80732b380d3a9d3e208213d6fc22697b482e2

# The image's own home may not be writable, and what is set up there is not this run's.
export HOME=/tmp/home GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1
WORK=$(mktemp -d "${WORKSPACE:-/workspace}/clients.XXXXXX") || exit 1
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$HOME"
HOST=${FORGE#https://}
REPOSITORY=https://me:$FORGE_TOKEN@$HOST/git/app.git

fail() {
  echo "$*" >&2
  return 1
}

# limited COMMAND...: what hangs is a failure too.
limited() { timeout "$LIMIT" "$@"; }

# The answer has the credential in it, which the proxy takes out: nobody here could know it otherwise.
client_curl() {
  local status
  status=$(limited curl --silent --show-error --output echo.json --write-out '%{http_code}' \
    --header "Authorization: Bearer $FORGE_TOKEN" --header 'Content-Type: application/json' --data '{"said":"hello"}' "$FORGE/echo") || return
  [[ $status == 200 ]] || fail "status $status: $(head -c 300 echo.json)" || return
  [[ $BEHIND_PROXY == 1 ]] || return 0
  python3 - <<'PYTHON'
import json, re

with open("echo.json") as file:
    answer = json.load(file)
headers = {name.lower(): value for name, value in answer["headers"].items()}
# Base64 may end with a character that the value alone does not decide.
removed = r"(\[credential removed\]\**|\*+)"
assert answer["body"] == '{"said":"hello"}', "the body did not arrive"
assert re.fullmatch("Bearer " + removed, headers["authorization"]), "Authorization came back"
assert re.fullmatch(removed, answer["credential"]), "the credential came back"
assert re.fullmatch(removed + "[A-Za-z0-9+/]?=*", answer["credential_base64"]), "the credential came back in Base64"
PYTHON
}

# Without LFS objects, as a program does that has no git-lfs.
client_git-clone() {
  limited env GIT_LFS_SKIP_SMUDGE=1 git clone --quiet "$REPOSITORY" app || return
  [[ $(<app/README) == "of the forge" ]] || fail "README has another content"
}

client_git-lfs() {
  limited git -C app lfs install --skip-smudge || return
  limited git -C app lfs pull || return
  [[ $(stat --format %s app/large.bin) == "$LARGE_SIZE" ]] || fail "large.bin has another size" || return
  echo "$LARGE_HASH  app/large.bin" | sha256sum --check --quiet
}

client_git-fetch() {
  limited git -C app fetch --quiet origin || return
  git -C app rev-parse --quiet --verify origin/main
}

# A commit with another LFS object, so that the push uploads that as well.
client_git-push() {
  local git=(git -C app -c user.name=me -c user.email=me@example.com) branch
  branch=from-sandbox-$(date +%s%N)
  head -c 200000 /dev/urandom >app/more.bin
  "${git[@]}" checkout --quiet -b "$branch" || return
  "${git[@]}" add more.bin || return
  "${git[@]}" commit --quiet --message more || return
  limited "${git[@]}" push --quiet origin "$branch" || return
  # What the server has, and not what is kept here.
  limited env GIT_LFS_SKIP_SMUDGE=1 git clone --quiet --branch "$branch" "$REPOSITORY" pushed || return
  limited git -C pushed lfs pull || return
  cmp app/more.bin pushed/more.bin
}

client_pip() {
  limited python3 -m pip download --quiet --no-cache-dir --disable-pip-version-check --no-deps --retries 0 \
    --index-url "https://me:$FORGE_TOKEN@$HOST/pypi/simple" --dest wheels demo || return
  [[ -f wheels/demo-1.0-py3-none-any.whl ]] || fail "no wheel"
}

client_npm() {
  mkdir npm && cd npm || return
  printf '@team:registry=%s/npm/\n//%s/npm/:_authToken=%s\n' "$FORGE" "$HOST" "$FORGE_TOKEN" >.npmrc
  # npm reads the file of a project only where there is one.
  echo '{"name": "project", "version": "1.0.0"}' >package.json
  limited npm pack @team/demo --cache "$WORK/npm-cache" --fetch-retries=0 --no-update-notifier || return
  [[ -f team-demo-1.0.0.tgz ]] || fail "no tarball"
}

client_cargo() {
  mkdir -p cargo/src && cd cargo || return
  : >src/lib.rs
  printf '%s\n' '[package]' 'name = "project"' 'version = "0.1.0"' 'edition = "2021"' \
    '[dependencies]' 'demo = { version = "1", registry = "team" }' '[workspace]' >Cargo.toml
  CARGO_HOME=$WORK/cargo-home CARGO_NET_RETRY=0 CARGO_REGISTRIES_TEAM_INDEX=sparse+$FORGE/cargo/index/ \
    CARGO_REGISTRIES_TEAM_TOKEN=$FORGE_TOKEN CARGO_REGISTRIES_TEAM_CREDENTIAL_PROVIDER=cargo:token \
    limited cargo fetch || return
  grep --quiet '^name = "demo"' Cargo.lock
}

# A credential of one's own is none.
client_foreign() {
  local status
  status=$(limited curl --silent --show-error --output refused.txt --write-out '%{http_code}' \
    --header 'Authorization: Bearer c3RvbGVuLWZyb20tc29tZXdoZXJl' "$FORGE/echo") || return
  [[ $status == 403 ]] || fail "status $status: $(head -c 300 refused.txt)"
}

cd "$WORK" || exit 1
failed=0
for name in "${@:-${CLIENTS[@]}}"; do
  if (cd "$WORK" && "client_$name") >"$WORK/output" 2>&1; then
    echo "ok $name"
  else
    failed=1
    echo "FAILED $name: $(tail -n 5 "$WORK/output" | tr '\n' ' ')"
  fi
done
exit "$failed"
