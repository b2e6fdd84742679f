"""Build of the compiled kernels; everything else about the package is in pyproject.toml.

``RUVECTOR_NO_EXTENSIONS=1``       pure Python only
``RUVECTOR_REQUIRE_EXTENSIONS=1``  a failed compile fails the build instead of falling back
``RUVECTOR_NO_OPENMP=1``           compiled kernels, but one thread

Without a working compiler the build says so and goes on as pure Python.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
KERNELS = Path("ruvector", "_kernels")
# The lowest CPython whose limited API the kernels need; free-threaded builds have none.
LIMITED_API = None if sysconfig.get_config_var("Py_GIL_DISABLED") else "0x030B0000"


class ExtensionsFailed(Exception):
    """The compiled kernels could not be built."""


def switch(name):
    """Return whether an environment switch is set, to anything but nothing and 0."""
    return os.environ.get(name, "0") not in ("", "0")


OPENMP_PROBE = """
#include <omp.h>
int main(void)
{
    int n = 0;
#pragma omp parallel reduction(+ : n)
    n += 1;
    return n == omp_get_max_threads() ? 0 : 1;
}
"""


def openmp_flags(compiler):
    """Compile and link flags under which an OpenMP program builds here, or None."""
    if compiler.compiler_type == "msvc":
        candidates = [(["/openmp"], [])]
    elif sys.platform == "darwin":
        candidates = [(["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
    else:
        candidates = [(["-fopenmp"], ["-fopenmp"])]
    cross = "_PYTHON_HOST_PLATFORM" in os.environ
    for compile_flags, link_flags in candidates:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(OPENMP_PROBE)
            try:
                objects = compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=compile_flags
                )
                compiler.link_executable(
                    objects, "probe", output_dir=folder, extra_postargs=link_flags
                )
                if not cross:
                    program = Path(folder, compiler.executable_filename("probe"))
                    subprocess.run([str(program)], check=True, timeout=60)
            except Exception as error:
                print(f"ruvector: OpenMP probe failed: {error}", file=sys.stderr)
                continue
        return compile_flags, link_flags
    return None


class BuildKernels(build_ext):
    """Compile with the flags that the compiler at hand takes."""

    def finalize_options(self):
        """Compile on every core."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self):
        """Choose the flags, then compile."""
        compile_flags, link_flags = [], []
        if self.compiler.compiler_type == "msvc":
            compile_flags = ["/O2", "/std:c11", "/fp:precise"]
        else:
            # Contraction would make the scalar tiles depend on the compiler.
            compile_flags = ["-O3", "-g0", "-std=gnu11", "-ffp-contract=off"]
            compile_flags += ["-fvisibility=hidden"]
            link_flags = ["-lm"]
        openmp = None if switch("RUVECTOR_NO_OPENMP") else openmp_flags(self.compiler)
        if openmp is None:
            print("ruvector: building without OpenMP, one thread", file=sys.stderr)
            openmp = [], []
        for extension in self.extensions:
            extension.extra_compile_args = [*compile_flags, *openmp[0]]
            extension.extra_link_args = [*link_flags, *openmp[1]]
        super().build_extensions()

    def run(self):
        """Report any failure as one that the pure-Python build can answer."""
        try:
            super().run()
        except Exception as error:
            raise ExtensionsFailed(str(error)) from error


class BuildPackage(build_py):
    """Leave generated C out of what is installed."""

    def find_data_files(self, package, src_dir):
        """Drop what Cython wrote."""
        generated = {path.with_suffix(".c").name for path in (ROOT / KERNELS).glob("*.pyx")}
        return [
            name
            for name in super().find_data_files(package, src_dir)
            if Path(name).name not in generated
        ]


def kernel_extensions():
    """One extension a ``.pyx``; the C tiles are linked into the dispatch table's."""
    import numpy
    from Cython.Build import cythonize

    simd, include = KERNELS / "simd", KERNELS / "include"
    # A CFLAGS of the user replaces Python's own flags, NDEBUG among them.
    macros = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), ("NDEBUG", None)]
    if LIMITED_API:
        macros.append(("Py_LIMITED_API", LIMITED_API))
    extensions = []
    sources = sorted(KERNELS.glob("*.pyx"))
    if not sources:
        raise ExtensionsFailed(f"there is no .pyx file in {KERNELS}")
    for source in sources:
        tiles = sorted(map(str, simd.glob("*.c"))) if source.stem == "_dispatch" else []
        extensions.append(
            Extension(
                f"ruvector._kernels.{source.stem}",
                [str(source), *tiles],
                include_dirs=[*map(str, (KERNELS, simd, include)), numpy.get_include()],
                depends=sorted(map(str, [*simd.glob("*.h"), *include.glob("*.h")])),
                define_macros=macros,
                py_limited_api=bool(LIMITED_API),
            )
        )
    return cythonize(
        extensions,
        compiler_directives={
            "boundscheck": False,
            "cdivision": True,
            "freethreading_compatible": True,
            "initializedcheck": False,
            "language_level": 3,
            "wraparound": False,
        },
    )


def build(extensions):
    """Run setuptools with or without compiled kernels."""
    options = {}
    if extensions and LIMITED_API:
        options["bdist_wheel"] = {"py_limited_api": "cp311"}
    setup(
        ext_modules=extensions,
        cmdclass={"build_ext": BuildKernels, "build_py": BuildPackage},
        options=options,
    )


if switch("RUVECTOR_NO_EXTENSIONS"):
    build([])
else:
    try:
        build(kernel_extensions())
    except ExtensionsFailed as error:
        if switch("RUVECTOR_REQUIRE_EXTENSIONS"):
            raise SystemExit(
                f"ruvector: the compiled kernels failed to build: {error}"
            ) from error
        print(
            f"ruvector: the compiled kernels failed to build ({error}); "
            "installing the pure-Python kernels instead",
            file=sys.stderr,
        )
        build([])
