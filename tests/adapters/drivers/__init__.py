"""Clients of each protocol for the conformance suite."""
