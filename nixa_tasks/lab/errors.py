"""What can go wrong in the lab, for its user."""

from __future__ import annotations

from nixa_tasks.errors import NixaError


class LabError(NixaError):
    """The lab can't do what was asked; the message says what is missing or what to do."""
