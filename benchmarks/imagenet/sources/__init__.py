"""Images as they lie on disk: folders of classes, tar shards, parquet files."""
