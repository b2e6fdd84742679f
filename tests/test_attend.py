"""``ruvector attend``: right results in blocks, and a file only when it is complete."""

from __future__ import annotations

import numpy as np
import pytest
from attend_files import DIM, DIM_V, RNG, Files, M, N, arrays, formula, near, refuse

import ruvector
from ruvector import _attend, _kernels
from ruvector.cli import main


@pytest.fixture(params=_kernels.available(), ids=lambda pair: "-".join(filter(None, pair)))
def path(request):
    """Run the test on each backend and instruction set."""
    before = _kernels.backend, _kernels.isa
    _kernels.select(*request.param)
    yield
    _kernels.select(*before)


@pytest.fixture
def small_blocks(monkeypatch):
    """Split the queries into blocks of three."""
    monkeypatch.setattr(_attend, "_BLOCK_WORK", 1)
    monkeypatch.setattr(_attend, "_MIN_BLOCK", 3)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.mark.usefixtures("path", "small_blocks")
class TestAttend:
    def test_dot_product(self, files):
        q, k, v = arrays()
        out = files.attend("dot-product", q, k, v)
        assert out.dtype == np.float32
        near(out, formula(q, k, v))

    def test_one_query(self, files):
        q, k, v = arrays(DIM)
        near(files.attend("dot-product", q, k, v), formula(q, k, v))

    def test_multi_head(self, files):
        q, k, v = arrays()
        out = files.attend("multi-head", q, k, v, "--heads", "8")
        near(out, formula(q, k, v, heads=8))

    @pytest.mark.parametrize("heads", [1, 4])
    @pytest.mark.parametrize("m", [1, M, N, N + 7])
    def test_flash_causal(self, files, m, heads):
        q, k, v = arrays(m, DIM)
        visible = np.arange(N) <= np.arange(m)[:, None] + N - m
        out = files.attend("flash", q, k, v, "--causal", "--heads", str(heads))
        near(out, formula(q, k, v, visible, heads))

    def test_flash_causal_equals_the_class(self, files):
        q, k, v = arrays()
        out = files.attend("flash", q, k, v, "--causal")
        near(out, ruvector.FlashAttention(DIM, causal=True).compute(q, k, v))

    @pytest.mark.parametrize("kind", ["dot-product", "flash"])
    @pytest.mark.parametrize("shape", [(N,), (M, N)])
    def test_bool_mask(self, files, kind, shape):
        q, k, v = arrays()
        mask = RNG.random(shape) < 0.5
        mask[..., 4] = True
        out = files.attend(kind, q, k, v, "--mask", files.save("mask", mask))
        near(out, formula(q, k, v, mask))

    def test_float_mask_and_causal(self, files):
        q, k, v = arrays()
        bias = RNG.standard_normal((M, N)).astype(np.float32)
        visible = np.arange(N) <= np.arange(M)[:, None] + N - M
        out = files.attend("flash", q, k, v, "--causal", "--mask", files.save("mask", bias))
        near(out, formula(q, k, v, visible, bias=bias))

    @pytest.mark.parametrize("inputs", ["ball", "tangent"])
    def test_hyperbolic(self, files, inputs):
        q, k, v = (0.1 * x for x in arrays())
        mask = RNG.random((M, N)) < 0.7
        options = ["--curvature", "0.5", "--temperature", "0.2", "--inputs", inputs]
        options += ["--mask", files.save("mask", mask)]
        attention = ruvector.HyperbolicAttention(DIM, 0.5, 0.2, inputs=inputs)
        wanted = attention.compute(q, k, v, mask=mask)
        near(files.attend("hyperbolic", q, k, v, *options), wanted)
        near(
            files.attend("hyperbolic", q, k, v),
            ruvector.HyperbolicAttention(DIM).compute(q, k, v),
        )

    def test_graph_rope(self, files):
        q, k, _ = arrays()
        v = RNG.standard_normal((N, DIM)).astype(np.float32)
        attention = ruvector.GraphRoPEAttention.simple(DIM, 40)
        options = ["--max-position", "40"]
        near(files.attend("graph-rope", q, k, v, *options), attention.compute(q, k, v))
        near(files.attend("graph-rope", q[2], k, v, *options), attention.compute(q[2], k, v))
        attention = ruvector.GraphRoPEAttention(
            dim=DIM,
            max_position=40,
            base=500.0,
            num_heads=4,
            layout="interleaved",
            scaling="yarn",
            scaling_factor=4.0,
            original_max_position=32,
        )
        options += ["--base=500", "--heads=4", "--layout=interleaved", "--scaling=yarn"]
        options += ["--scaling-factor=4", "--original-max-position=32"]
        near(files.attend("graph-rope", q, k, v, *options), attention.compute(q, k, v))
        own, places = RNG.integers(0, 40, M), RNG.integers(0, 40, N)
        wanted = attention.compute_with_positions(q, k, v, own, places)
        options += ["--key-positions", files.save("places", places)]
        own_file = ["--query-positions", files.save("own", own)]
        near(files.attend("graph-rope", q, k, v, *options, *own_file), wanted)
        one = ["--query-positions", files.save("own", own[:1])]
        near(files.attend("graph-rope", q[0], k, v, *options, *one), wanted[0])
        wanted = attention.compute_with_positions(q, k, v, own[0], places)
        near(files.attend("graph-rope", q, k, v, *options, *one), wanted)

    @pytest.mark.parametrize("weight", [None, "0", "0.25", "1"])
    def test_dual_space(self, files, weight):
        q, k, _ = arrays()
        v = RNG.standard_normal((N, DIM)).astype(np.float32)
        options = ["--heads", "4", "--euclidean-dim", "16"]
        fields = {"euclidean_dim": 16, "hyperbolic_dim": 8, "num_heads": 4, "curvature": 1.0}
        if weight is not None:
            options += ["--fusion-weight", weight, "--curvature=2", "--temperature=0.5"]
            fields |= {"curvature": 2.0, "temperature": 0.5, "fusion_weight": float(weight)}
        attention = ruvector.DualSpaceAttention(**fields, learn_fusion=False)
        near(files.attend("dual-space", q, k, v, *options), attention.compute(q, k, v))

    @pytest.mark.parametrize("types", [None, "hyperbolic,standard,standard"])
    def test_moe(self, files, types):
        q, k, v = arrays()
        options = ["--num-experts", "3", "--top-k", "2"]
        fields = {"num_experts": 3, "top_k": 2}
        if types is not None:
            options += ["--expert-types", types]
            fields["expert_types"] = types.split(",")
        near(
            files.attend("moe", q, k, v, *options),
            ruvector.MoEAttention(dim=DIM, **fields).compute(q, k, v),
        )
        parameters = str(files.folder / "parameters.npz")
        for dtype in ("float32", "float64"):
            layer = ruvector.MoEAttention(dim=DIM, **fields, seed=1, dtype=dtype)
            np.savez(parameters, **layer.state_dict())
            wanted = layer.compute(q, k, v)
            near(files.attend("moe", q, k, v, *options, "--parameters", parameters), wanted)

    def test_local_global(self, files):
        _, k, v = arrays()
        q = RNG.standard_normal((N, DIM)).astype(np.float32)
        out = files.attend(
            "local-global", q, k, v, "--local-window", "6", "--global-tokens", "2"
        )
        place = np.arange(N)
        visible = abs(place[:, None] - place) <= 3
        visible |= (place < 2) | (place[:, None] < 2)
        near(out, formula(q, k, v, visible))

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("kernel", ["softmax", "relu", "elu"])
    def test_linear(self, files, kernel, causal):
        options = ["--num-features", "40", "--kernel", kernel, "--seed", "3"]
        options += ["--causal"] if causal else []
        attention = ruvector.LinearAttention(DIM, 40, kernel, seed=3, causal=causal)
        mask = RNG.random(N) < 0.6
        for shape in ((DIM,), (M, DIM), (N + 7, DIM), (0, DIM)):
            q, k, v = arrays(*shape)
            near(files.attend("linear", q, k, v, *options), attention.compute(q, k, v))
            masked = files.attend(
                "linear", q, k, v, *options, "--mask", files.save("mask", mask)
            )
            near(masked, attention.compute(q, k, v, mask=mask))

    def test_linear_with_parameters(self, files):
        q, k, v = arrays()
        attention = ruvector.LinearAttention(DIM, 40, seed=3, dtype="float64")
        parameters = str(files.folder / "parameters.npz")
        np.savez(parameters, **attention.state_dict())
        options = ["--num-features", "40", "--parameters", parameters]
        near(files.attend("linear", q, k, v, *options), attention.compute(q, k, v))

    @pytest.mark.parametrize("shape", [(DIM,), (1, DIM)])
    def test_local_global_with_one_query(self, files, shape):
        q, k, v = arrays(*shape)
        out = files.attend(
            "local-global", q, k, v, "--local-window", "6", "--global-tokens", "0"
        )
        near(out, formula(q, k, v, abs(np.arange(N) - N // 2) <= 3))

    def test_batch(self, files):
        q, k, v = (RNG.standard_normal((2, n, DIM)).astype(np.float32) for n in (M, N, N))
        out = files.attend("dot-product", q, k, v)
        near(out, np.stack([formula(*part) for part in zip(q, k, v, strict=True)]))

    def test_batch_over_shared_keys_with_a_mask_each(self, files):
        _, k, v = arrays()
        q = RNG.standard_normal((2, M, DIM)).astype(np.float32)
        mask = RNG.random((2, M, N)) < 0.5
        out = files.attend("flash", q, k, v, "--mask", files.save("mask", mask))
        near(out, np.stack([formula(q[i], k, v, mask[i]) for i in range(2)]))

    @pytest.mark.parametrize("dtype", ["float64", "float16", ">f4", "int32", "bool"])
    def test_dtypes(self, files, dtype):
        q, k, v = ((4 * array).astype(dtype) for array in arrays())
        out = files.attend("dot-product", q, k, v)
        kept = dtype in ("float64", "float16")
        assert out.dtype == (dtype if kept else "float32")
        near(out, formula(q, k, v), 2e-3 if dtype == "float16" else 2e-5)

    def test_mixed_dtypes_and_fortran_order(self, files):
        q, k, v = arrays()
        v = np.asfortranarray(v.astype(np.float64))
        out = files.attend("dot-product", q, np.asfortranarray(k), v)
        assert out.dtype == np.float32
        near(out, formula(q, k, v))

    def test_no_queries(self, files):
        q, k, v = arrays(0, DIM)
        assert files.attend("dot-product", q, k, v).shape == (0, DIM_V)


class TestOutput:
    def test_reports_what_it_wrote(self, files, capsys):
        files.attend("dot-product", *arrays())
        assert capsys.readouterr() == (f"{files.output}: float32 ({M}, {DIM_V})\n", "")

    def test_replaces_a_file_and_may_replace_an_input(self, files):
        q, k, v = arrays()
        files.output = files.folder / "query.npy"
        near(files.attend("dot-product", q, k, v), formula(q, k, v))
        assert files.left() == []

    def test_follows_a_symbolic_link(self, files):
        (files.folder / "elsewhere").mkdir()
        target = files.folder / "elsewhere" / "target.npy"
        try:
            files.output.symlink_to(target)
        except OSError:
            pytest.skip("no symbolic links here")
        files.attend("dot-product", *arrays())
        assert files.output.is_symlink()
        assert target.is_file()

    def test_permissions_follow_the_umask(self, files):
        files.attend("dot-product", *arrays())
        assert files.output.stat().st_mode == (files.folder / "keys.npy").stat().st_mode


@pytest.mark.usefixtures("small_blocks")
class TestInterruption:
    def fail_on_second_block(self, monkeypatch, error):
        rows, calls = _attend._rows, []

        def failing(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise error
            return rows(*arguments)

        monkeypatch.setattr(_attend, "_rows", failing)

    def test_ctrl_c(self, files, monkeypatch, capsys):
        self.fail_on_second_block(monkeypatch, KeyboardInterrupt())
        assert main(files.arguments("flash", *arrays())) == 130
        assert capsys.readouterr() == ("", "ruvector attend: interrupted\n")
        assert files.left() == []

    def test_disk_full(self, files, monkeypatch, capsys):
        self.fail_on_second_block(monkeypatch, OSError(28, "No space left on device"))
        assert "No space left on device" in refuse(files, capsys, "flash", *arrays())

    def test_an_older_output_survives(self, files, monkeypatch):
        self.fail_on_second_block(monkeypatch, KeyboardInterrupt())
        files.output.write_bytes(b"older")
        assert main(files.arguments("flash", *arrays())) == 130
        assert files.output.read_bytes() == b"older"
        assert files.left() == ["out.npy"]
