"""Discriminators: PatchGAN, heads on a frozen DINO, their norms over processes, and DiffAug."""

import copy
import functools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gloo_ranks
from vqdm_train.discriminators import DiscriminatorConfig, augment, build_discriminator, diffaug
from vqdm_train.discriminators.dino import DinoDiscriminator, Head
from vqdm_train.discriminators.norm import BatchNorm, build_norm
from vqdm_train.discriminators.vision_transformer import Block, VisionTransformer
from vqdm_train.losses import discriminator_loss
from weight_files import write_dino


def images(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


# PatchGAN


def test_patch_gan_is_that_of_pix2pix() -> None:
    discriminator = build_discriminator(DiscriminatorConfig(norm="batch"), 3)
    convs = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0], c.bias is not None) for c in convs] == [
        (3, 64, 2, True),
        (64, 128, 2, False),
        (128, 256, 2, False),
        (256, 512, 1, False),
        (512, 1, 1, True),
    ]
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_633
    weights = torch.cat([c.weight.flatten() for c in convs])
    assert weights.mean().abs() < 1e-4
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    scales = torch.cat([m.weight for m in discriminator.modules() if isinstance(m, BatchNorm)])
    assert scales.mean().item() == pytest.approx(1, abs=0.005)
    assert scales.std().item() == pytest.approx(0.02, rel=0.15)
    assert discriminator(images(2, 3, 256, 256)).shape == (2, 1, 30, 30)


@pytest.mark.parametrize(("num_layers", "pixels"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_so_many_pixels(num_layers: int, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    discriminator = build_discriminator(DiscriminatorConfig(num_layers=num_layers, base_channels=4), 1)
    for layer in discriminator.modules():
        if isinstance(layer, nn.GroupNorm):  # which sees all pixels
            monkeypatch.setattr(layer, "forward", lambda x: x)
    x = images(1, 1, 128, 128).requires_grad_()
    logits = discriminator(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert x.grad is not None
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == pixels


def test_patch_gan_names_the_smallest_images() -> None:
    discriminator = build_discriminator(DiscriminatorConfig(base_channels=4), 3)
    assert discriminator(images(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(
        ValueError, match=r"discriminator: expected images of 24 pixels or more .* got \[1, 3, 24, 23\]"
    ):
        discriminator(images(1, 3, 24, 23))


@pytest.mark.parametrize("norm", ["group", "sync_batch", "batch"])
def test_patch_gan_compiles_whole(norm: Any) -> None:
    discriminator = build_discriminator(DiscriminatorConfig(base_channels=4, num_layers=1, norm=norm), 3)
    x = images(2, 3, 12, 12)
    expected = discriminator(x)
    discriminator.compile(backend="aot_eager", fullgraph=True)
    assert torch.equal(discriminator(x), expected)


def test_patch_gan_learns_to_tell_and_tells_which_way() -> None:
    torch.manual_seed(0)
    discriminator = build_discriminator(DiscriminatorConfig(base_channels=16, num_layers=1), 1)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3)
    real = images(4, 1, 16, 16)
    fake = F.avg_pool2d(real, 3, stride=1, padding=1)  # a blurred picture
    for _ in range(30):
        optimizer.zero_grad()
        loss = discriminator_loss(discriminator(real), discriminator(fake), "hinge")
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    assert discriminator(real).mean() > 0 > discriminator(fake).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "expected num_layers and base_channels >= 1, got 0 and 64"),
        ({"weights": ""}, "expected weights to be a file or null, got an empty string"),
        ({"weights": "dino.pth"}, "expected weights only with network=dino, got weights=dino.pth"),
        ({"network": "dino", "num_layers": 2}, "expected num_layers only with network=patch, got num_layers=2"),
        (
            {"network": "dino", "base_channels": 8},
            "expected base_channels only with network=patch, got base_channels=8",
        ),
    ],
)
def test_discriminator_config_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^discriminator: {re.escape(message)}$"):
        DiscriminatorConfig(**options)


# Norms


@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 6, 4, 5)])
def test_batch_norm_is_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = 3 + torch.randn(shape, dtype=torch.float64)
    norm = BatchNorm(6, over_ranks=True).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(norm.train()(x), norm.eval()(x))
    assert set(norm.state_dict()) == {"weight", "bias"}


def test_groups_of_a_group_norm() -> None:
    norms = [build_norm("group", channels) for channels in (512, 128, 64, 48, 8, 7, 3)]
    assert [norm.num_groups for norm in norms if isinstance(norm, nn.GroupNorm)] == [32, 32, 16, 4, 2, 1, 1]


_COUNTS = (3, 1)


def _norm_over_ranks(rank: int, num_ranks: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    x = 1e3 + torch.randn(sum(_COUNTS), 4, 5, 3, dtype=torch.float64)
    target = torch.randn(sum(_COUNTS), 4, 5, 3, dtype=torch.float64)
    config = DiscriminatorConfig(num_layers=2, base_channels=4, norm="sync_batch")
    discriminator = build_discriminator(config, 1).double()
    pictures = torch.rand(4, 1, 16, 16, dtype=torch.float64)

    start = sum(_COUNTS[:rank])
    mine = slice(start, start + _COUNTS[rank])
    own = x[mine].clone().requires_grad_()
    norm, alone = BatchNorm(4, over_ranks=True).double(), BatchNorm(4, over_ranks=False).double()
    y = norm(own)
    (y * target[mine]).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = norm(own.detach().bfloat16())
    assert own.grad is not None
    assert norm.weight.grad is not None
    out = {"y": y, "x.grad": own.grad, "weight.grad": norm.weight.grad, "alone": alone(own), "narrow": narrow}

    # One discriminator on halves of a batch, in DistributedDataParallel: the mean gradient is the whole batch's.
    wrapped = nn.parallel.DistributedDataParallel(discriminator)
    half = pictures[2 * rank : 2 * rank + 2]
    logits, other = wrapped(half), wrapped(half.flip(3) * 0.5)
    discriminator_loss(logits, other, "non_saturating").backward()
    out |= {f"D.{name}": p.grad for name, p in discriminator.named_parameters() if p.grad is not None}
    return out


def test_batch_norm_over_two_ranks_is_that_of_all_images(tmp_path: Path) -> None:
    ranks = gloo_ranks.run(_norm_over_ranks, 2, tmp_path)
    torch.manual_seed(0)
    x = (1e3 + torch.randn(4, 4, 5, 3, dtype=torch.float64)).requires_grad_()
    target = torch.randn(4, 4, 5, 3, dtype=torch.float64)
    config = DiscriminatorConfig(num_layers=2, base_channels=4, norm="sync_batch")
    discriminator = build_discriminator(config, 1).double()
    pictures = torch.rand(4, 1, 16, 16, dtype=torch.float64)

    norm = nn.BatchNorm2d(4).double()
    y = norm(x)
    (y * target).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    close(torch.cat([rank["y"] for rank in ranks]), y.detach())
    close(torch.cat([rank["x.grad"] for rank in ranks]), x.grad)
    close(sum(rank["weight.grad"] for rank in ranks), norm.weight.grad)
    assert (torch.cat([rank["alone"] for rank in ranks]) - y.detach()).abs().max() > 0.1
    assert all(rank["narrow"].dtype == torch.bfloat16 for rank in ranks)

    loss = discriminator_loss(discriminator(pictures), discriminator(pictures.flip(3) * 0.5), "non_saturating")
    loss.backward()
    for name, parameter in discriminator.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(rank[f"D.{name}"], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


# DINO


def test_a_block_is_written_out() -> None:
    torch.manual_seed(0)
    block = Block(8, num_heads=2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)

    def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-6).sqrt() * norm.weight + norm.bias

    qkv = layer_norm(x, block.norm1) @ block.attn.qkv.weight.T + block.attn.qkv.bias
    heads = []
    for head in range(2):
        q, k, v = (qkv[..., 8 * part + 4 * head :][..., :4] for part in range(3))
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 2, dim=-1) @ v)
    y = x + torch.cat(heads, dim=-1) @ block.attn.proj.weight.T + block.attn.proj.bias
    weights = block.state_dict()
    hidden = layer_norm(y, block.norm2) @ weights["mlp.fc1.weight"].T + weights["mlp.fc1.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = y + hidden @ weights["mlp.fc2.weight"].T + weights["mlp.fc2.bias"]
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dino(tmp_path_factory.mktemp("dino") / "dino.pth")


@pytest.fixture(scope="module")
def dino(dino_file: Path) -> DinoDiscriminator:
    torch.manual_seed(0)
    built = build_discriminator(DiscriminatorConfig(network="dino", weights=str(dino_file)), 3)
    assert isinstance(built, DinoDiscriminator)
    return built


def test_dino_takes_the_published_weights(dino: DinoDiscriminator, dino_file: Path) -> None:
    published = torch.load(dino_file, weights_only=True)
    ours = dict(dino.trunk.named_parameters())
    assert ours.keys() == published.keys() - {"norm.weight", "norm.bias"}
    assert all(torch.equal(value, published[name]) for name, value in ours.items())
    with torch.device("meta"):
        assert sum(p.numel() for p in VisionTransformer().parameters()) == 21_665_664 - 2 * 384


def test_dino_gives_logits_and_trains_its_heads_alone(dino: DinoDiscriminator) -> None:
    dino = copy.deepcopy(dino).train()
    assert not any(module.training for module in dino.trunk.modules())
    x = images(2, 3, 64, 48).requires_grad_()
    logits = dino(x)
    assert logits.shape == (2, 5, 196)
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    trained = {name for name, p in dino.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in dino.named_parameters() if name.startswith("heads.")}
    assert all(torch.isfinite(p.grad).all() for p in dino.parameters() if p.grad is not None)


def test_dino_sees_images_as_it_was_trained_to(dino: DinoDiscriminator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def look(x: Tensor) -> list[Tensor]:
        seen.append(x)
        return [torch.zeros(1, 384, 196)] * 5

    monkeypatch.setattr(dino.trunk, "forward", look)
    white, colour = torch.ones(1, 1, 300, 260), torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 2 - 1
    for x in (white, colour.expand(1, 3, 100, 100)):
        dino(x)
    assert all(x.shape == (1, 3, 224, 224) for x in seen)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0], expected.view(1, 3, 1, 1).expand(1, 3, 224, 224), rtol=1e-5, atol=1e-5)
    assert seen[1].abs().max() < 1e-5
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for height, width, mode in ((300, 260, "area"), (300, 200, "bicubic"), (64, 100, "bicubic"), (224, 224, "area")):
        x = images(1, 3, height, width)
        with torch.autocast("cpu", torch.bfloat16):
            dino(x)
        expected = (F.interpolate(x, (224, 224), mode=mode) + 1) / 2
        torch.testing.assert_close(seen[-1], (expected - mean) / std, rtol=1e-4, atol=1e-4)


def test_dino_state_is_the_heads_and_gives_the_same_logits(dino: DinoDiscriminator, dino_file: Path) -> None:
    dino = copy.deepcopy(dino).train()
    x = images(1, 3, 32, 32)
    dino(x)
    state = {name: value.clone() for name, value in dino.state_dict().items()}
    assert all(name.startswith("heads.") for name in state)
    torch.manual_seed(5)
    again = build_discriminator(DiscriminatorConfig(network="dino", weights=str(dino_file)), 3)
    again.load_state_dict(state)
    assert torch.equal(again(x), dino(x))
    again.eval()
    before = {name: value.clone() for name, value in again.state_dict().items()}
    again(x)
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())


def test_dino_heads_have_spectral_norm_one() -> None:
    torch.manual_seed(0)
    head = Head(32, "group")
    convs = [module for module in head.modules() if isinstance(module, nn.Conv1d)]
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if name.endswith("original"):
                weight.mul_(50)
    features = torch.randn(1, 32, 9, generator=torch.Generator().manual_seed(0))
    for _ in range(40):
        head(features)
    assert len(convs) == 3
    for conv in convs:
        norm = torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2)
        assert norm.item() == pytest.approx(1, abs=0.02)


def test_dino_heads_look_around_the_ring() -> None:
    """A shift of the row of features shifts the logits."""
    torch.manual_seed(0)
    head = Head(32, "group").eval()
    features = torch.randn(1, 32, 20, generator=torch.Generator().manual_seed(0))
    shifted = head(features.roll(7, dims=2))
    torch.testing.assert_close(shifted, head(features).roll(7, dims=1), rtol=1e-4, atol=1e-4)


def test_dino_refuses_other_channels_and_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="discriminator: expected 1 or 3 channels with network=dino, got 4"):
        build_discriminator(DiscriminatorConfig(network="dino"), 4)
    absent = str(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match=r"discriminator.weights: expected dino_deitsmall16_pretrain.pth at .*"):
        build_discriminator(DiscriminatorConfig(network="dino", weights=absent), 3)


# DiffAug


@pytest.mark.parametrize("part", [diffaug._colour, diffaug._translate, diffaug._cutout, augment])
def test_each_augmentation_changes_every_image_and_passes_the_gradient(part: Any) -> None:
    x = images(6, 3, 20, 24).double().requires_grad_()
    torch.manual_seed(1)
    y = part(x)
    torch.manual_seed(1)
    assert torch.equal(part(x), y)
    assert y.shape == x.shape
    assert ((y - x).abs().amax(dim=(1, 2, 3)) > 0.01).all()
    y.sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(dim=(1, 2, 3)) > 0).all()

    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return part(x)

    assert torch.autograd.gradcheck(seeded, images(2, 2, 9, 8).double().requires_grad_())


def test_colour_is_brightness_saturation_and_contrast() -> None:
    x = images(4, 3, 5, 6).double()
    torch.manual_seed(2)
    y = diffaug._colour(x)
    torch.manual_seed(2)
    brightness, saturation, contrast = (torch.rand(4, 1, 1, 1).double() for _ in range(3))
    expected = x + brightness - 0.5
    grey = expected.mean(1, keepdim=True)
    expected = grey + 2 * saturation * (expected - grey)
    mean = expected.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(y, mean + (0.5 + contrast) * (expected - mean), rtol=1e-12, atol=1e-12)


def test_translation_moves_by_up_to_an_eighth_and_fills_with_grey() -> None:
    x = 2 + images(200, 1, 16, 24)
    torch.manual_seed(3)
    found = set()
    # Nothing of the picture is 0, so where 0 begins says how far it moved.
    for before, after in zip(x[:, 0], diffaug._translate(x)[:, 0], strict=True):
        rows, columns = after.any(1).nonzero().flatten(), after.any(0).nonzero().flatten()
        up, left = int(rows[0]) or int(rows[-1]) - 15, int(columns[0]) or int(columns[-1]) - 23
        padded = F.pad(before, (3, 3, 2, 2))
        assert torch.equal(after, padded[2 - up :, 3 - left :][:16, :24])
        found.add((up, left))
    assert found == {(up, left) for up in range(-2, 3) for left in range(-3, 4)}


def test_cutout_is_a_box_of_a_fifth_anywhere() -> None:
    x = torch.ones(4000, 1, 10, 15)
    torch.manual_seed(4)
    holes = diffaug._cutout(x)[:, 0] == 0
    rows, columns = holes.any(2), holes.any(1)
    assert torch.equal(holes, rows[:, :, None] & columns[:, None, :])
    assert set(rows.sum(1).tolist()) == {1, 2}  # 2 of 10, less at the border
    assert set(columns.sum(1).tolist()) == {2, 3}
    assert rows.any(0).all()
    assert columns.any(0).all()


def test_augmentation_of_bfloat16_stays_there() -> None:
    assert augment(images(2, 3, 16, 16).bfloat16()).dtype == torch.bfloat16
