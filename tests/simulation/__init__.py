"""The simulator: nixa's own deploy code, on simulated hosts, networks, controllers and time.

docs/simulation.md says how to read it, run it and extend it.
"""
