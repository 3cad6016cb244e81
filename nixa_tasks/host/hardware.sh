# hardware.sh COMMAND…: runs a tool where there is one. Ends with 127 where there is none.
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/sbin
command -v "$1" >/dev/null || exit 127
exec "$@"
