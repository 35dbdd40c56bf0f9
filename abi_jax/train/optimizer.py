"""The optimizer that a configuration describes."""

import optax

from abi_jax.train.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the configured decay over the rest of `steps`."""
    c = config
    warmup = min(c.warmup_steps, steps // 2)
    rest = max(steps - warmup, 1)
    decay: optax.Schedule
    match c.schedule:
        case "cosine":
            decay = optax.cosine_decay_schedule(c.learning_rate, rest, c.final_fraction)
        case "linear":
            decay = optax.linear_schedule(c.learning_rate, c.learning_rate * c.final_fraction, rest)
        case "constant":
            decay = optax.constant_schedule(c.learning_rate)
    return optax.join_schedules([optax.linear_schedule(0.0, c.learning_rate, max(warmup, 1)), decay], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Adafactor. Only matrices decay."""
    schedule = make_schedule(config, steps)

    def matrices(params: optax.Params) -> optax.Params:
        import jax

        return jax.tree.map(lambda x: x.ndim > 1, params)

    match config.kind:
        case "adamw":
            inner = optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=matrices)
        case "adafactor":
            inner = optax.adafactor(schedule, weight_decay_rate=config.weight_decay or None, weight_decay_mask=matrices)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)
