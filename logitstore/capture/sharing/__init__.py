"""Let several processes write one store: ranks, claims and heartbeats."""
