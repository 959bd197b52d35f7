"""Several processes at one store: who takes which shard, and who is alive."""
