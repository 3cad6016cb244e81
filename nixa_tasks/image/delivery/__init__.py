"""From the cache onto a host."""
