# shellcheck shell=bash
# Shared by the scripts of this folder: where the SDKs come from.

# shellcheck source=../../hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../hack/lib.sh"

SDK=$ROOT/e2e/sdk
PYTHON=${PYTHON:-python3}
export SDK PYTHONDONTWRITEBYTECODE=1

need_python() {
  "$PYTHON" -c 'import venv, ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || apt_install python3 python3-venv
}

need_node() {
  local node_20='process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'
  command -v npm >/dev/null && node -e "$node_20" 2>/dev/null && return
  if command -v apt-get >/dev/null; then apt_install nodejs npm; fi
  node -e "$node_20" 2>/dev/null || die "the npm SDK needs Node.js 20 or later, and npm: install them and try again"
}

# python_sdk REQUIREMENTS FOLDER
python_sdk() {
  "$PYTHON" -m venv "$2/venv"
  "$2/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$1"
}

# npm_sdk FOLDER
npm_sdk() {
  cp "$SDK/package.json" "$SDK/package-lock.json" "$1"
  npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund
}
