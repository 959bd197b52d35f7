"""A store as Parquet that anybody reads, and the same store again."""
