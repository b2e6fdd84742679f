"""Where results go: fresh arrays, the caller's, and what of the caller's is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import ruvector
from ruvector._arrays import BFLOAT16, Output

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


class TestOutput:
    def test_callers_array_is_written_directly(self):
        given = np.zeros((3, 2, 4), np.float32)[:, 0]
        output = Output(given, (3, 4), F32, F32, [np.ones(4, np.float32), None])
        assert output.work is given
        assert output.deliver() is given

    def test_overlap_goes_through_a_copy(self):
        buffer = np.zeros(8, np.float32)
        output = Output(buffer[2:6], (4,), F32, F32, [None, buffer[:4]])
        output.work[:] = 1
        assert not buffer.any()
        output.deliver()
        assert buffer.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]

    @pytest.mark.parametrize("index", [np.s_[:, ::2], np.s_[:, ::-2]], ids=str)
    def test_columns_that_are_not_contiguous(self, index):
        buffer = np.zeros((2, 6), np.float32)
        output = Output(buffer[index], (2, 3), F32, F32)
        output.work[:] = [[1, 2, 3], [4, 5, 6]]
        output.deliver()
        assert buffer[index].tolist() == [[1, 2, 3], [4, 5, 6]]

    def test_narrower_result(self):
        output = Output(None, (2,), F32, F64)
        output.work[:] = [1, 2]
        assert output.work.dtype == np.float64
        assert output.deliver().dtype == np.float32

    @pytest.mark.parametrize("work_dtype", [BFLOAT16, F32])
    def test_bfloat16(self, work_dtype):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        for given in (None, np.zeros(2, ml_dtypes.bfloat16)):
            output = Output(given, (2,), BFLOAT16, work_dtype)
            output.work[:] = [0x3F80, 0xC000] if work_dtype == BFLOAT16 else [1.0, -2.0]
            result = output.deliver()
            assert result.dtype == ml_dtypes.bfloat16
            assert result.tolist() == [1, -2]

    @pytest.mark.peers
    def test_torch(self):
        torch = pytest.importorskip("torch")
        for dtype, storage in ((torch.float32, F32), (torch.bfloat16, BFLOAT16)):
            given = torch.zeros(2, dtype=dtype)
            output = Output(given, (2,), storage, storage)
            output.work[:] = 0x3F80 if storage == BFLOAT16 else 1
            assert output.deliver() is given
            assert given.tolist() == [1, 1]

    def test_bfloat16_without_ml_dtypes(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        with pytest.raises(ImportError, match=r"ruvector\[lowp\]"):
            Output(None, (2,), BFLOAT16, BFLOAT16)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ([0.0, 0.0], TypeError, "out must be an array, got list"),
            (np.zeros(2), TypeError, "out must have dtype float32, got float64"),
            (np.zeros(2, ">f4"), TypeError, "out must have dtype float32, got >f4"),
            (np.zeros(2, np.uint16), TypeError, "out must have dtype float32, got uint16"),
            (
                np.zeros((2, 1), np.float32),
                ruvector.DimensionMismatchError,
                r"out must have shape \(2,\), got \(2, 1\)",
            ),
            (
                np.broadcast_to(np.float32(0), 2),
                ruvector.InvalidConfigError,
                "out must be writeable, got a read-only array",
            ),
        ],
    )
    def test_refused(self, given, error, message):
        with pytest.raises(error, match=f"^{message}$"):
            Output(given, (2,), F32, F32)

    def test_integers_are_not_bfloat16(self):
        with pytest.raises(TypeError, match=r"^out must have dtype bfloat16, got uint16$"):
            Output(np.zeros(2, np.uint16), (2,), BFLOAT16, BFLOAT16)
