"""The adversarial losses of the paper (section 3) and of the reference.

Logits have any shape; every loss is the mean over them, a float32 scalar.
"""

from typing import Any

from keras import ops

__all__ = ["discriminator_loss", "generator_loss"]


def discriminator_loss(real_logits: Any, fake_logits: Any, loss_type: str = "hinge") -> tuple[Any, Any]:
    """Returns the discriminator's losses on real and on generated images.

    hinge: `mean relu(1 - D(real))` and `mean relu(1 + D(fake))`; kl: softplus in place of the
    margin. Their sum is minimised.

    Args:
      real_logits: of any shape.
      fake_logits: of any shape.
      loss_type: hinge or kl.

    Raises:
      ValueError: if it is neither.
    """
    if loss_type == "hinge":
        return ops.mean(ops.relu(1.0 - real_logits)), ops.mean(ops.relu(1.0 + fake_logits))
    if loss_type == "kl":
        return ops.mean(ops.softplus(-real_logits)), ops.mean(ops.softplus(fake_logits))
    raise ValueError(f"loss_type must be hinge or kl, not {loss_type!r}")


def generator_loss(fake_logits: Any) -> Any:
    """Returns `-mean D(fake)`, the generator's loss in both cases."""
    return -ops.mean(fake_logits)
