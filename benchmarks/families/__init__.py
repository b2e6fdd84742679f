"""One module for each family.

A family has a docstring whose first line is its summary, a function ``rows()`` that returns
`benchmarks.core.Row` and `benchmarks.core.Measurement` objects, and optionally ``curves()``
that returns `benchmarks.core.Curve` objects. Nothing is built before it is run.
"""
