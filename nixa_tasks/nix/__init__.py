"""The local Nix: its commands, versions and errors."""
