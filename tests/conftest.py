"""How property tests run, everywhere alike."""

from __future__ import annotations

import os

from hypothesis import settings

# No test asserts how long an example takes: a busy machine would fail it. Continuous integration
# draws the same examples each time (hypothesis' own profile for it); everyone else explores.
_parent = settings.get_profile("ci" if os.environ.get("CI") else "default")
settings.register_profile("house", parent=_parent, deadline=None)
settings.load_profile("house")
