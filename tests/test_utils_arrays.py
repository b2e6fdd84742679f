"""What the vector utilities take and write into: types, views, shapes, ``out``."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from utils_cases import FLOATS, ROW_FUNCTIONS, SAME_SHAPE, check, every_row_function, vectors

import ruvector
from ruvector import utils

pytestmark = pytest.mark.usefixtures("backend")


class TestInputs:
    @every_row_function
    def test_lists_and_integers_become_float32(self, function):
        compute, reference = function
        expected = reference(np.array([[1.0, 2.0], [3.0, 5.0]]))
        for x in ([[1, 2], [3, 5]], np.array([[1, 2], [3, 5]], np.int64)):
            check(compute(x), expected, np.float32)

    @every_row_function
    def test_buffers_and_views(self, function):
        compute, reference = function
        base = vectors(8, 12, np.float32)
        readonly = base.copy()
        readonly.flags.writeable = False
        unaligned = np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:]
        inputs = [
            readonly,
            memoryview(base),
            np.asfortranarray(base),
            base[::-1, ::-1],
            base[::2, 1::3],
            base.astype(">f4"),
            unaligned.view(np.float32).reshape(8, 12),
        ]
        for x in inputs:
            expected = reference(np.asarray(x).astype(np.float64))
            check(compute(x), expected, np.float32)

    def test_array_module(self):
        assert utils.l2_norm(array("d", [3, 4])) == 5

    @every_row_function
    @pytest.mark.peers
    def test_torch(self, function):
        torch = pytest.importorskip("torch")
        compute, reference = function
        x = vectors(4, 6, np.float32)
        check(compute(torch.from_numpy(x)), reference(x.astype(np.float64)), np.float32)

    @every_row_function
    def test_bfloat16(self, function):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        compute, reference = function
        x = vectors(4, 6, np.float32).astype(ml_dtypes.bfloat16)
        result = compute(x)
        assert result.dtype == ml_dtypes.bfloat16
        np.testing.assert_allclose(
            result.astype(float), reference(x.astype(float)), rtol=1e-2, atol=1e-2
        )

    @pytest.mark.parametrize("x", [[1 + 2j, 3], ["a", "b"], np.array([None, 1], object)])
    @pytest.mark.parametrize(
        ("name", "argument"),
        [
            ("softmax", "x"),
            ("attention_weights", "scores"),
            ("normalize", "x"),
            ("l2_norm", "x"),
            ("batch_normalize", "vectors"),
            ("pairwise_distances", "vectors"),
        ],
    )
    def test_wrong_types(self, name, argument, x):
        with pytest.raises(TypeError, match=argument):
            getattr(utils, name)(x)

    def test_wrong_shapes(self):
        with pytest.raises(
            ruvector.DimensionMismatchError, match=r"^x .*\(\.\.\., n\), got \(\)"
        ):
            utils.softmax(1.0)
        with pytest.raises(
            ruvector.DimensionMismatchError, match=r"^vectors .*\(n, d\), got \(3,\)"
        ):
            utils.pairwise_distances(np.ones(3))
        with pytest.raises(ruvector.DimensionMismatchError, match=r"^vectors .*got \(3,\)"):
            utils.batch_normalize(np.ones(3))
        with pytest.raises(
            ruvector.DimensionMismatchError, match=r"^b .*length 3 as in a, got 4"
        ):
            utils.cosine_similarity(np.ones(3), np.ones(4))
        with pytest.raises(
            ruvector.DimensionMismatchError, match=r"^a and b .*\(2, 3\) and \(4, 3\)"
        ):
            utils.cosine_similarity(np.ones((2, 3)), np.ones((4, 3)))

    def test_no_elements(self):
        for shape in [(0, 3), (2, 0), (2, 0, 3)]:
            x = np.ones(shape, np.float32)
            assert utils.softmax(x).shape == shape
            assert utils.l2_norm(x).shape == shape[:-1]
            assert utils.batch_normalize(x).shape == shape
        assert utils.normalize(np.ones((0, 3))).shape == (0, 3)
        np.testing.assert_array_equal(utils.l2_norm(np.ones((2, 0))), 0)


class TestOut:
    @every_row_function
    def test_is_returned(self, function):
        compute, _ = function
        x = vectors(4, 6, np.float32)
        expected = compute(x)
        out = np.empty_like(expected)
        assert compute(x, out=out) is out
        np.testing.assert_array_equal(out, expected)
        strided = np.empty((*expected.shape, 2), np.float32)[..., 0]
        assert compute(x, out=strided) is strided
        np.testing.assert_array_equal(strided, expected)

    @pytest.mark.parametrize("dtype", [np.float16, *FLOATS])
    @pytest.mark.parametrize("name", SAME_SHAPE)
    def test_in_place(self, name, dtype):
        compute, _ = ROW_FUNCTIONS[name]
        x = vectors(4, 6, dtype)
        expected = compute(x)
        assert compute(x, out=x) is x
        np.testing.assert_array_equal(x, expected)

    @pytest.mark.parametrize("name", SAME_SHAPE)
    def test_overlap(self, name):
        compute, _ = ROW_FUNCTIONS[name]
        base = vectors(6, 6, np.float32)
        for x, out in [(base[:4], base[2:]), (base[2:], base[:4]), (base, base[::-1])]:
            before = base.copy()
            expected = compute(x.copy())
            compute(x, out=out)
            np.testing.assert_array_equal(out, expected)
            base[:] = before

    def test_norm_over_its_input(self):
        x = vectors(6, 6, np.float32)
        expected = utils.l2_norm(x.copy())
        np.testing.assert_array_equal(utils.l2_norm(x, out=x[:, 2]), expected)

    def test_cosine_over_its_input(self):
        a, b = vectors(5, 5, np.float32), vectors(5, 5, np.float32, seed=1)
        expected = utils.cosine_similarity(a[:, None].copy(), b)
        np.testing.assert_array_equal(utils.cosine_similarity(a[:, None], b, out=a), expected)

    def test_scalar_result(self):
        out = np.empty((), np.float32)
        assert utils.l2_norm([3.0, 4.0], out=out) is out
        assert out == 5

    def test_must_fit(self):
        x = vectors(4, 6, np.float32)
        with pytest.raises(ruvector.DimensionMismatchError, match=r"^out .*\(4, 6\).*\(6, 4\)"):
            utils.softmax(x, out=np.empty((6, 4), np.float32))
        with pytest.raises(TypeError, match=r"^out .*float32.*float64"):
            utils.softmax(x, out=np.empty((4, 6)))
        with pytest.raises(TypeError, match=r"^out "):
            utils.softmax(x, out=[0.0])
        readonly = np.empty((4, 6), np.float32)
        readonly.flags.writeable = False
        with pytest.raises(ValueError, match=r"^out .*read-only"):
            utils.softmax(x, out=readonly)
