# shellcheck shell=bash
# Debian root file systems without a registry: one debootstrap, then copies of it with more packages.
# Needs lib.sh.

SUITE=bookworm # its systemd 252 also runs where the kernel offers cgroup v1 only

rootfs_minbase() { # FOLDER
  local root=$1/root mirror
  apt_install debootstrap debian-archive-keyring
  # In a mount namespace, so that an interrupted run leaves no mount behind.
  unshare --mount debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
    "$SUITE" "$root" ${LONGHAND_DEBIAN_MIRROR:+"$LONGHAND_DEBIAN_MIRROR"}
  mirror=$(awk '$1 == "deb" { print $2; exit }' "$root/etc/apt/sources.list") # debootstrap's default, or the one above
  cat >"$root/etc/apt/sources.list" <<EOF
deb $mirror $SUITE main
deb $mirror $SUITE-updates main
deb ${mirror%/}-security $SUITE-security main
EOF
  printf 'path-exclude /usr/share/%s/*\n' doc man info locale lintian >"$root/etc/dpkg/dpkg.cfg.d/no-docs"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod 755 "$root/usr/sbin/policy-rc.d"
}

rootfs_extend() { # MINBASE PACKAGES... FOLDER
  local base=$1 root=${*: -1}/root
  shift
  cp -a "$base/root" "$root"
  # shellcheck disable=SC2016
  DEBIAN_FRONTEND=noninteractive unshare --mount --pid --fork bash -euc '
    root=$1; shift
    mount -t proc proc "$root/proc"
    chroot "$root" apt-get update
    chroot "$root" apt-get upgrade -y
    chroot "$root" apt-get install -y --no-install-recommends "$@"
    ' rootfs "$root" "${@:1:$#-1}"
  (
    cd "$root" || return
    rm -rf var/lib/apt/lists/* var/cache/apt/*.bin var/cache/apt/archives/*.deb var/cache/debconf/* var/log/* tmp/* \
      usr/share/doc/* usr/share/man/* usr/share/info/* usr/share/locale/* usr/sbin/policy-rc.d
    : >etc/machine-id
    rm -f etc/resolv.conf etc/hostname
  )
}

# rootfs NAME PACKAGE...: prints the folder of a root file system with these packages.
rootfs() {
  local name=$1 base made
  shift
  need_root "a Debian root file system without a registry"
  made=$(digest "$(declare -f rootfs_minbase)" "$SUITE $(uname -m)")
  base=$(cached rootfs/minbase "$made" rootfs_minbase)
  echo "$(cached "rootfs/$name" "$(digest "$made" "$(declare -f rootfs_extend)" "$*")" rootfs_extend "$base" "$@")/root"
}
