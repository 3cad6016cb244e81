# launch.sh RUN: starts guard.sh with the files of the tar archive on standard input, in a unit of its
# own, or a session where there is no systemd.
set -eu
umask 077
mkdir -p /run/nixa
folder=/run/nixa/switch-$1
mkdir "$folder"
cd "$folder"
tar -xf -
if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null 2>&1; then
  systemd-run --quiet --collect --no-ask-password --unit="nixa-switch-$1" sh "$folder/guard.sh" "$folder"
else
  setsid sh "$folder/guard.sh" "$folder" </dev/null >guard.log 2>&1 7>&- &
fi
