"""What a configuration needs on a TPU slice or on N devices, found by compiling its train step without that hardware.

Read `run.py` first (the command), then `target.py` and `compile.py` (what is compiled, and the figures taken from it).
"""
