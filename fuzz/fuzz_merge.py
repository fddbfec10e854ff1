"""Fuzz the merge: any layers give the tree of the naive model, or both refuse them.

Only `InvalidImage` and `LimitExceeded` escape, the tree keeps its invariants, and the difference to the tree without
the last layer, applied, gives each of the two from the other. See `fuzz.merges`.

Run by `make fuzz`, or `python -m fuzz.fuzz_merge` with options of libFuzzer.
"""

from fuzz.engine import run

if __name__ == "__main__":
    run("merge", "fuzz.merges", ("cvmfs_sync.tree", "cvmfs_sync.diff"))
