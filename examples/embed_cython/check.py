"""Compare the example with ruvector's own function: ``python check.py``."""

import embed_cython
import numpy as np

import ruvector

rng = np.random.default_rng(0)
query = rng.standard_normal((8, 40, 64), dtype=np.float32)
key, value = rng.standard_normal((2, 2, 1000, 64), dtype=np.float32)
expected = ruvector.scaled_dot_product_attention(
    query, key, value, enable_gqa=True, return_lse=True
)
for shards in (1, 7, 1500):
    first = embed_cython.attend_shards(query, key, value, shards, 1)
    for result, wanted in zip(first, expected, strict=True):
        np.testing.assert_allclose(result, wanted, 1e-4, 1e-5)
    for threads in (2, 5):
        again = embed_cython.attend_shards(query, key, value, shards, threads)
        assert all(map(np.array_equal, first, again)), (shards, threads)
try:
    embed_cython.attend_shards(query[:3], key, value, 2, 2)
    message = "no error"
except ValueError as error:
    message = str(error)
assert "multiple of kv_heads" in message, message
print("embed_cython agrees with ruvector", ruvector.__version__, "on", ruvector.info()["isa"])
