# inhibitors.sh SYSTEM: the switch inhibitors of the running system and of SYSTEM, in base64, a line each.
for system in /run/current-system "$1"; do
  head -c 65536 "$system/switch-inhibitors" 2>/dev/null | base64 | tr -d '\n'
  echo
done
