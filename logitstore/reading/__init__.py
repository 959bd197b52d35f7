"""Reading a store: shards, the sequences in them, and buckets through a local cache."""
