# What a machine says of itself, in one login: POSIX sh only, for whatever Linux it runs. Each line
# is one fact, `key=value`.
#
#   probe.sh RECEIPT MAX_BYTES TOOL…
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/sbin
say() { printf '%s=%s\n' "$1" "$2"; }
receipt=$1 most=$2
shift 2
say kernel "$(uname -r)"; say arch "$(uname -m)"; say hostname "$(uname -n)"
[ ! -r /etc/os-release ] || (
  . /etc/os-release
  say os_id "${ID-}"; say os_name "${PRETTY_NAME-}"; say variant_id "${VARIANT_ID-}" )
[ ! -e /etc/NIXOS ] || say etc_nixos yes
# systemd's initrd has /etc/initrd-release; a scripted one is a busybox on the rootfs without any os-release.
if [ -e /etc/initrd-release ]; then say initrd yes
elif [ ! -e /etc/os-release ] && [ -e /init ] && grep -q '^rootfs / ' /proc/mounts 2>/dev/null; then say initrd yes
fi
say system "$(readlink -f /run/current-system 2>/dev/null)"
say booted "$(readlink -f /run/booted-system 2>/dev/null)"
say profile "$(readlink -f /nix/var/nix/profiles/system 2>/dev/null)"
say before "$(readlink -f /nix/var/nix/profiles/nixa-before 2>/dev/null)"
if command -v bootctl >/dev/null 2>&1 && { [ -e /boot/loader/loader.conf ] ||
  tr -d '\000' </sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f 2>/dev/null |
  grep -q systemd-boot; }; then say loader systemd-boot
elif command -v grub-reboot >/dev/null 2>&1 && [ -e /boot/grub/grub.cfg ]; then say loader grub; fi
# What the boot loader boots by default, where this login may read that.
init_of() { sed -n 's|.*init=\(/nix/store/[^/ ]*\)/init.*|\1|p' "$1" 2>/dev/null | head -n 1; }
if [ -r /boot/loader/loader.conf ]; then
  entry=$(sed -n 's/^default[[:space:]]*//p' /boot/loader/loader.conf | tail -n 1)
  case $entry in *[*?]* | '') ;; *) say boots "$(init_of "/boot/loader/entries/$entry")" ;; esac
elif [ -r /boot/grub/grub.cfg ] && grep -q '^ *set default="\{0,1\}0"\{0,1\} *$' /boot/grub/grub.cfg; then
  say boots "$(init_of /boot/grub/grub.cfg)"
fi
say boot_id "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
[ ! -e /run/nixa-installing ] || say installing yes
# guard.sh writes until when, in seconds of uptime, it waits for a word.
if [ -r /run/nixa-guard ]; then
  read -r up rest </proc/uptime
  read -r until rest </run/nixa-guard
  say guard "$((${until:-0} - ${up%%.*}))"
fi
while read -r key value unit; do case $key in
  MemTotal:) say memory_kib "$value";; MemAvailable:) say available_kib "$value";;
esac; done </proc/meminfo
say free_kib "$(df -Pk "$HOME" 2>/dev/null |
  (read -r _; read -r _ _ _ free _; echo "$free"))"
say home "$HOME"; say uid "$(id -u)"; say user "$(id -un)"
for tool; do command -v "$tool" >/dev/null 2>&1 && say tool "$tool"; done
if [ "$(id -u)" = 0 ]; then say root yes
elif command -v sudo >/dev/null && sudo -k -n true 2>/dev/null; then say root sudo
elif command -v doas >/dev/null && doas -n true 2>/dev/null; then say root doas
elif command -v sudo >/dev/null; then say root password
else say root no; fi
[ ! -r "$receipt" ] || say receipt "$(head -c "$most" "$receipt" | base64 | tr -d '\n')"
say end yes
