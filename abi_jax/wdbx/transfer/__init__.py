"""Rows in bulk, in and out: files and arrays to segments, versions to files, whole stores to other places."""
