"""One self-contained HTML page about the fleet: pure, but for `tail` (the journal, the logs)."""
