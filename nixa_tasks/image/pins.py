"""Which manifests on this machine still pin an image."""

from __future__ import annotations

from pathlib import Path

from nixa_tasks.manifest.digest import to_base32, to_sri


def is_pinned_by(manifest: str, sha256: str) -> bool:
    """Whether a manifest still holds the hash, in any spelling. The text is searched, not parsed:
    a typing error in the file must not cost 350 MB."""
    try:
        text = Path(manifest).read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # it is there, and not ours to read: keep what it may pin
    return to_sri(sha256) in text or sha256 in text.lower() or to_base32(sha256) in text
