"""The NumPy twins of the compiled kernels: same modules, same functions, same results.

They are what runs where no extension modules are installed. Modules whose names begin
with an underscore are their private parts and have no compiled counterpart.
"""
