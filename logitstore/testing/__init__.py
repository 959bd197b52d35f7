"""What tests of a store and of its users stand on: small stores, tiny models, a bucket with faults.

Nothing here is imported by the rest of the package. Modules need the extras that they are about:
`tiny` and `fake_store` need `train`, `buckets` needs `dev`.
"""
