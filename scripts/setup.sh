# Sourced by ./quickstart and ./check: what both need on a machine with nothing but Debian and Python.
#   need_tools PACKAGE…   install what is missing with apt
#   need_kernel           a kernel, its modules and kexec for QEMU, unpacked to .venv/kernel
#   need_systemd          a systemd for tests/integration/systemd, unpacked to .venv/systemd
#   need_disk_tools       tools for tests/integration/disks.py, unpacked to .venv/disk-tools
#   need_venv EXTRA       a virtual environment of our own in .venv, with nixa in it
#   need_nix_versions     newer releases of Nix for the tests, unpacked to .venv/nix-SUITE
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$top/.venv
export PATH=$PATH:/usr/sbin:/sbin
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '%s\n' "$*" >&2; }
die() { say "$0: $*"; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
    die "this needs root: run it as root, or install sudo"; fi
}

# In a chroot, Nix's children would be led out of it: see own_root.py.
leave_chroot() { # COMMAND…: runs it again with a root of its own, if need be
  [ -z "${NIXA_OWN_ROOT:-}" ] && [ "$(id -u)" = 0 ] || return 0
  awk '$5 == "/" { found = 1 } END { exit !found }' /proc/self/mountinfo && return 0
  export NIXA_OWN_ROOT=1
  exec python3 "$top/scripts/own_root.py" "$@"
}

# Which command stands for which package, so that a second run asks nobody.
declare -A command_of=(
  [nix-bin]=nix [openssh-server]=/usr/sbin/sshd [openssh-client]=ssh [iproute2]=ip [busybox-static]=busybox
  [e2fsprogs]=mkfs.ext4 [cpio]=cpio [util-linux]=unshare [git]=git [curl]=curl [procps]=ps [zstd]=zstd [xz-utils]=xz
  [mount]=losetup [kmod]=modprobe [dash]=dash [bash]=bash [aria2]=aria2c [wget]=wget [tmux]=tmux
  [qemu-system-x86]=qemu-system-x86_64 [kexec-tools]=kexec [patchelf]=patchelf [libarchive-tools]=bsdtar
)

need_tools() {
  local missing=() package
  for package in "$@"; do
    command -v "${command_of[$package]:-$package}" >/dev/null || missing+=("$package")
  done
  python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "there is no apt here: install ${missing[*]} yourself, then run this again"
  say "installing with apt: ${missing[*]}"
  local log; log=$(mktemp)
  as_root env DEBIAN_FRONTEND=noninteractive sh -c '
    apt-get -q update && apt-get -q -y install --no-install-recommends "$@"' sh "${missing[@]}" >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; rm -f "$log"; die "apt could not install them (above)"; }
  rm -f "$log"
}

# Unpacked, never installed: an installed kernel would be this computer's own at its next boot, and
# kexec-tools would have a say in how it reboots. apt finds out what those two need beside them.
need_kernel() {
  local folder=$venv/kernel log meta package
  [ ! -e "$folder/whole" ] || return 0
  say "fetching a kernel and kexec-tools for the QEMU test (they are not installed)"
  rm -rf "$folder"
  mkdir -p "$folder/debs/partial"
  log=$folder/apt.log
  fetch_debs() { # Debian's kernel for virtual machines, or Ubuntu's
    for meta in "linux-image-cloud-$(dpkg --print-architecture)" linux-image-virtual; do
      package=$(apt-cache depends "$meta" | awk '$1 == "Depends:" && $2 ~ /^linux-image/ { print $2; exit }')
      [ -z "$package" ] || break
    done
    [ -n "$package" ] && apt-get -q -y install --no-install-recommends --reinstall --download-only \
      -o Dir::Cache::archives="$folder/debs/" -o Debug::NoLocking=1 -o APT::Sandbox::User=root "$package" kexec-tools
  }
  fetch_debs >"$log" 2>&1 || { apt-get -q update && fetch_debs; } >>"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; die "apt could not fetch a kernel and kexec-tools (above)"; }
  for package in "$folder"/debs/*.deb; do dpkg-deb -x "$package" "$folder" || die "$package can't be unpacked"; done
  rm -rf "$folder/debs"
  : >"$folder/whole"
}

# Nix as Debian's newer suites have it, unpacked and never installed. Its programs are patched to find
# the loader and the libraries that came with it. apt's own settings (a proxy, say) and this machine's
# own mirror are used; the list of sources and what apt remembers are private to the folder. A mirror that
# stopped following sid a while ago will do: its lists are signed, if no longer fresh.
need_nix_versions() {
  local suite
  command -v apt-get >/dev/null || { no_nix_versions "there is no apt here"; return 0; }
  mkdir -p "$venv"
  exec 7>"$venv/.nix-versions.lock"
  flock 7 # one download at a time, whatever else runs here
  for suite in trixie sid; do
    [ -e "$venv/nix-$suite/whole" ] || unpack_nix "$suite" || { exec 7>&-; return 0; }
  done
  exec 7>&-
}

no_nix_versions() { # WHY
  [ -z "${CI:-}" ] || die "newer releases of Nix, which the tests need: $1"
  say "tests with newer releases of Nix are skipped: $1"
}

unpack_nix() { # SUITE
  local suite=$1 folder=$venv/nix-$1 codename mirror package library loader try
  # shellcheck disable=SC1091
  codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(COMPONENT) $(RELEASE) $(REPO_URI)' 2>/dev/null |
    awk -v release="$codename" '$1 == "main" && $2 == release && $3 ~ /debian/ { print $3; exit }')
  [ -n "$mirror" ] || { no_nix_versions "apt knows no Debian mirror"; return 1; }
  say "fetching Nix from Debian's $suite for the tests (it is not installed)"
  rm -rf "$folder"
  mkdir -p "$folder"/apt/{state/lists/partial,cache/archives/partial}
  : >"$folder/apt/status"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" "$suite" \
    >"$folder/apt/sources.list"
  private_apt() {
    apt-get -q -y -o Dir::Etc::SourceList="$folder/apt/sources.list" -o Dir::Etc::SourceParts=- \
      -o Dir::State="$folder/apt/state" -o Dir::State::status="$folder/apt/status" \
      -o Dir::Cache="$folder/apt/cache" -o APT::Sandbox::User=root -o Acquire::Retries=3 \
      -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Debug::NoLocking=1 "$@"
  }
  for try in 1 2 3; do
    { private_apt update && private_apt install --no-install-recommends --download-only nix-bin; } \
      >"$folder/apt/log" 2>&1 && break
    [ "$try" -lt 3 ] || { tail -n 20 "$folder/apt/log" >&2; no_nix_versions "apt could not fetch them (above)"; return 1; }
    sleep $((try * 5))
  done
  for package in "$folder"/apt/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" |
      tar -x -C "$folder" --keep-directory-symlink --exclude='./usr/share/*' --exclude='./etc/*' ||
      die "$package can't be unpacked"
  done
  loader=$(echo "$folder"/usr/lib/*-linux-gnu/ld-linux*.so.*)
  for library in "${loader%/*}"/*.so*; do
    case $library in */ld-linux* | */libc.so*) continue ;; esac
    [ -L "$library" ] || patchelf --set-rpath "${loader%/*}" "$library" 2>/dev/null || true # a linker script
  done
  patchelf --set-interpreter "$loader" --set-rpath "${loader%/*}" "$folder/usr/bin/nix" || die "patchelf failed"
  mkdir "$folder/bin"
  for package in "$folder"/usr/bin/nix*; do ln -s "../usr/bin/${package##*/}" "$folder/bin/"; done
  rm -rf "$folder/apt"
  "$folder/bin/nix" --version >/dev/null 2>&1 || { no_nix_versions "that of $suite does not start"; return 1; }
  : >"$folder/whole"
}

need_venv() { # EXTRA: "" or "dev"
  local extra=$1 stamp want
  stamp=$venv/.nixa-${extra:-run}
  want=$(cd "$top" && sha256sum pyproject.toml && python3 --version)
  [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return 0
  say "preparing the virtual environment ${venv#"$PWD"/}"
  [ -x "$venv/bin/pip" ] || python3 -m venv "$venv" || die "python3 -m venv failed"
  local log; log=$(mktemp)
  (cd "$top" && "$venv/bin/pip" install -q -e ".${extra:+[$extra]}") >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; rm -f "$log"; die "pip could not install what pyproject.toml names (above)"; }
  rm -f "$log"
  printf '%s' "$want" >"$stamp"
}

# Packages with what they need that is missing here, unpacked to .venv/NAME and never installed. Once, until the
# list changes.
unpack_packages() { # NAME PURPOSE PACKAGE…
  local folder=$venv/$1 purpose=$2 name=$1 debs log package want part
  shift 2
  want=$(. /etc/os-release; sha256sum <<<"${ID-} ${VERSION_ID-} $* $(declare -f unpack_packages)")
  [ "$(cat "$venv/$name.made" 2>/dev/null)" != "$want" ] || return 0
  say "fetching $purpose (nothing is installed)"
  rm -rf "$folder"
  debs=$(mktemp -d)
  log=$debs/log
  mkdir -p "$debs/partial" "$folder"
  fetch_packages() {
    apt-get -q -y install --no-install-recommends --reinstall --download-only \
      -o Dir::Cache::archives="$debs/" -o Debug::NoLocking=1 -o APT::Sandbox::User=root "$@"
  }
  fetch_packages "$@" >"$log" 2>&1 || { apt-get -q update && fetch_packages "$@"; } >>"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; die "apt could not fetch $purpose (above)"; }
  for package in "$debs"/*.deb; do dpkg-deb -x "$package" "$folder" || die "$package can't be unpacked"; done
  for part in bin sbin lib lib64; do # merged, as / is
    [ -d "$folder/$part" ] && [ ! -L "$folder/$part" ] || continue
    mkdir -p "$folder/usr/$part"
    cp -a "$folder/$part/." "$folder/usr/$part/"
    rm -r "${folder:?}/$part"
  done
  rm -rf "$folder"/usr/share/{doc,man,locale,lintian} "$debs"
  printf '%s' "$want" >"$venv/$name.made"
}

# Pid 1 of the machines of tests/integration/systemd, whose root is this computer's / with these packages above it.
need_systemd() {
  unpack_packages systemd "a systemd for the tests with a real one" \
    systemd libsystemd-shared libpam-systemd dbus dbus-daemon opendoas fish
}

# What tests/integration/disks.py writes disks with.
need_disk_tools() {
  unpack_packages disk-tools "tools for the tests with disks" fdisk dosfstools mtools cryptsetup-bin lvm2 btrfs-progs
}
