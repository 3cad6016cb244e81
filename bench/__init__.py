"""What is measured, against what, as ratios: `python -m bench.fetch`."""
