"""Work on many pictures at once, away from any request.

Importing this package loads nothing of weight; pyarrow is imported where parquet is read or
written.
"""
