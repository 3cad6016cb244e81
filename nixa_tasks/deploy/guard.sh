#!/bin/sh
# The dead-man's switch, on the host, as root: activates a system and goes back to the one before
# unless it is confirmed in time. Needs a POSIX shell and Nix; no controller has to be alive.
#
#   guard.sh FOLDER
#
# FOLDER holds: new (the system's store path), timeout (seconds without a sign of the controller
# until it goes back), limit (seconds that an activation may take), the receipts begun.json, done.json,
# back.json, unconfirmed.json (as back.json, where nobody has said a word) and stuck.json (@SECONDS@, @OUT@
# and @WHY@ are filled in here), keep-failed-units where a system that left failed units behind is to stay
# (then also kept.json), force where the checks before a switch are to be skipped, and task:
#   switch  activate it now, and watch it. It becomes what boots next only once it is confirmed
#   boot    set it up for the next boot. `reboot` says who restarts the host: `no`body, or nixa,
#           which is `watched` where the boot loader can boot a system once and has the one before
#           as its default meanwhile, else `unwatched`. For these there is armed.json, a receipt.
#   prove   it has booted: watch it, and go back by another restart
# The controller writes into it: alive (a sign of life), confirm, abort (a reason).
# This writes: activated (the activation's exit status), activation.log, reason, failed-units (each with
# the end of its journal), and outcome: `done`, `armed`, `kept` (the new system stays, with failed units),
# `rolled-back`, `failed` (nothing was changed, or somebody else has changed it since) or `stuck` (it could
# not go back). Which of these is told by what runs and boots, and nothing else.
set -u
PATH=/run/current-system/sw/bin:$PATH:/usr/sbin:/sbin:/nix/var/nix/profiles/default/bin
profile=/nix/var/nix/profiles/system
earlier=/nix/var/nix/profiles/nixa-before # survives a boot wherever /nix does, and is a GC root
receipts=/var/lib/nixa
next=/nix/var/nix/gcroots/nixa-next
cd "$1" || exit 1
umask 077

# /proc/uptime, so that a changed clock fools nobody.
now() { read -r up rest </proc/uptime; echo "${up%%.*}"; }

live() { readlink -f /run/current-system; }

waits_until() { # SECONDS of uptime: for whoever looks at this host (probe.sh)
  (umask 022; echo "$1" >/run/nixa-guard.new; mv -f /run/nixa-guard.new /run/nixa-guard)
}

sync_files() { # FILE…: these only, so that a hung mount elsewhere blocks nothing
  sync "$@" 2>/dev/null || :
}

failed_units() {
  command -v systemctl >/dev/null 2>&1 || return 0
  timeout 20 systemctl list-units --state=failed --plain --no-legend --no-pager 2>/dev/null |
    while read -r unit rest; do echo "$unit"; done
}

newly_failed() { # those that were not failed before, one a line
  for unit in $(failed_units); do grep -qxF "$unit" failed-before 2>/dev/null || echo "$unit"; done
}

note_failed_units() {
  for unit in $(newly_failed); do
    echo "$unit:"
    timeout 20 journalctl --quiet --no-pager --boot --output=cat --lines=5 --unit="$unit" 2>/dev/null | sed 's/^/  /'
  done | head -c 8192 >failed-units
}

describe() { # STATUS: what switch-to-configuration means by it
  case $1 in
  1) printf 'switch-to-configuration refused to start (status 1)' ;;
  2) printf 'the activation script failed (status 2)' ;;
  3) printf 'systemd could not reload its configuration (status 3)' ;;
  4) printf 'units failed (status 4)' ;;
  100) printf 'its init is incompatible with the running one, so that it needs a reboot (status 100)' ;;
  101) printf 'switch-to-configuration crashed (status 101)' ;;
  *) printf 'the activation ended with status %s' "$1" ;;
  esac
  names=$(newly_failed | tr '\n' ' ')
  [ -z "$names" ] || printf ': %s' "${names% }"
}

put_receipt() { # FILE [SYSTEM]
  umask 022 # a login that is not root reads it too
  mkdir -p "$receipts"
  out=${2:-$(live)} why=$(head -c 300 reason 2>/dev/null | LC_ALL=C tr -cd '\040-\176' | tr -d '"\\|&')
  sed -e "s|\"@SECONDS@\"|$(($(now) - started))|" -e "s|@OUT@|$out|" -e "s|@WHY@|$why|" "$1" >receipt.new
  cp receipt.new "$receipts/.receipt.new"
  sync_files "$receipts/.receipt.new"
  mv -f "$receipts/.receipt.new" "$receipts/receipt.json"
  umask 077
}

write_receipt() { # FILE OUTCOME [SYSTEM]: the receipt and its line in the history, in one step each
  put_receipt "$1" ${3:+"$3"}
  (umask 022; cat receipt.new >>"$receipts/history.jsonl")
  sync_files "$receipts/history.jsonl"
  end "$2"
}

end() { # OUTCOME
  echo "$1" >outcome.new && mv -f outcome.new outcome
}

activate() { # SYSTEM test|boot LOG: in a session of its own, so that all of it can be ended
  NIXOS_NO_CHECK=$force setsid sh -c '"$1/bin/switch-to-configuration" "$2"; status=$?
    echo $status >activated.new; mv -f activated.new activated' sh "$1" "$2" >>"$3" 2>&1 </dev/null 8>&- &
  child=$!
}

end_activation() { # what has ended by itself may have left services behind that are to stay
  [ ! -e activated ] || return 0
  kill -TERM "-$child" 2>/dev/null; sleep 1; kill -KILL "-$child" 2>/dev/null
  wait "$child" 2>/dev/null
}

activate_wholly() { # SYSTEM test|boot LOG: to its end, or to the limit. Fails with the activation
  rm -f activated
  activate "$1" "$2" "$3"
  since=$(now)
  waits_until $((since + limit))
  while [ ! -e activated ] && [ $(($(now) - since)) -lt "$limit" ]; do sleep 1; done
  end_activation
  [ "$(cat activated 2>/dev/null)" = 0 ]
}

fail() { # REASON: with nothing changed
  echo "$1" >reason
  end failed
  exit 1
}

leave_to_others() { # what runs is neither the new system nor the one before: not ours to undo
  found=$(live)
  case $found in
  "$new" | "$before") ;;
  *) fail "somebody has switched it to $found meanwhile, which is left as it is" ;;
  esac
}

go_back() { # REASON [FILE]
  reason=$1 back=${2:-back.json}
  echo "$reason" >reason
  end_activation
  rm -f confirm
  leave_to_others
  force=1 # what has been switched to in one way is a change of the same things in the other
  restore_profile
  for attempt in 1 2 3; do # something may hold the lock of the activation that was just ended
    if activate_wholly "$before" test rollback.log || [ "$(live)" = "$before" ]; then break; fi
  done
  loader=
  if [ -n "$is_default_set" ] && ! activate_wholly "$before_profile" boot rollback.log; then
    loader="; its boot loader could not be set back"
  fi
  if [ "$(live)" = "$before" ] && [ "$(readlink -f "$profile")" = "$before_profile" ] && [ -z "$loader" ]; then
    write_receipt "$back" rolled-back
  else
    echo "$reason$loader" >reason
    write_receipt stuck.json stuck
  fi
  exit 0
}

restore_profile() { # to the generation that it led to, rather than to a new one of the same system
  [ "$(readlink -f "$profile")" != "$before_profile" ] || return 0
  case $before_link in
  system-*-link)
    number=${before_link#system-}
    nix-env -p "$profile" --switch-generation "${number%-link}" ;;
  *) nix-env -p "$profile" --set "$before_profile" ;;
  esac
}

can_boot() { [ -e "$1/bin/switch-to-configuration" ]; }

switch() { # to the system `new`: it runs, and what boots next stays the one before until it is confirmed
  failed_units >failed-before
  ln -sfn "$new" "$next" # nothing else holds it yet
  put_receipt begun.json # so that a host which dies from here on does not seem to have drifted
  activate "$new" test activation.log
  last=$started
  waits_until $((last + timeout))
  while :; do
    if [ -e activated ]; then
      status=$(cat activated)
      if [ "$status" != 0 ] && [ ! -e failed-units ]; then
        note_failed_units
        [ "$status" = 4 ] && [ -e keep-failed-units ] || go_back "$(describe "$status")"
        describe "$status" >reason
      fi
      if [ -e confirm ]; then keep_switched; fi
    elif [ $(($(now) - started)) -ge "$limit" ]; then
      go_back "the activation timed out after $limit s"
    fi
    if [ -e abort ]; then go_back "$(head -c 300 abort)"; fi
    if [ -e alive ]; then rm -f alive; last=$(now); waits_until $((last + timeout)); fi
    if [ $(($(now) - last)) -ge "$timeout" ]; then go_back "nobody confirmed it within $timeout s" unconfirmed.json; fi
    sleep 1
  done
}

keep_switched() {
  leave_to_others
  [ "$(live)" = "$new" ] || go_back "it runs $(live) again"
  nix-env -p "$profile" --set "$new" || go_back "the profile can't be set"
  is_default_set=yes
  activate_wholly "$new" boot activation.log || go_back "the boot loader could not be set up"
  leave_to_others
  [ "$(live)" = "$new" ] || go_back "it runs $(live) again"
  if [ -e failed-units ]; then write_receipt kept.json kept; else write_receipt done.json done; fi
  exit 0
}

set_up() { # the system `new` for the next boot
  reboot=$(cat reboot) default=$new
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
    if activate_wholly "$before_profile" boot rollback.log; then
      write_receipt back.json rolled-back
    else
      write_receipt stuck.json stuck
    fi
  elif [ "$(readlink -f "$profile")" != "$default" ]; then
    fail "somebody has set another system to be booted meanwhile, which is left as it is"
  elif [ "$reboot" = no ]; then
    write_receipt done.json done
  else
    ln -sfn "$before_profile" "$earlier"
    sync_files /nix/var/nix/profiles
    write_receipt armed.json armed
  fi
  exit 0
}

stay_or_fail() {
  [ "$(live)" = "$new" ] || fail "somebody has switched it to $(live) meanwhile, which is left as it is"
}

keep() { # the system that has booted: from now on the default
  if nix-env -p "$profile" --set "$new" && activate_wholly "$new" boot activation.log; then
    rm -f "$earlier"
    stay_or_fail
    write_receipt done.json done
    exit 0
  fi
  restart_before "the boot loader could not be set up"
}

restart_before() { # REASON [FILE]
  echo "$1" >reason
  before=$(readlink -f "$earlier" 2>/dev/null)
  can_boot "$before" || fail "$1; there is no system to go back to"
  nix-env -p "$profile" --set "$before"
  activate_wholly "$before" boot rollback.log
  rm -f "$earlier"
  write_receipt "${2:-back.json}" rolled-back "$before"
  timeout 20 sync
  sleep 2
  systemctl reboot || reboot || busybox reboot -f
  exit 0
}

prove() {
  [ "$(live)" = "$new" ] || fail "it does not run $new"
  last=$(now)
  waits_until $((last + timeout))
  while :; do
    if [ -e confirm ]; then
      stay_or_fail
      keep
    fi
    if [ -e abort ]; then restart_before "$(head -c 300 abort)"; fi
    if [ -e alive ]; then rm -f alive; last=$(now); waits_until $((last + timeout)); fi
    if [ $(($(now) - last)) -ge "$timeout" ]; then restart_before "nobody confirmed it within $timeout s" unconfirmed.json; fi
    sleep 1
  done
}

exec 8>>/run/nixa/guard.lock
flock 8 2>/dev/null
trap 'rm -f /run/nixa-guard "$next"' EXIT
started=$(now)
new=$(cat new) timeout=$(cat timeout) limit=$(cat limit)
is_default_set= force=
[ ! -e force ] || force=1
before=$(live)
before_profile=$(readlink -f "$profile") before_link=$(readlink "$profile")
[ -n "$before_profile" ] && [ -e "$before_profile" ] || before_profile=$before
case $(cat task 2>/dev/null) in
prove) prove ;;
boot) can_boot "$before" || fail "there is no system to go back to"; set_up ;;
*) can_boot "$before" || fail "there is no system to go back to"; switch ;;
esac
