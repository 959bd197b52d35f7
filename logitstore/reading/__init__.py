"""Read a store: its shards, the sequences in them, and buckets through a local cache."""
