"""What the user declared: hosts.toml as frozen values."""
