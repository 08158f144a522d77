"""The paper's tables of the two networks, as data: what blocks they have, how wide, at which resolution."""

__all__ = ["DISCRIMINATOR", "GENERATOR", "IMAGE_SIZES", "attention_places"]

# (resolution after the block, width in multiples of gf_dim); the first row is the dense layer.
# 128 is the paper's; the others are the field's (SNGAN for 32, BigGAN's progression for 256).
GENERATOR = {
    32: ((4, 4), (8, 4), (16, 4), (32, 4)),
    64: ((4, 16), (8, 8), (16, 4), (32, 2), (64, 1)),
    128: ((4, 16), (8, 16), (16, 8), (32, 4), (64, 2), (128, 1)),
    256: ((4, 16), (8, 16), (16, 8), (32, 8), (64, 4), (128, 2), (256, 1)),
}

# (resolution after the block, width in multiples of df_dim); a row that repeats the resolution
# before it does not pool.
DISCRIMINATOR = {
    32: ((16, 2), (8, 2), (8, 2), (8, 2)),
    64: ((32, 1), (16, 2), (8, 4), (4, 8), (4, 16)),
    128: ((64, 1), (32, 2), (16, 4), (8, 8), (4, 16), (4, 16)),
    256: ((128, 1), (64, 2), (32, 4), (16, 8), (8, 8), (4, 16), (4, 16)),
}

# Height and width of the images for which there are tables, in pixels.
IMAGE_SIZES = tuple(GENERATOR)


def attention_places(image_size: int) -> tuple[int, ...]:
    """Returns the resolutions at which the attention block can stand: those after a block of both networks.

    Args:
      image_size: one of `IMAGE_SIZES`; any other has no such place.
    """
    generator, discriminator = dict(GENERATOR.get(image_size, ())[1:]), dict(DISCRIMINATOR.get(image_size, ()))
    return tuple(resolution for resolution in generator if resolution in discriminator)
