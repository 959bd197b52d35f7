"""Checking a store against its digests and its text, and repairing what is damaged."""
