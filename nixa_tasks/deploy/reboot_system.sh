# Reboots an installed system, which ends its services in order by itself. A hung mount must not keep
# it from that, so that `sync` gets a limit.
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/sbin
timeout 20 sync
(trap '' HUP; sleep 1; systemctl reboot || reboot || busybox reboot -f) </dev/null >/dev/null 2>&1 &
