"""Networks whose weights come from a file and stay as they are."""

from typing import Any

from torch import Tensor, nn

__all__ = ["Frozen"]


class Frozen(nn.Module):
    """A module that never trains: no gradient on its weights, always in evaluation mode, and in no state dict, as a
    checkpoint need not hold what its file holds. Call `freeze` when it is complete."""

    def freeze(self) -> None:
        self.requires_grad_(False).eval()
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_stand_in)

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


def _leave_out(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _stand_in(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The module's own weights take the place of those that the state to load has not."""
    own = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, value in own:
        state[prefix + name] = value.detach()
