"""Export a store to Parquet files that any Parquet reader opens, and import that export again."""
