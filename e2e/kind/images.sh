# shellcheck shell=bash disable=SC2034
# The names of the images that we make for the cluster: each holds the version that its tag says. Needs lib.sh.

PROBE_IMAGE=docker.io/library/busybox:1.37.0 # where there is a registry
BUSYBOX_VERSION=1.35.0 # of Debian bookworm

image_of() {
  case $1 in
    kube-*) echo "registry.k8s.io/$1:$(version_of kubernetes)" ;;
    # kubeadm's own defaults, see `kubeadm config images list`
    etcd) echo "registry.k8s.io/etcd:$(v=$(version_of etcd) && echo "${v#v}")-0" ;;
    coredns) echo "registry.k8s.io/coredns/coredns:$(version_of coredns)" ;;
    pause) echo "registry.k8s.io/pause:$(version_of kubernetes pause_version)" ;;
    local-path) echo "docker.io/longhand/local-path-provisioner:$(version_of local-path)" ;;
    busybox) echo "docker.io/longhand/busybox:$BUSYBOX_VERSION" ;;
    cilium) echo "docker.io/longhand/cilium:$(version_of cilium)" ;;
    *) die "no image $1" ;;
  esac
}
