#!/bin/sh
# The dead-man's switch, on the host, as root: activates a system and goes back to the one before
# unless it is confirmed in time. Needs a POSIX shell and Nix; no controller has to be alive.
#
#   guard.sh FOLDER
#
# FOLDER holds: new (the system's store path), timeout (seconds without a sign of the controller
# until it goes back), limit (seconds that an activation may take), done.json and back.json (the
# two receipts; @SECONDS@ and @OUT@ are filled in here).
# The controller writes into it: alive (a sign of life), confirm, abort (a reason).
# This writes: activated (the activation's exit status), activation.log, outcome.
set -u
PATH=/run/current-system/sw/bin:$PATH:/usr/sbin:/sbin:/nix/var/nix/profiles/default/bin
profile=/nix/var/nix/profiles/system
receipts=/var/lib/nixa
cd "$1" || exit 1
umask 077

# /proc/uptime, so that a changed clock fools nobody.
now() { read -r up rest </proc/uptime; echo "${up%%.*}"; }

write_receipt() { # FILE OUTCOME: the receipt and its line in the history, in one step each
  umask 022 # a login that is not root reads them too
  mkdir -p "$receipts"
  sed -e "s|\"@SECONDS@\"|$(($(now) - started))|" -e "s|@OUT@|$(readlink -f /run/current-system)|" "$1" >receipt.new
  cat receipt.new >>"$receipts/history.jsonl"
  cp receipt.new "$receipts/.receipt.new" && sync && mv -f "$receipts/.receipt.new" "$receipts/receipt.json"
  echo "$2" >outcome.new && mv -f outcome.new outcome
  umask 077
}

activate() { # SYSTEM LOG: in a session of its own, so that all of it can be ended
  setsid sh -c '"$1/bin/switch-to-configuration" switch; status=$?
    echo $status >activated.new; mv -f activated.new activated' sh "$1" >"$2" 2>&1 </dev/null 8>&- &
  child=$!
}

end_activation() { # what has ended by itself may have left services behind that are to stay
  [ ! -e activated ] || return 0
  kill -TERM "-$child" 2>/dev/null; sleep 1; kill -KILL "-$child" 2>/dev/null
  wait "$child" 2>/dev/null
}

go_back() { # REASON
  echo "$1" >reason
  end_activation
  rm -f activated confirm
  nix-env -p "$profile" --set "$before_profile"
  activate "$before" rollback.log
  back_since=$(now)
  while [ ! -e activated ] && [ $(($(now) - back_since)) -lt "$limit" ]; do sleep 1; done
  end_activation
  write_receipt back.json rolled-back
  exit 0
}

exec 8>>/run/nixa/guard.lock
flock 8 2>/dev/null
started=$(now)
new=$(cat new) timeout=$(cat timeout) limit=$(cat limit)
before=$(readlink -f /run/current-system)
before_profile=$(readlink -f "$profile")
[ -n "$before_profile" ] && [ -e "$before_profile" ] || before_profile=$before
[ -e "$before/bin/switch-to-configuration" ] || { echo "there is no system to go back to" >reason; echo failed >outcome; exit 1; }
nix-env -p "$profile" --set "$new" || { echo "the profile can't be set" >reason; echo failed >outcome; exit 1; }
activate "$new" activation.log
last=$started
while :; do
  if [ -e activated ]; then
    status=$(cat activated)
    [ "$status" = 0 ] || go_back "the activation ended with status $status"
    if [ -e confirm ]; then write_receipt done.json done; exit 0; fi
  elif [ $(($(now) - started)) -ge "$limit" ]; then
    go_back "the activation did not end within $limit s"
  fi
  if [ -e abort ]; then go_back "$(head -c 300 abort)"; fi
  if [ -e alive ]; then rm -f alive; last=$(now); fi
  if [ $(($(now) - last)) -ge "$timeout" ]; then go_back "nobody confirmed it within $timeout s"; fi
  sleep 1
done
