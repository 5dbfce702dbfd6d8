"""Feature maps: formulas written out once more, shapes, and what is random in them."""

import math

import pytest
import torch

from fairseq_fwm.feature_maps import (
    FEATURE_MAPS,
    FavorFeatureMap,
    build_feature_map,
    column_orthogonal,
    row_orthogonal,
)
from fairseq_fwm.ops.features import dpfp, sum_normalize
from variants import assert_close


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_contract(name):
    feature_map = build_feature_map(name, 6, nu=2, m=5, ignored=1)
    x = torch.randn(3, 2, 7, 6)
    for scale_free in (False, True):
        phi = feature_map(x, scale_free=scale_free)
        assert phi.shape == (3, 2, 7, feature_map.out_dim)
        assert not feature_map.positive or (phi >= 0).all()
        if feature_map.normalized:
            assert_close("sum", phi.sum(-1), torch.ones(3, 2, 7), 1e-5)
        # One position's features depend on that position alone.
        assert_close("alone", feature_map(x[:, :, 3:4], scale_free), phi[:, :, 3:4], 1e-5)
    feature_map.resample(3)


def test_dpfp_written_out():
    """Eq. 37 of arXiv 2102.11174, component by component."""
    x, nu, d = torch.randn(5, 4, dtype=torch.float64), 3, 4
    r = [torch.relu(x[:, i]) if i < d else torch.relu(-x[:, i - d]) for i in range(2 * d)]
    wanted = [r[i] * r[(i - j) % (2 * d)] for j in range(1, nu + 1) for i in range(2 * d)]
    assert torch.equal(dpfp(x, nu), torch.stack(wanted, -1))


def test_dpfp_can_be_zero_and_sum_normalisation_bears_it():
    x = torch.tensor([[1.0, -1.0, 1.0]], requires_grad=True)  # odd d, alternating signs
    assert not dpfp(x).any()
    y = sum_normalize(dpfp(x))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert not y.any() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("build", [column_orthogonal, row_orthogonal])
@pytest.mark.parametrize("d,m", [(4, 4), (4, 10), (8, 3), (5, 12)])
def test_projections_are_orthogonal_in_blocks(build, d, m):
    P = build(d, m, torch.Generator().manual_seed(0)).double()
    assert P.shape == (d, m)
    rows, block = (P.T, d) if build is column_orthogonal else (P, m)
    for start in range(0, len(rows), block):
        gram = rows[start : start + block] @ rows[start : start + block].T
        assert_close("gram", gram, torch.diag(gram.diag()), 1e-5)
    # Entries keep unit variance, as of a Gaussian matrix.
    many = torch.stack([build(d, m, torch.Generator().manual_seed(s)) for s in range(300)])
    assert abs(many.square().mean().item() - 1) < 0.1


@pytest.mark.parametrize("variant", FavorFeatureMap.VARIANTS)
def test_favor_estimates_the_softmax_kernel(variant):
    d, m = 8, 512  # orthogonalising takes m**3 operations
    generator = torch.Generator().manual_seed(1)
    q, k = (0.4 * torch.randn(6, d, generator=generator) for _ in range(2))
    scale = math.sqrt(d) if variant == "stable" else 1.0
    wanted = (q @ k.T / scale).exp()
    maps = [FavorFeatureMap(d, m, variant, seed).eval() for seed in range(80)]
    estimate = torch.stack([favor(q) @ favor(k).T for favor in maps]).mean(0)
    assert_close("kernel", estimate, wanted, 0.03 if variant == "stable" else 0.15)


def test_scale_free_favor_differs_by_a_factor_per_position():
    favor = FavorFeatureMap(6, 5).eval()
    x = 3 * torch.randn(4, 6)
    ratio = favor(x, scale_free=True) / favor(x)
    assert_close("ratio", ratio, ratio[:, :1].expand_as(ratio), 1e-3)


def test_favor_does_not_overflow_at_large_heads():
    favor = FavorFeatureMap(256, 256)
    x = torch.stack([favor.training_projection[:, 0] * 4, torch.zeros(256)])
    for scale_free in (False, True):
        assert torch.isfinite(favor(x, scale_free)).all()


def test_favor_draws_per_update_and_is_frozen_in_eval():
    favor, twin = FavorFeatureMap(6, 5, seed=3), FavorFeatureMap(6, 5, seed=3)
    x = torch.randn(2, 6)
    favor.set_num_updates(1)
    first = favor(x)
    favor.set_num_updates(1)
    assert torch.equal(favor(x), first), "the same update must draw the same features"
    favor.set_num_updates(2)
    assert not torch.equal(favor(x), first)
    twin.set_num_updates(2)  # a resumed run, or another rank
    assert torch.equal(twin(x), favor(x))
    favor.eval(), twin.eval()
    frozen = favor(x)
    favor.set_num_updates(7)
    assert torch.equal(favor(x), frozen)
    assert not torch.equal(FavorFeatureMap(6, 5, seed=4).eval()(x), frozen)
    restored = FavorFeatureMap(6, 5, seed=9).eval()
    restored.load_state_dict(favor.state_dict())
    assert torch.equal(restored(x), frozen), "the checkpoint must reproduce the features"


def test_clear_errors():
    with pytest.raises(ValueError, match="unknown feature map 'relu'"):
        build_feature_map("relu", 4)
    with pytest.raises(ValueError, match="m must be at least 1"):
        build_feature_map("favor", 4, m=0)
    with pytest.raises(ValueError, match="unknown variant"):
        build_feature_map("favor", 4, variant="fast")
