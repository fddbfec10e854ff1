"""The command line: arguments, exit codes, and the only place that wires things together.

Exit codes: 0 all is well; 1 an image failed, or check or fsck found an error; 2 usage, configuration or list invalid;
3 the repository or the machine stopped us; 70 a defect of cvmfs-sync itself (EX_SOFTWARE of sysexits.h);
130 interrupted.

A command imports what it needs when it runs: all of it together takes longer than most commands.
"""

from cvmfs_sync.cli import lists, passes, services, answers, single  # isort: skip  # noqa: F401 -- the order of --help
from cvmfs_sync.cli.app import app
from cvmfs_sync.cli.main import main

__all__ = ["app", "main"]
