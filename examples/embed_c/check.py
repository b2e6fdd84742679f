"""Compare both modules with ruvector's own function: ``python check.py``."""

import embed_c
import embed_cpp
import numpy as np

import ruvector

rng = np.random.default_rng(0)
query = rng.standard_normal((8, 40, 64), dtype=np.float32)
key, value = rng.standard_normal((2, 2, 1000, 64), dtype=np.float32)
out = np.empty_like(query)

for causal in (False, True):
    embed_c.attend(query, key, value, out, causal)
    expected = ruvector.scaled_dot_product_attention(
        query, key, value, is_causal=causal, enable_gqa=True
    )
    assert np.array_equal(out, expected), causal

rows_first = [np.ascontiguousarray(x.swapaxes(0, 1)) for x in (query, key, value)]
expected = ruvector.scaled_dot_product_attention(query, key, value, enable_gqa=True)
for shards in (1, 7):
    out = np.empty_like(rows_first[0])
    embed_cpp.attend_shards(*rows_first, out, shards)
    np.testing.assert_allclose(out.swapaxes(0, 1), expected, 1e-4, 1e-5)


def message(function, *arguments):
    """Return what the function's ValueError says."""
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return "no error"


few = [query[:3], key, value, out.swapaxes(0, 1)[:3].copy()]
rows_first = [np.ascontiguousarray(x.swapaxes(0, 1)) for x in few]
assert "multiple of kv_heads" in message(embed_c.attend, *few, False)
assert "multiple of kv_heads" in message(embed_cpp.attend_shards, *rows_first, 2)
print(
    "embed_c, embed_cpp agree with ruvector", ruvector.__version__, "on", ruvector.info()["isa"]
)
