"""What the hosts should run: the flake, evaluated and built."""
