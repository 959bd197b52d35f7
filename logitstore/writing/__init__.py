"""Writing a store: records encoded, shards built and committed, the store sealed."""
