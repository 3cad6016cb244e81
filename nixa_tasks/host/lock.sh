# Holds the host's lock, as root, until the beat on standard input stops: one line every few seconds.
#
#   lock.sh TIMEOUT HOLDER
#
# Says `held by …` when it has to wait, and `locked TOKEN` once it has the lock, or `unlocked` where
# there is no flock. The token is new each time: fence.sh compares it. Ends with 75 after TIMEOUT
# seconds of waiting.
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/sbin
folder=/run/nixa silence=30
umask 077; mkdir -p $folder || exit 1
command -v flock >/dev/null || { echo unlocked; exec cat >/dev/null; }
exec 9>>$folder/lock
if ! flock -n 9; then
  echo "held by $(head -c 200 $folder/holder 2>/dev/null)"; flock -w "$1" 9 || exit 75
fi
# What goes on without its controller: a switch that the host itself watches, a step of an installation.
exec 8>>$folder/guard.lock
if ! flock -n 8; then
  echo "held by a step that the host itself still carries out"; flock -w "$1" 8 || exit 75
fi
exec 8>&-
token=$(cat $folder/fence 2>/dev/null)
token=$((${token:-0} + 1))
echo $token >$folder/fence
printf '%s\n' "$2" >$folder/holder
echo "locked $token"
while line=$(timeout $silence head -n 1 9>&-) && [ -n "$line" ]; do :; done
