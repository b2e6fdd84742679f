"""Backend selection, threads and what ``info()`` says about them."""

from __future__ import annotations

import asyncio
import importlib.machinery
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from isolated import PACKAGE, output, python

import ruvector
from ruvector import _config, _cpus, _kernels

NATIVE = [isa for backend, isa in _kernels.available() if backend == "native"]
BACKENDS = ["python", *(["native"] if NATIVE else [])]
needs_native = pytest.mark.skipif(not NATIVE, reason="no compiled kernels here")


@pytest.fixture(autouse=True)
def _restored():
    threads, before = _config._process_threads, (_kernels.backend, _kernels.isa)
    yield
    _config._process_threads = threads
    _kernels.select(*before)


class TestInfo:
    def test_is_json_and_complete(self):
        facts = json.loads(json.dumps(ruvector.info()))
        assert facts["version"] == ruvector.version() == ruvector.__version__
        assert facts["backend"] == ruvector.backend()
        assert facts["numpy"] == np.__version__
        assert facts["threads"] == ruvector.get_num_threads()
        assert facts["available_isas"] == NATIVE
        assert set(facts["mechanisms"]) == {
            "dot-product",
            "multi-head",
            "flash",
            "linear",
            "local-global",
            "hyperbolic",
            "dual-space",
            "edge-featured",
            "moe",
            "graph-rope",
        }

    def test_follows_the_selected_backend(self):
        for backend, isa in _kernels.available():
            _kernels.select(backend, isa)
            assert (ruvector.backend(), ruvector.info()["isa"]) == (backend, isa)


class TestThreads:
    def test_set_and_get(self):
        ruvector.set_num_threads(3)
        assert ruvector.get_num_threads() == 3
        ruvector.set_num_threads(np.int64(2))
        assert ruvector.get_num_threads() == 2
        assert type(ruvector.get_num_threads()) is int

    @pytest.mark.parametrize("wrong", [0, -1, 1.0, "2", None, True])
    def test_wrong_numbers_change_nothing(self, wrong):
        ruvector.set_num_threads(3)
        message = "n must be an integer of at least 1, got"
        with pytest.raises(ruvector.InvalidConfigError, match=message):
            ruvector.set_num_threads(wrong)
        with pytest.raises(ruvector.InvalidConfigError, match=message):
            ruvector.num_threads(wrong)
        assert ruvector.get_num_threads() == 3

    def test_context_nests(self):
        ruvector.set_num_threads(5)
        with ruvector.num_threads(3):
            with ruvector.num_threads(2):
                assert ruvector.get_num_threads() == 2
            assert ruvector.get_num_threads() == 3
            ruvector.set_num_threads(4)
            assert ruvector.get_num_threads() == 3
        assert ruvector.get_num_threads() == 4

    def test_context_restores_after_an_error(self):
        def fail():
            with ruvector.num_threads(2):
                raise KeyError

        ruvector.set_num_threads(5)
        with pytest.raises(KeyError):
            fail()
        assert ruvector.get_num_threads() == 5

    def test_context_belongs_to_one_thread(self):
        ruvector.set_num_threads(5)
        entered, seen = threading.Event(), []

        def other():
            entered.wait(10)
            seen.append(ruvector.get_num_threads())

        thread = threading.Thread(target=other)
        thread.start()
        with ruvector.num_threads(2):
            entered.set()
            thread.join()
        assert seen == [5]

    def test_context_belongs_to_one_task_and_its_children(self):
        ruvector.set_num_threads(5)

        async def count():
            await asyncio.sleep(0)
            return ruvector.get_num_threads()

        async def limited(n):
            with ruvector.num_threads(n):
                await asyncio.sleep(0)
                child = asyncio.ensure_future(count())
                in_thread = await asyncio.to_thread(ruvector.get_num_threads)
                return await child, in_thread, ruvector.get_num_threads()

        async def main():
            return await asyncio.gather(limited(2), count(), limited(3))

        assert asyncio.run(main()) == [(2, 2, 2), 5, (3, 3, 3)]

    @pytest.mark.parametrize(
        ("value", "expected"),
        [("3", 3), ("2,4", 2), (" 7 ", 7)],
        ids=["one", "nested", "spaces"],
    )
    def test_omp_num_threads_is_the_default(self, value, expected):
        code = "import ruvector; print(ruvector.get_num_threads())"
        assert output(code, OMP_NUM_THREADS=value) == str(expected)

    @pytest.mark.parametrize("value", ["", "0", "-2", "many"])
    def test_a_meaningless_omp_num_threads_is_ignored(self, value, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert _config._default_threads() == _cpus.usable_cpus()

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity here")
    def test_affinity_is_the_default(self):
        code = (
            "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
            "import ruvector; print(ruvector.get_num_threads())"
        )
        assert output(code) == "1"

    @pytest.mark.skipif(not ruvector.info()["openmp"], reason="kernels without OpenMP")
    def test_threadpoolctl_limits_apply(self):
        code = (
            "import ruvector, threadpoolctl\n"
            "ruvector.set_num_threads(6)\n"
            "with threadpoolctl.threadpool_limits(3):\n"
            "    limited = ruvector.get_num_threads()\n"
            "print(limited, ruvector.get_num_threads())"
        )
        assert output(code, OMP_NUM_THREADS="4") == "3 6"


class TestCgroupQuota:
    def files(self, folder, membership, quotas):
        (folder / "membership").write_text(membership)
        for name, content in quotas.items():
            path = folder / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return _cpus.cgroup_quota(str(folder / "membership"), str(folder / "mount"))

    @pytest.mark.parametrize(
        ("membership", "quotas", "expected"),
        [
            pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, id="v2 container"),
            pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, None, id="v2 no limit"),
            pytest.param(
                "0::/a/b\n",
                {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"},
                2.0,
                id="v2 limit of a parent",
            ),
            pytest.param(
                "0::/a/b\n",
                {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"},
                0.5,
                id="v2 smallest",
            ),
            pytest.param(
                "0::/../host/path\n", {"cpu.max": "300000 100000"}, 3.0, id="v2 foreign path"
            ),
            pytest.param(
                "4:memory:/x\n3:cpu,cpuacct:/x\n",
                {
                    "cpu,cpuacct/x/cpu.cfs_quota_us": "250000\n",
                    "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
                },
                2.5,
                id="v1",
            ),
            pytest.param(
                "3:cpu,cpuacct:/docker/1\n",
                {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
                1.0,
                id="v1 in a container",
            ),
            pytest.param(
                "3:cpu:/\n",
                {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
                None,
                id="v1 no limit",
            ),
            pytest.param("0::/\n", {"cpu.max": "garbage"}, None, id="unreadable"),
            pytest.param("0::/\n", {"cpu.max": "100000 0"}, None, id="no period"),
            pytest.param("", {}, None, id="nothing"),
        ],
    )
    def test_of_files(self, tmp_path, membership, quotas, expected):
        assert self.files(tmp_path, membership, quotas) == expected

    def test_without_cgroups(self, tmp_path):
        assert _cpus.cgroup_quota(str(tmp_path / "none"), str(tmp_path)) is None

    @pytest.mark.parametrize(
        ("quota", "expected"), [(0.2, 1), (1.5, 2), (1e6, None), (None, None)]
    )
    def test_bounds_the_cpus(self, monkeypatch, quota, expected):
        monkeypatch.setattr(_cpus, "cgroup_quota", lambda: None)
        cpus = _cpus.usable_cpus()
        monkeypatch.setattr(_cpus, "cgroup_quota", lambda: quota)
        assert _cpus.usable_cpus() == (cpus if expected is None else min(expected, cpus))


FORK = """
import os, signal, sys
import numpy as np, ruvector
ruvector.set_num_threads(4)
x = np.random.default_rng(0).standard_normal((8, 700, 64)).astype(np.float32)
if sys.argv[1] == "used":
    before = ruvector.scaled_dot_product_attention(x, x, x)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    assert ruvector.get_num_threads() == 1
    ruvector.set_num_threads(4)
    with ruvector.num_threads(3):
        assert ruvector.get_num_threads() == 1
        after = ruvector.scaled_dot_product_attention(x, x, x)
    if sys.argv[1] == "used":
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    os._exit(0)
_, status = os.waitpid(pid, 0)
print(status, ruvector.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore")
class TestFork:
    @pytest.mark.parametrize("use", ["used", "unused"])
    @pytest.mark.parametrize("name", BACKENDS)
    def test_child_runs_single_threaded(self, name, use):
        assert output(FORK, use, RUVECTOR_BACKEND=name) == "0 4"


SHOW = "import ruvector; from ruvector import _kernels; print(_kernels.backend, _kernels.isa)"


class TestEnvironment:
    def test_python_never_loads_compiled_modules(self):
        code = (
            "import ruvector, sys; info = ruvector.info()\n"
            "print(*(info[name] for name in "
            "('backend', 'isa', 'available_isas', 'native_error')))\n"
            "print([name for name in ('_dispatch', 'softmax') "
            "if f'ruvector._kernels.{name}' in sys.modules])"
        )
        assert output(code, RUVECTOR_BACKEND="python") == "python None [] None\n[]"

    def test_python_ignores_an_instruction_set(self):
        assert output(SHOW, RUVECTOR_BACKEND="python", RUVECTOR_ISA="avx2") == "python None"

    def test_unknown_backend(self):
        done = python("-c", SHOW, RUVECTOR_BACKEND="rust")
        assert done.returncode == 1
        assert (
            "ImportError: RUVECTOR_BACKEND must be 'native' or 'python', got 'rust'"
            in done.stderr
        )

    @needs_native
    @pytest.mark.parametrize("isa", NATIVE)
    def test_instruction_set_is_forced(self, isa):
        assert output(SHOW, RUVECTOR_ISA=isa) == f"native {isa}"
        assert output(SHOW, RUVECTOR_ISA=isa, RUVECTOR_BACKEND="native") == f"native {isa}"

    @needs_native
    def test_best_instruction_set_is_the_default(self):
        assert output(SHOW) == f"native {NATIVE[-1]}"

    @needs_native
    def test_unknown_instruction_set(self):
        done = python("-c", SHOW, RUVECTOR_ISA="mmx")
        assert done.returncode == 1
        assert (
            "ImportError: RUVECTOR_ISA: instruction set 'mmx' is not available" in done.stderr
        )

    def test_empty_values_count_as_unset(self):
        done = python("-c", SHOW, RUVECTOR_BACKEND="", RUVECTOR_ISA="")
        assert done.returncode == 0, done.stderr


@pytest.fixture
def pure(tmp_path):
    """Return a folder with the package as it is without compiled modules."""
    skip = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "ruvector", ignore=skip)
    return tmp_path


@pytest.fixture
def corrupted(pure):
    """Return a folder with the package and compiled modules that do not load."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (pure / "ruvector" / "_kernels" / f"_dispatch{suffix}").write_bytes(b"not a library")
    return pure


class TestWithoutCompiledModules:
    def test_falls_back_silently(self, pure):
        done = python("-c", f"{SHOW}; print(ruvector.info()['native_error'])", path=pure)
        assert (done.stdout, done.stderr) == ("python None\nNone\n", "")

    def test_native_is_an_error_with_the_reason(self, pure):
        done = python("-c", SHOW, path=pure, RUVECTOR_BACKEND="native")
        assert done.returncode == 1
        assert (
            "ImportError: ruvector's compiled kernels cannot be loaded: none are installed "
            "(without a C compiler ruvector installs as pure Python)" in done.stderr
        )

    def test_runs_from_a_zip_file(self, pure):
        archive = shutil.make_archive(str(pure / "package"), "zip", pure, "ruvector")
        done = python("-c", f"{SHOW}; print(ruvector.__file__)", path=Path(archive))
        shown, where = done.stdout.splitlines()
        assert (shown, done.stderr) == ("python None", "")
        assert where.startswith(archive)

    @pytest.mark.parametrize("isa", ["scalar", "mmx"])
    def test_an_instruction_set_is_an_error(self, pure, isa):
        done = python("-c", SHOW, path=pure, RUVECTOR_ISA=isa)
        assert done.returncode == 1
        assert f"ImportError: RUVECTOR_ISA={isa} needs compiled kernels; " in done.stderr


class TestCorruptedModules:
    def test_warns_once_and_falls_back(self, corrupted):
        code = f"{SHOW}; print(ruvector.info()['native_error'])"
        done = python("-c", code, path=corrupted)
        first, reason = done.stdout.splitlines()
        assert first == "python None"
        assert reason.startswith("ruvector's compiled kernels cannot be loaded: ImportError: ")
        assert done.stderr.count("RuntimeWarning") == 1
        assert "the slower NumPy kernels run instead" in done.stderr

    def test_native_is_an_error_with_the_reason(self, corrupted):
        done = python("-c", SHOW, path=corrupted, RUVECTOR_BACKEND="native")
        assert done.returncode == 1
        assert "ImportError: ruvector's compiled kernels cannot be loaded" in done.stderr
        assert "_dispatch" in done.stderr

    def test_python_is_silent(self, corrupted):
        done = python("-c", SHOW, path=corrupted, RUVECTOR_BACKEND="python")
        assert (done.stdout, done.stderr) == ("python None\n", "")


@needs_native
@pytest.mark.parametrize("trouble", ["a text file", "none"])
def test_kernels_run_without_their_c_interface(tmp_path, trouble):
    # A repaired wheel has libraries of others beside the package.
    for source in PACKAGE.parent.glob("ruvector*"):
        if source.name in ("ruvector", "ruvector.libs"):
            shutil.copytree(source, tmp_path / source.name)
    folder = tmp_path / "ruvector" / "_kernels"
    (module,) = (x for x in folder.glob("capi.*") if x.suffix in (".so", ".pyd"))
    module.unlink()
    if trouble != "none":
        module.write_text("not a library")
    code = "i = ruvector.info(); print(i['c_abi']); print(i['native_error'])"
    done = python("-c", f"{SHOW}; {code}", path=tmp_path)
    shown, version, reason = done.stdout.splitlines()
    assert (shown, version) == (f"native {NATIVE[-1]}", "None")
    assert reason.startswith("ruvector's C interface cannot be loaded: ")


class TestSelect:
    def test_unknown_names(self):
        before = _kernels.backend, _kernels.isa, _kernels.softmax
        with pytest.raises(ValueError, match="backend must be 'native' or 'python', got 'c'"):
            _kernels.select("c")
        with pytest.raises(ValueError, match="the python backend has no instruction sets"):
            _kernels.select("python", "avx2")
        if NATIVE:
            with pytest.raises(ValueError, match="instruction set 'mmx' is not available here"):
                _kernels.select("native", "mmx")
        else:
            with pytest.raises(ImportError, match="compiled kernels"):
                _kernels.select("native")
        assert (_kernels.backend, _kernels.isa, _kernels.softmax) == before

    def test_available_starts_with_python_and_changes_nothing(self):
        _kernels.select("python")
        twin = _kernels.softmax
        assert _kernels.available()[0] == ("python", None)
        assert _kernels.softmax is twin
        assert twin.__name__ == "ruvector._kernels.fallback.softmax"

    @needs_native
    def test_native_without_a_name_takes_the_best(self):
        _kernels.select("native", NATIVE[0])
        assert _kernels.isa == NATIVE[0]
        _kernels.select("native")
        assert _kernels.isa == NATIVE[-1]
        assert _kernels.softmax.__name__ == "ruvector._kernels.softmax"
