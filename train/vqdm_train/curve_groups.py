"""What the keys of stats.jsonl belong to: the order in which a report shows them, and the folders of a tracker."""

import re

__all__ = ["GROUPS", "group_of", "part_of"]

_KEYS = {
    "overview": ("loss", "psnr_rgb", "utilization", "perplexity"),
    "discriminator": ("discriminator", "lecam", "consistency", "logits_real", "logits_fake", "adaptive_weight"),
    "gradients": ("gradient", "codebook_gradient", "discriminator_gradient"),
    "speed": ("lr", "images_per_second", "data_wait", "data_wait_share", "tokens", "peak_memory_gib"),
}
GROUPS = ("overview", "held_out", "losses", "discriminator", "gradients", "codes", "speed")
_PART = re.compile(r"(utilization|perplexity)_(scale|head|depth)_(\d+(?:x\d+)?)")


def group_of(key: str) -> str:
    """The group of a key; one that no group names is a term of the loss."""
    if part_of(key):
        return "codes"
    if key.startswith("eval_"):
        return "held_out"
    return next((group for group, keys in _KEYS.items() if key in keys), "losses")


def part_of(key: str) -> tuple[str, str, str] | None:
    """("utilization", "scale", "4") of utilization_scale_4; None of a key of the whole quantizer."""
    match = _PART.fullmatch(key)
    return (match[1], match[2], match[3]) if match else None
