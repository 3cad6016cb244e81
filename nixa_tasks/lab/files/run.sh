#!/bin/sh
# The lab's kexec/run: carries this machine's keys and addresses into the installer and boots it.
set -eu
flags=
while [ $# -gt 0 ]; do
  if [ "$1" = --kexec-extra-flags ]; then shift; flags=${1-}; fi
  [ $# -eq 0 ] || shift
done

here=$(dirname "$(readlink -f "$0")")
bag=$(mktemp -d "$here/bag.XXXXXX")
trap 'rm -rf "$bag"' EXIT
mkdir -m 700 "$bag/ssh"

collect_keys() { # HOME: the keys without their options, which may forbid to log in
  for file in "$1/.ssh/authorized_keys" "$1/.ssh/authorized_keys2"; do
    [ ! -r "$file" ] || awk '{
      for (i = 1; i <= NF; i++) if ($i ~ /^(ssh|ecdsa|sk)-/) { print substr($0, index($0, $i)); next }
    }' "$file" >>"$bag/ssh/authorized_keys"
  done
}
collect_system_keys() { # USER
  [ ! -r "/etc/ssh/authorized_keys.d/$1" ] ||
    cat "/etc/ssh/authorized_keys.d/$1" >>"$bag/ssh/authorized_keys"
}
collect_keys /root
collect_system_keys root
caller=${DOAS_USER:-${SUDO_USER-}}
if [ -n "$caller" ] && [ "$caller" != root ]; then
  collect_keys "$(awk -F: -v user="$caller" '$1 == user { print $6 }' /etc/passwd)"
  collect_system_keys "$caller"
fi
for key in /etc/ssh/ssh_host_*; do
  [ ! -e "$key" ] || cp -p "$key" "$bag/ssh/"
done

"$here/ip" --json addr >"$bag/addrs.json"
"$here/ip" -4 --json route >"$bag/routes-v4.json"
"$here/ip" -6 --json route >"$bag/routes-v6.json"
[ ! -e /etc/machine-id ] || cp /etc/machine-id "$bag/"

(cd "$bag" && find . | cpio --quiet -o -H newc | gzip -9) >>"$here/initrd"

# shellcheck disable=SC2086 # several flags
if ! "$here/kexec" --load "$here/bzImage" --initrd "$here/initrd" $flags --append "init=/init console=ttyS0"; then
  echo "kexec could not load the kernel" >&2
  exit 1
fi

echo "machine will boot into nixos in 6s..."
delay=6
[ ! -r /run/lab/kexec-delay ] || delay=$(cat /run/lab/kexec-delay)
# Its own session and no files of ours, so that who called us is let go before the machine is.
setsid sh -c 'sleep "$1"; shift; exec "$@"' sh "$delay" "$here/kexec" -e $flags </dev/null >/dev/null 2>&1 &
