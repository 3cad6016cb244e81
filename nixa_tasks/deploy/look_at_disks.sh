# What lies on this machine's disks, looked at before a wipe, as root. Nothing is written: file systems
# are mounted read-only, in a mount namespace of their own, without replaying a journal.
#
# Each line is `key<TAB>value…`: disk NAME BYTES MODEL; holds DISK CONTENT; nixos DEVICE; receipt DEVICE.
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/sbin
say() { key=$1; shift; printf '%s' "$key"; for value; do printf '\t%s' "$value"; done; printf '\n'; }

look_in='
say() { key=$1; shift; printf "%s" "$key"; for value; do printf "\t%s" "$value"; done; printf "\n"; }
look() { # FOLDER: a file system, or a root in it (a subvolume)
  if [ -e "$1/var/lib/nixa/receipt.json" ]; then say receipt "$dev"; say holds "$disk" "a receipt of nixa on $dev"; fi
  if [ -e "$1/etc/NIXOS" ] || [ -L "$1/nix/var/nix/profiles/system" ] || [ -L "$1/var/nix/profiles/system" ]; then
    say nixos "$dev"; say holds "$disk" "NixOS on $dev"; return 0
  fi
  if grep -qs "init=/nix/store/" "$1"/loader/entries/*.conf "$1"/grub/grub.cfg "$1"/boot/loader/entries/*.conf \
    "$1"/boot/grub/grub.cfg || ls "$1"/EFI/Linux/nixos-*.efi >/dev/null 2>&1; then
    say nixos "$dev"; say holds "$disk" "boot entries of a NixOS on $dev"; return 0
  fi
  if [ -r "$1/etc/os-release" ]; then
    name=$(sed -n "s/^PRETTY_NAME=//p" "$1/etc/os-release" | tr -d "\"\047" | head -n 1)
    say holds "$disk" "${name:-an operating system} on $dev"; return 0
  fi
  return 1
}
look_all() {
  found=no
  for root in "$1" "$1"/@ "$1"/@root "$1"/@nix "$1"/root "$1"/rootfs; do
    [ ! -d "$root" ] || ! look "$root" || found=yes
  done
  [ $found = yes ] || say holds "$disk" "$type${label:+ \"$label\"} on $dev"
}
disk=$1 dev=$2 type=$3 options=$4 place=$5 label=$6
if [ -n "$options" ]; then
  is_mounted=
  for option in $options; do
    if mount -t "$type" -o "$option" "$dev" "$place" 2>/dev/null; then is_mounted=yes; break; fi
  done
  [ -n "$is_mounted" ] || { say holds "$disk" "$type${label:+ \"$label\"} on $dev (it can not be looked into)"; exit 0; }
fi
look_all "$place"
[ -z "$options" ] || umount "$place" 2>/dev/null || umount -l "$place"
'

place=$(mktemp -d /run/nixa-look.XXXXXX 2>/dev/null || mktemp -d) || exit 1
apart=
if unshare -m true 2>/dev/null; then apart="unshare -m"; fi
limit=
if timeout 5 true 2>/dev/null; then limit="timeout 20"; fi

look_at() { # DISK DEVICE
  type=$(blkid -p -o value -s TYPE "$2" 2>/dev/null || blkid -o value -s TYPE "$2" 2>/dev/null)
  label=$(blkid -o value -s LABEL "$2" 2>/dev/null)
  number=$(stat -c '%t %T' "$2" 2>/dev/null) # major and minor, in hex
  number=$((0x${number% *})):$((0x${number#* }))
  where=$(awk -v dev="$2" -v number="$number" '$3 == number || $(NF - 1) == dev { print $5; exit }' \
    /proc/self/mountinfo 2>/dev/null)
  case $type in
  ext2 | ext3 | ext4) options=ro,noload ;;
  xfs | f2fs) options=ro,norecovery ;;
  btrfs) options='ro,rescue=nologreplay ro,nologreplay' ;;
  vfat) options=ro ;;
  '') return 0 ;;
  crypto_LUKS) say holds "$1" "LUKS, encrypted, on $2"; return 0 ;;
  LVM2_member) say holds "$1" "LVM on $2"; return 0 ;;
  linux_raid_member | ddf_raid_member | isw_raid_member) say holds "$1" "RAID on $2"; return 0 ;;
  zfs_member) say holds "$1" "ZFS${label:+ pool $label} on $2"; return 0 ;;
  *) say holds "$1" "$type on $2"; return 0 ;;
  esac
  if [ -n "$where" ]; then # mounted already: looked at where it is
    $limit sh -c "$look_in" look "$1" "$2" "$type" "" "$where" "$label"
  else
    $limit $apart sh -c "$look_in" look "$1" "$2" "$type" "$options" "$place" "$label"
  fi
}

for dev in /dev/sd[a-z] /dev/sd[a-z][a-z] /dev/vd[a-z] /dev/xvd[a-z] /dev/hd[a-z] /dev/nvme[0-9]*n[0-9] /dev/mmcblk[0-9] \
  /dev/md[0-9]* /dev/dm-[0-9]*; do
  [ -b "$dev" ] || continue
  name=${dev##*/}
  model=$(cat "/sys/block/$name/device/model" "/sys/block/$name/dm/name" 2>/dev/null | head -n 1)
  blocks=$(cat "/sys/block/$name/size" 2>/dev/null)
  bytes=$((${blocks:-0} * 512))
  [ $bytes -gt 0 ] || bytes=$(blockdev --getsize64 "$dev" 2>/dev/null || echo 0)
  say disk "$dev" "$bytes" "$model"
  look_at "$dev" "$dev"
  for part in "$dev"[0-9] "$dev"[0-9][0-9] "$dev"p[0-9] "$dev"p[0-9][0-9]; do
    case $dev in */md* | */dm-*) break ;; esac # md0 and md01 are two
    [ ! -b "$part" ] || look_at "$dev" "$part"
  done
done
# Whatever runs, its root may lie where none of the above looks. An installer's own is a NixOS by itself.
if ! grep -qs '^VARIANT_ID="\{0,1\}installer"\{0,1\}$' /etc/os-release; then
  where="the running system's root"
  if [ -e /var/lib/nixa/receipt.json ]; then say receipt "$where"; fi
  if [ -L /nix/var/nix/profiles/system ]; then say nixos "$where"; fi
fi
rmdir "$place" 2>/dev/null
exit 0
