"""Measures cvmfs-sync beside other tools; `make bench` runs it, README.md says what is measured."""
