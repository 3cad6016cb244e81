# What differs between the system that booted and the one that runs, and takes effect at a reboot only: a line each.
booted=/run/booted-system now=/run/current-system
version() { for folder in "$1"/kernel-modules/lib/modules/*/; do [ ! -d "$folder" ] || basename "$folder"; done | head -n 1; }
differs() {
  [ -e "$booted/$1" ] && [ -e "$now/$1" ] && [ "$(readlink -f "$booted/$1")" != "$(readlink -f "$now/$1")" ] &&
    ! cmp -s "$booted/$1" "$now/$1"
}
if differs kernel; then
  old=$(version $booted) new=$(version $now)
  [ -n "$old" ] && [ -n "$new" ] && [ "$old" != "$new" ] && echo "kernel $old → $new" || echo kernel
fi
for part in initrd kernel-params; do ! differs $part || echo $part; done
