# Goes ahead of whatever changes a host, in the same script, as root: nothing of it runs unless the
# host is still the one that was decided on.
#
#   nixa_fence BOOT_ID TOKEN SYSTEM
#
# Ends the script with 121 where the host has booted since, with 122 where the lock that TOKEN belongs
# to is no longer held, with 123 where another system runs. Until the script and what it has started
# end, nobody else gets the lock (descriptor 7). TOKEN is empty where the host has no flock.
nixa_fence() {
  PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/sbin
  [ "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" = "$1" ] || exit 121
  if [ -n "$2" ]; then
    exec 7>>/run/nixa/guard.lock
    flock -s -n 7 || exit 122
    [ "$(cat /run/nixa/fence 2>/dev/null)" = "$2" ] || exit 122
    if flock -n /run/nixa/lock true; then exit 122; fi
  fi
  nixa_live=$(readlink -f /run/current-system 2>/dev/null)
  case $nixa_live in /nix/store/*) ;; *) nixa_live= ;; esac
  [ "$nixa_live" = "$3" ] || exit 123
}
