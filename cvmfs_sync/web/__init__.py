"""Pages and API over HTTP, in a process of their own: nothing that a visitor does slows or touches publishing."""

from __future__ import annotations
