# Booting a system once, on the host, as root: sourced by guard.sh.
#
# NixOS writes a boot entry for every generation of the system profile, and makes one of them the
# default. So the system before is the default and the new one is booted once: whatever becomes of
# that boot, the next one leads back.

boot_once() { # NEW DEFAULT: fails, with the reason on standard error, where it can't be done
  if command -v bootctl >/dev/null 2>&1 && bootctl is-installed >/dev/null 2>&1; then
    once_by_systemd_boot "$1" "$2"
  elif command -v grub-reboot >/dev/null 2>&1 && [ -e /boot/grub/grub.cfg ]; then
    once_by_grub "$1" "$2"
  else
    echo "it is neither systemd-boot nor GRUB" >&2
    return 1
  fi
}

entry_of() { # SYSTEM PLACE…: its newest entry's file
  init="init=$1/init"
  shift
  for place; do
    grep -lF "$init" "$place"/loader/entries/*.conf 2>/dev/null
  done | sort -t- -k3 -n | tail -n 1
}

once_by_systemd_boot() { # NEW DEFAULT
  esp=$(bootctl --print-esp-path 2>/dev/null) && [ -n "$esp" ] || esp=/boot
  boot=$(bootctl --print-boot-path 2>/dev/null) && [ -n "$boot" ] || boot=$esp
  new_entry=$(entry_of "$1" "$boot") default_entry=$(entry_of "$2" "$boot")
  [ -n "$new_entry" ] || { echo "there is no entry for $1" >&2; return 1; }
  default=$(sed -n 's/^default[[:space:]]*//p' "$esp/loader/loader.conf" | tail -n 1)
  grep -qF "init=$2/init" "$boot/loader/entries/$default" 2>/dev/null ||
    { echo "its default is $default and not ${default_entry:-an entry of $2}" >&2; return 1; }
  name=${new_entry##*/}
  case $name in *+*) name=${name%%+*}.conf ;; esac # the tries left are no part of the name
  bootctl set-oneshot "$name"
}

once_by_grub() { # NEW DEFAULT
  menu=/boot/grub/grub.cfg
  # GRUB itself has to take the word back while booting, and writes to few file systems.
  case $(stat -f -c %T /boot/grub) in
  ext2/ext3 | msdos | vfat) ;;
  *) echo "GRUB can't write to the file system of /boot/grub" >&2; return 1 ;;
  esac
  grep -q next_entry "$menu" || { echo "its menu does not know of grub-reboot" >&2; return 1; }
  grep -q '^ *set default="\{0,1\}0"\{0,1\} *$' "$menu" || { echo "its default is not the first entry" >&2; return 1; }
  grep -F init=/nix/store/ "$menu" | head -n 1 | grep -qF "init=$2/init" ||
    { echo "its first entry is not $2" >&2; return 1; }
  title=$(awk -F'"' -v init="init=$1/init" '/^ *submenu "/ { menu = $2 } /^ *menuentry "/ { entry = $2 }
    menu != "" && index($0, init) { print menu ">" entry; exit }' "$menu")
  [ -n "$title" ] || { echo "there is no entry for $1" >&2; return 1; }
  grub-reboot "$title"
}
