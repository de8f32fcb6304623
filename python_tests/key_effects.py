"""For every key of a run's config: another value, settings beside which the key does something, and what it changes.

`{images}` and the like stand for files, which test_config_effects.py makes.
"""

from dataclasses import dataclass

__all__ = ["BASE", "EFFECTS", "PERCEPTUAL", "SINKHORN", "Effect"]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What must differ between a run of two steps with and without `KEY=value`.

    `changes` names what of the run: the trained "weights", their "average", the "tokens" that it makes, the "samples",
    the "stats", the "files", what it "said", or the "error" that ended it.
    """

    value: str
    context: tuple[str, ...] = ()  # settings of both runs, over BASE
    also: tuple[str, ...] = ()  # settings that the value asks for
    changes: str = "weights"


# Over tiny_run.TINY.
BASE = (
    *("data.path={images}", "data.image_size=16", "quantizer.scales=1,2,4", "model.base_channels=4"),
    *("model.norm_groups=2", "steps=2", "batch_size=2", "log_every=1", "sample_every=2", "num_samples=1"),
    *("checkpoint.save_every=2", "discriminator.num_layers=1", "discriminator.base_channels=4"),
)

SINGLE_SCALE = ("quantizer.scales=",)
NO_MATCHING = (*SINGLE_SCALE, "quantizer.wasserstein_weight=0")
OWN_START = (*NO_MATCHING, "quantizer.init_std=null")
GAUSSIAN = ("quantizer.target=gaussian", "quantizer.target_std=0.65", "quantizer.grad_to=features")
SINKHORN = (*NO_MATCHING, "quantizer.kind=sinkhorn")
EMA = (*NO_MATCHING, "quantizer.kind=ema")
ONLINE = (*NO_MATCHING, "quantizer.kind=online")
LINEAR = (*NO_MATCHING, "quantizer.kind=linear")
BITS = (*OWN_START, "quantizer.kind=lookup_free", "model.latent_channels=5", "quantizer.commitment_weight=0.25")
IBQ = (*NO_MATCHING, "quantizer.kind=index_backprop")
FSQ = (*OWN_START, "quantizer.kind=finite_scalar", "quantizer.codebook_size=1000", "quantizer.commitment_weight=0.25")

# The settings of network vqgan as they are where nothing is said, which is what other networks ask for.
NOT_VQGAN = (
    *("model.base_channels=160", "model.channel_multipliers=1,1,2,2,4", "model.num_res_blocks=2"),
    *("model.attention=true", "model.mid_attention=true", "model.norm_groups=32"),
)
SMALL = (*NOT_VQGAN, "model.network=small")
VIT_SIZES = (
    *("model.patch_size=4", "model.vit.width=8", "model.vit.depth=1", "model.vit.num_heads=2"),
    "model.vit.mlp_width=8",
)
VIT = (*NOT_VQGAN, "model.network=vit", *VIT_SIZES)

PERCEPTUAL = (
    *("data.image_size=32", "quantizer.scales=1,2,4,8", "losses.perceptual=1"),
    *("losses.perceptual_network=alex", "losses.perceptual_weights={alex}"),
)
GAME = ("adversarial.weight=0.5",)
LECAM = (*GAME, "adversarial.lecam=1")
AUGMENTED = (*GAME, "adversarial.augment=true")
# DINO sees 224 pixels whatever the image: one step of one image, of which the tokenizer hears nothing.
SEEN_ONCE = (
    *("adversarial.weight=0.5", "adversarial.warmup_steps=9", "steps=1", "batch_size=1"),
    *("data.image_size=32", "quantizer.scales=1,2,4,8"),
)
NOT_PATCH = ("discriminator.num_layers=3", "discriminator.base_channels=64")  # as where nothing is said
DINO = (*SEEN_ONCE, *NOT_PATCH, "discriminator.network=dino", "discriminator.weights={dino}")

SAVES = ("checkpoint.save_every=1",)
LARGE_LOSS = ("losses.l1=3e38", "losses.l2=3e38")  # infinite together
DECAYING = ("optimizer.schedule=step", "optimizer.decay_steps=1")

EFFECTS = {
    "data.path": Effect(value="{other}"),
    "data.eval_path": Effect(value="{other}", changes="samples"),
    "data.image_size": Effect(value="32", context=SINGLE_SCALE),
    "data.in_channels": Effect(value="1"),
    "data.min_scale": Effect(value="0.4"),
    "data.mirror": Effect(value="false"),
    "data.max_corrupt": Effect(value="1", context=("data.path={broken}",), changes="error"),
    "model.network": Effect(value="vit", context=SMALL, also=VIT_SIZES),
    "model.latent_channels": Effect(value="8"),
    "model.patch_size": Effect(value="2", context=SINGLE_SCALE),
    "model.base_channels": Effect(value="8"),
    "model.channel_multipliers": Effect(value="1,2,2"),
    "model.num_res_blocks": Effect(value="2"),
    "model.attention": Effect(value="true"),
    "model.mid_attention": Effect(value="true"),
    "model.dropout": Effect(value="0.5"),
    "model.norm_groups": Effect(value="4"),
    "model.latent_kernel_size": Effect(value="1"),
    "model.latent_patch_size": Effect(value="2", context=SINGLE_SCALE),
    "model.z_channels": Effect(value="8"),
    "model.spatial_norm": Effect(value="true"),
    "model.init_gain": Effect(value="0.5"),
    "model.residual_gain": Effect(value="0.5"),
    "model.vit.width": Effect(value="16", context=VIT),
    "model.vit.depth": Effect(value="2", context=VIT),
    "model.vit.num_heads": Effect(value="4", context=VIT),
    "model.vit.mlp_width": Effect(value="16", context=VIT),
    "quantizer.kind": Effect(value="normalized", context=OWN_START),
    "quantizer.codebook_size": Effect(value="64"),
    "quantizer.init": Effect(value="kmeans", context=OWN_START),
    "quantizer.table": Effect(value="{table}", context=OWN_START),
    "quantizer.init_std": Effect(value="0.3"),
    "quantizer.init_bound": Effect(value="0.3", context=OWN_START),
    "quantizer.freeze_codebook": Effect(
        value="true", context=("quantizer.codebook_weight=0", "quantizer.grad_to=features"), changes="said"
    ),
    "quantizer.commitment_weight": Effect(value="1"),
    "quantizer.codebook_weight": Effect(value="0.1"),
    "quantizer.gradient": Effect(value="rotation"),
    "quantizer.wasserstein_weight": Effect(value="0.1"),
    "quantizer.grad_to": Effect(value="both"),
    "quantizer.squared": Effect(value="true"),
    "quantizer.target": Effect(value="rate_distortion"),
    "quantizer.target_std": Effect(value="2", context=GAUSSIAN),
    "quantizer.unbiased": Effect(value="true"),
    "quantizer.normalize": Effect(value="features"),
    "quantizer.cov_scale": Effect(value="10"),
    "quantizer.tau": Effect(value="1"),
    "quantizer.queue_size": Effect(value="100"),
    "quantizer.ema.decay": Effect(value="0.5", context=EMA),
    "quantizer.ema.smoothing": Effect(value="1", context=EMA),
    "quantizer.ema.revive_below": Effect(value="2", context=EMA),
    "quantizer.online.decay": Effect(value="0.5", context=ONLINE),
    "quantizer.online.anchors": Effect(value="closest", context=ONLINE),
    "quantizer.linear.table_dim": Effect(value="8", context=LINEAR),
    "quantizer.linear.bias": Effect(value="false", context=LINEAR),
    "quantizer.sinkhorn.eps": Effect(value="1", context=SINKHORN),
    "quantizer.sinkhorn.num_iters": Effect(value="1", context=SINKHORN),
    "quantizer.sinkhorn.cost": Effect(value="sqeuclidean", context=SINKHORN),
    "quantizer.sinkhorn.normalize": Effect(value="dim", context=SINKHORN),
    "quantizer.sinkhorn.floor": Effect(value="1", context=SINKHORN),
    "quantizer.sinkhorn.sample": Effect(value="true", context=SINKHORN),
    "quantizer.sinkhorn.sinkhorn_at_evaluation": Effect(
        value="true", context=(*SINKHORN, "eval_every=2"), changes="stats"
    ),
    "quantizer.sinkhorn.linear_map": Effect(value="false", context=SINKHORN),
    "quantizer.sinkhorn.loss_form": Effect(value="ce", context=SINKHORN),
    "quantizer.sinkhorn.start_step": Effect(value="1", context=SINKHORN),
    "quantizer.finite_scalar.levels": Effect(value="5,8,5,5", context=FSQ),
    "quantizer.lookup_free.bit_order": Effect(value="big", context=BITS, changes="tokens"),
    "quantizer.lookup_free.entropy_weight": Effect(value="1", context=BITS),
    "quantizer.lookup_free.diversity_weight": Effect(value="3", context=BITS),
    "quantizer.lookup_free.temperature": Effect(value="1", context=BITS),
    "quantizer.index_backprop.entropy_weight": Effect(value="1", context=IBQ),
    "quantizer.index_backprop.temperature": Effect(value="1", context=IBQ),
    "quantizer.num_heads": Effect(value="2", context=SINGLE_SCALE),
    "quantizer.residual_depth": Effect(value="2", context=SINGLE_SCALE),
    "quantizer.scales": Effect(value="1,4"),
    "quantizer.phi_kernel_size": Effect(value="1"),
    "quantizer.phi_ratio": Effect(value="0.1"),
    "quantizer.num_phi": Effect(value="2"),
    "quantizer.matching": Effect(value="per_scale"),
    "quantizer.scale_weights": Effect(value="1,2,3"),
    "losses.l1": Effect(value="1"),
    "losses.l2": Effect(value="0.1"),
    "losses.perceptual": Effect(value="0", context=PERCEPTUAL),
    "losses.perceptual_network": Effect(value="vgg", context=PERCEPTUAL, also=("losses.perceptual_weights={vgg}",)),
    "losses.perceptual_weights": Effect(value="{alex2}", context=PERCEPTUAL),
    "optimizer.schedule": Effect(value="constant"),
    "optimizer.warmup_steps": Effect(value="5"),
    "optimizer.final_lr_ratio": Effect(value="0.9"),
    "optimizer.decay_steps": Effect(value="5", context=DECAYING),
    "optimizer.decay_factor": Effect(value="0.9", context=DECAYING),
    "optimizer.lr": Effect(value="1e-3"),
    "optimizer.codebook_lr": Effect(value="1e-3"),
    "optimizer.betas": Effect(value="0.5,0.5"),
    "optimizer.eps": Effect(value="1e-3"),
    "optimizer.weight_decay": Effect(value="0.5"),
    "optimizer.grad_clip": Effect(value="0.01"),
    "optimizer.clip_together": Effect(value="true", context=("optimizer.grad_clip=0.01",)),
    "adversarial.weight": Effect(value="1", context=GAME),
    "adversarial.form": Effect(value="non_saturating", context=GAME),
    "adversarial.start_step": Effect(value="1", context=GAME),
    "adversarial.warmup_steps": Effect(value="1", context=GAME),
    "adversarial.ramp_steps": Effect(value="4", context=GAME),
    "adversarial.adaptive": Effect(value="false", context=GAME),
    "adversarial.adaptive_eps": Effect(value="1", context=GAME),
    "adversarial.adaptive_min": Effect(value="1e3", context=GAME),
    "adversarial.adaptive_max": Effect(value="1e-3", context=GAME),
    "adversarial.lecam": Effect(value="1", context=GAME),
    "adversarial.lecam_decay": Effect(value="0.1", context=LECAM),
    "adversarial.augment": Effect(value="true", context=GAME),
    "adversarial.consistency": Effect(value="1", context=AUGMENTED),
    "discriminator.network": Effect(
        value="dino", context=(*SEEN_ONCE, *NOT_PATCH), also=("discriminator.weights={dino}",)
    ),
    "discriminator.norm": Effect(value="batch", context=GAME),
    "discriminator.num_layers": Effect(value="2", context=GAME),
    "discriminator.base_channels": Effect(value="8", context=GAME),
    "discriminator.weights": Effect(value="{dino2}", context=DINO),
    "discriminator_optimizer.lr": Effect(value="1e-2", context=GAME),
    "discriminator_optimizer.betas": Effect(value="0,0.1", context=GAME),
    "discriminator_optimizer.eps": Effect(value="1", context=GAME),
    "discriminator_optimizer.weight_decay": Effect(value="0.5", context=GAME),
    "discriminator_optimizer.grad_clip": Effect(value="0.01", context=GAME),
    "checkpoint.save_every": Effect(value="1", changes="files"),
    "checkpoint.keep_last": Effect(value="1", context=SAVES, changes="files"),
    "tracking.usage_alarm": Effect(value="1", context=("steps=3", "quantizer.codebook_size=512"), changes="said"),
    "steps": Effect(value="3"),
    "batch_size": Effect(value="4"),
    "accumulate": Effect(value="2"),
    "seed": Effect(value="1"),
    "precision": Effect(value="bfloat16"),
    "ema_decay": Effect(value="0.01", changes="average"),
    "max_skipped_steps": Effect(value="1", context=LARGE_LOSS, changes="error"),
    "log_every": Effect(value="2", changes="stats"),
    "sample_every": Effect(value="1", changes="files"),
    "num_samples": Effect(value="2", changes="samples"),
    "eval_every": Effect(value="1", changes="stats"),
}
