"""Faults of servers, disks and processes, while images are fetched."""
