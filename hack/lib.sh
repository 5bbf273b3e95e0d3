# shellcheck shell=bash
# Shared by the scripts of this folder and by images/build: the messages, steps and folders of e2e/kind, and what the product needs.

# shellcheck source=../e2e/kind/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../e2e/kind/lib.sh"

VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
IMAGES=$ROOT/target/images
BIN=$IMAGES/bin
# The full name, since podman and buildah would call a shorter one localhost/...
IMAGE_PREFIX=${IMAGE_REGISTRY:-docker.io}/longhand
RELEASE=longhand
NAMESPACE=longhand-system
E2E_CLUSTER=${E2E_CLUSTER:-kind}
export VERSION IMAGES BIN IMAGE_PREFIX RELEASE NAMESPACE E2E_CLUSTER
# What the tests and measurements run besides the product.
export E2E_HARNESS_PYTHON_IMAGE=$IMAGE_PREFIX/harness-python:$VERSION E2E_CLIENTS_IMAGE=$IMAGE_PREFIX/clients:$VERSION
# ca.crt and ca.key of an authority that a cluster of ours trusts, for servers of the tests.
if [[ $E2E_CLUSTER == kind ]]; then export E2E_CA=$ROOT/target/test-ca; fi
export E2E_MODEL_IMAGE=$IMAGE_PREFIX/scripted-model:$VERSION BENCH_COUPLED_IMAGE=$IMAGE_PREFIX/coupled:$VERSION
[[ $E2E_CLUSTER == kind || $E2E_CLUSTER == existing ]] || die "E2E_CLUSTER is kind or existing, not $E2E_CLUSTER"

# What `make cluster` says about the engine and the kubeconfig. On an existing cluster the reader's own are used.
cluster_env() {
  [[ $E2E_CLUSTER == kind && -f $OUT/env ]] || return 0
  # shellcheck source=/dev/null
  source "$OUT/env"
}

# tools NAME...: puts pinned ones on the PATH where the machine has none.
tools() {
  local name bin
  for name; do
    command -v "$name" >/dev/null && continue
    bin=$("$KIND_DIR/tools" "$name")
    PATH=$bin:$PATH
  done
}

# Programs are linked statically with glibc, which needs no other target than the toolchain's own. With --target, RUSTFLAGS spares
# build scripts.
TARGET=$(uname -m)-unknown-linux-gnu
cargo_static() { # COMMAND ARGUMENTS...
  local command=$1
  shift
  RUSTFLAGS="-C target-feature=+crt-static" cargo "$command" --release --locked --target "$TARGET" "$@"
}

# heading TEXT: what follows prints for itself.
heading() { printf '\n%s == %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
