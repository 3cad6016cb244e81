# Reboots the installer as nixos-anywhere's own reboot phase would: so that the disk is clean, and a
# zpool can be imported without force. No nohup, which not every installer has.
umount -R /mnt 2>/dev/null
swapoff -a 2>/dev/null
if command -v zpool >/dev/null 2>&1; then zpool export -a; fi
sync
(trap '' HUP; sleep 1; reboot || busybox reboot -f) </dev/null >/dev/null 2>&1 &
