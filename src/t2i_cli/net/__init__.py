"""HTTP client, retries, bounded concurrency, response parsing; Google credentials and storage."""
