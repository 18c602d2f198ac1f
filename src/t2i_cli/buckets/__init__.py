"""Buckets and other places of fsspec's: their URLs, objects and errors."""
