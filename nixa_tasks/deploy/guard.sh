#!/bin/sh
# The dead-man's switch, on the host, as root: activates a system and goes back to the one before
# unless it is confirmed in time. Needs a POSIX shell and Nix; no controller has to be alive.
#
#   guard.sh FOLDER
#
# FOLDER holds: new (the system's store path), timeout (seconds without a sign of the controller
# until it goes back), limit (seconds that an activation may take), done.json and back.json (the
# two receipts; @SECONDS@ and @OUT@ are filled in here), and task:
#   switch  activate it now, and watch it (also where there is no such file)
#   boot    set it up for the next boot. `reboot` says who restarts the host: `no`body, or nixa,
#           which is `watched` where the boot loader can boot a system once and has the one before
#           as its default meanwhile, else `unwatched`. For these there is armed.json, a receipt.
#   prove   it has booted: watch it, and go back by another restart
# The controller writes into it: alive (a sign of life), confirm, abort (a reason).
# This writes: activated (the activation's exit status), activation.log, reason, outcome.
set -u
PATH=/run/current-system/sw/bin:$PATH:/usr/sbin:/sbin:/nix/var/nix/profiles/default/bin
profile=/nix/var/nix/profiles/system
receipts=/var/lib/nixa
cd "$1" || exit 1
umask 077

# /proc/uptime, so that a changed clock fools nobody.
now() { read -r up rest </proc/uptime; echo "${up%%.*}"; }

write_receipt() { # FILE OUTCOME [SYSTEM]: the receipt and its line in the history, in one step each
  umask 022 # a login that is not root reads them too
  mkdir -p "$receipts"
  out=${3:-$(readlink -f /run/current-system)}
  sed -e "s|\"@SECONDS@\"|$(($(now) - started))|" -e "s|@OUT@|$out|" "$1" >receipt.new
  cat receipt.new >>"$receipts/history.jsonl"
  cp receipt.new "$receipts/.receipt.new" && sync && mv -f "$receipts/.receipt.new" "$receipts/receipt.json"
  echo "$2" >outcome.new && mv -f outcome.new outcome
  umask 077
}

activate() { # SYSTEM switch|boot LOG: in a session of its own, so that all of it can be ended
  setsid sh -c '"$1/bin/switch-to-configuration" "$2"; status=$?
    echo $status >activated.new; mv -f activated.new activated' sh "$1" "$2" >>"$3" 2>&1 </dev/null 8>&- &
  child=$!
}

end_activation() { # what has ended by itself may have left services behind that are to stay
  [ ! -e activated ] || return 0
  kill -TERM "-$child" 2>/dev/null; sleep 1; kill -KILL "-$child" 2>/dev/null
  wait "$child" 2>/dev/null
}

activate_wholly() { # SYSTEM switch|boot LOG: to its end, or to the limit. Fails with the activation
  rm -f activated
  activate "$1" "$2" "$3"
  since=$(now)
  while [ ! -e activated ] && [ $(($(now) - since)) -lt "$limit" ]; do sleep 1; done
  end_activation
  [ "$(cat activated 2>/dev/null)" = 0 ]
}

go_back() { # REASON
  echo "$1" >reason
  end_activation
  rm -f confirm
  nix-env -p "$profile" --set "$before_profile"
  activate_wholly "$before" switch rollback.log
  write_receipt back.json rolled-back
  exit 0
}

fail() { # REASON: with nothing changed
  echo "$1" >reason
  echo failed >outcome
  exit 1
}

restore_profile() { # to the generation that it led to, rather than to a new one of the same system
  case $before_link in
  system-*-link)
    number=${before_link#system-}
    nix-env -p "$profile" --switch-generation "${number%-link}" ;;
  *) nix-env -p "$profile" --set "$before_profile" ;;
  esac
}

can_boot() { [ -e "$1/bin/switch-to-configuration" ]; }

set_up() { # the system `new` for the next boot
  before_link=$(readlink "$profile") reboot=$(cat reboot) default=$new
  if [ "$before_profile" = "$new" ]; then # set up already, and what runs is what can be gone back to
    before_profile=$before before_link=
  fi
  nix-env -p "$profile" --set "$new" || fail "the profile can't be set"
  if [ "$reboot" = watched ]; then
    restore_profile
    default=$before_profile
  fi
  trouble=
  activate_wholly "$default" boot activation.log || trouble="the boot loader could not be set up"
  if [ -z "$trouble" ] && [ "$reboot" = watched ]; then
    trouble=$(. ./boot_once.sh && boot_once "$new" "$before_profile" 2>&1 >>activation.log) && trouble= ||
      trouble="the boot loader can't be told to boot it once: ${trouble:-no reason given}"
  fi
  if [ -n "$trouble" ]; then
    echo "$trouble" | head -c 300 | tr '\n' ' ' >reason
    restore_profile
    activate_wholly "$before_profile" boot rollback.log
    write_receipt back.json rolled-back
  elif [ "$reboot" = no ]; then
    write_receipt done.json done
  else
    (umask 022; mkdir -p "$receipts")
    echo "$before_profile" >"$receipts/.before.new" && mv -f "$receipts/.before.new" "$receipts/before"
    write_receipt armed.json armed
  fi
  exit 0
}

keep() { # the system that has booted: from now on the default
  if nix-env -p "$profile" --set "$new" && activate_wholly "$new" boot activation.log; then
    write_receipt done.json done
    rm -f "$receipts/before"
    exit 0
  fi
  restart_before "the boot loader could not be set up"
}

restart_before() { # REASON
  echo "$1" >reason
  before=$(cat "$receipts/before" 2>/dev/null)
  can_boot "$before" || fail "$1; there is no system to go back to"
  nix-env -p "$profile" --set "$before"
  activate_wholly "$before" boot rollback.log
  write_receipt back.json rolled-back "$before"
  sync
  sleep 2
  systemctl reboot || reboot || busybox reboot -f
  exit 0
}

prove() {
  [ "$(readlink -f /run/current-system)" = "$new" ] || fail "it does not run $new"
  last=$(now)
  while :; do
    if [ -e confirm ]; then keep; fi
    if [ -e abort ]; then restart_before "$(head -c 300 abort)"; fi
    if [ -e alive ]; then rm -f alive; last=$(now); fi
    if [ $(($(now) - last)) -ge "$timeout" ]; then restart_before "nobody confirmed it within $timeout s"; fi
    sleep 1
  done
}

exec 8>>/run/nixa/guard.lock
flock 8 2>/dev/null
started=$(now)
new=$(cat new) timeout=$(cat timeout) limit=$(cat limit)
task=$(cat task 2>/dev/null)
[ "$task" != prove ] || prove
before=$(readlink -f /run/current-system)
before_profile=$(readlink -f "$profile")
[ -n "$before_profile" ] && [ -e "$before_profile" ] || before_profile=$before
can_boot "$before" || fail "there is no system to go back to"
[ "$task" != boot ] || set_up
nix-env -p "$profile" --set "$new" || fail "the profile can't be set"
activate "$new" switch activation.log
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
