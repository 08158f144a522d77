"""Every flagfile is an experiment that can begin: it says what it is, its settings are possible, and it makes a step."""

import dataclasses
import functools
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from sagan_tf import networks
from sagan_tf.commands import cli
from sagan_tf.config import Config, expand_flagfile
from sagan_tf.layers import ResidualBlock, SelfAttention
from sagan_tf.training import Trainer

FLAGS_DIR = pathlib.Path(__file__).parent.parent / "flags"
FILES = sorted(str(path.relative_to(FLAGS_DIR)) for path in FLAGS_DIR.rglob("*") if path.is_file())
BASES = [name for name in FILES if name.endswith("/base.cfg")]
ARMS = [name for name in FILES if name.startswith(("paper/", "study/")) and name not in BASES]
EXPERIMENTS = [name for name in FILES if "/" not in name] + ARMS
POSITIONS = (8, 16, 32, 64)


def settings(name):
    """Returns the settings that a flagfile names, read as the commands read it."""
    values = flags.FlagValues()
    cli.define_config_flags(values)
    rest = values(["test", *expand_flagfile(str(FLAGS_DIR / name))])
    assert rest == ["test"]
    return cli.given_settings(values)


def config(name):
    return Config(**settings(name))


def header(name):
    text = (FLAGS_DIR / name).read_text(encoding="utf-8")
    return " ".join(line.removeprefix("#").strip() for line in re.match(r"(#.*\n)+", text).group().splitlines())


def classes(config):
    return 6 if config.num_classes < 0 else config.num_classes


def networks_of(config):
    """Returns the generator and the discriminator; files whose networks are the same share them."""
    names = {field.name for field in dataclasses.fields(Config) if field.metadata["group"] == "Networks"}
    settings = {name: getattr(config, name) for name in names | {"image_size"}}
    return built(Config(**settings, num_classes=classes(config)))


@functools.cache
def built(config):
    return networks.generator(config), networks.discriminator(config)


@functools.cache
def stepped(miniature):
    """Returns the trainer after both updates on random images."""
    trainer = Trainer(miniature)
    rng = np.random.default_rng(0)
    batch, size = miniature.batch_size, miniature.image_size
    labels = tf.constant(rng.integers(0, max(miniature.num_classes, 1), batch), tf.int32)
    images = tf.constant(rng.choice([-1.0, 1.0], (batch, size, size, 3)), tf.float32)
    z = tf.constant(rng.normal(size=(batch, miniature.z_dim)), tf.float32)
    before = [v.numpy() for v in trainer.generator.trainable_variables + trainer.discriminator.trainable_variables]
    metrics = trainer.update_generator(z, labels) | trainer.update_discriminator(images, labels, z, labels)
    after = [v.numpy() for v in trainer.generator.trainable_variables + trainer.discriminator.trainable_variables]
    return trainer, metrics, before, after


def shrunk(config):
    """Returns the configuration with the same options, and all widths alike small."""
    return config.replace(
        # What a step does not read, so that files that differ in nothing else share theirs.
        **{field.name: field.default for field in dataclasses.fields(Config) if field.metadata["free"]}
        | {"gf_dim": 1, "df_dim": 1, "z_dim": 4, "batch_size": 2, "accumulation_steps": min(config.accumulation_steps, 2)}
        | {"num_classes": min(classes(config), 6), "batch_norm_decay": config.batch_norm_decay}
    )


class HeaderTest:
    @pytest.mark.parametrize("name", FILES)
    def test_says_command_hardware_and_whether_it_was_run(self, name):
        text = header(name)
        assert name.endswith(".cfg")
        assert "Command" in text
        assert f"flags/{name}" in text
        assert "Hardware" in text
        assert re.search(r"not trained here|Not run by us|Run by us|measured, seed|Runs made", text)

    @pytest.mark.parametrize("name", [name for name in ARMS if name.startswith("paper/")])
    def test_paper_cells_say_what_the_paper_got_and_what_it_costs(self, name):
        text = header(name)
        assert re.search(r"Paper: (FID [\d.]+, IS [\d.]+|IS [\d.]+, intra-FID|no number)", text)
        assert "sagan-records" in text
        assert "sagan-evaluate" in text
        gflop, images, steps, total = re.search(
            r"([\d.]+) GFLOP .* x (\d+) images x ([\d,]+) steps = ([\d.e]+) FLOP", text
        ).groups()
        assert float(total) == pytest.approx(float(gflop) * 1e9 * int(images) * int(steps.replace(",", "")), rel=0.03)


class SettingsTest:
    @pytest.mark.parametrize("name", FILES)
    def test_are_possible(self, name):
        found = settings(name)
        assert found
        # Where a block stands is for the arms to say, not for their base or the scale.
        place = {"attention_resolution": 0} if name not in EXPERIMENTS else {}
        assert not place.keys() & found.keys()
        Config(**found, **place)

    @pytest.mark.parametrize("name", ARMS)
    def test_holds_its_differences_from_the_base_alone(self, name):
        lines = [line for line in (FLAGS_DIR / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert lines[0] == "--flagfile=base.cfg"
        base, found = settings(f"{pathlib.Path(name).parent}/base.cfg"), settings(name)
        named = {line.removeprefix("--").removeprefix("no").partition("=")[0] for line in lines[1:]} & found.keys()
        assert named == {key for key in found if base.get(key) != found[key]}

    @pytest.mark.parametrize("name", ARMS)
    def test_name_says_which_arm_it_is(self, name):
        arm, found = pathlib.Path(name).stem, config(name)
        block, _, position = arm.removesuffix("_unpooled").partition("_")
        if block in ("attention", "residual"):
            assert (found.attention_block, found.attention_resolution) == (block, int(position))
        assert found.attention_pooling == (not arm.endswith("_unpooled"))
        assert found.generator_spectral_norm == (arm != "baseline")
        equal = found.generator_learning_rate == found.discriminator_learning_rate
        assert equal == (arm in ("baseline", "sn_gd"))

    @pytest.mark.parametrize("suite", ["paper", "study"])
    def test_arms_of_a_suite_differ_in_nothing_else(self, suite):
        may_differ = {"attention_resolution", "attention_block", "attention_pooling", "generator_spectral_norm"}
        may_differ |= {"generator_learning_rate", "discriminator_learning_rate", "eval_every_steps"}
        arms = [dataclasses.asdict(config(name)) for name in ARMS if name.startswith(f"{suite}/")]
        assert len(arms) >= 9
        for arm in arms:
            assert {key for key in arm if arm[key] != arms[0][key]} <= may_differ


class StepTest:
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_makes_a_step(self, name):
        miniature = shrunk(config(name))
        trainer, metrics, before, after = stepped(miniature)
        for value in metrics.values():
            assert np.isfinite(value.numpy())
        assert all(np.isfinite(value).all() for value in after)
        # Of the attention block only gamma moves while it is 0; the conditional tables move where labels fall.
        moved = [not np.array_equal(old, new) for old, new in zip(before, after, strict=True)]
        assert np.mean(moved) > 0.5
        kind = {"attention": SelfAttention, "residual": ResidualBlock}[miniature.attention_block]
        for model in (trainer.generator, trainer.discriminator):
            blocks = [layer for layer in model.layers if isinstance(layer, (SelfAttention, ResidualBlock))]
            assert [type(block) for block in blocks] == ([kind] if miniature.attention_resolution else [])
            for block in blocks:
                assert block.output.shape[1] == miniature.attention_resolution

    @pytest.mark.parametrize("name", [name for name in EXPERIMENTS if config(name).image_size < 128])
    def test_networks_of_real_widths_make_images(self, name):
        c = config(name)
        generator, discriminator = networks_of(c)
        assert generator.output_shape == (None, c.image_size, c.image_size, 3)
        assert discriminator.output_shape == (None, 1)


class ResidualControlTest:
    """Table 1 compares blocks "with the same number of parameters"."""

    @pytest.fixture(scope="class")
    def widths(self):
        """Returns the channels after each resolution of the networks of `paper/none.cfg`, generator and discriminator."""
        found = []
        for model in networks_of(config("paper/none.cfg")):
            shapes = [layer.output.shape for layer in model.layers if layer.name.startswith("block_")]
            found.append({shape[1]: shape[3] for shape in reversed(shapes)})  # The first to reach a resolution.
        return found

    @pytest.mark.parametrize("position", POSITIONS)
    def test_weights_are_those_of_attention_but_for_13_percent(self, widths, position):
        for channels in (network[position] for network in widths):
            counts = []
            for block in (SelfAttention(), ResidualBlock()):
                block.build((None, position, position, channels))
                counts.append(sum(int(np.prod(v.shape)) for v in block.trainable_variables))
            attention, residual = counts
            assert attention == 5 * channels**2 // 4 + 1
            assert residual == pytest.approx(attention, rel=0.13)
