"""Stores into other things and back: Parquet, other tools' dumps, parts and unions of stores.

    parquet/                 a store as Parquet that anybody reads, and the same store again
    subset.py, merge.py      some rows of a store; several stores as one
    dumps/                   what other tools wrote of a teacher, as a store

Whatever becomes a store goes through `StoreWriter`: committed shard by shard, resumable, sealed.
"""
