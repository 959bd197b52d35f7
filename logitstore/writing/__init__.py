"""Write a store: encode records, build and commit shards, seal the store."""
