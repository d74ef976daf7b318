"""Measurements of a running Loopline, and of its peers in the same run: `make bench`."""
