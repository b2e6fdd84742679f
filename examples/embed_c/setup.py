"""Build the example; ruvector's header is all that the compiler needs of it."""

import sys

from setuptools import Extension, setup

import ruvector

windows = sys.platform == "win32"
setup(
    ext_modules=[
        Extension("embed_c", ["embed_c.c"], include_dirs=[ruvector.get_include()]),
        Extension(
            "embed_cpp",
            ["embed_cpp.cpp"],
            include_dirs=[ruvector.get_include()],
            language="c++",
            extra_compile_args=["/std:c++17"] if windows else ["-std=c++17", "-pthread"],
            extra_link_args=[] if windows else ["-pthread"],
        ),
    ]
)
