"""How fast each form reverses a gradient, and how well the experiments adapt.

- `python -m benchmarks`: time of one call, over all forms, peers and floors; `timing` says how it is measured.
- `python -m benchmarks.reach`: the experiments' scores.
- `python -m benchmarks.rounding`: why the frameworks part in float32.
"""
