"""Many runs of one configuration: a file in `configs/sweeps/` -> a folder for each run, one table, one picture.

A sweep file is a configuration file, with get_config(), that also has `sweep()`, which yields for each run what it
changes, {field: value} with dotted names. Plain Python does the rest: loops for a product, `zip` for a diagonal.
"""
