"""Convert stores to and from other formats, take subsets of them and merge them.

    parquet/                 export a store to Parquet, and import that export again
    zarr_export.py           export a store to decoded zarr arrays, listed in zarr_columns.py, in
                             the folder or bucket of zarr_target.py
    subset.py, merge.py      write some rows of a store; write several stores as one
    dumps/                   import the log-probabilities that other tools wrote
    created/                 write a store row by row from arrays that a caller has

Every new store is written by `StoreWriter`: committed shard by shard, resumable, then sealed.
"""
