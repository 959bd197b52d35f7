"""The bytes of a store, as FORMAT.md defines them: no network, no torch."""
