"""Signs of trouble in a training, each a sentence with advice.

The limits are ours: they are crossed by runs that have gone wrong, and far from those that go well.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["Diagnosis", "deviation_over_z"]

# Mean hinge or kl loss of the discriminator, on real and on generated images, below which it has nothing left to learn.
SATURATED_LOSS = 1e-3
# Deviation over z, divided by that of real images. Small runs that ended below the first drew one image for every z; those
# from the second on were as they should be.
COLLAPSED_DIVERSITY, HEALTHY_DIVERSITY = 0.25, 0.5
# Grids before this step do not count: a generator that has learnt nothing yet makes images that are all alike.
COLLAPSE_STEPS = 1000
# Steps after which gamma must have moved: Adam moves it by a learning rate at every one.
GAMMA_STEPS = 100
# Evaluations in a row whose FID is above the one before.
FID_RISES = 3


def deviation_over_z(images: np.ndarray, labels: np.ndarray) -> float:
    """Returns how much images of one class differ: the standard deviation of a pixel within a class, pooled over all.

    It is the root of the unbiased variance, so that few images of a class and many can be compared.

    Args:
      images: `[N, H, W, 3]` in [-1, 1].
      labels: `[N]`.

    Returns:
      The deviation, in the images' range of 2. NaN if no class has two images.
    """
    classes = np.unique(labels)
    if len(classes) == len(labels):
        return float("nan")
    squares = sum(np.square(of_class - of_class.mean(axis=0)).sum() for of_class in (images[labels == label] for label in classes))
    return float(np.sqrt(squares / images[0].size / (len(labels) - len(classes))))


class Diagnosis:
    """Finds signs of trouble; each kind is told once per process.

    Attributes:
      collapsed: whether samples of a class have been nearly one image for two grids in a row.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._last: tuple[int, float] | None = None  # Step and diversity of the grid before.
        self.collapsed = False

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

    def of_samples(self, step: int, diversity: float, healthy: int | None) -> list[str]:
        """Looks at the diversity of a grid of samples, and at that of the grid before.

        Args:
          step: of the grid.
          diversity: `deviation_over_z` of the samples, divided by that of real images; NaN: not known.
          healthy: the last checkpoint from which the samples were varied; None: there is none.
        """
        before, self._last = self._last, (step, diversity) if step >= COLLAPSE_STEPS else None
        self.collapsed = before is not None and before[1] < COLLAPSED_DIVERSITY and diversity < COLLAPSED_DIVERSITY
        if not self.collapsed or before is None:
            return []
        kept = "No checkpoint is from before that."
        if healthy is not None:
            kept = f"The checkpoint of step {healthy} is from before: it is kept."
        return self._once(
            "collapse",
            True,
            f"The samples of a class are nearly alike: diversity {before[1]:.2f} at step {before[0]} and {diversity:.2f} at step "
            f"{step} (1: as varied as the real images; 0: one image). The generator ignores z, which seldom mends itself. {kept} "
            "Start again with lower learning rates or another seed.",
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
