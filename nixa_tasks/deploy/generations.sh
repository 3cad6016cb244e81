# The system profile's generations, oldest first, each as `NUMBER TIME SYSTEM`; TIME in seconds since
# 1970. The one that the profile leads to is marked with a `*` behind it.
cd /nix/var/nix/profiles || exit 0
current=$(readlink system)
ls -d system-*-link 2>/dev/null | sort -t- -k2 -n | while read -r link; do
  system=$(readlink -f "$link") && [ -x "$system/bin/switch-to-configuration" ] || continue
  number=${link#system-}
  mark=
  [ "$link" != "$current" ] || mark=' *'
  echo "${number%-link} $(stat -c %Y "$link" 2>/dev/null || echo 0) $system$mark"
done
