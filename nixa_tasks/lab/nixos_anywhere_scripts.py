"""What the stand-in for nixos-anywhere sends to a machine: shell text, made by pure functions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

# The kexec succeeded if the image's own `run` said this, whatever any exit status was.
KEXEC_SENTENCE = "machine will boot into nixos"
# The facts without which it does not go on, under the names that its messages use.
REQUIRED_FACTS = (
    "isOs", "isArch", "isInstaller", "isContainer", "isRoot", "hasIpv6Only", "hasTar", "hasCpio",
    "hasSudo", "hasDoas", "hasWget", "hasCurl", "hasSetsid",
)  # fmt: skip
_FACT = re.compile(r"^((?:is|has|remote)[A-Za-z0-9_]+)=(\S+)\s*$", re.MULTILINE)

FACTS = r"""
say() { if "$@" >/dev/null 2>&1; then echo y; else echo n; fi; }
release() { [ -r /etc/os-release ] && grep -Eq "$1" /etc/os-release; }
installer() { release 'ID(_LIKE)?="?nixos' && release '^VARIANT_ID="?installer'; }
only_ipv6() { command -v ip && ! ip route get 1 && ip -6 route get ::; }
waiting_setsid() { command -v setsid && setsid --wait true; }
container=none
if command -v systemd-detect-virt >/dev/null; then
  container=$(systemd-detect-virt --container) || container=none
fi
echo "isOs=$(uname -s)"
echo "isArch=$(uname -m)"
echo "isInstaller=$(say installer)"
echo "isContainer=$container"
echo "isRoot=$(say test "$(id -u)" = 0)"
echo "hasIpv6Only=$(say only_ipv6)"
echo "hasSetsid=$(say waiting_setsid)"
for pair in Tar:tar Cpio:cpio Sudo:sudo Doas:doas Wget:wget Curl:curl NixOSFacter:nixos-facter; do
  echo "has${pair%%:*}=$(say command -v "${pair#*:}")"
done
"""


def quoted(words: Sequence[str]) -> str:
    """Words as a remote shell must read them."""
    return shlex.join(words)


def read_facts(text: str) -> dict[str, str]:
    """The facts that a machine printed; other lines (a banner, a warning) are passed over."""
    return dict(_FACT.findall(text))


def privilege(facts: Mapping[str, str]) -> str | None:
    """What stands before a command that needs root: nothing, `sudo`, `doas`; None: there is no way."""
    if facts["isRoot"] == "y":
        return ""
    if facts["hasSudo"] == "y":
        return "sudo"
    return "doas" if facts["hasDoas"] == "y" else None


def unpack_flag(source: str) -> str:
    """tar's flag for a compressed stream: from the suffix of the file's name or URL alone."""
    for suffix, flag in ((".tar.gz", "--gzip"), (".tar.xz", "--xz"), (".tar.zst", "--zstd")):
        if source.endswith(suffix):
            return flag
    return ""


def kexec_script(feed: str, source: str, sudo: str, flags: str, *, trace: bool) -> str:
    """Unpack what `feed` writes, and run it. Nothing is verified, and a failed tar stops nothing:
    only the sentence in the log decides.
    """
    return f"""
{"set -x" if trace else ":"}
cd "$HOME/kexec" || exit 1
{{
  {feed} | tar -xv {unpack_flag(source)}
  TMPDIR="$HOME/kexec" {sudo} setsid --wait "$HOME/kexec/kexec/run" --kexec-extra-flags {shlex.quote(flags)}
}} 2>&1 | tee "$HOME/kexec/nixos-anywhere.log"
grep -q '{KEXEC_SENTENCE}' "$HOME/kexec/nixos-anywhere.log" && exit 0
echo 'Kexec may have failed - check output above'
exit 1
"""


def own_script(owners: tuple[tuple[str, str], ...]) -> str:
    """Give paths of the new system to their owners."""
    return "\n".join(
        (
            "set -e",
            *(f"chown -R {shlex.quote(owner)} {shlex.quote('/mnt/' + path)}" for path, owner in owners),
        )
    )


def install_script(system: str, *, copy_host_keys: bool, trace: bool) -> str:
    """Install a system that is in the store under /mnt. Host keys that are there already stay."""
    keys = """
mkdir -p -m 755 /mnt/etc/ssh
for key in /etc/ssh/ssh_host_*; do
  if [ -e "$key" ] && [ ! -e "/mnt$key" ]; then cp -a "$key" "/mnt$key"; fi
done"""
    return f"""
set -eu{"x" if trace else ""}
PATH=$PATH:/run/current-system/sw/bin
export PATH
[ -d /mnt/tmp ] || mkdir -p -m 777 /mnt/tmp
{keys if copy_host_keys else ":"}
nixos-install --no-root-passwd --no-channel-copy --system {shlex.quote(system)}
"""


REBOOT = """
if command -v zpool >/dev/null && [ "$(zpool list)" != "no pools available" ]; then
  umount -R /mnt
  swapoff -a
  zpool export -a || :
fi
nohup sh -c 'sleep 6; reboot' >/dev/null 2>&1 &
"""


def substituters_script(substituters: str, keys: str) -> str:
    """Let the installer use the substituters of the system that it is to install."""
    lines = f"extra-substituters = {substituters}\nextra-trusted-public-keys = {keys}"
    return (
        f'mkdir -p "$HOME/.config/nix"\nprintf "%s\\n" {shlex.quote(lines)} >>"$HOME/.config/nix/nix.conf"\n'
    )
