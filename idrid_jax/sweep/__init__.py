"""Several runs of one configuration: a file in `configs/sweeps/` -> a run directory each, one table, one picture.

A sweep file is a configuration file with get_config() and also `sweep()`, which yields for each run the fields that it
changes, {field: value}. Read `runner.py` first; `README.md` has an example.
"""
