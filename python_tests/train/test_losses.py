"""What the networks are trained on: LPIPS, the adversarial game, and the files of weights of others."""

import hashlib
import math
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vqdm_train.losses import (
    AdversarialConfig,
    LeCam,
    LossConfig,
    PerceptualLoss,
    adaptive_weight,
    adversarial_weight,
    batch_psnr,
    consistency_loss,
    discriminator_loss,
    generator_loss,
    reconstruction_loss,
)
from vqdm_train.losses.torchvision_import import import_torchvision
from vqdm_train.losses.weights import VGG, Published, fill, find_weights, read_weights
from weight_files import write_weights


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "alex.pth", "alex")


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, y = 2 * torch.rand(2, 2, 3, 40, 36, generator=generator) - 1
    return x, y.requires_grad_()


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_is_that_of_the_package(
    tmp_path: Path, network: Any, pair: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_weights(tmp_path / "weights.pth", network)
    import_torchvision()
    import lpips

    for name in ("normal_", "kaiming_normal_", "kaiming_uniform_"):  # of a hundred million weights, in vain
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    weights = torch.load(path, weights_only=True)
    for name, part in package.net.named_children():
        for index, layer in part.named_children():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data.copy_(weights[f"features.{index}.weight"])
                assert layer.bias is not None, name
                layer.bias.data.copy_(weights[f"features.{index}.bias"])
    x, y = pair
    expected = package(x, y).mean()
    (gradient,) = torch.autograd.grad(expected, y)
    loss = PerceptualLoss(network, path)
    ours = loss(x, y)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    assert ours.item() > 0.01
    ours.backward()
    assert y.grad is not None
    torch.testing.assert_close(y.grad, gradient, rtol=1e-5, atol=1e-8)
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())
    assert sum(p.numel() for p in loss.distance.metric.lins.parameters()) == sum(package.chns)


def test_lpips_is_frozen_and_in_no_checkpoint(alex: Path) -> None:
    loss, own = PerceptualLoss("alex", alex), nn.Linear(2, 2)
    model = nn.ModuleDict({"loss": loss, "own": own}).train()
    assert set(model.state_dict()) == {"own.weight", "own.bias"}
    assert not any(module.training for module in loss.distance.modules())
    before = [value.clone() for value in [*loss.parameters(), *loss.buffers()]]
    model.load_state_dict({"own.weight": torch.zeros(2, 2), "own.bias": torch.ones(2)})
    after = [*loss.parameters(), *loss.buffers()]
    assert len(before) == 2 * 5 + 5 + 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(own.bias, torch.ones(2))


def test_lpips_draws_nothing(alex: Path) -> None:
    state = torch.get_rng_state()
    PerceptualLoss("alex", alex)
    assert torch.equal(torch.get_rng_state(), state)


def test_lpips_is_the_same_under_autocast(alex: Path, pair: tuple[Tensor, Tensor]) -> None:
    loss = PerceptualLoss("alex", alex)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = loss(*pair)
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, loss(*pair))


def test_lpips_of_grey_images_is_that_of_three_equal_channels(alex: Path, pair: tuple[Tensor, Tensor]) -> None:
    loss = PerceptualLoss("alex", alex)
    x, y = (images[:, :1] for images in pair)
    assert torch.equal(loss(x, y), loss(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))


def test_lpips_gradient_is_finite_where_no_feature_answers(tmp_path: Path, pair: tuple[Tensor, Tensor]) -> None:
    path = write_weights(tmp_path / "weights.pth", "alex")
    weights = torch.load(path, weights_only=True)
    torch.save({name: -value.abs() for name, value in weights.items()}, path)  # after the first, all is rectified away
    x, y = pair
    loss = PerceptualLoss("alex", path)(x, y)
    loss.backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()
    assert loss.isfinite()


def test_lpips_compiles_whole_and_looks_at_images_nevertheless(alex: Path, pair: tuple[Tensor, Tensor]) -> None:
    loss = PerceptualLoss("alex", alex)
    expected = loss(*pair)
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    loss.compile(backend=count, fullgraph=True)
    for _ in range(10):
        assert torch.equal(loss(*pair), expected)
    assert len(graphs) == 1
    again = PerceptualLoss("alex", alex)
    again.compile(backend=count, fullgraph=True)
    with pytest.raises(ValueError, match="perceptual loss: expected images in"):
        again(2 * pair[0], pair[1])


def test_lpips_looks_at_the_range_of_the_first_images(alex: Path) -> None:
    x = 2 * torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(3)) - 1
    x[0, 0, 0, :2] = torch.tensor([-1.005, 1.005])  # rounding of the decoder of a file
    loss = PerceptualLoss("alex", alex)
    loss(x, 3 * x)  # a reconstruction may be anywhere
    with pytest.raises(ValueError, match=r"perceptual loss: expected images in \[-1, 1\], got -2.01 ... 2.01"):
        loss(2 * x, x)
    for _ in range(7):
        loss(x, x)
    loss(2 * x, x)  # the ninth batch


def test_lpips_warns_of_images_in_0_1(alex: Path) -> None:
    x = torch.rand(9, 1, 32, 32, generator=torch.Generator().manual_seed(3)).clamp(0, 1)
    loss = PerceptualLoss("alex", alex)
    loss(x, x)  # nine images may happen to be bright
    with pytest.warns(UserWarning, match=r"expected images in \[-1, 1\]; the first 18 lie in \[0, 1\]"):
        loss(x, x)
    loss(x, x)  # said once: a second warning is an error in these tests


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4, 32, 32), (2, 4, 32, 32)), r"C = 3 or 1, got \[2, 4, 32, 32\] and \[2, 4, 32, 32\]; --set"),
        (((2, 3, 32, 32), (2, 1, 32, 32)), r"of one shape .* got \[2, 3, 32, 32\] and \[2, 1, 32, 32\]; --set"),
        (
            ((2, 3, 32, 30), (2, 3, 32, 30)),
            r"images of 31 pixels or more, got \[2, 3, 32, 30\]; --set losses.perceptual=0",
        ),
    ],
)
def test_lpips_refuses_other_shapes(alex: Path, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerceptualLoss("alex", alex)(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_the_smallest_images_of_lpips_are_enough(tmp_path: Path, network: Any) -> None:
    loss = PerceptualLoss(network, write_weights(tmp_path / "weights.pth", network))
    x = torch.linspace(-1, 1, loss._smallest**2).view(1, 1, loss._smallest, loss._smallest)
    assert loss(x, -x) > 0
    with pytest.raises(RuntimeError):
        loss.distance(x.expand(1, 3, -1, -1)[..., 1:], x.expand(1, 3, -1, -1)[..., 1:])


def test_torchvision_imports_and_its_missing_operators_stay_missing() -> None:
    import_torchvision()
    import_torchvision()
    import torchvision

    assert torchvision.models.alexnet is not None
    if not torchvision.extension._has_ops():
        with pytest.raises(NotImplementedError):
            torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


# Files of weights


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def test_weights_that_are_absent_are_asked_for_in_one_sentence(cache: Path, tmp_path: Path) -> None:
    tail = (
        "got no such file; it comes from https://download.pytorch.org/models/vgg16-397923af.pth, "
        "losses.perceptual_weights says where it lies, --set losses.perceptual=0 does without it"
    )
    for path, where in ((None, cache / "vgg16-397923af.pth"), (tmp_path / "other.pth", tmp_path / "other.pth")):
        with pytest.raises(FileNotFoundError) as caught:
            PerceptualLoss("vgg", path)
        assert str(caught.value) == f"losses.perceptual_weights: expected vgg16-397923af.pth at {where}, {tail}"


def test_weights_in_the_cache_are_those_that_their_name_says(cache: Path) -> None:
    content = b"anything"
    digest = hashlib.sha256(content).hexdigest()
    for name in (f"net-{digest[:8]}.pth", "net.pth"):
        (cache / name).write_bytes(content)
        assert find_weights(Published(name=name, url="", setting="", without=""), None) == cache / name
    (cache / VGG.name).write_bytes(content)
    with pytest.raises(ValueError, match=f"to have a sha256 that starts with 397923af, got {digest[:16]}"):
        find_weights(VGG, None)


def test_weights_are_read_from_both_formats(tmp_path: Path) -> None:
    weights = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.float16)}
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        read = read_weights(tmp_path / name)
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[key], value) for key, value in weights.items())


class Harm:
    """Pickled, a command to write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_that_would_run_code_do_not(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": Harm(tmp_path / "harm")}, tmp_path / "w.pth")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(Harm(tmp_path / "harm"), protocol=2))
    for name in ("w.pth", "w.pkl"):
        with pytest.raises(
            ValueError, match=r"weights: expected a \.safetensors or .pth file of tensors, got"
        ) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "values.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name in ("values.pth", "list.pth"):
        with pytest.raises(ValueError, match="weights: expected named tensors and nothing else in"):
            read_weights(tmp_path / name)
    whole = (tmp_path / "list.pth").read_bytes()
    for name, content in (("cut.pth", whole[: len(whole) // 2]), ("no.safetensors", b"no"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"weights: expected a \.safetensors or .pth file of tensors"):
            read_weights(tmp_path / name)


def test_weights_fill_a_module_or_are_refused_whole(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    before = module.bias.detach().clone()
    for weights, got in (({"bias": torch.zeros(3)}, "none"), ({"weight": torch.zeros(2, 3)}, r"\[2, 3\]")):
        torch.save(weights, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=rf"weights: expected weight \[3, 2\] in .*, got {got}"):
            fill(module, tmp_path / "w.pth")
    assert torch.equal(module.bias, before)
    torch.save({"x.weight": torch.ones(3, 2).half(), "x.bias": torch.ones(3), "y": torch.ones(1)}, tmp_path / "w.pth")
    fill(module, tmp_path / "w.pth", lambda name: f"x.{name}")
    assert module.weight.dtype == torch.float32
    assert (module.weight == 1).all()
    assert (module.bias == 1).all()


# The game


@pytest.mark.parametrize(
    ("form", "discriminator", "generator"),
    [
        # real 2, 0.5, -1: relu(1 - r) = 0, 0.5, 2; fake -3, 0: relu(1 + f) = 0, 1
        ("hinge", 0.5 * (2.5 / 3 + 0.5), 1.5),
        (
            "non_saturating",
            0.5
            * (
                sum(math.log1p(math.exp(-r)) for r in (2, 0.5, -1)) / 3
                + sum(math.log1p(math.exp(f)) for f in (-3, 0)) / 2
            ),
            sum(math.log1p(math.exp(-f)) for f in (-3, 0)) / 2,
        ),
    ],
)
def test_the_game_at_known_logits(form: Any, discriminator: float, generator: float) -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]).bfloat16(), torch.tensor([[-3.0], [0.0]]).bfloat16()
    for loss, expected in (
        (discriminator_loss(real, fake, form), discriminator),
        (generator_loss(fake, form), generator),
    ):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert discriminator_loss(real.double(), fake.double(), form).item() == pytest.approx(discriminator, rel=1e-14)


def test_consistency_is_the_mean_square() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert consistency_loss(a, b).item() == (4 + 1) / 4


def test_the_weight_waits_and_rises() -> None:
    config = AdversarialConfig(weight=0.8, start_step=10, warmup_steps=5, ramp_steps=4)
    expected = {0: 0.0, 10: 0.0, 14: 0.0, 15: 0.2, 16: 0.4, 17: 0.6, 18: 0.8, 19: 0.8, 10**6: 0.8}
    assert {step: adversarial_weight(step, config) for step in expected} == pytest.approx(expected)
    for ramp in (0, 1):
        at_once = AdversarialConfig(weight=0.8, start_step=3, ramp_steps=ramp)
        assert [adversarial_weight(step, at_once) for step in (2, 3, 4)] == [0.0, 0.8, 0.8]
    assert adversarial_weight(5, AdversarialConfig()) == 0.0


def test_the_adaptive_weight() -> None:
    rec, adv = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.tensor([[0.0, 2.0]])
    config = AdversarialConfig(weight=0.8, adaptive_eps=0.5, adaptive_min=0.1, adaptive_max=10.0)
    weight = adaptive_weight(rec, adv, config)
    assert weight.item() == 5 / 2.5  # without config.weight
    assert not weight.requires_grad
    assert adaptive_weight(rec, 0 * adv, config).item() == 10.0
    assert adaptive_weight(0 * rec, adv, config).item() == pytest.approx(0.1)
    for bad in (float("nan"), float("inf")):
        for pair in ((rec, adv + bad), (rec + bad, adv), (rec + bad, adv + bad)):
            assert adaptive_weight(*pair, config).item() == 0.0


def test_lecam() -> None:
    lecam = LeCam(decay=0.75)
    real, fake = torch.tensor([2.0, -1.0], requires_grad=True), torch.tensor([0.5, -3.0], requires_grad=True)
    first = lecam.penalty(real, fake)
    assert first.item() == 4 / 2 + 9 / 2  # against 0: relu(2), relu(-1); relu(-0.5), relu(3)
    lecam.update(torch.tensor(2.0), torch.tensor(-4.0))
    assert (lecam.real_mean.item(), lecam.fake_mean.item()) == (0.5, -1.0)
    first.backward()  # the update left its graph alone
    assert real.grad is not None
    assert real.grad.tolist() == [2.0, 0.0]
    # 2 + 1, -1 + 1; 0.5 - 0.5, 0.5 + 3
    assert lecam.penalty(real, fake).item() == 9 / 2 + 3.5**2 / 2
    again = LeCam(decay=0.75)
    again.load_state_dict(lecam.state_dict())
    assert torch.equal(again.penalty(real, fake), lecam.penalty(real, fake))
    lecam.update(torch.tensor(2.0), torch.tensor(-4.0))
    assert lecam.real_mean.item() == 0.75 * 0.5 + 0.25 * 2


def test_reconstruction_keeps_double() -> None:
    x, y = torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.full((1, 1, 2, 2), 1e-12, dtype=torch.float64)
    loss, _ = reconstruction_loss(x, 1 + y, LossConfig(l1=1.0, l2=0.0))
    assert loss.item() - 1 == pytest.approx(1e-12, rel=1e-3)
    narrow, _ = reconstruction_loss(x.bfloat16(), (1 + y).bfloat16(), LossConfig())
    assert narrow.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l1": -1.0}, "losses: expected l1, l2 and perceptual >= 0 and not all 0, got -1.0, 1.0 and 0.0"),
        ({"l1": 0.0, "l2": 0.0}, "losses: expected l1, l2 and perceptual >= 0 and not all 0, got 0.0, 0.0 and 0.0"),
        ({"perceptual_weights": ""}, "losses: expected perceptual_weights to be a file or null, got an empty string"),
    ],
)
def test_loss_config_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LossConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -0.5}, "expected weight >= 0, got -0.5"),
        ({"start_step": -1}, "expected start_step >= 0, got -1"),
        ({"ramp_steps": -1}, "expected ramp_steps >= 0, got -1"),
        ({"lecam": -1.0}, "expected lecam >= 0, got -1.0"),
        ({"adaptive_eps": 0.0}, "expected adaptive_eps > 0, got 0.0"),
        (
            {"adaptive_min": 2.0, "adaptive_max": 1.0},
            "expected adaptive_max to be at least adaptive_min, got 1.0 and 2.0",
        ),
        ({"lecam_decay": 1.0}, "expected lecam_decay in [0, 1), got 1.0"),
        ({"lecam_decay": 0.9}, "expected lecam_decay only with lecam > 0, got lecam_decay=0.9"),
        ({"consistency": 4.0}, "expected consistency only with augment=true, got consistency=4.0"),
        (
            {"adaptive": False, "adaptive_min": 0.1},
            "expected adaptive_min only with adaptive=true, got adaptive_min=0.1",
        ),
    ],
)
def test_adversarial_config_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^adversarial: {re.escape(message)}$"):
        AdversarialConfig(**options)


def test_pixels_and_psnr() -> None:
    x, y = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    loss, terms = reconstruction_loss(x, y, LossConfig(l1=2.0, l2=3.0))
    assert loss.item() == 2 * 0.5 + 3 * 0.25
    assert {name: term.item() for name, term in terms.items()} == {"l1": 1.0, "l2": 0.75}
    assert loss.requires_grad
    assert not any(term.requires_grad for term in terms.values())
    assert batch_psnr(x, y.detach()).item() == pytest.approx(10 * torch.log10(torch.tensor(16.0)).item())
