"""Everything that a checkpoint holds: the networks, their average, the optimizers, and where the run stands.

Nothing random outlives a step: the batch and the generators of step n are functions of (seed, n, rank) alone. So there
is no generator, scheduler or sampler whose state would have to be kept. bfloat16 needs no loss scaling.
"""

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from vqdm_cuda import ImageTokenizer, __version__
from vqdm_train.adversary import Adversary
from vqdm_train.config import Config
from vqdm_train.distributed import World
from vqdm_train.ema import EMA
from vqdm_train.optimizer import build_optimizer, load_optimizer, optimizer_tensors

__all__ = ["TrainingState"]

_COUNTERS = ("step", "updates", "skipped_in_a_row", "best_step", "best_psnr")


class TrainingState:
    """A tokenizer with all that training it needs, as it is before the first step."""

    def __init__(self, tokenizer: ImageTokenizer, config: Config, world: World) -> None:
        self.tokenizer = tokenizer
        self.ema = EMA(tokenizer, config.ema_decay)
        self.optimizer = build_optimizer(tokenizer, config.optimizer)
        self.adversary = Adversary(config, world) if config.adversarial.weight > 0 else None
        self.step = 0  # steps done
        self.updates = 0  # steps done that changed the weights
        self.skipped_in_a_row = 0
        self.best_step = 0  # the one after which held-out images came back best; 0: none was measured
        self.best_psnr = 0.0

    def save(self, folder: Path) -> None:
        """Writes all of it into a folder: safetensors and JSON."""
        self.ema.model.save_pretrained(folder / "model")
        _save_network(folder, "weights", self.tokenizer)
        _save_optimizer(folder, "optimizer", self.optimizer, self.tokenizer)
        if self.adversary is not None:
            _save_network(folder, "discriminator", self.adversary.state)
            _save_optimizer(folder, "discriminator_optimizer", self.adversary.optimizer, self.adversary.state)
        counters = {name: getattr(self, name) for name in _COUNTERS}
        versions = {"vqdm_cuda": __version__, "torch": torch.__version__}
        (folder / "state.json").write_text(json.dumps(counters | versions, indent=1))

    def load(self, folder: Path) -> None:
        """Takes all of it from a folder that `save` wrote."""
        self.ema.model.load_state_dict(ImageTokenizer.from_pretrained(folder / "model").state_dict())
        self.tokenizer.load_state_dict(_read(folder, "weights"))
        load_optimizer(self.optimizer, self.tokenizer, _read(folder, "optimizer"))
        if self.adversary is not None:
            self.adversary.state.load_state_dict(_read(folder, "discriminator"))
            load_optimizer(self.adversary.optimizer, self.adversary.state, _read(folder, "discriminator_optimizer"))
        counters = json.loads((folder / "state.json").read_text())
        for name in _COUNTERS:
            setattr(self, name, counters.get(name, getattr(self, name)))  # older checkpoints have no best step


def _save_network(folder: Path, name: str, network: nn.Module) -> None:
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")


def _save_optimizer(folder: Path, name: str, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    safetensors.torch.save_file(optimizer_tensors(optimizer, network), folder / f"{name}.safetensors")


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")
