"""Keep a CernVM-FS repository in step with a list of container images."""

from __future__ import annotations

__version__ = "0.1.0"
