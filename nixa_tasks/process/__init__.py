"""The one way to run a process."""
