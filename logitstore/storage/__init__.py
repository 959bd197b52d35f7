"""Folders and buckets: paths, reading, and writing a file whole or not at all."""
