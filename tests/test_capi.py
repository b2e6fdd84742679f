"""The C interface as compiled callers reach it, called through ctypes without the GIL."""

from __future__ import annotations

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from capi_calls import HEADER, STATUSES, Attention, C, Merge, api, attention_args, merge_args
from isolated import output, python

import ruvector
from ruvector import _kernels

NATIVE = any(name == "native" for name, _ in _kernels.available())
needs_native = pytest.mark.skipif(not NATIVE, reason="no compiled kernels here")


def test_headers_lie_where_get_include_says():
    folder = Path(ruvector.get_include())
    assert {"ruvector.h", "ruvector_abi.h"} <= {path.name for path in folder.iterdir()}
    assert folder.is_relative_to(Path(ruvector.__file__).parent)


def test_header_and_cython_name_the_same_numbers():
    declared = set(re.findall(r"const int RUVECTOR_(\w+)", _pxd()))
    assert declared == {*C, "ABI_VERSION"}


def test_header_and_cython_name_the_same_fields():
    header = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    for structure in (Attention, Merge):
        name = f"ruvector_{structure.__name__.lower()}_args"
        (body,) = re.findall(rf"struct {name} {{(.*?)}} {name};", header, re.DOTALL)
        fields = [name for name, *_ in structure._fields_]
        assert re.findall(r"(\w+)(?:\[\d\])?[,;]", body) == fields
        (body,) = re.findall(rf"struct {name}:\n(.*?)\n\n", _pxd(), re.DOTALL)
        assert re.findall(r"(\w+)(?:\[\d\])?(?:,|$)", body, re.MULTILINE) == fields


def _pxd():
    path = Path(_kernels.__file__).parent / "capi.pxd"
    return path.read_text(encoding="utf-8")


def _arrays(dtype, batch=2, heads=4, kv_heads=2, queries=33, keys=97, dim=17, value_dim=15):
    rng = np.random.default_rng(3)
    shapes = (
        (batch, heads, queries, dim),
        (batch, kv_heads, keys, dim),
        (batch, kv_heads, keys, value_dim),
    )
    floats = [rng.standard_normal(shape) for shape in shapes]
    if dtype == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes")
        return [x.astype(ml_dtypes.bfloat16) for x in floats]
    return [x.astype(dtype) for x in floats]


def _results(query, value):
    shape = query.shape[:-1]
    real = np.float64 if query.dtype == np.float64 else np.float32
    return np.empty((*shape, value.shape[-1]), query.dtype), np.empty(shape, real)


def _attend(args):
    return api().attention(ctypes.byref(args))


@needs_native
@pytest.mark.usefixtures("backend")
class TestValues:
    @pytest.mark.parametrize("queries", [1, 33])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
    def test_equal_to_the_function(self, dtype, queries):
        q, k, v = _arrays(dtype, queries=queries)
        out, lse = _results(q, v)
        assert _attend(attention_args(q, k, v, out, lse)) == C["OK"]
        self._same((out, lse), (q, k, v), {})

    @pytest.mark.parametrize("queries", [1, 33])
    @pytest.mark.parametrize(
        ("given", "options"),
        [
            ({"causal": 1}, {"is_causal": True}),
            (
                {"causal": 1, "bottom_right": 1},
                {"is_causal": True, "causal_alignment": "bottom_right"},
            ),
            (
                {"window_left": 5, "window_right": 2, "sink_tokens": 3, "bottom_right": 1},
                {"window": (5, 2), "num_sink_tokens": 3, "causal_alignment": "bottom_right"},
            ),
            ({"window_left": np.iinfo(np.intp).max}, {"window": (1000, None)}),
            ({"scale": 0.7, "softcap": 1.5}, {"scale": 0.7, "softcap": 1.5}),
        ],
    )
    def test_options(self, given, options, queries):
        q, k, v = _arrays("float32", queries=queries)
        out, lse = _results(q, v)
        assert _attend(attention_args(q, k, v, out, lse, **given)) == C["OK"]
        self._same((out, lse), (q, k, v), options)

    @pytest.mark.parametrize("queries", [1, 33])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    def test_arrays_of_options(self, dtype, queries):
        q, k, v = _arrays(dtype, queries=queries)
        out, lse = _results(q, v)
        rng = np.random.default_rng(5)
        scores = (*q.shape[:-1], k.shape[2])
        mask = rng.random(scores) < 0.7
        bias = rng.standard_normal(scores[1:]).astype(lse.dtype)
        slopes, sinks = rng.random((2, 4)).astype(lse.dtype)
        args = attention_args(
            q,
            k,
            v,
            out,
            lse,
            mask=mask,
            bias=np.broadcast_to(bias, scores),
            alibi_slopes=slopes,
            sink_logits=sinks,
        )
        assert _attend(args) == C["OK"]
        additive = np.where(mask, bias, -np.inf).astype(lse.dtype)
        options = {"attn_mask": additive, "alibi_slopes": slopes, "sink_logits": sinks}
        self._same((out, lse), (q, k, v), options)

    def test_strides_of_every_kind(self):
        q, k, v = _arrays("float32")
        wide = np.zeros((2, 33, 4, 20), np.float32)
        out = wide.transpose(0, 2, 1, 3)[..., :15]
        backward = np.ascontiguousarray(k[:, :, ::-1])[:, :, ::-1]
        shared = np.broadcast_to(v[:1], v.shape)
        args = attention_args(q, backward, shared, out)
        assert _attend(args) == C["OK"]
        self._same((out,), (q, k, shared), {"return_lse": False})
        assert not wide[..., 15:].any()

    @pytest.mark.parametrize("layout", ["HEADS_FIRST", "ROWS_FIRST"])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
    def test_layouts(self, dtype, layout):
        arrays = _arrays(dtype)
        out, lse = _results(arrays[0], arrays[2])
        expected = attention_args(*arrays, out, lse)
        if layout == "ROWS_FIRST":
            stored = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in (*arrays, out)]
            expected = attention_args(*(x.swapaxes(1, 2) for x in stored), lse)
        args = attention_args(*arrays, out)
        assert api().attention_layout(ctypes.byref(args), C[layout]) == C["OK"]
        for name in ("query", "key", "value", "out", "lse"):
            field = f"{name}_strides"
            assert list(getattr(args, field)) == list(getattr(expected, field)), name

    def test_threads_do_not_change_a_bit(self):
        q, k, v = _arrays("float32", queries=257, keys=513)
        results = []
        for threads in (1, 2, 5):
            out, lse = _results(q, v)
            assert _attend(attention_args(q, k, v, out, lse, threads=threads)) == C["OK"]
            results.append((out.tobytes(), lse.tobytes()))
        assert len(set(results)) == 1

    def test_many_callers_at_once(self):
        arrays = _arrays("float32", queries=65, keys=257)
        expected, _ = _results(arrays[0], arrays[2])
        assert _attend(attention_args(*arrays, expected)) == C["OK"]

        def call(threads):
            out, _ = _results(arrays[0], arrays[2])
            args = attention_args(*arrays, out, threads=threads)
            statuses = {_attend(args) for _ in range(10)}
            return statuses, np.array_equal(out, expected)

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(call, [1, 1, 1, 2, 2, 2]))
        assert answers == [({C["OK"]}, True)] * 6

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
    def test_merge(self, dtype):
        q, k, v = _arrays(dtype, batch=1)
        cuts = [slice(0, 40), slice(40, 41), slice(41, 97)]
        parts = [
            ruvector.scaled_dot_product_attention(
                q, k[:, :, cut], v[:, :, cut], enable_gqa=True, return_lse=True
            )
            for cut in cuts
        ]
        outputs = np.stack([out.reshape(-1, 15) for out, _ in parts])
        lses = np.stack([lse.reshape(-1) for _, lse in parts])
        out, lse = np.empty_like(outputs[0]), np.empty_like(lses[0])
        assert api().merge(ctypes.byref(merge_args(outputs, lses, out, lse))) == C["OK"]
        expected = ruvector.merge_states(outputs, lses)
        self._close((out, lse), expected)

    def test_merge_in_place(self):
        rng = np.random.default_rng(8)
        outputs = rng.standard_normal((3, 5, 17), dtype=np.float32)
        lses = rng.standard_normal((3, 5), dtype=np.float32)
        expected = ruvector.merge_states(outputs, lses)
        args = merge_args(outputs, lses, outputs[0], lses[0])
        assert api().merge(ctypes.byref(args)) == C["OK"]
        self._close((outputs[0], lses[0]), expected)

    def test_isa(self, backend):
        expected = backend[1] or _kernels.available()[-1][1]
        assert backend[0] == "python" or api().isa().decode() == expected

    def _same(self, results, arrays, options):
        options = {"enable_gqa": True, "return_lse": True, **options}
        expected = ruvector.scaled_dot_product_attention(*arrays, **options)
        expected = expected if options["return_lse"] else (expected,)
        self._close(results, expected)

    def _close(self, results, expected):
        for result, wanted in zip(results, expected, strict=True):
            if _kernels.backend == "native":
                assert result.tobytes() == wanted.tobytes()
            else:
                precision = {"float64": 1e-12, "float32": 1e-5}
                tolerance = precision.get(results[0].dtype.name, 1e-2)
                np.testing.assert_allclose(
                    result.astype(float), wanted.astype(float), tolerance, tolerance
                )


@needs_native
class TestMisuse:
    @pytest.fixture
    def call(self):
        """A good call; the arrays live as long as it does."""
        arrays = _arrays("float32")
        rest = _results(arrays[0], arrays[2])
        self.bytes = np.zeros((2, 4, 33, 97), np.float32)
        return attention_args(*arrays, *rest), (arrays, rest)

    def test_null(self):
        assert api().attention(None) == C["ERROR_NULL"]
        assert api().attention_layout(None, 0) == C["ERROR_NULL"]
        assert api().merge(None) == C["ERROR_NULL"]

    @pytest.mark.parametrize("name", ["query", "key", "value", "out"])
    def test_null_arrays(self, call, name):
        setattr(call[0], name, None)
        assert _attend(call[0]) == C["ERROR_NULL"]

    @pytest.mark.parametrize("name", ["batch", "heads", "queries"])
    def test_nothing_to_compute_reads_nothing(self, name):
        args = Attention(size=ctypes.sizeof(Attention), threads=1, batch=1, heads=1, kv_heads=1)
        args.queries = args.keys = args.dim = args.value_dim = 3
        setattr(args, name, 0)
        room = np.zeros(9, np.float32)
        args.query = args.key = args.value = args.out = room.ctypes.data
        assert _attend(args) == C["OK"]

    def test_no_key_is_an_empty_state(self, call):
        args, (_, (out, lse)) = call
        args.keys, args.key, args.value = 0, None, None
        assert _attend(args) == C["OK"]
        assert not out.any()
        assert np.isneginf(lse).all()

    @pytest.mark.parametrize(
        "name", ["batch", "heads", "kv_heads", "queries", "keys", "dim", "value_dim"]
    )
    @pytest.mark.parametrize("size", [-1, np.iinfo(np.intp).min, np.iinfo(np.intp).max])
    def test_sizes(self, call, name, size):
        setattr(call[0], name, size)
        assert _attend(call[0]) == C["ERROR_SIZE"]
        assert api().attention_layout(ctypes.byref(call[0]), 0) == C["ERROR_SIZE"]

    def test_dim_0_reads_no_query_and_no_key(self, call):
        args, ((_, _, v), (out, lse)) = call
        args.dim, args.query, args.key = 0, None, None
        assert _attend(args) == C["OK"]
        np.testing.assert_allclose(out[1, 2], np.tile(v[1, 1].mean(0), (33, 1)), rtol=1e-5)
        np.testing.assert_allclose(lse, np.log(97), rtol=1e-6)

    def test_value_dim_0_writes_l_alone(self, call):
        args, (_, (_, lse)) = call
        assert _attend(args) == C["OK"]
        expected = lse.copy()
        lse[:] = 0
        args.value_dim, args.value, args.out = 0, None, None
        assert _attend(args) == C["OK"]
        np.testing.assert_allclose(lse, expected, rtol=1e-5)

    def test_merge_of_dim_0(self):
        lses, lse = np.zeros((2, 3), np.float32), np.zeros(3, np.float32)
        args = merge_args(
            np.zeros((2, 3, 0), np.float32), lses, np.zeros((3, 0), np.float32), lse
        )
        args.outputs = args.out = None
        assert api().merge(ctypes.byref(args)) == C["OK"]
        np.testing.assert_allclose(lse, np.log(2), rtol=1e-6)

    @pytest.mark.parametrize("name", ["queries", "keys"])
    def test_a_layout_that_no_pointer_reaches(self, name):
        args = Attention(size=ctypes.sizeof(Attention), threads=1)
        args.batch = args.queries = args.keys = args.dim = args.value_dim = 1
        args.heads = args.kv_heads = (1 << 31) - 1
        setattr(args, name, 1 << 29)
        assert api().attention_layout(ctypes.byref(args), 0) == C["OK"]
        args.value_dim = 1 << 10
        assert api().attention_layout(ctypes.byref(args), 0) == C["ERROR_SIZE"]

    @pytest.mark.parametrize("kv_heads", [0, 3, 8])
    def test_heads(self, call, kv_heads):
        call[0].kv_heads = kv_heads
        assert _attend(call[0]) == C["ERROR_SIZE"]

    @pytest.mark.parametrize("dtype", [-1, 4, 1 << 30])
    def test_dtype(self, call, dtype):
        call[0].dtype = dtype
        assert _attend(call[0]) == C["ERROR_DTYPE"]
        assert api().attention_layout(ctypes.byref(call[0]), 0) == C["ERROR_DTYPE"]

    @pytest.mark.parametrize(
        ("name", "option"),
        [
            ("threads", 0),
            ("threads", -3),
            ("scale", np.nan),
            ("scale", np.inf),
            ("softcap", -1.0),
            ("softcap", np.nan),
            ("window_left", -2),
            ("window_right", np.iinfo(np.intp).min),
            ("sink_tokens", -1),
        ],
    )
    def test_options(self, call, name, option):
        setattr(call[0], name, option)
        assert _attend(call[0]) == C["ERROR_OPTION"]

    @pytest.mark.parametrize("name", ["query", "key", "value", "out", "lse"])
    def test_misaligned(self, call, name):
        args, _ = call
        strides = getattr(args, f"{name}_strides")
        strides[1] += 2
        assert _attend(args) == C["ERROR_STRIDE"]
        strides[1] -= 2
        setattr(args, name, getattr(args, name) + 2)
        assert _attend(args) == C["ERROR_STRIDE"]

    @pytest.mark.parametrize("name", ["bias", "sink_logits", "alibi_slopes"])
    def test_misaligned_options(self, call, name):
        setattr(call[0], name, self.bytes.ctypes.data + 2)
        assert _attend(call[0]) == C["ERROR_STRIDE"]

    def test_layout(self, call):
        assert api().attention_layout(ctypes.byref(call[0]), 2) == C["ERROR_OPTION"]

    @pytest.mark.parametrize("size", [0, 8, -1, 8 + ctypes.sizeof(Attention)])
    def test_size_of_the_structure(self, call, size):
        call[0].size = size % (1 << 64)
        assert _attend(call[0]) == C["ERROR_ABI"]
        assert api().attention_layout(ctypes.byref(call[0]), 0) == C["ERROR_ABI"]

    @pytest.mark.parametrize(
        ("name", "bad", "status"),
        [
            ("size", 0, "ERROR_ABI"),
            ("size", ctypes.sizeof(Merge) + 8, "ERROR_ABI"),
            ("dtype", 9, "ERROR_DTYPE"),
            ("parts", -1, "ERROR_SIZE"),
            ("rows", -1, "ERROR_SIZE"),
            ("dim", -1, "ERROR_SIZE"),
            ("outputs", None, "ERROR_NULL"),
            ("lses", None, "ERROR_NULL"),
            ("out", None, "ERROR_NULL"),
            ("lse", None, "ERROR_NULL"),
            ("out_stride", 9, "ERROR_STRIDE"),
            ("lse_stride", 9, "ERROR_STRIDE"),
        ],
    )
    def test_merge(self, name, bad, status):
        outputs, lses = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.float32)
        out, lse = np.zeros((3, 4), np.float32), np.zeros(3, np.float32)
        args = merge_args(outputs, lses, out, lse)
        assert api().merge(ctypes.byref(args)) == C["OK"]
        setattr(args, name, bad)
        assert api().merge(ctypes.byref(args)) == C[status]

    def test_no_memory(self):
        pytest.importorskip("resource")
        code = (
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))\n"
            "import numpy as np\nfrom capi_calls import *\n"
            "x = np.zeros((1, 1, 64, 1), np.float32)\n"
            "args = attention_args(x, x, x, x)\n"
            "args.dim = (1 << 31) - 1\n"
            "print(api().attention(ctypes.byref(args)) == C['ERROR_MEMORY'])"
        )
        tests = str(Path(__file__).parent)
        code = f"import sys; sys.path.insert(0, {tests!r})\n{code}"
        assert output(code, OPENBLAS_NUM_THREADS="1") == "True"

    def test_messages(self):
        messages = {api().message(status).decode() for status in STATUSES}
        assert len(messages) == len(STATUSES)
        assert api().message(1) == api().message(-99) == b"unknown status"


@needs_native
class TestVersions:
    def test_versions(self):
        from ruvector._kernels import capi

        table = api()
        assert table.version.decode() == ruvector.__version__
        (declared,) = re.findall(
            r"#define RUVECTOR_ABI_VERSION (\d+)", HEADER.read_text(encoding="utf-8")
        )
        assert table.abi_version == capi.ABI_VERSION == int(declared)
        assert table.size == ctypes.sizeof(type(table))

    @pytest.mark.parametrize("isa", [isa for _, isa in _kernels.available() if isa])
    def test_forced_instruction_set(self, isa):
        tests = str(Path(__file__).parent)
        code = f"import sys; sys.path.insert(0, {tests!r})\nfrom capi_calls import api\n"
        assert output(f"{code}print(api().isa().decode())", RUVECTOR_ISA=isa) == isa

    def test_info(self):
        code = "import ruvector; print(ruvector.info()['c_abi'])"
        assert output(code, RUVECTOR_BACKEND="native") == str(api().abi_version)
        assert output(code, RUVECTOR_BACKEND="python") == "None"

    def test_refused_on_the_python_backend(self):
        done = python("-c", "import ruvector._kernels.capi", RUVECTOR_BACKEND="python")
        assert done.returncode == 1
        assert "ImportError: RUVECTOR_BACKEND=python rules out" in done.stderr
