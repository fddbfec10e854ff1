"""The tests of cvmfs-sync."""
