"""Stores into other things and back: Parquet, zarr, other tools' dumps, parts and unions of stores.

    parquet/                 a store as Parquet that anybody reads, and the same store again
    zarr_export.py           a store as decoded zarr arrays; zarr_columns.py: which they are;
                             zarr_target.py: the folder or bucket that they are written to
    subset.py, merge.py      some rows of a store; several stores as one
    dumps/                   what other tools wrote of a teacher, as a store

Whatever becomes a store goes through `StoreWriter`: committed shard by shard, resumable, sealed.
"""
