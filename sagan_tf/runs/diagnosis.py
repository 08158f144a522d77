"""Signs of trouble in a training, each a sentence with advice.

The limits are ours: they are crossed by runs that have gone wrong, and far from those that go well.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["Diagnosis", "deviation_over_z"]

# Mean hinge or kl loss of the discriminator, on real and on generated images, below which it has nothing left to learn.
SATURATED_LOSS = 1e-3
# Standard deviation over z, in the images' range of 2, below which samples of a class are one image.
COLLAPSED_DEVIATION = 0.02
# Steps after which gamma must have moved: Adam moves it by a learning rate at every one.
GAMMA_STEPS = 100
# Evaluations in a row whose FID is above the one before.
FID_RISES = 3


def deviation_over_z(images: np.ndarray, labels: np.ndarray) -> float:
    """Returns how much samples of one class differ: the root mean square deviation from their class' mean image.

    Args:
      images: `[N, H, W, 3]` in [-1, 1], several of each class.
      labels: `[N]`.
    """
    squares = [np.mean(np.var(images[labels == label], axis=0)) for label in np.unique(labels)]
    return float(np.sqrt(np.mean(squares)))


class Diagnosis:
    """Finds signs of trouble; each kind is told once per process."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def _once(self, kind: str, found: bool, sentence: str) -> list[str]:
        if not found or kind in self._told:
            return []
        self._told.add(kind)
        return [sentence]

    def of_metrics(self, step: int, means: Mapping[str, float], gammas: Mapping[str, float]) -> list[str]:
        """Looks at means of `training.METRICS` over some steps, and at the gammas, by network."""
        found = []
        for network, gamma in gammas.items():
            found += self._once(
                f"gamma of the {network}",
                step >= GAMMA_STEPS and gamma == 0,
                f"gamma of the {network} is still exactly 0 at step {step}: its attention block does nothing and is not being "
                "trained. See that nothing has frozen the layer.",
            )
        found += self._once(
            "saturation",
            max(means["discriminator_loss_real"], means["discriminator_loss_fake"]) < SATURATED_LOSS,
            f"The discriminator tells all images apart with certainty at step {step} (logits {means['logits_real']:.1f} and "
            f"{means['logits_fake']:.1f}) and has stopped learning. Lower --discriminator_learning_rate, or train on more images.",
        )
        return found

    def of_samples(self, step: int, deviation: float) -> list[str]:
        """Looks at `deviation_over_z` of a grid of samples."""
        return self._once(
            "collapse",
            deviation < COLLAPSED_DEVIATION,
            f"The samples of a class are all alike at step {step} (deviation over z: {deviation:.4f}): the generator ignores z. "
            "That seldom mends itself: go back to an earlier checkpoint, or start again with lower learning rates.",
        )

    def of_fids(self, step: int, fids: Sequence[float]) -> list[str]:
        """Looks at the FIDs of all evaluations so far, oldest first."""
        last = fids[-FID_RISES - 1 :]
        return self._once(
            "fid",
            len(last) > FID_RISES and all(b > a for a, b in itertools.pairwise(last)),
            f"FID has risen {FID_RISES} times in a row, to {fids[-1]:.1f} at step {step} (lowest: {min(fids):.1f}): the best "
            "checkpoint is kept, and training on may only make it worse.",
        )
