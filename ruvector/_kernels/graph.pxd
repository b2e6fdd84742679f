"""How arrays and a specification become a graph for the drivers."""

cimport numpy as cnp

from ruvector._kernels._edges cimport Graph


cdef char *describe(Graph *g, cnp.ndarray att, edges, spec, double unit) except NULL
