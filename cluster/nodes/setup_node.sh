#!/usr/bin/env bash
# Prepares an Ubuntu machine for Ray: packages, local disk, shared folder, Python environment.
#
#   setup_node.sh LOCK [SHARED_FILE_SYSTEM]
#
# LOCK is requirements/gpu.lock on this machine. SHARED_FILE_SYSTEM is the DNS name of an EFS file
# system; without it nothing is mounted. Each step first checks whether it was done before. The
# script may therefore run any number of times, and on an image of a prepared machine it has almost
# nothing to do. `ray up` runs it on every node.
set -euo pipefail

HOUSE=${HOUSE:-$HOME/regenesis} # the environment of this machine
SHARED=${SHARED:-/mnt/regenesis} # the folder that all nodes share
LOCAL=${LOCAL:-/mnt/local}       # the fastest disk of this machine
IMAGE_DISK=${IMAGE_DISK:-/opt/dlami/nvme}
DISKS=${DISKS:-/dev/disk/by-id}
PAUSE_S=${PAUSE_S:-10}
PACKAGES=(g++ mdadm nfs-common python3.11-dev python3.11-venv)

# retry N COMMAND...: runs it up to N times, with a pause between two tries.
retry() {
  local tries=$1
  shift
  until "$@"; do
    tries=$((tries - 1))
    ((tries > 0)) || return 1
    sleep "$PAUSE_S"
  done
}

# The first boot installs packages, and Ubuntu updates itself soon after it. Both hold apt's locks,
# and `apt-get update` does not wait for the lock of its lists.
wait_for_boot() {
  if command -v cloud-init >/dev/null; then cloud-init status --wait >/dev/null || true; fi
  sudo systemctl stop apt-daily.timer apt-daily-upgrade.timer || true
}

# g++ and Python's headers are needed for the kernels that Triton builds at first use.
install_packages() {
  if dpkg --status "${PACKAGES[@]}" >/dev/null 2>&1; then return; fi
  wait_for_boot
  # Ubuntu 22.04 only has a release candidate of 3.11.
  retry 60 sudo add-apt-repository --yes --no-update ppa:deadsnakes/ppa
  retry 60 sudo apt-get -o DPkg::Lock::Timeout=120 update
  retry 60 sudo env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=120 install --yes "${PACKAGES[@]}"
}

# Combine the machine's NVMe disks into one volume, for models and temporary files. Amazon's deep
# learning images mount them at boot. A machine without such disks gets a folder.
mount_local_disk() {
  local disks=()
  if mountpoint -q "$IMAGE_DISK"; then
    test -e "$LOCAL" || sudo ln -s "$IMAGE_DISK" "$LOCAL"
  elif ! mountpoint -q "$LOCAL"; then
    # Each disk has several names in this folder.
    mapfile -t disks < <(find "$DISKS" -name 'nvme-Amazon_EC2_NVMe_Instance_Storage_*' \
      ! -name '*-part*' -exec readlink -f {} + 2>/dev/null | sort -u)
    sudo mkdir -p "$LOCAL"
    if ((${#disks[@]})); then
      sudo mdadm --create /dev/md0 --run --force --level=0 --raid-devices="${#disks[@]}" \
        "${disks[@]}"
      sudo mkfs.ext4 -q -m 0 -E nodiscard /dev/md0
      sudo mount -o noatime /dev/md0 "$LOCAL"
    fi
  fi
  sudo install -d -o "$(id -un)" "$LOCAL/cache" "$LOCAL/tmp"
  mkdir -p ~/.cache
  local name
  for name in regenesis huggingface; do # storage.cache and downloads from the hub
    mkdir -p "$LOCAL/cache/$name"
    test -e ~/.cache/"$name" || ln -s "$LOCAL/cache/$name" ~/.cache/"$name"
  done
}

# These are the options that Amazon recommends for EFS.
mount_shared_folder() {
  local options=nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport,_netdev
  grep -q " $SHARED " /etc/fstab ||
    echo "$1:/ $SHARED nfs4 $options 0 0" | sudo tee -a /etc/fstab >/dev/null
  sudo mkdir -p "$SHARED"
  # The name of a new file system takes a while to become known everywhere.
  mountpoint -q "$SHARED" || retry 30 sudo mount "$SHARED"
  sudo install -d -o "$(id -un)" "$SHARED/runs" "$SHARED/questions" "$SHARED/cache"
}

# The lock is complete and has hashes, so pip resolves nothing and accepts only these files. The
# first node of a cluster fills a cache on the shared folder while the others wait; they then all
# install from it at the same time.
install_environment() {
  local lock=$1 venv=$HOUSE/.venv digest
  digest=$(sha256sum <"$lock" | cut -c1-16)
  if [[ -f $venv/installed && $(<"$venv/installed") == "$digest" ]]; then return; fi
  mkdir -p "$HOUSE"
  test -x "$venv/bin/python" || python3.11 -m venv "$venv"
  if mountpoint -q "$SHARED"; then
    export PIP_CACHE_DIR=$SHARED/cache/pip
    exec 9>"$SHARED/cache/pip.lock"
    flock 9
    if [[ -e $SHARED/cache/pip-has-$digest ]]; then flock --unlock 9; fi
  fi
  retry 3 "$venv/bin/pip" install --quiet --no-deps --require-hashes -r "$lock"
  if mountpoint -q "$SHARED"; then
    touch "$SHARED/cache/pip-has-$digest"
    exec 9>&-
  fi
  echo "$digest" >"$venv/installed"
}

# The token was copied as a file; whoever can read it can run anything on the cluster.
close_token() {
  if [[ -e ~/.ray/auth_token ]]; then chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token; fi
}

# For `ray exec` and `ray attach`, whose shells read this file.
prepare_shells() {
  touch ~/.bashrc
  grep -q RAY_AUTH_MODE ~/.bashrc ||
    echo ". $HOUSE/.venv/bin/activate; export RAY_AUTH_MODE=token" >>~/.bashrc
}

main() {
  close_token
  install_packages
  mount_local_disk
  if [[ -n ${2:-} ]]; then mount_shared_folder "$2"; fi
  install_environment "$1"
  prepare_shells
}

# Sourced by the tests, which call its functions one by one.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
