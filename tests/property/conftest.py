"""No property fails for a busy computer: neither a slow example nor slow data is a fault of nixa's.

CI tries the same examples each time, so that what it says is about the change; elsewhere each run tries others.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("patient"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "patient")
