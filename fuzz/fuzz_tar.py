"""Fuzz the tar reader: any bytes are read or refused, in bounded time and memory.

Only `InvalidImage` and `LimitExceeded` escape, entries keep what they promise, chunks do not matter, and where Python's
tarfile reads the stream to its end, too, both see the same names, types, sizes and contents. See `fuzz.archives`.

Run by `make fuzz`, or `python -m fuzz.fuzz_tar` with options of libFuzzer.
"""

from fuzz.engine import run

if __name__ == "__main__":
    run(
        "tar",
        "fuzz.archives",
        tuple(f"cvmfs_sync.tar.{module}" for module in ("entry", "fields", "stream", "pax", "sparse", "reader")),
    )
