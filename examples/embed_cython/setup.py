"""Build the example: Cython finds capi.pxd in the installed package, C its header."""

import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

import ruvector

openmp = {"win32": ["/openmp"], "darwin": []}.get(sys.platform, ["-fopenmp"])
setup(
    ext_modules=cythonize(
        Extension(
            "embed_cython",
            ["embed_cython.pyx"],
            include_dirs=[ruvector.get_include()],
            extra_compile_args=openmp,
            extra_link_args=[] if sys.platform == "win32" else openmp,
        )
    )
)
